#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell which golden images there are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: Tell which golden images there are
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Reads the golden-image generations of one user, and whether this process may talk to libvirt.
  - Warns when the current generation was made from other settings than today's.
attributes:
  check_mode:
    support: full
    description: Changes nothing in any case.
  diff_mode:
    support: none
    description: Changes nothing.
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  libvirt_uri:
    description: The connection to libvirt that is asked about.
    type: str
    required: true
  inputs:
    description: What shapes a golden image today, to compare with what shaped the current one.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Look at the golden image
  vmw.worktree.image_info:
    state_dir: ~/.config/vmw
    libvirt_uri: qemu:///system
    inputs:
      node_major: 24
  register: golden_image
"""

RETURN = r"""
state_dir:
  description: vmw's directory as an absolute path, which means the same to root.
  returned: success
  type: str
generation:
  description: Name of the current generation; empty when there is none.
  returned: success
  type: str
  sample: 20261124-093012-5f0c1a9e
libvirt_access:
  description: Whether libvirt talks to this process.
  returned: success
  type: bool
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.image import current_generation, inputs_hash
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect
from ansible_collections.vmw.worktree.plugins.module_utils.state import State


def has_access(libvirt_uri: str) -> bool:
    """Tell whether libvirt talks to this process. The socket's mode does not tell, because polkit may decide."""
    try:
        connect(libvirt_uri).close()
    except VmwError:
        return False
    return True


def look(module: AnsibleModule) -> dict[str, Any]:
    """Collect the results."""
    state = State.at(module.params["state_dir"])
    current = current_generation(state)
    if current and current.inputs != inputs_hash(module.params["inputs"]):
        module.warn("the golden image was made from other settings than today's; `vmw image build` makes a new one")
    return {
        "changed": False,
        "state_dir": str(state.root.absolute()),
        "generation": current.generation if current else "",
        "libvirt_access": has_access(module.params["libvirt_uri"]),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "libvirt_uri": {"type": "str", "required": True},
            "inputs": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, look)


if __name__ == "__main__":
    main()
