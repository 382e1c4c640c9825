# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Check that a directory may be shared with a guest."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError


def _refuse(message: str, hint: str = "") -> VmwError:
    return VmwError(message, hint or "name the directory of a git worktree", "usage")


def check_text(text: str) -> None:
    """Refuse a path that no unit file, mount or message could carry.

    Raises:
        VmwError: It is empty, not UTF-8, or has a control character.
    """
    if not text:
        message = "no worktree was named"
        raise _refuse(message, "pass its path, for example `vmw spawn ~/Code/project`")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"the path {text!r} is not valid UTF-8"
        raise _refuse(message, "rename the directory") from error
    if any(ord(character) < ord(" ") or ord(character) == 127 for character in text):  # noqa: PLR2004
        message = f"the path {text!r} has a control character"
        raise _refuse(message, "rename the directory")


PRIVATE = (".config/vmw", ".config/systemd/user", ".ssh", ".gnupg")
"""Directories below the home whose files vmw or the host run, or that prove who the user is."""


def overlap(one: Path, other: Path) -> bool:
    """Tell whether one of two real paths is, holds or lies in the other."""
    return one == other or one in other.parents or other in one.parents


def check_place(real: Path, state: Path) -> None:
    """Refuse a directory that shows a guest more than a worktree.

    Args:
        real: The directory's real path.
        state: The state directory's real path.

    Raises:
        VmwError: It holds the home directory, keys, or what vmw keeps for itself.
    """
    home = Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    if real == home or real in home.parents:
        message = f"{real} is, or holds, your home directory: a guest must not see your keys"
        raise _refuse(message)
    if overlap(real, state):
        message = f"{real} overlaps vmw's own directory {state}"
        raise _refuse(message)
    for private in (*(home / name for name in PRIVATE), Path("/run/vmw")):
        if overlap(real, private):
            message = f"{real} overlaps {private}, which no guest may see or change"
            raise _refuse(message)


def check_worktree(text: str, state_root: Path) -> Path:
    """Return the worktree's real, absolute path.

    Args:
        text: The path as the user gave it, absolute or below ``~``.
        state_root: The state directory, which no guest may see.

    Raises:
        VmwError: The directory is missing, unreadable or too much of the host to be shared.
    """
    check_text(text)
    # Path.expanduser would fail on a `~name` that is no user's and so just a directory's name.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if not path.is_absolute():
        message = f"the path {text!r} is not absolute"
        raise _refuse(message, "the worktree must be given as an absolute path here")
    try:
        real = path.resolve(strict=True)
    except FileNotFoundError as error:
        message = f"{path} does not exist"
        raise _refuse(message, "check the path; `git worktree list` shows a repository's worktrees") from error
    except (OSError, RuntimeError) as error:
        # A loop of links is one or the other, depending on Python's release.
        message = f"{path} cannot be reached: {error}"
        raise _refuse(message) from error
    check_place(real, state_root.resolve())
    if not real.is_dir():
        message = f"{real} is not a directory"
        raise _refuse(message)
    if not os.access(real, os.R_OK | os.W_OK | os.X_OK):
        message = f"{real} is not yours to read and write"
        raise _refuse(message, "the share is served under your own user; check the directory's owner and mode")
    return real
