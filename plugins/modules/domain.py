#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Define and start a VM and wait until it can be used, or make libvirt forget it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: domain
short_description: Start a recorded VM, or remove its domain
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes the domain XML of a recorded VM, defines it, starts it and waits until the guest can be used.
  - A VM whose disk M(vmw.worktree.overlay) made from a saved template becomes a machine of its own here, while it runs. When that
    fails, it is started cold, with a warning.
  - A guest that was suspended is given the time, and has its address confirmed, as the lease may have run out meanwhile.
  - With O(state=absent) forces the domain off and undefines it. A domain that does not carry this VM's mark is never touched.
extends_documentation_fragment: [vmw.worktree.instance, vmw.worktree.instance.waiting]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows the XML before and after.
options:
  state:
    description: Whether the VM runs, or has no domain.
    type: str
    choices: [running, absent]
    default: running
  sockets:
    description: The sockets of the VM's shares by tag. Needed with O(state=running).
    type: dict
  mountpoints:
    description: Where the guest mounts the shares.
    type: list
    elements: str
    default: []
  proxy_port:
    description: The port of the user's proxy on the bridge, or 0 for the one of this user. A guest that was waited for is told of
      it, when its network policy needs it.
    type: int
    default: 0
  libvirt_uri:
    description: Where libvirt listens. Used with O(state=absent), when there is no record that tells.
    type: str
    default: qemu:///system
"""

EXAMPLES = r"""
- name: Start the VM
  vmw.worktree.domain:
    state_dir: ~/.config/vmw
    name: project
    sockets:
      vmw:repo: /run/vmw/me/project-repo.sock
    mountpoints: [/home/claude/repo]
"""

RETURN = r"""
xml:
  description: The domain XML.
  returned: when O(state=running)
  type: str
path:
  description: The file that holds it.
  returned: when O(state=running)
  type: str
start:
  description: Whether the VM was started V(warm), as a fork of a template, V(cold), or V(resumed) from its saved memory; V(none)
    when it ran already.
  returned: when O(state=running)
  type: str
address:
  description: The guest's address.
  returned: when O(wait=true)
  type: str
instance:
  description: The instance record, with RV(address), RV(start) and the domain's state.
  returned: when O(state=running)
  type: dict
timings:
  description: The phases of the start and how long each took, in seconds.
  returned: when O(state=running)
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.domain import absent, running
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import WAITING


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["running", "absent"], "default": "running"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "sockets": {"type": "dict"},
            "mountpoints": {"type": "list", "elements": "str", "default": []},
            **WAITING,
            "proxy_port": {"type": "int", "default": 0},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        },
        required_if=[("state", "running", ["sockets"])],
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else running)


if __name__ == "__main__":
    main()
