#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Read the record of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_info
short_description: Read the record of a VM and ask libvirt for its state
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Returns the instance record of one VM and its state, and fails in words where there is no record.
  - Fails also when libvirt's domain of that name is somebody else's.
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
state:
  description: >-
    Whether the domain is V(running), V(suspended), that is off with its memory saved, V(shut off), or V(undefined), that is
    unknown to libvirt.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    domain_state,
    find_own_domain,
)


def read(module: AnsibleModule) -> dict[str, Any]:
    """Return the record and the state."""
    files = files_of(module.params["state_dir"], module.params["name"])
    instance = files.load()
    domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
    return {"changed": False, "instance": instance.as_dict(), "state": domain_state(domain)}


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
