# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The instance record, the one description of a VM, and the files that belong to it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress, tap_name
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.naming import is_name
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, State, write_json

if TYPE_CHECKING:
    import contextlib
    from pathlib import Path

SCHEMA = 1
"""Version of the record; fields are only ever added."""


@dataclass(frozen=True)
class GitShare:
    """What of a worktree's git data its guest gets, decided when the VM is made.

    Attributes:
        mode: ``protected``, ``isolated`` or ``none``.
        kind: What the worktree is to git: a ``Kind`` of ``git_layout``.
        git_dir: The directory with the worktree's HEAD and index on the host.
        common_dir: The directory with objects, refs and config.
        user_name: The name of the guest's commits.
        user_email: The address of the guest's commits.
    """

    mode: str = "none"
    kind: str = "none"
    git_dir: str = ""
    common_dir: str = ""
    user_name: str = ""
    user_email: str = ""


FILE = "file"
PROXY = "proxy"
KEY_MODES = (FILE, PROXY)
"""How a VM comes to API keys: it reads them, or the host puts them into its requests."""


@dataclass(frozen=True)
class Keys:
    """How a VM comes to the API keys of its secrets profile.

    Attributes:
        mode: One of `KEY_MODES`.
        revoked: Whether the host does so no more.
        daily_requests: How many requests a day it may make, or 0.
        daily_tokens: How many tokens a day they may take, or 0.
    """

    mode: str = FILE
    revoked: bool = False
    daily_requests: int = 0
    daily_tokens: int = 0


def _known(kind: Any, data: dict[str, Any]) -> Any:  # noqa: ANN401 - one of the parts of a record
    """Build a part of a record, passing over fields of a later version."""
    return kind(**{each.name: data[each.name] for each in dataclasses.fields(kind) if each.name in data})


@dataclass(frozen=True)
class Instance:
    """A VM as it was asked for. libvirt knows what runs; everything else is here."""

    schema: int
    name: str
    uuid: str
    mac: str
    worktree: str
    created: str
    memory_mib: int
    vcpus: int
    disk_gib: int
    bridge: str
    guest_user: str
    uid: int
    authorized_keys: list[str]
    generation: str
    virt_type: str
    libvirt_uri: str
    git: GitShare = GitShare()
    secrets_profile: str = DEFAULT_PROFILE
    egress: Egress = field(default_factory=Egress)
    keys: Keys = field(default_factory=Keys)
    ssh_port: int = 0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Instance:
        """Build a record, passing over fields of a later version.

        Raises:
            KeyError: A field is missing.
        """
        parts = {"git": GitShare, "egress": Egress, "keys": Keys}
        later = {*parts, "secrets_profile", "ssh_port"}
        values = {each.name: data[each.name] for each in dataclasses.fields(cls) if each.name not in later}
        # A record of the time before there was such a part, or profiles, has none.
        values.update({name: _known(kind, data.get(name, {})) for name, kind in parts.items()})
        profile = data.get("secrets_profile", DEFAULT_PROFILE)
        return cls(**values, secrets_profile=profile, ssh_port=int(data.get("ssh_port", 0)))

    @property
    def is_session(self) -> bool:
        """Tell whether the VM runs under the user's own libvirt, and so is reached at `ssh_port` of the host's loopback."""
        return is_session(self.libvirt_uri)

    @property
    def tap(self) -> str:
        """Name the host's end of the VM's network card."""
        return tap_name(self.uuid)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return dataclasses.asdict(self)


START_LOCK_SECONDS = 1200.0
"""How long to wait for another start of the same VM: more than an emulated fork may take with its turn, see ``IDENTITY_SECONDS``
and ``WAIT_SECONDS``."""

RENDERED = "vmw-identity"
"""Name of the file in the seed that has the user data as the golden image's own program reads it."""


@dataclass(frozen=True)
class InstanceFiles:
    """The directory of one VM and the files in it."""

    state: State
    name: str

    @property
    def directory(self) -> Path:
        """Hold everything of this VM on the host."""
        return self.state.instances / self.name

    @property
    def record(self) -> Path:
        """Hold the instance record."""
        return self.directory / "instance.json"

    @property
    def disk(self) -> Path:
        """Hold the VM's own blocks, an overlay over its generation's disk."""
        return self.directory / "disk.qcow2"

    @property
    def seed(self) -> Path:
        """Hold the NoCloud seed."""
        return self.directory / "cloud-init.iso"

    @property
    def seed_sources(self) -> Path:
        """Hold what the seed was made from, for people to read."""
        return self.directory / "cloud-init"

    @property
    def domain(self) -> Path:
        """Hold the domain's definition as handed to libvirt."""
        return self.directory / "domain.xml"

    @property
    def console(self) -> Path:
        """Hold what the guest printed on its serial console."""
        return self.directory / "console.log"

    @property
    def git_dir(self) -> Path:
        """Hold the guest's own HEAD and index, and in isolated mode its objects. Hostile: no git of the host runs in it."""
        return self.directory / "git"

    @property
    def git_masks(self) -> Path:
        """Hold what the guest sees in place of some of git's files."""
        return self.directory / "git-masks"

    @property
    def guest_secrets(self) -> Path:
        """Hold what the guest sees in place of the keys that stay on the host."""
        return self.directory / "guest-secrets"

    @property
    def usage(self) -> Path:
        """Count, by day, the requests into which the host has put a key."""
        return self.directory / "usage.json"

    @property
    def refused(self) -> Path:
        """List the names of hosts that the proxy has refused."""
        return self.directory / "refused.json"

    @property
    def host_key(self) -> Path:
        """Hold the guest's SSH host key, made on the host so that it can be pinned."""
        return self.directory / "ssh_host_ed25519_key"

    @property
    def known_hosts(self) -> Path:
        """Pin the guest's SSH host key under the VM's name."""
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """Hold a stanza that a user's own SSH configuration can include."""
        return self.directory / "ssh_config"

    @property
    def fingerprint(self) -> Path:
        """Hold what the worktree was like before the guest had it."""
        return self.directory / "fingerprint.json"

    @property
    def memory(self) -> Path:
        """Hold the memory that a fork begins with, until libvirt has loaded it."""
        return self.directory / "memory"

    @property
    def fork(self) -> Path:
        """Tell, while it is there, how far the VM has come on its way from a template: a ``Progress`` of ``fork``."""
        return self.directory / "fork.json"

    @property
    def leaving(self) -> Path:
        """Say, while it is there, that the VM is being removed."""
        return self.directory / "leaving"

    @property
    def lock_name(self) -> str:
        """Name the lock on what is made of this VM, apart from the locks that are no VM's."""
        return f"vm-{self.name}"

    def start_lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the lock on starting this VM, which is held as well while a template's memory is loaded in the background.

        Raises:
            VmwError: Somebody else holds it for longer than a start takes.
        """
        return self.state.lock(f"start-{self.name}", START_LOCK_SECONDS)

    def made_here(self, file: str) -> bool:
        """Tell whether a name in the directory is one of ours: a file of this VM, one on the way to be, or a log's older part."""
        own = (
            *(self.record, self.disk, self.seed, self.seed_sources, self.domain, self.console, self.host_key),
            *(self.known_hosts, self.ssh_config, self.fingerprint, self.leaving, self.git_dir, self.git_masks),
            *(self.memory, self.fork, self.guest_secrets, self.usage, self.refused),
        )
        stems = {path.name for path in own} | {self.disk.stem, self.seed.stem}
        return any(file == stem or file.startswith((f"{stem}.", f".{stem}.")) for stem in stems)

    def exists(self) -> bool:
        """Tell whether a record is there."""
        return self.record.is_file()

    def load(self) -> Instance:
        """Read the record of a VM that is to be used.

        Raises:
            VmwError: There is no such VM, its record cannot be read, or it is being removed.
        """
        if self.leaving.exists():
            message = f"{self.name} is being removed, or was left half removed"
            raise VmwError(message, f"`vmw destroy {self.name}` finishes it", "conflict")
        return self.read()

    def read(self) -> Instance:
        """Read the record, also of a VM that is being removed.

        Raises:
            VmwError: There is no such VM, or its record cannot be read.
        """
        try:
            return Instance.from_dict(json.loads(self.record.read_text()))
        except FileNotFoundError as error:
            message = f"there is no VM named {self.name!r}"
            raise VmwError(message, "`vmw list` shows what there is", "not_found") from error
        except (ValueError, KeyError, TypeError) as error:
            message = f"the record {self.record} cannot be read: {error}"
            raise VmwError(message, f"`vmw destroy {self.name}` removes what is left of this VM") from error

    def check_complete(self, instance: Instance) -> None:
        """See that a VM has what it starts from.

        Raises:
            VmwError: It was never finished, or is half removed.
        """
        needed = (self.disk, self.seed, self.host_key.with_suffix(".pub"))
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            message = f"VM {self.name!r} was never finished, or is half removed: it lacks {', '.join(missing)}"
            again = f"vmw spawn {shlex.quote(instance.worktree)} --name {self.name}"
            raise VmwError(message, f"`{again}` completes it, `vmw destroy {self.name}` removes what is left of it")

    def save(self, instance: Instance) -> None:
        """Write the record, complete or not at all."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(self.record, instance.as_dict(), 0o600)


def files_of(state_dir: str, name: str) -> InstanceFiles:
    """Return the files of the VM ``name``.

    Raises:
        VmwError: ``name`` could not be a VM's, so that it never leads out of the instances' directory.
    """
    if not is_name(name):
        message = f"there is no VM named {name!r}"
        raise VmwError(message, "`vmw list` shows what there is", "not_found")
    return InstanceFiles(State.at(state_dir), name)


def _readable(files: InstanceFiles) -> Instance | None:
    try:
        return files.read()
    except VmwError:
        return None


def all_instances(state: State) -> list[Instance]:
    """Return every readable record, by name; a broken one is passed over, for `destroy` to clean."""
    records = sorted(state.instances.glob("*/instance.json"))
    found = (_readable(InstanceFiles(state, record.parent.name)) for record in records)
    return [instance for instance in found if instance is not None]
