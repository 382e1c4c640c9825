# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell what in a worktree is new since its VM was made and would run on the host, or lead out of the worktree.

Whoever is root in the VM may have written anything there. So nothing of it is run here: git itself sees only a copy of the
index, in a repository of ours, and every file is opened without following a link.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import Kind, read_settings, user_setting
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import ABSENT, printable, state_of
from ansible_collections.vmw.worktree.plugins.module_utils.index_entries import gitlinks
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import has_own_git_dir
from ansible_collections.vmw.worktree.plugins.module_utils.state import write_json
from ansible_collections.vmw.worktree.plugins.module_utils.tree_contents import hooks_state
from ansible_collections.vmw.worktree.plugins.module_utils.tree_items import Items
from ansible_collections.vmw.worktree.plugins.module_utils.tree_kinds import ALWAYS, KINDS
from ansible_collections.vmw.worktree.plugins.module_utils.tree_scan import scan_git_dir, scan_tree

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

SCHEMA = 1
"""Version of the fingerprint; one of another version is as good as none."""

LISTED = 200
"""How many findings of one kind are listed; the rest is counted."""

BRIEF = 20
"""How many findings are shown where nobody asked for them."""

GIT_DIR_FILES = ("commondir", "gitdir", "config.worktree")
"""Files of a linked worktree's own directory that decide what its repository is, see gitrepository-layout(5)."""


@dataclass(frozen=True)
class GitPlaces:
    """Where a worktree's repository has what matters here. All of it may have been written by the guest.

    Args:
        index: The worktree's index; None when it has none.
        git_dir: The directory of a linked worktree in its repository, `.git/worktrees/ID`; None for a plain clone.
        pinned: Files of configuration that the repository includes from the worktree; absolute paths.
        hooks_path: The value of `core.hooksPath`; empty when it is not set.
        object_format: The repository's hash, `sha1` or `sha256`.
    """

    index: Path | None = None
    git_dir: Path | None = None
    pinned: tuple[Path, ...] = ()
    hooks_path: str = ""
    object_format: str = "sha1"


@dataclass(frozen=True)
class Finding:
    """One thing to look at before the worktree is used on the host.

    Args:
        kind: One of `tree_kinds.KINDS`.
        path: From the worktree, or absolute for what is elsewhere; what cannot be printed is escaped. Empty for the whole.
        change: `new`, `changed`, or `present` where there is nothing to compare with.
        detail: One line for people.
        count: How many things it stands for; more than one where a kind has too many to list.
    """

    kind: str
    path: str
    change: str
    detail: str
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


def fingerprint(tree: Path, *, git: GitPlaces) -> dict[str, Any]:
    """Return all that matters in a worktree as plain data, to be compared with later.

    Args:
        tree: The worktree.
        git: Where its repository is.

    Raises:
        OSError: The worktree is missing or may not be read.
    """
    items = Items()
    scan_tree(tree, items, _hooks_within(tree, git.hooks_path))
    if not items.kinds.get("worktree-git"):
        # Without it, git goes by the next repository further up.
        items.add("worktree-git", ".git", ABSENT)
    _add_gitlinks(items, git)
    _add_git_dir(items, git)
    for path in git.pinned:
        items.add("pinned", str(path), _pinned(path))
    taken = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "taken": taken, "tree": printable(str(tree)), "items": items.kinds, "totals": items.totals}


def _hooks_within(tree: Path, hooks_path: str) -> tuple[str, ...]:
    """Return where in the tree git looks for hooks, or nothing."""
    if not hooks_path or hooks_path.startswith("~"):
        return ()
    # A relative one starts where hooks run, which is the worktree's top.
    relative = os.path.relpath(os.path.join(tree, hooks_path), tree)  # noqa: PTH118 - Path keeps `..`
    parts = tuple(part for part in relative.split("/") if part != ".")
    return () if parts[:1] == ("..",) else parts


def _pinned(path: Path) -> str | dict[str, str]:
    try:
        directory = stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        directory = False
    if not directory:
        return state_of(str(path))
    return {"": "directory", **{Path(name).name: state for name, state in hooks_state(None, str(path)).items()}}


def _add_git_dir(items: Items, git: GitPlaces) -> None:
    if git.git_dir is None:
        return
    for name in GIT_DIR_FILES:
        items.add("git-dir-file", str(git.git_dir / name), state_of(str(git.git_dir / name)))
    try:
        scan_git_dir(git.git_dir, items)
    except OSError as error:
        items.add("unreadable", str(git.git_dir), str(error.strerror), str(error.strerror))


def _add_gitlinks(items: Items, git: GitPlaces) -> None:
    if git.index is None:
        return
    try:
        for path in gitlinks(git.index, git.object_format):
            items.add("gitlink", path, "gitlink")
    except VmwError as error:
        items.add("index-unreadable", str(git.index), error.message, error.message)


def compare(before: dict[str, Any] | None, now: dict[str, Any]) -> list[Finding]:
    """Return what is new or changed, by kind.

    Args:
        before: The fingerprint from when the VM was made; None when there is none, and all there is counts.
        now: The tree's fingerprint of this moment.
    """
    found = []
    if before is None:
        found.append(Finding("no-fingerprint", "", "present", "there is no fingerprint from when the VM was made"))
    for kind in KINDS:
        known = before["items"].get(kind, {}) if before else {}
        items = now["items"].get(kind, {})
        changes = [
            finding
            for path, item in sorted(items.items())
            if (finding := _difference(kind, path, None if kind in ALWAYS else known.get(path), item, compared=bool(before)))
        ]
        found += changes[:LISTED]
        if len(changes) > LISTED:
            more = len(changes) - LISTED
            found.append(Finding(kind, "", "new" if before else "present", f"and {more} more", more))
        forgotten = now["totals"].get(kind, 0) - len(items)
        if forgotten > 0:
            found.append(Finding(kind, "", "present", f"and {forgotten} that are too many to be compared", forgotten))
    return found


def _difference(kind: str, path: str, earlier: dict[str, Any] | None, item: dict[str, Any], *, compared: bool) -> Finding | None:
    """Return the finding for one thing, or None when it is as before, or was never there."""
    state, known = item["state"], earlier["state"] if earlier else {}
    if state == known or (not known and set(state.values()) == {ABSENT}):
        return None
    note = item["note"]
    if not compared:
        return Finding(kind, path, "present", note)
    if not known or set(known.values()) == {ABSENT}:
        return Finding(kind, path, "new", note)
    if set(state.values()) == {ABSENT}:
        return Finding(kind, path, "changed", "is gone")
    parts = sorted(part for part in {*state, *known} if part and state.get(part) != known.get(part))
    words = ", ".join((*parts[:5], *(["..."] if len(parts) > 5 else [])))  # noqa: PLR2004 - enough for one line
    return Finding(kind, path, "changed", "; ".join(word for word in (words, note) if word))


def counts(findings: list[Finding]) -> dict[str, int]:
    """Return how many findings there are of each kind, those that are not listed too."""
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.kind] = found.get(finding.kind, 0) + finding.count
    return found


def summary(name: str, findings: list[Finding]) -> str:
    """Return one line on a VM's worktree, or nothing when it is clean.

    Args:
        name: The VM.
        findings: What was found.
    """
    if not findings:
        return ""
    kinds = ", ".join(f"{number} {kind}" for kind, number in counts(findings).items())
    return f"what {name} left in the worktree could run on this machine ({kinds})"


def listing(name: str, findings: list[Finding]) -> str:
    """Return the summary and the first findings in a few lines, for a VM of which nobody can ask later."""
    lines = [f"  {finding.kind}  {finding.path}  {finding.detail}".rstrip() for finding in findings[:BRIEF]]
    more = sum(finding.count for finding in findings[BRIEF:])
    return "\n".join([*([summary(name, findings)] if findings else []), *lines, *([f"  and {more} more"] if more else [])])


def places_of(instance: Instance, files: InstanceFiles) -> GitPlaces:
    """Return where a VM's worktree has its repository.

    Args:
        instance: The VM.
        files: Its files.
    """
    git = instance.git
    if git.kind == Kind.NONE.value:
        return GitPlaces()
    try:
        settings = read_settings(Path(git.common_dir, "config"))
    except VmwError:
        settings = []
    config = dict(settings)
    shared = git.mode == "protected" and not has_own_git_dir(instance)
    return GitPlaces(
        index=(files.git_dir if has_own_git_dir(instance) else Path(git.git_dir)) / "index",
        git_dir=Path(git.git_dir) if shared else None,
        pinned=_included(Path(git.common_dir), settings, Path(instance.worktree)),
        hooks_path=config.get("core.hookspath", "") or os.fsdecode(user_setting("core.hooksPath", Path("/"))).rstrip("\n"),
        object_format=config.get("extensions.objectformat", "sha1"),
    )


def _included(common: Path, settings: list[tuple[str, str]], tree: Path) -> tuple[Path, ...]:
    """Return the configuration files in the worktree that the repository's own configuration includes."""
    values = (value for key, value in settings if re.fullmatch(r"include(if\..*)?\.path", key))
    # Path.expanduser would fail on a `~name` that is no user's.
    paths = (Path(os.path.normpath(common / os.path.expanduser(value))) for value in values)  # noqa: PTH111
    return tuple(path for path in paths if tree in path.parents)


def take(files: InstanceFiles, instance: Instance) -> None:
    """Write down what the worktree is like while no guest has had it.

    Args:
        files: The VM's files.
        instance: Its record.

    Raises:
        OSError: The worktree cannot be read, or the fingerprint not be written.
    """
    write_json(files.fingerprint, fingerprint(Path(instance.worktree), git=places_of(instance, files)), 0o600)


def taken(files: InstanceFiles) -> dict[str, Any] | None:
    """Return the fingerprint from when the VM was made; None when there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads(files.fingerprint.read_text())
        return found if found["schema"] == SCHEMA and isinstance(found["items"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def findings(files: InstanceFiles, instance: Instance) -> list[Finding]:
    """Compare a VM's worktree with its fingerprint.

    Args:
        files: The VM's files.
        instance: Its record.

    Raises:
        VmwError: The worktree cannot be read.
    """
    try:
        now = fingerprint(Path(instance.worktree), git=places_of(instance, files))
    except OSError as error:
        message = f"the worktree {printable(instance.worktree)} cannot be looked at: {error.strerror}"
        raise VmwError(message, "is it where it was when the VM was made?") from error
    return compare(taken(files), now)
