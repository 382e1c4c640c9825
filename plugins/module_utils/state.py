# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Where things are on the host, and how files there are written and shared with QEMU."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.naming import check_profile
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU_USERS = ("libvirt-qemu", "qemu")
"""Users under which distributions run system QEMU: Debian, Ubuntu and Arch; Fedora."""

DEFAULT_PROFILE = "default"
"""The secrets profile of a VM for which nobody chose one."""

LOCK_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class State:
    """The layout of the state directory, ``~/.config/vmw`` by default."""

    root: Path

    @classmethod
    def at(cls, directory: str) -> State:
        """Return the layout below ``directory``; a leading ``~`` is the home directory."""
        return cls(Path(directory).expanduser())

    @property
    def images(self) -> Path:
        """Hold one directory per golden-image generation."""
        return self.root / "images"

    @property
    def golden_image(self) -> Path:
        """Link to the current generation's disk; absent before the first build."""
        return self.root / "golden-image.qcow2"

    @property
    def instances(self) -> Path:
        """Hold one directory per VM."""
        return self.root / "instances"

    @property
    def secrets(self) -> Path:
        """Hold one directory of API keys per secrets profile; no guest sees this one."""
        return self.root / "secrets"

    def secrets_of(self, profile: str) -> Path:
        """Hold the API keys of one profile, which its guests may read.

        Raises:
            VmwError: ``profile`` could not name one, so that it never leads out of the secrets' directory.
        """
        return self.secrets / check_profile(profile)

    @property
    def progress(self) -> Path:
        """Name the file through which a long task tells how far it is."""
        return self.root / "progress.json"

    @contextlib.contextmanager
    def lock(self, name: str, timeout: float | None = None) -> Iterator[None]:
        """Hold an exclusive lock shared by all of vmw's processes of this user.

        Args:
            name: What is locked; different names do not wait for each other.
            timeout: How long to wait for it, in seconds; as long as it takes by default.

        Raises:
            VmwError: It was not free in time.
        """
        directory = self.root / "locks"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (directory / name).open("w") as handle:
            if timeout is None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            else:
                _lock_in_time(handle, name, timeout)
            yield


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_in_time(handle: IO[str], name: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _try_lock(handle):
        if time.monotonic() >= deadline:
            message = f"another vmw has held the lock {name!r} for {timeout:.0f} s"
            hint = f"`fuser {shlex.quote(handle.name)}` shows which process; try again when it is done"
            raise VmwError(message, hint, "conflict")
        time.sleep(LOCK_POLL_SECONDS)


def read_exactly(path: Path) -> str:
    """Read a file's text with its carriage returns, which `Path.read_text` turns into line feeds."""
    with path.open(newline="") as handle:
        return handle.read()


def write_file(path: Path, content: str, mode: int = 0o644) -> bool:
    """Write a file so that readers see the old or the new content, never a part.

    Args:
        path: The file; its directory exists.
        content: The whole new content.
        mode: Permission bits.

    Returns:
        Whether content or mode changed.
    """
    if path.is_file() and read_exactly(path) == content and path.stat().st_mode & 0o777 == mode:
        return False
    replace_file(path, content, mode)
    return True


def replace_file(path: Path, content: str, mode: int) -> None:
    """Put a new file, of whoever runs this, in the place of one that may be there; see ``write_file``."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as handle:
            handle.write(content)
            os.fchmod(handle.fileno(), mode)
            handle.flush()
            os.fsync(handle.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def write_json(path: Path, data: dict[str, Any], mode: int = 0o644) -> bool:
    """Write ``data`` as readable JSON; see ``write_file``."""
    return write_file(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n", mode)


def qemu_user() -> str:
    """Return the user under which system libvirt runs QEMU.

    Raises:
        VmwError: No such user exists, so QEMU is not installed.
    """
    for name in QEMU_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    message = "QEMU's user does not exist on this host"
    raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")


def qemu_peer(libvirt_uri: str) -> str:
    """Return the user that must be let in to a VM's files, or an empty string where QEMU runs as the calling user.

    Args:
        libvirt_uri: The connection by which the VM runs.
    """
    return "" if is_session(libvirt_uri) else qemu_user()


def qemu_label(peer: str) -> str:
    """Return ``+uid:+gid`` of QEMU's user for a domain's label, or an empty string where QEMU runs as the calling user.

    Args:
        peer: See `qemu_peer`.
    """
    if not peer:
        return ""
    entry = pwd.getpwnam(peer)
    return f"+{entry.pw_uid}:+{entry.pw_gid}"


def command(*argv: str, hint: str = "") -> str:
    """Run a program and return what it printed.

    Args:
        argv: The program and its arguments.
        hint: What to tell the user when it fails.

    Raises:
        VmwError: The program is missing or ended with a non-zero status; the message has its last error line.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        message = f"`{argv[0]}` is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        message = f"`{argv[0]}` failed: {lines[-1]}"
        raise VmwError(message, hint)
    return done.stdout


def _acl(path: Path) -> set[str]:
    """Return the access ACL entries of ``path``; one that the mask cuts short carries a comment and so never compares equal."""
    listing = command("getfacl", "--absolute-names", "--omit-header", str(path))
    return {line for line in listing.splitlines() if line}


def grant(path: Path, user: str, rights: str) -> bool:
    """Give one more user access to a file or directory of ours, by ACL.

    Args:
        path: An existing file or directory that belongs to the calling user.
        user: The user that gets access.
        rights: Three letters as in ``r-x``.

    Returns:
        Whether the ACL changed.
    """
    if f"user:{user}:{rights}" in _acl(path):
        return False
    command("setfacl", "--modify", f"user:{user}:{rights}", str(path), hint="does the file system support ACLs?")
    return True


def open_way(path: Path, user: str) -> bool:
    """Let ``user`` pass through the directories that lead to ``path``.

    Only directories of the calling user that ``user`` could not pass anyway get an entry; nothing becomes listable.

    Args:
        path: The file at the end of the way.
        user: The user that must reach it.

    Returns:
        Whether an ACL changed.
    """
    changed = False
    for directory in reversed(path.parents):
        status = directory.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o001:
            changed |= grant(directory, user, "--x")
    return changed
