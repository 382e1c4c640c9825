#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Remove golden images that nothing uses."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_prune
short_description: Remove golden images that nothing uses
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Removes the generations that are neither the current one nor named by any VM's record.
  - Removes the templates of the other generations that are not the current one, as nothing is forked of them any more.
  - Removes what an interrupted build left behind, too.
  - Removes nothing at all while a VM's record cannot be read.
attributes:
  check_mode:
    support: full
    description: Says what it would remove.
  diff_mode:
    support: none
    description: The result O(ignore:removed) tells it all.
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Remove unused golden images
  vmw.worktree.image_prune:
    state_dir: ~/.config/vmw
"""

RETURN = r"""
removed:
  description: Names of the generations removed, the oldest first, and in words whose templates.
  returned: success
  type: list
  elements: str
freed_bytes:
  description: What they took on the disk.
  returned: success
  type: int
"""

import shutil
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.image import (
    BUILD_PREFIX,
    LOCK,
    current_generation,
    generations,
    removable,
    used_generations,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.module_utils.template import DIRECTORY

if TYPE_CHECKING:
    from pathlib import Path


def disk_usage(directory: Path) -> int:
    """Return the bytes that a directory's files, and those below it, take on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def set_aside(directory: Path) -> None:
    """Turn a generation into a leftover, so that no part of it ever looks complete."""
    directory.rename(directory.with_name(f"{BUILD_PREFIX}{directory.name}"))


def prune(module: AnsibleModule) -> dict[str, Any]:
    """Remove what nothing needs."""
    state = State.at(module.params["state_dir"])
    if not state.images.is_dir():
        return {"changed": False, "removed": [], "freed_bytes": 0}
    with state.lock(LOCK):
        current = current_generation(state)
        newest = current.generation if current else ""
        found = generations(state)
        names = removable(found, newest, used_generations(state))
        kept = [name for name in found if name not in {*names, newest}]
        templates = [directory for name in kept if (directory := state.images / name / DIRECTORY).is_dir()]
        freed = sum(disk_usage(directory) for directory in [*(state.images / name for name in names), *templates])
        if not module.check_mode:
            for name in names:
                set_aside(state.images / name)
            for directory in templates:
                shutil.rmtree(directory)
            # Nobody builds while we hold the lock.
            for leftover in state.images.glob(f"{BUILD_PREFIX}*"):
                shutil.rmtree(leftover)
    removed = [*names, *(f"the template of {directory.parent.name}" for directory in templates)]
    return {"changed": bool(removed), "removed": removed, "freed_bytes": freed}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"state_dir": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    run(module, prune)


if __name__ == "__main__":
    main()
