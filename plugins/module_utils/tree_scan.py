# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Search a tree that a guest may be changing for what runs on the host or leads out of the tree.

The search goes down by descriptors, so that a directory replaced by a link is not followed, and keeps to limits of time, depth
and memory; whatever a limit keeps from being looked at is told.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import (
    open_below,
    open_directory,
    printable,
    read,
    resolve,
    state_below,
)
from ansible_collections.vmw.worktree.plugins.module_utils.tree_contents import SHOWN, drivers_state, git_state, scripts_state
from ansible_collections.vmw.worktree.plugins.module_utils.tree_items import Items, Sum
from ansible_collections.vmw.worktree.plugins.module_utils.tree_kinds import DIRECTORIES, OUTPUT, PARTS, kind_of

if TYPE_CHECKING:
    from pathlib import Path

SCAN_SECONDS = 60.0
ENTRIES = 2_000_000
"""How many files and directories are looked at."""

DEPTH = 200
"""How many directories are entered one below the other; each takes two descriptors, of which a process has 1024."""

PATH_LENGTH = 4096
"""PATH_MAX of Linux, with which paths from the tree's root can be handed to it."""

FOLLOWED = 1000
"""How many links by names that run are looked behind."""

OPERATIONS = ("rebase-merge", "rebase-apply", "sequencer")
"""What git keeps of an operation that is to be continued: files with commands, see git-rebase(1)."""

MARKS = frozenset({"HEAD", "objects", "refs", "commondir"})
"""Names by which git takes a directory for a repository, see is_git_directory() in its setup.c."""


@dataclass
class Frame:
    """A directory that is being read."""

    descriptor: int
    entries: os._ScandirIterator[str]
    parts: tuple[str, ...]
    owner: int
    kind: str = ""
    """What each file in here counts as."""
    chosen: tuple[str, tuple[str, ...]] = ("", ())
    """What entries count as whose names start in one of these ways."""
    in_git: bool = False
    repository: bool = False
    """Whether this is a repository that was noted already."""
    output: bool = False
    """Whether this is what programs fill, in which no project's files are searched for."""
    sum: Sum | None = None
    """What adds up the files in here."""
    sum_kind: str = ""
    """What the sum counts as when this directory, its topmost, is done."""
    marks: set[str] = field(default_factory=set)
    path: str = ""

    def __post_init__(self) -> None:
        """Name the directory from the tree's root."""
        self.path = "/".join(self.parts)

    def close(self) -> None:
        """Let go of the directory."""
        self.entries.close()
        os.close(self.descriptor)


class LimitError(Exception):
    """The search has reached a limit."""


@dataclass
class Scan:
    """One search.

    Args:
        root: Descriptor of the tree's directory.
        items: Takes what is found.
        prefix: Stands before the paths.
        git_dir: Whether the tree is a repository's directory, in which no link has a place.
        hooks: In-tree directory of hooks, as names from the root.
        deadline: When to give up, in the clock of `time.monotonic`.
    """

    root: int
    items: Items
    prefix: str = ""
    git_dir: bool = False
    hooks: tuple[str, ...] = ()
    deadline: float = field(default_factory=lambda: time.monotonic() + SCAN_SECONDS)
    owner: int = 0
    seen: int = 0
    bytecode: Sum = field(default_factory=Sum)
    later: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Directories in the tree to which links of interest lead, and what their files count as."""

    def run(self) -> None:
        """Search the whole tree."""
        self.owner = os.fstat(self.root).st_uid
        try:
            self._walk((), "", in_git=self.git_dir)
            self._look_at_hooks()
            done: set[tuple[str, ...]] = set()
            while left := self.later.keys() - done:
                for parts in sorted(left):
                    self._walk(parts, self.later[parts])
                done |= left
        except LimitError as limit:
            self.items.add("scan-incomplete", self.prefix, str(limit), str(limit))
        if self.bytecode.digests:
            note = f"{len(self.bytecode.digests)} files; `find . -name __pycache__ -prune -exec rm -r {{}} +` removes them"
            self.items.add("bytecode", f"{self.prefix}**/__pycache__", self.bytecode.digest(), note)

    def _look_at_hooks(self) -> None:
        if not self.hooks:
            return
        real = resolve(self.root, (), "/".join(self.hooks))
        if real is None:
            self.items.add("hooks", self.prefix + "/".join(self.hooks), "outside", "leads out of the worktree")
        elif real:
            self.later[tuple(real)] = "hooks"

    def _walk(self, parts: tuple[str, ...], kind: str, *, in_git: bool = False) -> None:
        """Read a directory and all below it."""
        stack: list[Frame] = []
        try:
            descriptor = open_below(self.root, parts)
        except OSError:
            # A link to nothing, or to a file.
            return
        try:
            stack.append(self._frame(descriptor, parts, self.owner, kind=kind, in_git=in_git, repository=in_git))
            while stack:
                frame = stack[-1]
                try:
                    entry = next(frame.entries, None)
                except OSError as error:
                    self.items.add("unreadable", self.prefix + frame.path, str(error.strerror), str(error.strerror))
                    entry = None
                if entry is None:
                    stack.pop()
                    self._leave(frame)
                    continue
                below = self._visit(frame, entry)
                if below:
                    stack.append(below)
        finally:
            for frame in stack:
                frame.close()

    def _frame(self, descriptor: int, parts: tuple[str, ...], owner: int, **more: Any) -> Frame:  # noqa: ANN401 - of Frame
        try:
            return Frame(descriptor, os.scandir(descriptor), parts, owner, **more)
        except OSError:
            os.close(descriptor)
            raise

    def _leave(self, frame: Frame) -> None:
        try:
            marked = {"HEAD", "commondir"} <= frame.marks or {"HEAD", "objects", "refs"} <= frame.marks
            if marked and not frame.repository:
                # A repository's own modules and worktrees check out what they like; that is their work.
                inner = frame.in_git and frame.parts[0].lower() == ".git"
                self.items.add("bare-repository", self.prefix + (frame.path or "."), git_state(frame.descriptor, head=not inner))
            if frame.sum_kind and frame.sum is not None:
                self.items.add(frame.sum_kind, self.prefix + frame.path, frame.sum.digest())
        except OSError as error:
            self.items.add("unreadable", self.prefix + frame.path, str(error.strerror), str(error.strerror))
        finally:
            frame.close()

    def _visit(self, frame: Frame, entry: os.DirEntry[str]) -> Frame | None:
        """Look at one entry; return the directory to go down to."""
        self.seen += 1
        if self.seen > ENTRIES:
            message = f"there are more than {ENTRIES} files"
            raise LimitError(message)
        if not self.seen % 64 and time.monotonic() > self.deadline:
            message = "it takes too long"
            raise LimitError(message)
        path = f"{frame.path}/{entry.name}" if frame.parts else entry.name
        try:
            status = entry.stat(follow_symlinks=False)
            return self._look(frame, entry.name, path, status)
        except FileNotFoundError:
            # Gone meanwhile.
            return None
        except OSError as error:
            self.items.add("unreadable", self.prefix + path, str(error.strerror), str(error.strerror))
            return None

    def _look(self, frame: Frame, name: str, path: str, status: os.stat_result) -> Frame | None:
        mode = status.st_mode
        if name in MARKS:
            frame.marks.add(name)
        if frame.sum is not None:
            frame.sum.add(path, status)
        if status.st_uid not in {self.owner, frame.owner}:
            self.items.add("foreign-owner", self.prefix + path, str(status.st_uid), f"uid {status.st_uid}")
        if stat.S_ISDIR(mode):
            return self._enter(frame, name, path, status)
        kind = self._kind(frame, name)
        if stat.S_ISLNK(mode):
            self._link(frame, name, path, kind)
        elif not stat.S_ISREG(mode):
            self.items.add("special-file", self.prefix + path, stat.filemode(mode)[0], _special(mode))
        else:
            if mode & (stat.S_ISUID | stat.S_ISGID):
                self.items.add("setuid", self.prefix + path, stat.filemode(mode), stat.filemode(mode))
            if kind:
                self._file(kind, name, path, frame.descriptor)
        return None

    def _kind(self, frame: Frame, name: str) -> str:
        folded = name.lower()
        if folded == ".git":
            return "nested-git" if frame.parts else "worktree-git"
        if frame.kind:
            return frame.kind
        if frame.in_git or frame.output:
            return ""
        kind, starts = frame.chosen
        return kind if kind and folded.startswith(starts) else kind_of(folded)

    def _enter(self, frame: Frame, name: str, path: str, status: os.stat_result) -> Frame | None:
        if len(frame.parts) >= DEPTH or len(path) > PATH_LENGTH:
            self.items.add("unreadable", self.prefix + path[:PATH_LENGTH], "too deep", "too deep to be looked at")
            return None
        descriptor = open_directory(name, frame.descriptor)
        folded = name.lower()
        repository = folded == ".git"
        if repository:
            try:
                state = git_state(descriptor, head=bool(frame.parts))
            except OSError:
                os.close(descriptor)
                raise
            self.items.add("nested-git" if frame.parts else "worktree-git", self.prefix + path, state)
        below = self._frame(descriptor, (*frame.parts, name), status.st_uid, repository=repository)
        below.in_git = frame.in_git or repository
        below.output, below.sum = frame.output, frame.sum
        if self.git_dir and not frame.parts:
            self._mark_git_dir(below, folded)
        if below.in_git or below.output:
            return below
        below.kind = frame.kind
        if not below.kind:
            kind, starts = frame.chosen
            below.kind = kind if kind and folded.startswith(starts) else DIRECTORIES.get(folded, "")
            below.chosen = PARTS.get(folded, ("", ()))
            self._mark_output(below, OUTPUT.get(folded, ""))
        return below

    def _mark_output(self, frame: Frame, kind: str) -> None:
        """Have a directory that programs fill added up, the one of bytecode together with its likes."""
        frame.output = bool(kind)
        if kind == "bytecode":
            frame.sum = self.bytecode
        elif kind:
            frame.sum, frame.sum_kind = Sum(), kind

    def _mark_git_dir(self, frame: Frame, name: str) -> None:
        """Note what a worktree's own directory in its repository has only at times, or never."""
        if name in OPERATIONS:
            frame.sum, frame.sum_kind = Sum(), "git-operation"
        elif name == "modules":
            self.items.add("git-modules", self.prefix + name, "there")

    def _link(self, frame: Frame, name: str, path: str, kind: str) -> None:
        target = os.readlink(name, dir_fd=frame.descriptor)
        note = f"-> {printable(target[:SHOWN])}"
        state = printable(target)
        if self.git_dir:
            self.items.add("git-dir-link", self.prefix + path, state, note)
            return
        real = resolve(self.root, frame.parts, target)
        if real is None:
            self.items.add("symlink", self.prefix + path, state, note)
        if kind:
            there = state_below(self.root, real) if real else ""
            self.items.add(kind, self.prefix + path, {"": f"link to {state}", "what it leads to": there}, note)
        followed = kind or DIRECTORIES.get(name.lower(), "") or PARTS.get(name.lower(), ("",))[0]
        if not real or not followed or frame.in_git or frame.output or tuple(real) in self.later:
            return
        if len(self.later) >= FOLLOWED:
            message = f"more than {FOLLOWED} links lead to what may run"
            raise LimitError(message)
        self.later[tuple(real)] = followed

    def _file(self, kind: str, name: str, path: str, directory: int) -> None:
        content = read(name, directory)
        state, note = content.state, ""
        if kind == "package-scripts":
            state, note = scripts_state(content)
        elif kind == "gitattributes":
            state, note = drivers_state(content)
        elif kind in {"nested-git", "worktree-git"}:
            note = printable((content.data or b"")[:SHOWN].decode(errors="surrogateescape").strip())
        if state:
            self.items.add(kind, self.prefix + path, state, note)


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def scan_tree(tree: Path, items: Items, hooks: tuple[str, ...] = ()) -> None:
    """Search a worktree.

    Args:
        tree: Its directory.
        items: Takes what is found.
        hooks: In-tree directory of hooks, as names from the tree.

    Raises:
        OSError: The directory is missing, is a link or may not be read.
    """
    _scan(tree, items, hooks=hooks)


def scan_git_dir(git_dir: Path, items: Items) -> None:
    """Search a linked worktree's own part of its repository for what has no place there.

    Raises:
        OSError: The directory is missing, is a link or may not be read.
    """
    _scan(git_dir, items, prefix=f"{git_dir}/", git_dir=True)


def _scan(directory: Path, items: Items, **more: Any) -> None:  # noqa: ANN401 - of Scan
    root = open_directory(directory)
    try:
        Scan(root, items, **more).run()
    finally:
        os.close(root)
