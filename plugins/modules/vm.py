#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM for a worktree, or find it, and have it run."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm
short_description: Have a VM for a worktree
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Records a VM for a worktree, has its network policy enforced, makes its disk and its seed, serves its shares, starts it, and
    waits until it can be used. What is there already is left as it is.
  - Does what M(vmw.worktree.instance), M(vmw.worktree.egress), M(vmw.worktree.overlay), M(vmw.worktree.seed),
    M(vmw.worktree.shares) and M(vmw.worktree.domain) do one after the other, in one task, as each task costs about half a second
    on the way to a usable VM.
  - On the machine that Ansible runs on, as its user and with a Python that C(ansible_python_interpreter) names, it is started as
    it lies in the collection. Anywhere else, and with C(async), C(environment) or C(delegate_to), Ansible packs and sends it
    first, as it does with every module.
extends_documentation_fragment: [vmw.worktree.instance.decisions, vmw.worktree.instance.waiting]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: partial
    description: Shows the domain's XML before and after; the record is returned as a whole.
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  worktree:
    description: The absolute path of the worktree to make a VM for; without one, a recorded VM is started.
    type: str
  name:
    description: The VM's name; by default made from the last component of O(worktree).
    type: str
  proxy_port:
    description: The port of the user's proxy on the bridge, or 0 for the one of this user.
    type: int
    default: 0
  warm:
    description: Whether a new VM may be started as a fork of a saved template. Its memory is then loaded in the background.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Have a VM for a worktree
  vmw.worktree.vm:
    state_dir: ~/.config/vmw
    worktree: /home/me/Code/project
    memory_mib: 4096
    vcpus: 4
    disk_gib: 20
    bridge: br0
    guest_user: claude
    warm: true

- name: Start it again
  vmw.worktree.vm:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
instance:
  description: The instance record, with its address once the VM was waited for, its state and how it was started.
  returned: success
  type: dict
start:
  description: Whether the VM was started V(warm), as a fork of a template, V(cold), or V(resumed) from its saved memory; V(none)
    when it ran already.
  returned: success
  type: str
timings:
  description: The phases and how long each took, in seconds.
  returned: success
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.whole import running
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import ARGUMENTS, RULES


def main() -> None:
    """Run the module."""
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True, **RULES), running)


if __name__ == "__main__":
    main()
