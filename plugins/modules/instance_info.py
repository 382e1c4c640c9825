#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Read the record of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_info
short_description: Read the record of a VM
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Returns the instance record of one VM, and fails in words where there is none.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Only reads.
"""

EXAMPLES = r"""
- name: Read the record
  vmw.worktree.instance_info:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
instance:
  description: The instance record.
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of


def read(module: AnsibleModule) -> dict[str, Any]:
    """Return the record."""
    instance = files_of(module.params["state_dir"], module.params["name"]).load()
    return {"changed": False, "instance": instance.as_dict()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, read)


if __name__ == "__main__":
    main()
