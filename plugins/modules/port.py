#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Publish a guest's port on the host's loopback."""

from __future__ import annotations

DOCUMENTATION = r"""
module: port
short_description: Publish a guest's port on the host's loopback
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes a systemd user unit in which ssh listens at C(127.0.0.1) and C(::1), and nowhere else, and carries what connects there
    to the guest. It runs exactly as long as the VM does, also after C(virsh start) and a reboot of the host.
  - ssh takes the VM's pinned host key only, asks nothing, and lends the guest neither agent nor any other port.
  - A VM that is off may have ports published, too; the host listens there once it runs.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows the VM's published ports before and after.
options:
  state:
    description: Whether the port is published.
    type: str
    choices: [present, absent]
    default: present
  port:
    description:
      - The guest's port and, after a colon, the host's, by default of the same number.
      - With O(state=absent) a number alone may be the host's as well, and without this option all ports of the VM are meant.
      - Required with O(state=present).
    type: str
"""

EXAMPLES = r"""
- name: Publish the guest's port 3000 at 127.0.0.1:8080
  vmw.worktree.port:
    state_dir: ~/.config/vmw
    name: project
    port: "3000:8080"
"""

RETURN = r"""
guest_port:
  description: The port in the guest.
  returned: when O(state=present)
  type: int
host_port:
  description: The port on the host's loopback.
  returned: when O(state=present)
  type: int
running:
  description: Whether the VM runs.
  returned: when O(state=present)
  type: bool
listening:
  description: Whether the host listens there already.
  returned: when O(state=present)
  type: bool
removed:
  description: The ports that are published no more, each as C(GUEST:HOST).
  returned: when O(state=absent)
  type: list
  elements: str
"""

import contextlib
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, all_instances, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import (
    Place,
    Port,
    Published,
    all_published,
    can_bind,
    describe,
    listen_addresses,
    parse_unit_name,
    port_unit_name,
    published_at,
    service_unit,
    share_unit,
    to_publish,
    to_remove,
)
from ansible_collections.vmw.worktree.plugins.module_utils.ssh_command import identities, port_options
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, read_exactly, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import loaded_units, remove_units, systemctl, unit_directory

if TYPE_CHECKING:
    from pathlib import Path

LOCK = "ports"
"""Name of the lock on what is published, for a port of the host is one VM's only."""

SAID_LENGTH = 300
"""Characters of ssh's complaint that are shown; part of it may be the guest's choice."""


def link(published: Published) -> Path:
    """Return the link by which the share's daemon brings the unit with it."""
    return unit_directory() / f"{share_unit(published.name)}.wants" / published.unit


def unit_text(published: Published, files: InstanceFiles) -> str:
    """Return the unit of a port, with the keys and the agent that the user's own ssh would take.

    Raises:
        VmwError: ssh is missing, or does not understand its configuration.
    """
    instance = files.load()
    shown = command(
        "ssh", "-G", "-l", instance.guest_user, "--", f"{instance.name}.local", hint="does `ssh` itself take your ~/.ssh/config?"
    )
    options = port_options(instance.name, instance.guest_user, files.known_hosts, identities(shown), instance.ssh_port)
    return service_unit(published, Place.of(instance), options, listen_addresses())


def states(*units: str) -> list[str]:
    """Return what systemd says of some units, one word each."""
    return systemctl("show", "--property=ActiveState", *units).replace("ActiveState=", "").split()


def check_conflicts(wanted: Published, everything: list[Published], instances: list[Instance], *, active: bool) -> None:
    """See that nobody else has the port of the host.

    Args:
        wanted: What is to be published.
        everything: What is published.
        instances: The user's VMs, some of which are reached at a port of the host.
        active: Whether it is, and the host listens.

    Raises:
        VmwError: Somebody has.
    """
    host = wanted.port.host
    other = next((each for each in everything if each.port.host == host and each != wanted), None)
    if other:
        message = f"port {host} of the host is taken: port {other.port.guest} of {other.name} is published there"
        hint = (
            f"choose another, `{wanted.port.guest}:PORT`, or remove that one with `vmw port {other.name} {other.port} --remove`"
        )
        raise VmwError(message, hint, "conflict")
    reached = next((each for each in instances if each.ssh_port == host), None)
    if reached:
        message = f"port {host} of the host is taken: {reached.name} is reached there by SSH"
        raise VmwError(message, f"choose another, `{wanted.port.guest}:PORT`", "conflict")
    path = unit_directory() / wanted.unit
    if (path.exists() or path.is_symlink()) and published_at(path) is None:
        message = f"{path} is there, and was not written by vmw"
        raise VmwError(message, "vmw leaves it alone; remove it if it is yours, or choose another port of the host", "conflict")
    if not active and not all(can_bind(address, host) for address in listen_addresses()):
        message = f"port {host} of the host is taken by another program"
        hint = f"`ss -tlnp sport = :{host}` shows which; or choose another port, `{wanted.port.guest}:PORT`"
        raise VmwError(message, hint, "conflict")


def complaint(unit: str) -> str:
    """Return what ssh said last in a unit."""
    try:
        said = command("journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=3", f"_SYSTEMD_USER_UNIT={unit}")
    except VmwError:
        return ""
    return printable("; ".join(line.strip() for line in said.split("\n") if line.strip()))[:SAID_LENGTH]


def connect(module: AnsibleModule, published: Published) -> bool:
    """Have a unit connect now, and tell why it cannot; it goes on trying by itself."""
    try:
        systemctl("restart", published.unit)
    except VmwError:
        reason = complaint(published.unit)
        advice = ""
        if "denied" in reason:
            advice = "; an agent with your key must be known to systemd: `systemctl --user import-environment SSH_AUTH_SOCK`"
        name = published.name
        module.warn(f"{name} is not reached yet, and is tried again and again: {reason or 'ssh gave no reason'}{advice}")
        return False
    return True


def present(module: AnsibleModule) -> dict[str, Any]:
    """Write the unit, and have it connect when the VM runs."""
    files = files_of(module.params["state_dir"], module.params["name"])
    port = to_publish(module.params["port"])
    wanted = Published(files.name, port)
    path = unit_directory() / wanted.unit
    with contextlib.nullcontext() if module.check_mode else files.state.lock(LOCK):
        # Within the lock: a VM that is being removed has its ports removed after it said so.
        text = unit_text(wanted, files)
        state, share = states(wanted.unit, share_unit(files.name))
        everything = all_published(unit_directory())
        check_conflicts(wanted, everything, all_instances(files.state), active=state == "active")
        running = share == "active"
        written = not path.is_file() or read_exactly(path) != text
        enabled = link(wanted).is_symlink()
        if not module.check_mode:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text)
            # An earlier run may have been interrupted between the files and the reload.
            if written or "yes" in systemctl("show", "--property=NeedDaemonReload", wanted.unit):
                systemctl("daemon-reload")
            if not enabled:
                systemctl("enable", "--quiet", wanted.unit)
    changed = written or not enabled
    listening = state == "active"
    if running and (changed or not listening):
        listening = False if module.check_mode else connect(module, wanted)
        changed = changed or listening or module.check_mode
    ports = {each.port for each in everything if each.name == files.name}
    return {
        "changed": changed,
        "guest_port": port.guest,
        "host_port": port.host,
        "running": running,
        "listening": listening,
        "diff": {"before": describe(ports), "after": describe(ports | {port})},
    }


def left_units(name: str, ports: set[Port] | None) -> tuple[list[str], list[Path]]:
    """Return the units of a VM's ports that systemd holds, and the files and links that are left of them.

    Args:
        name: The VM.
        ports: Which of its ports; all by default, those as well of which not everything is left.
    """
    directory = unit_directory()
    wants = directory / f"{share_unit(name)}.wants"
    if ports is None:
        loaded = loaded_units([f"vmw-{name}-port-*.service"])
        found = {*loaded, *(path.name for place in (directory, wants) for path in place.glob(f"vmw-{name}-port-*.service"))}
        # The pattern also fits another VM's share, and a file may be somebody else's.
        units = sorted(unit for unit in found if (parse_unit_name(unit) or ("",))[0] == name and _is_ours(directory / unit))
    else:
        units = sorted(port_unit_name(name, port.host) for port in ports)
        loaded = loaded_units(units) if units else []
    places = [place / unit for unit in units for place in (directory, wants)]
    return [unit for unit in loaded if unit in units], [path for path in places if path.exists() or path.is_symlink()]


def _is_ours(path: Path) -> bool:
    """Tell whether a unit's file was written by vmw, or is gone."""
    return published_at(path) is not None or not (path.exists() or path.is_symlink())


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Stop and remove the units, by exact name."""
    files = files_of(module.params["state_dir"], module.params["name"])
    spec = module.params["port"]
    unlocked = module.check_mode or not files.state.root.is_dir()
    with contextlib.nullcontext() if unlocked else files.state.lock(LOCK):
        ports = {each.port for each in all_published(unit_directory()) if each.name == files.name}
        meant = ports
        if spec is not None:
            one = to_remove(spec, sorted(ports))
            meant = {one} if one else set()
        loaded, left = left_units(files.name, None if spec is None else meant)
        if not module.check_mode:
            remove_units(loaded, left)
            with contextlib.suppress(OSError):
                # Other ports of this VM, or other people's links, may be in it.
                (unit_directory() / f"{share_unit(files.name)}.wants").rmdir()
    return {
        "changed": bool(loaded or left),
        "removed": [str(port) for port in sorted(meant)],
        "diff": {"before": describe(ports), "after": describe(ports - meant)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "port": {"type": "str"},
        },
        required_if=[("state", "present", ("port",))],
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
