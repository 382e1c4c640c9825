#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decide what a VM may reach in the network, and have the host enforce it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: egress
short_description: Limit what a VM may reach
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes the network policy of a recorded VM into its record and has the host's packet filter, a service of root's that
    C(vmw host) sets up, enforce it at once, also after a reboot of the host. Nothing in the guest can change it.
  - Tells a running guest of the proxy by which it reaches the hosts on its list.
  - A VM is only started after this, as the filter lets nothing through of a VM that it does not know.
  - The network of a VM of the user's own libvirt (C(qemu:///session)) is passt's, which is served here by units of the user's
    service manager. Its policy is V(open), and another one is refused.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows the policy before and after.
options:
  state:
    description: Whether the VM has a policy. Without one it has no network.
    type: str
    choices: [present, absent]
    default: present
  mode:
    description:
      - V(internet) is the public internet, without the local network, the host's services and other VMs. V(allowlist) is the
        hosts of the ready list and those of O(allow), by the host's proxy. V(open) is everything. V(offline) is nothing but the
        host's own connections.
      - By default it stays as it is.
    type: str
    choices: ["", internet, allowlist, open, offline]
    default: ""
  allow:
    description: Hosts to add to the VM's own list, each a name or C(*.suffix).
    type: list
    elements: str
    default: []
  forbid:
    description: Hosts to take off the VM's own list.
    type: list
    elements: str
    default: []
  proxy_port:
    description: The port of the user's proxy on the bridge, or 0 for the one of this user.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Give a VM no network
  vmw.worktree.egress:
    state_dir: ~/.config/vmw
    name: project
    mode: offline

- name: Have a VM reach one more host
  vmw.worktree.egress:
    state_dir: ~/.config/vmw
    name: project
    allow: [static.crates.io]
"""

RETURN = r"""
egress:
  description: The policy, with RV(egress.mode) and RV(egress.allow), the VM's own list.
  returned: when O(state=present)
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.egress import MODES
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.layers.egress import absent, present


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "mode": {"type": "str", "choices": ["", *MODES], "default": ""},
            "allow": {"type": "list", "elements": "str", "default": []},
            "forbid": {"type": "list", "elements": "str", "default": []},
            "proxy_port": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
