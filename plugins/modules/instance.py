#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Create, find or remove the record of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: Record a VM for a worktree
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Decides everything about one VM and writes it down as its instance record, together with the VM's SSH host key.
  - With O(state=absent) removes the record and the directory it is in. The worktree is never touched.
extends_documentation_fragment: [vmw.worktree.instance.decisions]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The record is returned as a whole.
options:
  state:
    description: Whether the record exists. With V(leaving) it does, and nothing is made or started of this VM any more.
    type: str
    choices: [present, leaving, absent]
    default: present
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  worktree:
    description: The worktree's absolute path. Needed with O(state=present).
    type: str
  name:
    description: The VM's name; with O(state=present) by default made from the last component of O(worktree).
    type: str
"""

EXAMPLES = r"""
- name: Record the VM
  vmw.worktree.instance:
    state_dir: ~/.config/vmw
    worktree: /home/me/Code/project
    memory_mib: 4096
    vcpus: 4
    disk_gib: 20
    bridge: br0
    guest_user: claude

- name: Forget the VM
  vmw.worktree.instance:
    state: absent
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
instance:
  description: The instance record.
  returned: when O(state=present)
  type: dict
warnings:
  description: What the user asked for and did not get.
  returned: when there is any
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.instance import absent, leaving, present
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import DECISIONS, NEEDED


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "leaving", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "worktree": {"type": "str"},
            "name": {"type": "str"},
            **DECISIONS,
        },
        required_if=[
            ("state", "present", ["worktree", *NEEDED]),
            ("state", "leaving", ["name"]),
            ("state", "absent", ["name"]),
        ],
        supports_check_mode=True,
    )
    work = {"present": present, "leaving": leaving, "absent": absent}
    run(module, work[module.params["state"]])


if __name__ == "__main__":
    main()
