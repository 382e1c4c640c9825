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
    are not there again in time, or when this module dies, the NIC gets its own settings back, and its manager starts anew
    every 20 seconds until the default route is there again. A run that finds an interrupted switch first has it taken back.
    Nothing is written to disk before all is verified, so a reboot also leads back.
  - A NIC without an address and a gateway that could be verified (IPv6 addresses only by SLAAC) is not switched.
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

import contextlib
import fcntl
import json
import shutil
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import bridge as plans
from ansible_collections.vmw.worktree.plugins.module_utils import bridge_switch as switches
from ansible_collections.vmw.worktree.plugins.module_utils.bridge import Host, Manager, Mode, Place, Plan, Route
from ansible_collections.vmw.worktree.plugins.module_utils.bridge_switch import FORWARD_UNIT, ROLLBACK_UNIT, Switch
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.image import CallerWatch, InterruptedByUserError
from ansible_collections.vmw.worktree.plugins.module_utils.state import command

if TYPE_CHECKING:
    from collections.abc import Iterator

SYS = Path("/sys/class/net")
NETIF = Path("/run/systemd/netif")
WORK = Path("/run/vmw-bridge")
ARMED = WORK / switches.ARMED
LOCK = Path("/run/vmw-bridge.lock")
SETTLE_SECONDS = 120
MANAGER_SECONDS = 10
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
DISCARD_PORT = 9


def attempt(*argv: str) -> str:
    """Run a program and return what it printed; nothing when it is missing or fails."""
    try:
        return command(*argv)
    except InterruptedByUserError:
        raise
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
        managers={nic: settled_manager(nic) for nic in names if nic in links},
        network_bridge=plans.parse_network_bridge(xml) if xml else "",
        uplink=our_uplink(name),
    )


def manager(nic: str) -> Manager:
    """Tell who runs a NIC."""
    state = nm_device(nic)
    if state.get("GENERAL.CON-UUID") and state["GENERAL.STATE"] == "100 (connected)":
        return Manager.NETWORK_MANAGER
    file = networkd_state(nic).get("NETWORK_FILE", "")
    if not file:
        return Manager.NOBODY
    return Manager.NETPLAN if "-netplan-" in file else Manager.NETWORKD


def settled_manager(nic: str) -> Manager:
    """Tell who runs a NIC, once nobody is at work on it; that takes a moment after a boot or a rollback."""
    deadline = time.monotonic() + MANAGER_SECONDS
    while time.monotonic() < deadline:
        state = nm_device(nic).get("GENERAL.STATE", "")
        if not (state and switches.nm_at_work(state)) and link_state(nic).get("ADMIN_STATE") not in {"pending", "configuring"}:
            break
        time.sleep(0.3)
    return manager(nic)


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


def link_state(nic: str) -> dict[str, str]:
    """Read what systemd-networkd says about an interface."""
    return key_values(NETIF / "links" / (SYS / nic / "ifindex").read_text().strip())


def networkd_state(nic: str) -> dict[str, str]:
    """Read what systemd-networkd says about a NIC that it runs."""
    state = link_state(nic)
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


def wait_for(place: Place, device: str, deadline: float, caller: CallerWatch) -> list[str]:
    """Wait until a host has its place on the LAN, and return what is still missing at the deadline, a time of ``monotonic``."""
    while True:
        caller.check()
        lost = place.lost(read_place(device))
        if not lost:
            lost = [f"gateway {gateway}, which does not answer" for gateway in place.gateways if not answers(gateway, device)]
        if not lost or time.monotonic() > deadline:
            return lost
        time.sleep(0.3)


def to_bridge(bridge: str, nic: str) -> Switch:
    """Word the move from a NIC to the bridge.

    Raises:
        VmwError: The NIC's settings cannot be moved.
    """
    hint = "set `vmw_bridge_uplink: none` for a NAT network"
    place = read_place(nic)
    if not place.addresses or not place.gateways:
        message = f"{nic} cannot be bridged: without an IPv4 or fixed IPv6 address and a gateway, a switch could not be verified"
        raise VmwError(message, hint, "host_not_ready")
    mac = (SYS / nic / "address").read_text().strip()
    if manager(nic) is Manager.NETWORK_MANAGER:
        uuid = nm_device(nic)["GENERAL.CON-UUID"]
        profile = nm_profile(uuid)
        refusal = switches.nm_unfit(profile)
        if refusal:
            message = f"{nic} cannot be bridged: its profile {profile.get('connection.id', uuid)} {refusal}"
            raise VmwError(message, hint, "host_not_ready")
        return Switch(
            nic,
            bridge,
            forward=switches.nm_script(bridge, nic, mac, profile, plans.metric(all_routes(), nic)),
            backward=switches.nm_undo(bridge, nic, uuid),
            again=switches.nm_again(nic, uuid),
            save=switches.nm_save(bridge, nic),
        )
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
        forward=switches.networkd_script(bridge, str(WORK), switches.RUNTIME_UNITS),
        backward=switches.networkd_undo(bridge),
        again=switches.networkd_again(nic),
        save=switches.networkd_save(bridge),
        files=switches.networkd_files(bridge, nic, mac, sections, client_id),
    )


def to_nic(bridge: str, nic: str) -> Switch:
    """Word the move from the bridge back to its NIC.

    Raises:
        VmwError: NetworkManager has no profile that the NIC could go back to.
    """
    names = switches.unit_names(bridge)
    found = [Path(switches.PERSISTENT_UNITS, name) for name in names]
    if all(file.is_file() for file in found):
        return Switch(
            bridge,
            nic,
            forward=switches.networkd_undo(bridge),
            backward=switches.networkd_script(bridge, str(WORK), switches.PERSISTENT_UNITS),
            again=switches.networkd_again(bridge),
            files={file.name: file.read_text() for file in found},
        )
    mac = (SYS / nic / "address").read_text().strip() if link_exists(nic) else ""
    uuid = switches.nm_own_profile(nm_profiles(), bridge, nic, mac)
    if not uuid:
        message = f"NetworkManager has no profile for {nic} other than the bridge's port"
        raise VmwError(message, f"make one: `nmcli connection add type ethernet ifname {nic}`", "conflict")
    return switches.nm_leave(bridge, nic, uuid)


def nm_profiles() -> list[tuple[int, str, dict[str, str]]]:
    """Return when each wired profile of NetworkManager was last active, the device where it is active, and its properties."""
    lines = attempt("nmcli", "--terse", "--fields", "TIMESTAMP,TYPE,UUID,DEVICE", "connection", "show").splitlines()
    fields = [line.split(":", 3) for line in lines]
    return [(int(timestamp), device, nm_profile(uuid)) for timestamp, kind, uuid, device in fields if kind == "802-3-ethernet"]


def perform(switch: Switch, seconds: int) -> None:
    """Switch, verify, and keep it or take it back.

    Args:
        switch: The move.
        seconds: When systemd takes it back unless it was confirmed.

    Raises:
        VmwError: The host would have lost its place on the LAN.
    """
    place = read_place(switch.source)
    silent = [gateway for gateway in place.gateways if not answers(gateway, switch.source)]
    if silent:
        message = f"the gateway {silent[0]} does not answer on {switch.source}, so a switch could not be verified"
        raise VmwError(message, "check the cable and the network, then try again", "host_not_ready")
    caller = CallerWatch()
    begun = time.monotonic()
    arm(switch, place, seconds)
    try:
        carry_out(switch, place, begun, seconds, caller)
    except InterruptedByUserError:
        attempt("systemctl", "start", "--no-block", f"{ROLLBACK_UNIT}.service")
        raise
    except VmwError as error:
        take_back(seconds)
        missing = wait_for(place, switch.source, time.monotonic(), caller)
        message = f"{error.message}, so the switch was taken back"
        if missing:
            message += f"; {switch.source} has no {', no '.join(missing)} yet"
        hint = "check the network; `vmw_bridge_uplink: none` gives the VMs a NAT network instead"
        raise VmwError(message, hint) from error
    for argv in switch.finish:
        command(*argv)


def arm(switch: Switch, place: Place, seconds: int) -> None:
    """Have systemd take a switch back after a while, whatever becomes of this process."""
    WORK.mkdir(mode=0o700, exist_ok=True)
    backward = switches.rollback_script(switch, str(WORK), place.gateways)
    for name, content in {**switch.files, "forward": switch.forward, "backward": backward}.items():
        (WORK / name).write_text(content)
    command(
        "systemd-run", "--collect", f"--unit={ROLLBACK_UNIT}", f"--on-active={seconds}", "--timer-property=AccuracySec=1s",
        "--service-type=oneshot", "/bin/sh", str(WORK / "backward"),
    )  # fmt: skip
    ARMED.touch()


def carry_out(switch: Switch, place: Place, begun: float, seconds: int, caller: CallerWatch) -> None:
    """Switch, verify, make it last, verify again and confirm, all before systemd's time is up.

    Args:
        switch: The move, armed.
        place: What the source had.
        begun: When systemd's time began, or a little before, by ``monotonic``.
        seconds: How long it is.
        caller: Whoever waits for the result.

    Raises:
        VmwError: The target has not all of it, or the time is up.
    """
    # A unit of its own ends neither with this process nor after its time.
    attempt(
        "systemd-run", "--quiet", "--wait", "--collect", f"--unit={FORWARD_UNIT}", "--service-type=exec",
        f"--property=RuntimeMaxSec={500 * seconds}ms", "--property=TimeoutStopSec=1", "/bin/sh", str(WORK / "forward"),
    )  # fmt: skip
    verify(switch, place, begun + 0.75 * seconds, caller)
    for argv in switch.save:
        command(*argv)
    verify(switch, place, begun + 0.9 * seconds, caller)
    try:
        ARMED.unlink()
    except FileNotFoundError:
        message = f"the switch took more than {seconds} seconds"
        raise VmwError(message) from None
    attempt("systemctl", "stop", f"{ROLLBACK_UNIT}.timer")
    shutil.rmtree(WORK, ignore_errors=True)


def verify(switch: Switch, place: Place, deadline: float, caller: CallerWatch) -> None:
    """Wait for what the source had to be the target's.

    Raises:
        VmwError: Something is missing at the deadline.
    """
    lost = wait_for(place, switch.target, deadline, caller)
    if lost:
        message = f"without {switch.source} {switch.target} had no {', no '.join(lost)}"
        raise VmwError(message)


def take_back(seconds: int) -> None:
    """Have systemd take an unconfirmed switch back now, and wait for the host's routes, but no longer than so many seconds."""
    # systemd runs it, so that it ends also when this process is ended.
    attempt("timeout", str(seconds), "systemctl", "start", f"{ROLLBACK_UNIT}.service")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Have another run wait, which would take the switch of this one for an interrupted one."""
    LOCK.touch(mode=0o600)
    with LOCK.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def settle(*, check_mode: bool) -> None:
    """Take back what an interrupted run has left.

    Raises:
        VmwError: It is not taken back yet.
    """
    if not check_mode and WORK.exists():
        take_back(SETTLE_SECONDS)
    state = attempt("systemctl", "show", "--property=ActiveState", "--value", f"{ROLLBACK_UNIT}.service").strip()
    if ARMED.exists() or state == "activating":
        message = "an earlier switch of the bridge was interrupted and is not taken back yet"
        hint = "without --check it is taken back first" if check_mode else "check the cable and the network, then try again"
        raise VmwError(message, hint, "conflict")


def leave_nat(network: str, uri: str) -> None:
    """Remove libvirt's NAT network, which the switch has stopped; to stop it now could take the bridge from the host."""
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
    with contextlib.nullcontext() if module.check_mode else alone():
        settle(check_mode=module.check_mode)
        return _configure(module)


def _configure(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work where no other run is under way."""
    name, uplink, network, uri = (module.params[key] for key in ("name", "uplink", "network", "libvirt_uri"))
    host = read_host(name, network, uri, uplink)
    plan, switch = decide(uplink, name, host)
    if not module.check_mode:
        if switch:
            perform(switches.leaving_nat(switch, network, uri) if plan.leave is Mode.NAT else switch, module.params["rollback"])
        if plan.leave is Mode.NAT:
            leave_nat(network, uri)
    if plan.reason:
        module.warn(f"the VMs get NAT instead of the LAN: {plan.reason}" if plan.mode is Mode.NAT else plan.reason)
    taken = (*(route.destination for route in host.routes), *all_addresses())
    return {
        "changed": switch is not None or plan.leave is not None,
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
