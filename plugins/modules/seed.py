#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM's NoCloud seed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: seed
short_description: Make the cloud-init seed of a VM
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes the NoCloud seed of a recorded VM, an ISO 9660 image, and keeps its sources beside it for people to read.
  - Adds the VM's SSH host key to the user data, so that no task ever prints it, and the mounts of its shares.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The user data holds a private key.
"""

EXAMPLES = r"""
- name: Make the seed
  vmw.worktree.seed:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
path:
  description: The seed's path.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.cloud_init import make


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, make)


if __name__ == "__main__":
    main()
