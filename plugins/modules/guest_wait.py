#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Wait until a VM has come as far as is asked."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_wait
short_description: Wait for one phase of a VM's life
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Waits until the guest has an address, answers on SSH with its own host key, has its shares mounted, or is off.
  - Fails as soon as the wait is in vain, with the phase, the likely cause and the log.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Does not wait.
  diff_mode:
    support: none
    description: Only looks.
options:
  phase:
    description: What to wait for.
    type: str
    choices: [address, ssh, shares, "off"]
    required: true
  address:
    description: The guest's address, as an earlier wait returned it, to be returned again with O(phase=shares).
    type: str
  mountpoints:
    description: The directories in the guest that must be mounted. Needed with O(phase=shares).
    type: list
    elements: str
  timeout:
    description: How long to wait, in seconds.
    type: int
    default: 180
"""

EXAMPLES = r"""
- name: Wait for the guest's address
  vmw.worktree.guest_wait:
    state_dir: ~/.config/vmw
    name: project
    phase: address
"""

RETURN = r"""
address:
  description: The guest's address.
  returned: success
  type: str
instance:
  description: The instance record, with RV(address) and the domain's state.
  returned: success
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect
from ansible_collections.vmw.worktree.plugins.module_utils.readiness import Guest


def wait_for_phase(module: AnsibleModule) -> dict[str, Any]:
    """Wait for what the module's parameters ask."""
    files = files_of(module.params["state_dir"], module.params["name"])
    phase = module.params["phase"]
    if module.check_mode:
        return {"changed": False, "address": ""}
    instance = files.load()
    guest = Guest(files, instance, connect(instance.libvirt_uri), module.params["timeout"])
    address = module.params["address"] or ""
    if phase == "address":
        address = guest.address()
    elif phase == "ssh":
        address = guest.ssh()
    elif phase == "shares":
        guest.shares(module.params["mountpoints"])
    else:
        guest.off()
    state = "shut off" if phase == "off" else "running"
    return {"changed": False, "address": address, "instance": {**instance.as_dict(), "address": address, "state": state}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "phase": {"type": "str", "choices": ["address", "ssh", "shares", "off"], "required": True},
            "address": {"type": "str"},
            "mountpoints": {"type": "list", "elements": "str"},
            "timeout": {"type": "int", "default": 180},
        },
        required_if=[("phase", "shares", ["mountpoints"])],
        supports_check_mode=True,
    )
    run(module, wait_for_phase)


if __name__ == "__main__":
    main()
