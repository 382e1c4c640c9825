"""Real repositories for tests, made apart from the configuration of whoever runs them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

KINDS = ("main", "linked", "bare", "submodule")
"""Kinds of worktrees that have git data."""

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
}
SETTINGS = ("user.name=Dev", "user.email=dev@host", "init.defaultBranch=main", "protocol.file.allow=always")


def git(where: Path, *argv: str | Path) -> str:
    """Run git in a directory and return what it printed, without the last line's end."""
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    done = subprocess.run(
        ["git", *settings, *map(str, argv)],
        cwd=where,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


@cache
def _template(*options: str) -> TemporaryDirectory[str]:
    """Make the repository that ``repository`` copies, once, as dozens of tests want one."""
    directory = TemporaryDirectory()
    where = Path(directory.name, "main")
    where.mkdir()
    git(where, "init", "--quiet", *options)
    for content in ("one", "two"):
        (where / "a").write_text(f"{content}\n")
        (where / "dir").mkdir(exist_ok=True)
        (where / "dir/b").write_text(f"{content}\n")
        git(where, "add", ".")
        git(where, "commit", "--quiet", "--message", content)
    git(where, "branch", "side")
    git(where, "tag", "--annotate", "--message", "v1", "v1")
    return directory


def repository(where: Path, *options: str) -> Path:
    """Make a repository with two commits, a second branch and a tag."""
    shutil.copytree(Path(_template(*options).name, "main"), where)
    # The copies have other inodes.
    git(where, "update-index", "--refresh")
    return where


def worktree(kind: str, root: Path) -> Path:
    """Make a worktree of one kind, on the branch ``work``, and what it belongs to."""
    if kind == "none":
        (root / "plain").mkdir(parents=True)
        return root / "plain"
    main = repository(root / "main")
    if kind == "main":
        git(main, "switch", "--quiet", "--create", "work")
        return main
    if kind == "linked":
        git(main, "worktree", "add", "--quiet", "-b", "work", root / "linked")
        return root / "linked"
    if kind == "bare":
        git(root, "clone", "--quiet", "--bare", main, root / "bare.git")
        git(root / "bare.git", "worktree", "add", "--quiet", "-b", "work", root / "wt")
        return root / "wt"
    parent = repository(root / "super")
    git(parent, "submodule", "--quiet", "add", main, "sub")
    git(parent / "sub", "switch", "--quiet", "--create", "work")
    return parent / "sub"


def snapshot(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, time of change and content of everything below a directory, by path; a directory's time is left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (status.st_mode, 0 if path.is_dir() else status.st_mtime_ns, content)
    return found
