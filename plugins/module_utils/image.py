# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Golden-image generations: their names and manifests, the base image's checksum, what may be removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import select
import signal
import sys
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from pathlib import Path
    from types import FrameType

    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

SCHEMA = 1
"""Version of the manifest; fields are only ever added."""

GENERATION = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
"""A generation's name: when it was begun, and a hash of what it was made from."""

DOWNLOADS = ".download"
"""Directory below ``images`` that keeps the verified base image for the next build."""

BUILD_PREFIX = ".build-"
"""Start of the names, below ``images``, of directories in which a build works."""

LOCK = "images"
"""Name of the lock held by whoever makes or removes generations."""

_ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@dataclass(frozen=True)
class Checksum:
    """The expected SHA-512 of a base image: its digest, or the URL of a ``SHA512SUMS`` file that has it."""

    digest: str = ""
    sums_url: str = ""


@dataclass(frozen=True)
class BaseImage:
    """Where a base image came from and what it was."""

    url: str
    sha512: str


@dataclass(frozen=True)
class Manifest:
    """What a generation is. Sizes in bytes; `inputs` is the hash of the settings that shaped it."""

    schema: int
    generation: str
    created: str
    base_image: BaseImage
    debian: str
    kernel: str
    cmdline: str
    node: str
    claude_code: str
    virtual_size: int
    guest_user: str
    inputs: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Manifest:
        """Build a manifest, passing over fields of a later version.

        Raises:
            KeyError: A field is missing.
        """
        known = {field.name: data[field.name] for field in fields(cls)}
        base_image = BaseImage(url=data["base_image"]["url"], sha512=data["base_image"]["sha512"])
        return cls(**{**known, "base_image": base_image})

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest as plain data."""
        return asdict(self)


def parse_checksum(setting: str) -> Checksum:
    """Read the ``vmw_base_image_checksum`` setting.

    Args:
        setting: ``sha512:<128 hexadecimal digits>`` or ``sha512:<URL of a SHA512SUMS file>``.

    Raises:
        VmwError: It is neither.
    """
    algorithm, _, value = setting.partition(":")
    if algorithm == "sha512":
        if re.fullmatch(r"[0-9a-fA-F]{128}", value):
            return Checksum(digest=value.lower())
        if re.match(r"[a-z]+://.", value):
            return Checksum(sums_url=value)
    message = f"vmw_base_image_checksum is neither a SHA-512 digest nor the URL of a SHA512SUMS file: {setting!r}"
    raise VmwError(message, "write `sha512:<128 hexadecimal digits>` or `sha512:<URL>`", "usage")


def digest_in_sums(sums: str, filename: str) -> str:
    """Find a file's digest in the text of a ``SHA512SUMS`` file.

    Args:
        sums: Lines of a digest and a name, as sha512sum prints them.
        filename: The file's name without a directory.

    Raises:
        VmwError: The file is not listed.
    """
    for line in sums.splitlines():
        found = re.fullmatch(r"([0-9a-fA-F]{128}) [ *](?:\./)?(.+)", line.rstrip())
        if found and found.group(2) == filename:
            return found.group(1).lower()
    message = f"the SHA512SUMS file does not list {filename}"
    raise VmwError(message, "do vmw_base_image_url and vmw_base_image_checksum belong together?")


def file_sha512(path: Path) -> str:
    """Return the SHA-512 of a file, in hexadecimal."""
    digest = hashlib.sha512()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def inputs_hash(settings: dict[str, Any]) -> str:
    """Return a hash of the settings that shape an image, the same for the same settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def generation_name(begun: datetime, inputs: str, base_sha512: str) -> str:
    """Name a new generation, so that names sort by age.

    Args:
        begun: When the build began, in UTC.
        inputs: See `inputs_hash`.
        base_sha512: Digest of the base image.
    """
    source = hashlib.sha256(f"{inputs} {base_sha512}".encode()).hexdigest()
    return f"{begun:%Y%m%d-%H%M%S}-{source[:8]}"


def load_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of a generation; ``None`` for a directory that is no complete generation."""
    try:
        manifest = Manifest.from_dict(json.loads((directory / "manifest.json").read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if manifest.generation == directory.name else None


def current_generation(state: State) -> Manifest | None:
    """Return the generation that new VMs are cloned from, or ``None`` before the first build."""
    try:
        disk = state.golden_image.resolve(strict=True)
    except OSError:
        return None
    return load_manifest(disk.parent) if disk.parent.parent == state.images.resolve() else None


def generations(state: State) -> list[str]:
    """Return the names of all generations, the oldest first."""
    if not state.images.is_dir():
        return []
    return sorted(entry.name for entry in state.images.iterdir() if GENERATION.fullmatch(entry.name))


def used_generations(state: State) -> set[str]:
    """Return the generations that a VM's disk is a clone of.

    Raises:
        VmwError: A record cannot be read, so that nobody knows which generation it needs.
    """
    used = set()
    for directory in sorted(state.instances.glob("*")):
        record = directory / "instance.json"
        try:
            used.add(str(json.loads(record.read_text())["generation"]))
        except FileNotFoundError:
            if not (directory / "disk.qcow2").exists():
                continue
            message = f"{directory} has a disk but no instance record, so its golden image is not known"
            raise VmwError(message, f"`vmw destroy {directory.name}` removes what is left of this VM") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"the record {record} cannot be read: {error}"
            raise VmwError(message, f"`vmw destroy {directory.name}` removes what is left of this VM") from error
    return used


def removable(names: Sequence[str], current: str, used: set[str]) -> list[str]:
    """Select the generations that nothing needs any more.

    Args:
        names: All generations.
        current: The one that new VMs are cloned from, or an empty string.
        used: Those that a VM is a clone of.
    """
    return [name for name in names if name != current and name not in used]


class Progress:
    """Tell the user how far a long task is, through the file that the `vmw` command reads."""

    def __init__(self, state: State, task: str, unit: str) -> None:
        """Prepare to tell; nothing is written yet.

        Args:
            state: Where the file is.
            task: The task's name.
            unit: ``bytes`` or ``steps``.
        """
        self._path = state.progress
        self._task = task
        self._unit = unit

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Tell how far the task is; a `total` of 0 means that nobody knows."""
        write_json(
            self._path,
            {"schema": 1, "task": self._task, "done": done, "total": total, "unit": self._unit, "detail": detail},
        )

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class InterruptedByUserError(VmwError):
    """The user, or whoever waited for the result, wants no more of it."""

    def __init__(self) -> None:
        """Word it."""
        super().__init__("interrupted", "run the same command again")


class CallerWatch:
    """See when the process that waits for this module's result has gone, and end in good order then.

    After Ctrl-C, a module under sudo gets no signal. The end of its parent, or of its result's reader, is what it can see.
    """

    def __init__(self) -> None:
        """Remember the parent, and turn a request to end into an exception."""
        self._parent = os.getppid()
        self._poll = select.poll()
        self._poll.register(sys.stdout.fileno(), 0)
        for number in _ENDINGS:
            signal.signal(number, self._stop)

    @staticmethod
    def _stop(_number: int, _frame: FrameType | None) -> None:
        for number in _ENDINGS:
            # Cleaning up is not to be interrupted again.
            signal.signal(number, signal.SIG_IGN)
        raise InterruptedByUserError

    def check(self) -> None:
        """Go on while somebody waits.

        Raises:
            InterruptedByUserError: Nobody waits any more.
        """
        hung_up = any(events & (select.POLLERR | select.POLLHUP) for _, events in self._poll.poll(0))
        if hung_up or os.getppid() != self._parent:
            self._stop(0, None)


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Do file work as a user, in a process that root started for libvirt's sake; nothing special for the user's own process.

    Args:
        uid: The user to whom the files shall belong.
    """
    if os.getuid() == uid:
        yield
        return
    user = pwd.getpwuid(uid)
    groups = os.getgroups()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setresgid(user.pw_gid, user.pw_gid, 0)
    # The saved uid stays 0: the way back. A child's saved uid is what it runs as.
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
