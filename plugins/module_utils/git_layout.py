# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Where a worktree's git data is, read without running git in it, and refused where its parts do not agree.

Source of the file formats: gitrepository-layout(5).
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable

SMALL_FILE = 4096
"""Longest content of a pointer file, in bytes: a path (PATH_MAX of Linux) and a word before it."""

GIT_SECONDS = 60
"""Time for git to list a repository's settings or refs: far more than a million of them take."""

SETTING_SECONDS = 10
"""Time for git to look up one setting of the user's."""

GUEST_EXTENSIONS = frozenset({"noop", "noop-v1", "objectformat", "partialclone", "preciousobjects", "worktreeconfig"})
"""Repository extensions that the guest's git 2.39 knows (setup.c of that release); git refuses a repository with any other."""


class Kind(str, Enum):
    """What a worktree is to git."""

    NONE = "none"
    MAIN = "main"
    LINKED = "linked"
    BARE = "bare"
    SUBMODULE = "submodule"


WORKTREE_KINDS = (Kind.LINKED.value, Kind.BARE.value)
"""Kinds that have a directory of their own in the repository's ``worktrees``."""


@dataclass(frozen=True)
class GitLayout:
    """The parts of a worktree's git data.

    Attributes:
        kind: What the worktree is to git; ``bare`` is a linked worktree of a bare repository.
        git_dir: The directory with this worktree's HEAD and index; empty without git.
        common_dir: The directory with objects, refs and config; the same as ``git_dir`` except for linked worktrees.
    """

    kind: Kind
    git_dir: str = ""
    common_dir: str = ""


def _refuse(message: str) -> VmwError:
    hint = "`git worktree repair`, run in the main repository, mends links; vmw shares nothing that does not agree"
    return VmwError(message, hint, "usage")


def _read_pointer(path: Path) -> str:
    """Return the content of a small file that is no link.

    Raises:
        VmwError: It is a link, not a file, too long, or no path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            content = handle.read(SMALL_FILE + 1)
        text = content.decode().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise _refuse(message) from error
    if len(content) > SMALL_FILE or "\0" in text:
        message = f"{path} is not what git writes there"
        raise _refuse(message)
    return text


def _own_directory(path: Path, what: str) -> Path:
    """Return the real path of a directory of the calling user.

    Raises:
        VmwError: It is missing, no directory, or somebody else's.
    """
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        message = f"{path}, {what}, cannot be reached: {error}"
        raise _refuse(message) from error
    if not real.is_dir():
        message = f"{path}, {what}, is not a directory"
        raise _refuse(message)
    if status.st_uid != os.getuid():
        message = f"{real}, {what}, is not yours"
        raise _refuse(message)
    return real


def _same(path: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file that exists."""
    try:
        return path.samefile(other)
    except OSError:
        return False


def git_environment() -> dict[str, str]:
    """Return an environment in which git reads neither the system's nor the user's configuration, and speaks English."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        # Or a partial clone would have git run what it names, to fetch what it lacks.
        "GIT_ALLOW_PROTOCOL": "none",
        "LC_ALL": "C.UTF-8",
    }


def run_git(*argv: str) -> str:
    """Run git apart from every repository but one that is named, and from the system's and the user's configuration.

    Args:
        argv: The command. A git directory is named only when no guest can write its configuration.

    Returns:
        What it printed.

    Raises:
        VmwError: git is missing, or failed.
    """
    try:
        done = subprocess.run(
            ["git", *argv],
            cwd="/",
            env=git_environment(),
            capture_output=True,
            check=False,
            timeout=GIT_SECONDS,
        )
    except FileNotFoundError as error:
        message = "git is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready") from error
    except subprocess.TimeoutExpired as error:
        message = f"git did not end in {GIT_SECONDS} s: git {' '.join(argv)}"
        raise VmwError(message) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        message = f"git failed: {printable(said.replace(chr(10), '; '))}"
        raise VmwError(message, "`git fsck` and `git config --list`, run in the repository, tell more", "usage")
    return done.stdout.decode(errors="surrogateescape")


def user_setting(key: str, place: Path) -> bytes:
    """Return a setting of the user's as it holds in a directory, or nothing; to read it runs nothing that a repository says.

    Args:
        key: The setting.
        place: The directory; ``/`` is in no repository.
    """
    # A hook that runs vmw has another repository in its environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    argv = ["git", "config", "--get", key]
    try:
        # An included file may be a FIFO.
        done = subprocess.run(argv, cwd=place, env=environment, capture_output=True, check=False, timeout=SETTING_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout


def read_settings(file: Path) -> list[tuple[str, str]]:
    """Return the settings of one git configuration file, without what it includes, in their order.

    The section and the variable are in lower case, the part between them as it stands. git parses it; with ``--file`` it looks
    at no repository, so that nothing a repository says is run.

    Raises:
        VmwError: git is missing, or cannot parse it.
    """
    listing = run_git("config", "--file", str(file), "--no-includes", "--null", "--list")
    entries = (entry.partition("\n") for entry in listing.split("\0") if entry)
    # A key without `=` means true: git-config(1), "Syntax".
    return [(key, value if separator else "true") for key, separator, value in entries]


def read_config(file: Path) -> dict[str, str]:
    """Return the settings as ``read_settings`` does; of a key with several values the last."""
    return dict(read_settings(file))


def read_layout(worktree: Path) -> GitLayout:
    """Find a worktree's git data.

    Args:
        worktree: Its real path.

    Raises:
        VmwError: The parts do not agree, so that a guest could be shown another repository than this worktree's.
    """
    entry = worktree / ".git"
    if entry.is_symlink():
        message = f"{entry} is a link"
        raise _refuse(message)
    if not entry.exists():
        return GitLayout(Kind.NONE)
    if entry.is_dir():
        return _main(entry)
    word, _, target = _read_pointer(entry).partition(": ")
    if word != "gitdir" or not target:
        message = f"{entry} is no link of git's"
        raise _refuse(message)
    git_dir = _own_directory(worktree / target, f"to which {entry} leads")
    layout = _linked(entry, git_dir) if (git_dir / "commondir").is_file() else _submodule(worktree, git_dir)
    if worktree in Path(layout.common_dir, "x").parents:
        # The guest could write its configuration, which the host's git follows.
        message = f"{layout.common_dir}, the repository of {worktree}, is inside it"
        raise _refuse(message)
    return layout


def _main(git_dir: Path) -> GitLayout:
    _own_directory(git_dir, "the repository")
    if (git_dir / "commondir").exists():
        message = f"{git_dir} has a commondir, as only linked worktrees do"
        raise _refuse(message)
    return GitLayout(Kind.MAIN, str(git_dir), str(git_dir)) if _is_repository(git_dir) else GitLayout(Kind.NONE)


def _is_repository(directory: Path) -> bool:
    """Tell whether git would take a directory for a repository: is_git_directory() of its setup.c."""
    return (directory / "HEAD").is_file() and all((directory / name).is_dir() for name in ("objects", "refs"))


def _linked(entry: Path, git_dir: Path) -> GitLayout:
    common_dir = _own_directory(git_dir / _read_pointer(git_dir / "commondir"), "the repository of the worktree")
    if git_dir.parent != common_dir / "worktrees":
        message = f"{entry} leads to {git_dir}, which is no worktree of {common_dir}"
        raise _refuse(message)
    back = git_dir / _read_pointer(git_dir / "gitdir")
    if not _same(back, entry):
        message = f"{entry} leads to {git_dir}, which belongs to {back}"
        raise _refuse(message)
    if not _is_repository(common_dir):
        message = f"{common_dir}, to which {entry} leads, is no repository"
        raise _refuse(message)
    bare = read_config(common_dir / "config").get("core.bare", "false") == "true"
    return GitLayout(Kind.BARE if bare else Kind.LINKED, str(git_dir), str(common_dir))


def _submodule(worktree: Path, git_dir: Path) -> GitLayout:
    if not _is_repository(git_dir):
        message = f"{git_dir}, to which {worktree / '.git'} leads, is no repository"
        raise _refuse(message)
    settings = read_config(git_dir / "config")
    if settings.get("extensions.worktreeconfig") == "true" and (git_dir / "config.worktree").is_file():
        # `git sparse-checkout` moves the setting there: git-worktree(1), "Configuration file".
        settings |= read_config(git_dir / "config.worktree")
    back = settings.get("core.worktree", "")
    if not back or not _same(git_dir / back, worktree):
        message = f"{worktree / '.git'} leads to {git_dir}, which does not name {worktree} as its worktree"
        raise _refuse(message)
    return GitLayout(Kind.SUBMODULE, str(git_dir), str(git_dir))


def unknown_extensions(layout: GitLayout) -> list[str]:
    """Return the repository's extensions for which the guest's git would refuse it."""
    config = read_config(Path(layout.common_dir, "config"))
    names = (key.partition(".")[2].lower() for key in config if key.startswith("extensions."))
    return sorted(name for name in names if name not in GUEST_EXTENSIONS)


def branch(layout: GitLayout) -> str:
    """Return the branch that is checked out, a commit's first digits where none is, or nothing without git."""
    if layout.kind is Kind.NONE:
        return ""
    try:
        head = _read_pointer(Path(layout.git_dir, "HEAD"))
    except VmwError:
        return ""
    if head.startswith("ref: "):
        return head[5:].removeprefix("refs/heads/")
    return head[:8]
