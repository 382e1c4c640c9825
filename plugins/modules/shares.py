#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Serve a VM's shares by virtiofsd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shares
short_description: Serve a VM's shares
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Which directories those are, and what of them the guest may write, follows from the VM's record.
  - Writes one systemd user socket and service per share, and has the sockets listen now and after every boot.
  - QEMU's connection starts a fresh virtiofsd as the calling user, in a mount namespace that shows it just its share.
  - With O(state=absent) stops and removes every unit of the VM.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The units are readable with C(systemctl --user cat).
options:
  state:
    description: Whether the shares are served.
    type: str
    choices: [present, absent]
    default: present
  runtime_dir:
    description: Directory of the sockets, whose group is QEMU's; by default the calling user's own below C(/run/vmw), and
      C(vmw) in the user's runtime directory for a VM of C(qemu:///session).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Share a worktree
  vmw.worktree.shares:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
sockets:
  description: The sockets' paths by tag.
  returned: when O(state=present)
  type: dict
mountpoints:
  description: Where the guest mounts the shares.
  returned: when O(state=present)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.virtiofsd import absent, present


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "runtime_dir": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
