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
  tell_guest:
    description: Whether to tell a running guest of the proxy also when the policy did not change.
    type: bool
    default: false
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
stale:
  description: Whether the guest knows another way than it has now, so that it is to be told when it runs.
  returned: when O(state=present)
  type: bool
"""

import contextlib
import dataclasses
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent, packet_filter, passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.bridge_address import bridge_address
from ansible_collections.vmw.worktree.plugins.module_utils.egress import (
    ALLOWLIST,
    MODES,
    Egress,
    guest_script,
    proxy_port,
    proxy_url,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import can_bind
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK, check_lists, check_policy

TELL_SECONDS = 30.0
"""How long the guest may take to write two files."""

SAID_LENGTH = 200
"""Characters of the guest's complaint that are shown."""


def described(egress: Egress) -> str:
    """Return a policy for a diff."""
    return "".join(f"{line}\n" for line in (egress.mode, *egress.allow))


def tell_guest(module: AnsibleModule, files: InstanceFiles, domain: Any, url: str) -> bool:  # noqa: ANN401
    """Have the programs in a running guest use the proxy at a URL, or need none any more; return whether they know.

    Nothing is enforced by that, so a guest that does not listen is only warned of.
    """
    try:
        ended = guest_agent.call(domain, "/bin/sh", stdin=guest_script(url), timeout=TELL_SECONDS)
        reason = printable(ended.output.strip()[:SAID_LENGTH]) if ended.status else ""
    except VmwError as error:
        reason = error.message
    if reason:
        module.warn(f"the programs in {files.name} do not know their way to the network: {reason}")
        return False
    with files.state.lock("instances"):
        now = files.load()
        files.save(dataclasses.replace(now, egress=dataclasses.replace(now.egress, told=url)))
    return True


def serve(module: AnsibleModule, instance: Instance) -> dict[str, Any]:
    """Have passt be the network of a VM of the user's own libvirt.

    Raises:
        VmwError: Another policy is asked for, or somebody else has the VM's port.
    """
    check_policy(module.params["mode"])
    check_lists([*module.params["allow"], *module.params["forbid"]])
    if not module.check_mode and not passt_units.is_connected(instance.name) and not can_bind(LOOPBACK, instance.ssh_port):
        # QEMU would try again and again to get a network, and never start.
        message = f"port {instance.ssh_port} of this host, at which {instance.name} is reached, is taken by another program"
        raise VmwError(message, f"`ss -tlnp sport = :{instance.ssh_port}` shows which; end it, and try again", "conflict")
    changed = passt_units.present(instance.name, instance.ssh_port, check_mode=module.check_mode)
    return {"changed": changed, "egress": dataclasses.asdict(instance.egress), "stale": False}


def present(module: AnsibleModule) -> dict[str, Any]:
    """Change the policy and have it enforced."""
    parameters = module.params
    files = files_of(parameters["state_dir"], parameters["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "egress": dataclasses.asdict(Egress()), "stale": False}
    recorded = files.load()
    if recorded.is_session:
        return serve(module, recorded)
    port = proxy_port(parameters["proxy_port"], os.getuid())
    with contextlib.nullcontext() if module.check_mode else files.state.lock("instances"):
        before = files.load()
        egress = before.egress.changed(parameters["mode"], parameters["allow"], parameters["forbid"])
        after = dataclasses.replace(before, egress=egress)
        url = proxy_url(bridge_address(after.bridge), port) if egress.mode == ALLOWLIST else ""
        changed = after != before
        if not module.check_mode:
            changed |= enforce(files, before, after, port)
    asked = egress != before.egress or bool(parameters["mode"])
    stale = egress.told != url
    if not module.check_mode and (parameters["tell_guest"] or asked):
        domain = find_own_domain(connect(after.libvirt_uri), files.name, str(files.record))
        if is_running(domain):
            if warning := packet_filter.card_warning(after, domain.XMLDesc()):
                module.warn(warning)
            # Without the lock: a guest may take its time, and others have theirs to do.
            stale = stale and not tell_guest(module, files, domain, url)
    return {
        "changed": changed,
        "egress": dataclasses.asdict(egress),
        "stale": stale,
        "diff": {"before": described(before.egress), "after": described(egress)},
    }


def enforce(files: InstanceFiles, before: Instance, after: Instance, port: int) -> bool:
    """Have a policy enforced and write it down; return whether that is new to the packet filter.

    One that cannot be written down is taken back, unless it lets less through: filling the disk shall be no way to keep that off.
    """
    changed = packet_filter.enforce(after, port)
    if after != before:
        try:
            files.save(after)
        except OSError as error:
            if not after.egress.is_wider(before.egress):
                message = f"{after.name} is {after.egress.mode} now, which could not be written down: {error.strerror or error}"
                hint = f"make room and run it again, or the next start of {after.name} brings {before.egress.mode} back"
                raise VmwError(message, hint) from error
            packet_filter.enforce(before, port)
            raise
    return changed


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Have the filter forget the VM, and passt be no network of it; which of them it had, a lost record does not tell."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode:
        return {"changed": files.exists()}
    served = passt_units.absent(files.name)
    try:
        released = packet_filter.release(files.name)
    except VmwError as error:
        # What is left of a policy lets nobody through, and must not keep the VM. passt's users may have no word with the filter.
        if not served:
            module.warn(f"the packet filter may still know {files.name}: {error.message}")
        released = False
    return {"changed": served or released}


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
            "tell_guest": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
