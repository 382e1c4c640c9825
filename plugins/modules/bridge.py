#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decide what the VMs' bridge is, and put the wired NIC into it without losing the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bridge
short_description: Give the VMs' bridge its uplink
version_added: 0.1.0
description:
  - Decides whether the bridge leads to the LAN through a wired NIC or is a NAT network of libvirt.
  - For the LAN it puts the NIC into the bridge, which takes over the NIC's MAC address, IP settings, routes and name servers.
    NetworkManager gets two profiles, named after the bridge and C(BRIDGE-slave-NIC).
    systemd-networkd, also where netplan configures it, gets three files C(05-vmw-BRIDGE*).
  - The switch happens under a timed rollback that systemd holds. When the host's addresses, routes, name servers or its gateway
    are not there again in time, or when this module dies, the NIC gets its own settings back.
    Nothing is written to disk before all is verified, so a reboot also leads back.
  - The NAT network itself is left to M(community.libvirt.virt_net); this module says which subnet is free.
  - A bridge of that name that somebody else made is used as it is.
author:
  - The vmw authors
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tells what would change.
  diff_mode:
    support: full
    description: Shows what the bridge is and what it becomes.
  idempotent:
    support: full
    description: A bridge that is as it should be is not touched.
options:
  name:
    description: The bridge's name.
    type: str
    default: br0
  uplink:
    description:
      - V(auto) takes the wired NIC with the default route when NetworkManager, netplan or systemd-networkd runs it,
        and NAT otherwise. It decides once; a bridge that exists stays as it is.
      - V(none) is NAT.
      - Anything else is the name of a wired NIC.
    type: str
    default: auto
  network:
    description: The name of libvirt's NAT network.
    type: str
    default: vmw
  libvirt_uri:
    description: The libvirt that holds the NAT network.
    type: str
    default: qemu:///system
  rollback:
    description: Seconds after which a switch that nobody has confirmed is taken back.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Give the bridge its uplink
  vmw.worktree.bridge:
    name: br0
    uplink: auto
  become: true
"""

RETURN = r"""
mode:
  description: Where the bridge leads, V(lan), V(nat) or V(existing) for one that somebody else made.
  returned: success
  type: str
  sample: lan
nic:
  description: The uplink in LAN mode.
  returned: success
  type: str
  sample: enp1s0
reason:
  description: Why it is not the LAN, or not as it was asked for.
  returned: success
  type: str
  sample: wlp2s0 is Wi-Fi
subnet:
  description: A subnet that is free for a NAT network on this host.
  returned: success
  type: str
  sample: 192.168.150.0/24
network:
  description: Whether libvirt has the NAT network.
  returned: success
  type: bool
libvirt:
  description: Whether libvirt is installed.
  returned: success
  type: bool
"""

import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import bridge as plans
from ansible_collections.vmw.worktree.plugins.module_utils import bridge_switch as switches
from ansible_collections.vmw.worktree.plugins.module_utils.bridge import Host, Manager, Mode, Place, Plan, Route
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.state import command

SYS = Path("/sys/class/net")
NETIF = Path("/run/systemd/netif")
UNIT = "vmw-bridge-rollback"
WORK = Path("/run/vmw-bridge")
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
DISCARD_PORT = 9


def attempt(*argv: str) -> str:
    """Run a program and return what it printed; nothing when it is missing or fails."""
    try:
        return command(*argv)
    except VmwError:
        return ""


def link_exists(name: str) -> bool:
    """Tell whether an interface exists."""
    return (SYS / name).exists()


def all_routes() -> tuple[Route, ...]:
    """Read the main routing table."""
    return (
        *plans.parse_routes(command("ip", "-json", "-4", "route", "show"), ipv6=False),
        *plans.parse_routes(attempt("ip", "-json", "-6", "route", "show"), ipv6=True),
    )


def read_host(name: str, network: str, uri: str, extra: str) -> Host:
    """Gather what the plan is made from.

    Args:
        name: The bridge.
        network: libvirt's NAT network.
        uri: Its libvirt.
        extra: A NIC whose manager matters even without a default route.
    """
    wireless = frozenset(path.name for path in SYS.iterdir() if (path / "wireless").exists() or (path / "phy80211").exists())
    links = plans.parse_links(command("ip", "-json", "-details", "link", "show"), wireless)
    routes = all_routes()
    names = [*plans.default_devices(routes), extra]
    xml = attempt("virsh", "--connect", uri, "net-dumpxml", network)
    return Host(
        links=links,
        routes=routes,
        managers={nic: manager(nic) for nic in names if nic in links},
        network_bridge=plans.parse_network_bridge(xml) if xml else "",
        uplink=our_uplink(name),
    )


def manager(nic: str) -> Manager:
    """Tell who runs a NIC."""
    state = nm_device(nic)
    if state.get("GENERAL.CON-UUID") and state.get("GENERAL.STATE") == "100 (connected)":
        return Manager.NETWORK_MANAGER
    file = networkd_state(nic).get("NETWORK_FILE", "")
    if not file:
        return Manager.NOBODY
    return Manager.NETPLAN if "-netplan-" in file else Manager.NETWORKD


def nm_device(nic: str) -> dict[str, str]:
    """Read what NetworkManager says about a NIC."""
    return switches.parse_nm(attempt("nmcli", "--terse", "--escape", "no", "--fields", "GENERAL", "device", "show", nic))


def nm_profile(uuid: str) -> dict[str, str]:
    """Read a profile of NetworkManager."""
    return switches.parse_nm(attempt("nmcli", "--terse", "--escape", "no", "connection", "show", "uuid", uuid))


def key_values(file: Path) -> dict[str, str]:
    """Read a file of ``KEY=value`` lines; one that does not exist is empty."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def networkd_state(nic: str) -> dict[str, str]:
    """Read what systemd-networkd says about a NIC."""
    state = key_values(NETIF / "links" / (SYS / nic / "ifindex").read_text().strip())
    return state if state.get("ADMIN_STATE") == "configured" else {}


def our_uplink(bridge: str) -> str:
    """Return the NIC that an earlier run put into the bridge, or nothing."""
    for directory in (switches.PERSISTENT_UNITS, switches.RUNTIME_UNITS):
        file = Path(directory, switches.unit_names(bridge)[2])
        if file.is_file():
            return dict(dict(switches.parse_unit(file.read_text()))["Match"])["Name"]
    prefix = switches.nm_names(bridge, "")[1]
    for line in attempt("nmcli", "--terse", "--fields", "UUID,NAME", "connection", "show").splitlines():
        uuid, _, name = line.partition(":")
        if uuid == switches.nm_uuid(name) and name.startswith(prefix):
            return name[len(prefix) :]
    return ""


def read_place(device: str) -> Place:
    """Read the host's place on the LAN behind an interface."""
    if not link_exists(device):
        return Place(frozenset(), frozenset(), frozenset())
    addresses = plans.parse_addresses(attempt("ip", "-json", "address", "show", "dev", device))
    resolv = RESOLVED if RESOLVED.is_file() else Path("/etc/resolv.conf")
    nameservers = plans.parse_nameservers(resolv.read_text()) if resolv.is_file() else frozenset()
    return plans.place(addresses, all_routes(), device, nameservers)


def answers(gateway: str, device: str) -> bool:
    """Tell whether a gateway answers on the link: it need not reply to pings, but to ARP or neighbour discovery it does."""
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            scope = socket.if_nametoindex(device) if gateway.startswith("fe80") else 0
            probe.sendto(b"", (gateway, DISCARD_PORT, 0, scope) if family == socket.AF_INET6 else (gateway, DISCARD_PORT))
    except OSError:
        return False
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        if "lladdr" in attempt("ip", "neighbour", "show", "to", gateway, "dev", device):
            return True
        time.sleep(0.1)
    return False


def wait_for(place: Place, device: str, timeout: float) -> list[str]:
    """Wait until a host has its place on the LAN, and return what is still missing."""
    deadline = time.monotonic() + timeout
    while True:
        lost = place.lost(read_place(device))
        if not lost:
            lost = [f"gateway {gateway}, which does not answer" for gateway in place.gateways if not answers(gateway, device)]
        if not lost or time.monotonic() > deadline:
            return lost
        time.sleep(0.3)


@dataclass(frozen=True)
class Switch:
    """A move of the host's place on the LAN from one interface to another.

    Attributes:
        source: The interface that has it.
        target: The interface that gets it.
        forward: Shell commands of the move.
        backward: Shell commands that take it back.
        save: Commands that make it last.
        files: What the shell commands need, by name, in the directory ``WORK``.
    """

    source: str
    target: str
    forward: str
    backward: str
    save: list[list[str]]
    files: dict[str, str]


def to_bridge(bridge: str, nic: str) -> Switch:
    """Word the move from a NIC to the bridge.

    Raises:
        VmwError: The NIC's settings cannot be moved.
    """
    mac = (SYS / nic / "address").read_text().strip()
    hint = "set `vmw_bridge_uplink: none` for a NAT network"
    if manager(nic) is Manager.NETWORK_MANAGER:
        uuid = nm_device(nic)["GENERAL.CON-UUID"]
        profile = nm_profile(uuid)
        refusal = switches.nm_unfit(profile)
        if refusal:
            message = f"{nic} cannot be bridged: its profile {profile.get('connection.id', uuid)} {refusal}"
            raise VmwError(message, hint, "host_not_ready")
        forward = switches.nm_script(bridge, nic, mac, profile, plans.metric(all_routes(), nic))
        return Switch(nic, bridge, forward, switches.nm_undo(bridge, nic, uuid), switches.nm_save(bridge, nic), {})
    state = networkd_state(nic)
    sources = [state["NETWORK_FILE"], *state.get("NETWORK_FILE_DROPINS", "").strip('"').split()]
    sections = tuple(section for source in sources for section in switches.parse_unit(Path(source).read_text()))
    stacked = switches.stacked(sections)
    if stacked:
        message = f"{nic} cannot be bridged: {state['NETWORK_FILE']} ties it to another interface ({stacked}=)"
        raise VmwError(message, hint, "host_not_ready")
    lease = NETIF / "leases" / (SYS / nic / "ifindex").read_text().strip()
    client_id = key_values(lease).get("CLIENTID", "")
    return Switch(
        nic,
        bridge,
        switches.networkd_script(bridge, str(WORK), switches.RUNTIME_UNITS),
        switches.networkd_undo(bridge, nic),
        switches.networkd_save(bridge),
        switches.networkd_files(bridge, nic, mac, sections, client_id),
    )


def to_nic(bridge: str, nic: str) -> Switch:
    """Word the move from the bridge back to its NIC.

    Raises:
        VmwError: NetworkManager has no profile that the NIC could go back to.
    """
    names = switches.unit_names(bridge)
    found = [Path(switches.PERSISTENT_UNITS, name) for name in names]
    if all(file.is_file() for file in found):
        backward = switches.networkd_script(bridge, str(WORK), switches.PERSISTENT_UNITS)
        files = {file.name: file.read_text() for file in found}
        return Switch(bridge, nic, switches.networkd_undo(bridge, nic), backward, [], files)
    own = {switches.nm_uuid(name) for name in switches.nm_names(bridge, nic)}
    candidates = []
    for line in attempt("nmcli", "--terse", "--fields", "TIMESTAMP,TYPE,UUID", "connection", "show").splitlines():
        timestamp, kind, uuid = line.split(":")
        if kind == "802-3-ethernet" and uuid not in own and nm_profile(uuid).get("connection.interface-name", "") in ("", nic):
            candidates.append((int(timestamp), uuid))
    if not candidates:
        message = f"NetworkManager has no profile for {nic} other than the bridge's port"
        raise VmwError(message, f"make one: `nmcli connection add type ethernet ifname {nic}`", "conflict")
    forward, backward, save = switches.nm_leave(bridge, nic, max(candidates)[1])
    return Switch(bridge, nic, forward, backward, save, {})


def perform(switch: Switch, seconds: int) -> None:
    """Switch, verify, and keep it or take it back.

    Args:
        switch: The move.
        seconds: When systemd takes it back unless it was confirmed.

    Raises:
        VmwError: The host would have lost its place on the LAN; it has it back.
    """
    place = read_place(switch.source)
    silent = [gateway for gateway in place.gateways if not answers(gateway, switch.source)]
    if silent:
        message = f"the gateway {silent[0]} does not answer on {switch.source}, so a switch could not be verified"
        raise VmwError(message, "check the cable and the network, then try again", "host_not_ready")
    arm(switch, seconds)
    subprocess.run(["/bin/sh", str(WORK / "forward")], capture_output=True, check=False)
    lost = wait_for(place, switch.target, seconds / 2)
    if not lost:
        for argv in switch.save:
            command(*argv)
        lost = wait_for(place, switch.target, seconds / 4)
    if lost:
        take_back(switch, place, lost, seconds)
    command("systemctl", "stop", f"{UNIT}.timer")
    shutil.rmtree(WORK)


def arm(switch: Switch, seconds: int) -> None:
    """Have systemd take a switch back after a while, whatever becomes of this process."""
    WORK.mkdir(mode=0o700, exist_ok=True)
    backward = f"{switch.backward}rm -r {WORK}\n"
    for name, content in {**switch.files, "forward": switch.forward, "backward": backward}.items():
        (WORK / name).write_text(content)
    command(
        "systemd-run", f"--unit={UNIT}", f"--on-active={seconds}", "--timer-property=AccuracySec=1s",
        "--service-type=oneshot", "/bin/sh", str(WORK / "backward"),
    )  # fmt: skip


def take_back(switch: Switch, place: Place, lost: list[str], seconds: int) -> None:
    """Take a switch back now.

    Raises:
        VmwError: Always: what was lost.
    """
    # systemd runs it, so that it ends also when this process is ended.
    attempt("systemctl", "start", f"{UNIT}.service")
    attempt("systemctl", "stop", f"{UNIT}.timer")
    missing = wait_for(place, switch.source, seconds / 2)
    message = f"without {switch.source} {switch.target} had no {', no '.join(lost)}, so the switch was taken back"
    if missing:
        message += f"; {switch.source} has no {', no '.join(missing)} yet"
    raise VmwError(message, "check the network; `vmw_bridge_uplink: none` gives the VMs a NAT network instead")


def refuse_unfinished() -> None:
    """Refuse to work while an earlier switch is unconfirmed.

    Raises:
        VmwError: systemd still holds it.
    """
    states = attempt("systemctl", "show", "--property=ActiveState", "--value", f"{UNIT}.timer", f"{UNIT}.service")
    if set(states.split()) & {"active", "activating"}:
        message = "an earlier switch of the bridge was interrupted and is about to be taken back"
        raise VmwError(message, "try again in a minute", "conflict")


def saved(bridge: str, nic: str) -> bool:
    """Tell whether the bridge outlasts a reboot."""
    if any(Path(switches.RUNTIME_UNITS, name).exists() for name in switches.unit_names(bridge)):
        return False
    own = {switches.nm_uuid(name) for name in switches.nm_names(bridge, nic)}
    for line in attempt("nmcli", "--terse", "--fields", "UUID,FILENAME", "connection", "show").splitlines():
        uuid, _, file = line.partition(":")
        # Where netplan stores NetworkManager's profiles, NetworkManager reads them from /run as well.
        if uuid in own and file.startswith("/run/") and "/netplan-" not in file:
            return False
    return True


def save_commands(bridge: str, nic: str) -> list[list[str]]:
    """Return the commands that make a bridge last that an interrupted run has left."""
    if any(Path(switches.RUNTIME_UNITS, name).exists() for name in switches.unit_names(bridge)):
        return switches.networkd_save(bridge)
    return switches.nm_save(bridge, nic)


def leave_nat(network: str, uri: str) -> None:
    """Remove libvirt's NAT network, which no VM uses."""
    attempt("virsh", "--connect", uri, "net-destroy", network)
    command("virsh", "--connect", uri, "net-undefine", network)


def decide(uplink: str, name: str, host: Host) -> tuple[Plan, Switch | None]:
    """Return the plan, and the switch it needs."""
    plan = plans.make_plan(uplink, name, host)
    if plan.mode is Mode.LAN and not plan.keep:
        try:
            return plan, to_bridge(name, plan.nic)
        except VmwError as error:
            if uplink != plans.AUTO:
                raise
            return Plan(Mode.NAT, reason=error.message), None
    if plan.leave is Mode.LAN:
        return plan, to_nic(name, plan.nic)
    return plan, None


def configure(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work and return its results."""
    name, uplink, network, uri = (module.params[key] for key in ("name", "uplink", "network", "libvirt_uri"))
    refuse_unfinished()
    host = read_host(name, network, uri, uplink)
    plan, switch = decide(uplink, name, host)
    unsaved = plan.mode is Mode.LAN and plan.keep and not saved(name, plan.nic)
    if not module.check_mode:
        if plan.leave is Mode.NAT:
            leave_nat(network, uri)
        if switch:
            perform(switch, module.params["rollback"])
        if unsaved:
            for argv in save_commands(name, plan.nic):
                command(*argv)
    if plan.reason:
        module.warn(f"the VMs get NAT instead of the LAN: {plan.reason}" if plan.mode is Mode.NAT else plan.reason)
    taken = (*(route.destination for route in host.routes), *all_addresses())
    return {
        "changed": switch is not None or unsaved,
        "mode": plan.mode.value,
        "nic": plan.nic if plan.mode is Mode.LAN else "",
        "reason": plan.reason,
        "subnet": str(plans.free_subnet(taken)),
        "network": bool(host.network_bridge) and plan.leave is not Mode.NAT,
        "libvirt": find_spec("libvirt") is not None,
        "diff": {
            "before": plans.describe_now(name, host),
            "after": plans.describe(plan, name),
        },
    }


def all_addresses() -> list[str]:
    """Return every IPv4 address of this host with its prefix length."""
    entries = json.loads(command("ip", "-json", "-4", "address", "show"))
    return [f"{info['local']}/{info['prefixlen']}" for entry in entries for info in entry.get("addr_info", [])]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "br0"},
            "uplink": {"type": "str", "default": "auto"},
            "network": {"type": "str", "default": "vmw"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
            "rollback": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    run(module, configure)


if __name__ == "__main__":
    main()
