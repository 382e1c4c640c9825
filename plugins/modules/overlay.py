#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM's disk, an overlay over a golden image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay
short_description: Make the disk of a VM as a linked clone
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Creates the copy-on-write disk of a recorded VM over the disk of its golden-image generation, and lets QEMU's user open it.
  - An existing disk is never replaced.
  - With O(warm=true), and where there is a saved template that fits the VM, the disk is a copy of the template's, and the VM's
    memory is loaded in the background, for M(vmw.worktree.domain) to complete.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The result is one binary file.
options:
  warm:
    description: Whether the VM may be started as a fork of a saved template.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Make the disk
  vmw.worktree.overlay:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
path:
  description: The disk's path.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.disk import make


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "warm": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, make)


if __name__ == "__main__":
    main()
