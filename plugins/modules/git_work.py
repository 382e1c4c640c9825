#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell what of a VM's work is not safe elsewhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: git_work
short_description: Tell what of a VM's work is not committed, not pushed, or nowhere else
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Counts what is uncommitted in the worktree of a VM, and the commits that no remote, or nothing but the VM, has. Warns of them.
  - Runs nothing that the guest left in the worktree or in its repository, and needs no VM that runs.
  - Never fails for what it cannot find out, so that a VM can be removed whatever its repository looks like.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Only reads.
options:
  timeout:
    description: How long to look, in seconds.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: Tell what is not safe elsewhere
  vmw.worktree.git_work:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
work:
  description: What was found.
  returned: when there is a record
  type: dict
  contains:
    unknown:
      description: Why something could not be told; empty when all could.
      type: str
    staged:
      description: How many paths are staged.
      type: int
    unstaged:
      description: How many paths are changed and not staged.
      type: int
    untracked:
      description: How many paths git does not know; a directory counts once.
      type: int
    unpushed:
      description: How many commits no remote has; null for a repository that follows no remote.
      type: int
    only_guest:
      description: How many commits are gone with the VM.
      type: int
    only_elsewhere:
      description: How many of those are not on the branch that is checked out.
      type: int
    stashed:
      description: Whether a stash is gone with the VM.
      type: bool
warnings:
  description: The same in words.
  returned: when there is anything to tell
  type: list
  elements: str
"""

import dataclasses
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.git_work import warnings, work_at_risk
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of


def tell(module: AnsibleModule) -> dict[str, Any]:
    """Look, and warn."""
    try:
        files = files_of(module.params["state_dir"], module.params["name"])
        instance = files.read()
    except VmwError:
        # What is left of a VM without a record is no work.
        return {"changed": False}
    risk = work_at_risk(instance, files, module.params["timeout"])
    for line in warnings(instance, risk):
        module.warn(line)
    return {"changed": False, "work": dataclasses.asdict(risk)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    run(module, tell)


if __name__ == "__main__":
    main()
