"""What `vmw list` and `vmw image list` show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import GitLayout, Kind, branch
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import has_own_git_dir
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

from vmw.errors import VmwError
from vmw.services import records, virsh

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

    from vmw.services.records import Recorded
    from vmw.settings import Settings

SCHEMA = 1
BRANCH_LENGTH = 60
"""Characters of a branch's name that are shown; a hostile one would push everything else off the screen."""

BLOCK_BYTES = 512
"""Unit of `st_blocks`, see stat(2)."""


@dataclass(frozen=True)
class Row:
    """One VM. A field that is not known is None; so is the port for SSH where it is the usual one."""

    name: str
    state: str
    worktree: str | None
    address: str | None
    ssh_port: int | None
    memory_mib: int | None
    vcpus: int | None
    disk_gib: int | None
    disk_used_bytes: int
    created: str | None
    generation: str | None
    git: str | None
    git_mode: str | None
    secrets_profile: str | None
    branch: str | None


@dataclass(frozen=True)
class Listing:
    """All VMs, and what could not be found out about them."""

    rows: list[Row]
    warning: VmwError | None


def seconds_since(timestamp: str | None, now: datetime | None = None) -> float | None:
    """Return the age of an ISO 8601 time stamp in seconds, or None when it is none."""
    try:
        then = datetime.fromisoformat(timestamp or "")
    except ValueError:
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return ((now or datetime.now(UTC)) - then).total_seconds()


def used_bytes(path: Path) -> int:
    """Return what a sparse file really takes on the disk; nothing for a missing one."""
    try:
        return path.stat().st_blocks * BLOCK_BYTES
    except OSError:
        return 0


def _state(recorded: Recorded, states: dict[str, str]) -> str:
    return states.get(recorded.name, virsh.UNDEFINED) if recorded.instance else "broken"


def _ask(query: virsh.Virsh, vms: list[Recorded]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the states of all domains of one libvirt, and the addresses of the VMs that run there."""
    # Both at once: a virsh takes longer to start than to answer.
    bridged = [each.name for each in vms if not (each.instance and each.instance.is_session)]
    leases = query.start_addresses(bridged, "lease") if bridged else None
    try:
        states = query.states()
    finally:
        leased = virsh.finish(leases, virsh.QUERY_SECONDS)[0] if leases else ""
    running = [each.instance for each in vms if each.instance and states.get(each.name) == "running"]
    here = {instance.name: LOOPBACK for instance in running if instance.is_session}
    macs = {instance.name: instance.mac for instance in running if not instance.is_session}
    return states, {**here, **virsh.quick_addresses(query, macs, leased)}


def _branch(instance: Instance, files: InstanceFiles) -> str | None:
    """Return the branch on which the guest works; its name may be the guest's choice."""
    git = instance.git
    directory = str(files.git_dir) if has_own_git_dir(instance) else git.git_dir
    found = branch(GitLayout(Kind(git.kind), directory, git.common_dir))
    return "".join(character if character.isprintable() else "?" for character in found[:BRANCH_LENGTH]) or None


def list_vms(settings: Settings) -> Listing:
    """Return all VMs, running or not; libvirt being down leaves their state unknown and fails nothing."""
    everything = records.all_recorded(settings.state_dir)
    # A VM stays where it was made when the setting changes.
    places: dict[str, list[Recorded]] = {}
    for each in everything:
        places.setdefault(each.instance.libvirt_uri if each.instance else settings.vmw_libvirt_uri, []).append(each)
    states: dict[str, str] = {}
    addresses: dict[str, str] = {}
    warning = None
    for uri, there in places.items():
        try:
            found, reached = _ask(virsh.Virsh(uri), there)
        except VmwError as error:
            found, reached, warning = dict.fromkeys((each.name for each in there), "unknown"), {}, warning or error
        states.update({each.name: _state(each, found) for each in there})
        addresses.update(reached)
    rows = [
        Row(
            name=each.name,
            state=states[each.name],
            worktree=each.instance.worktree if each.instance else None,
            address=addresses.get(each.name),
            ssh_port=(each.instance.ssh_port or None) if each.instance else None,
            memory_mib=each.instance.memory_mib if each.instance else None,
            vcpus=each.instance.vcpus if each.instance else None,
            disk_gib=each.instance.disk_gib if each.instance else None,
            disk_used_bytes=used_bytes(each.files.disk),
            created=each.instance.created if each.instance else None,
            generation=each.instance.generation if each.instance else None,
            git=each.instance.git.kind if each.instance else None,
            git_mode=each.instance.git.mode if each.instance else None,
            secrets_profile=each.instance.secrets_profile if each.instance else None,
            branch=_branch(each.instance, each.files) if each.instance else None,
        )
        for each in everything
    ]
    return Listing(rows, warning)


@dataclass(frozen=True)
class Image:
    """One generation of the golden image."""

    generation: str
    current: bool
    created: str
    node: str
    claude_code: str
    kernel: str
    size_bytes: int
    template_bytes: int
    used_by: list[str]


def list_images(settings: Settings) -> list[Image]:
    """Return the complete generations, the newest last."""
    # Its hashes take 5 ms of `vmw list`.
    from ansible_collections.vmw.worktree.plugins.module_utils import image  # noqa: PLC0415
    from ansible_collections.vmw.worktree.plugins.module_utils.template import DIRECTORY  # noqa: PLC0415

    state = State(settings.state_dir)
    current = image.current_generation(state)
    users: dict[str, list[str]] = {}
    for recorded in records.all_recorded(settings.state_dir):
        if recorded.instance:
            users.setdefault(recorded.instance.generation, []).append(recorded.name)
    complete = [found for name in image.generations(state) if (found := image.load_manifest(state.images / name))]
    return [
        Image(
            generation=manifest.generation,
            current=manifest == current,
            created=manifest.created,
            node=manifest.node,
            claude_code=manifest.claude_code,
            kernel=manifest.kernel,
            size_bytes=sum(used_bytes(path) for path in (state.images / manifest.generation).glob("*") if path.is_file()),
            template_bytes=sum(used_bytes(path) for path in (state.images / manifest.generation / DIRECTORY).glob("*/*")),
            used_by=users.get(manifest.generation, []),
        )
        for manifest in complete
    ]
