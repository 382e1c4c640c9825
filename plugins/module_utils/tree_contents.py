# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What to compare of files and repositories of which only a part runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import (
    ABSENT,
    Content,
    open_directory,
    printable,
    state_below,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 200
"""How much of a link's target or a file's line a person gets to read."""


GIT_FILES = (
    ("config",), ("config.worktree",), ("commondir",), ("gitdir",), ("info", "attributes"), ("objects", "info", "alternates"),
    ("rebase-merge", "git-rebase-todo"), ("rebase-apply", "git-rebase-todo"), ("sequencer", "todo"),
)  # fmt: skip
"""Files of a repository that decide what git runs and where it looks."""


DRIVER = re.compile(r"(?:^|\s)((?:filter|diff|merge)=\S+)")


def _hash(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}"


def scripts_state(content: Content) -> tuple[str, str]:
    """Return what to compare of a package.json: its scripts, or all of it when it cannot be read."""
    if content.data is None:
        return content.state, "too large to be read"
    try:
        package = json.loads(content.data)
        scripts = package.get("scripts") if isinstance(package, dict) else None
        names = ", ".join(sorted(scripts)) if isinstance(scripts, dict) else ""
        return (_hash(json.dumps(scripts, sort_keys=True)), printable(names[:SHOWN])) if scripts else ("", "")
    except (ValueError, RecursionError):
        return content.state, "not JSON"


def drivers_state(content: Content) -> tuple[str, str]:
    """Return what to compare of a .gitattributes: its lines that name a driver."""
    if content.data is None:
        return content.state, "too large to be read"
    text = content.data.decode(errors="surrogateescape")
    # Lines and comments as git has them, which knows fewer kinds of white space than Python.
    lines = [line for line in text.split("\n") if not line.lstrip(" \t\r").startswith("#") and DRIVER.search(line)]
    if not lines:
        return "", ""
    drivers = sorted({driver for line in lines for driver in DRIVER.findall(line)})
    return _hash("\n".join(lines)), printable(" ".join(drivers)[:SHOWN])


def git_state(descriptor: int, *, head: bool) -> dict[str, str]:
    """Return what decides what git runs in a repository, by file.

    Args:
        descriptor: The repository's directory.
        head: Whether a change of what is checked out counts.
    """
    wanted: Sequence[tuple[str, ...]] = (*GIT_FILES, ("HEAD",)) if head else GIT_FILES
    state = {"/".join(parts): state_below(descriptor, parts) for parts in wanted}
    state.update(hooks_state(descriptor, "hooks"))
    return {"": "repository", **{name: value for name, value in state.items() if value != ABSENT}}


def hooks_state(descriptor: int | None, name: str) -> dict[str, str]:
    """Return the state of each file in a directory of hooks, which git runs by their names; samples have none of those.

    Args:
        descriptor: The directory in which that one is.
        name: Its name, or its absolute path.
    """
    try:
        directory = open_directory(name, descriptor)
    except OSError:
        return {name: state_of(name, descriptor)}
    try:
        with os.scandir(directory) as entries:
            found: dict[str, str] = {}
            for entry in entries:
                if entry.name.endswith(".sample"):
                    continue
                if len(found) >= SHOWN:
                    return {**found, name: "too many files"}
                found[f"{name}/{printable(entry.name)}"] = state_of(entry.name, directory)
            return found
    finally:
        os.close(directory)
