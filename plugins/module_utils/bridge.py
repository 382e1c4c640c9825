# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What the VMs' bridge should be: read what the host has, decide, and word the change."""

from __future__ import annotations

import ipaddress
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from enum import Enum

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

AUTO = "auto"
NONE = "none"
INTERFACE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)
"""Names that the kernel, networkd, NetworkManager and libvirt all take."""


class Manager(Enum):
    """What runs a NIC."""

    NETWORK_MANAGER = "NetworkManager"
    NETPLAN = "netplan"
    NETWORKD = "systemd-networkd"
    NOBODY = "none"


class Mode(Enum):
    """Where the bridge leads."""

    LAN = "lan"
    NAT = "nat"
    EXISTING = "existing"


@dataclass(frozen=True)
class Link:
    """A network interface.

    Attributes:
        name: Its name.
        mac: Its present MAC address.
        ethernet: Whether it carries Ethernet frames.
        kind: The kernel's name for a virtual interface, as ``bridge`` or ``veth``; empty for hardware.
        controller: The bridge or bond it is a port of.
        lower: The interface it is stacked on, as a VLAN is.
        wireless: Whether it is Wi-Fi.
    """

    name: str
    mac: str = ""
    ethernet: bool = True
    kind: str = ""
    controller: str = ""
    lower: str = ""
    wireless: bool = False


@dataclass(frozen=True)
class Route:
    """A route of the main table.

    Attributes:
        destination: ``default`` or a network.
        device: The interface it leaves by.
        gateway: The next hop, if any.
        metric: Lower wins.
        protocol: Who made it: ``kernel``, ``dhcp``, ``static``, ``ra``...
        ipv6: Whether it is an IPv6 route.
    """

    destination: str
    device: str = ""
    gateway: str = ""
    metric: int = 0
    protocol: str = ""
    ipv6: bool = False


@dataclass(frozen=True)
class Host:
    """What the plan is made from.

    Attributes:
        links: All interfaces by name.
        routes: The main routing table, IPv4 and IPv6.
        managers: Who runs each NIC that matters.
        network_bridge: The bridge of our libvirt network; empty when there is no such network.
        uplink: The NIC that an earlier run of ours put into the bridge.
    """

    links: dict[str, Link] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    managers: dict[str, Manager] = field(default_factory=dict)
    network_bridge: str = ""
    uplink: str = ""


@dataclass(frozen=True)
class Plan:
    """What the bridge is to be.

    Attributes:
        mode: Where it leads.
        nic: The uplink in LAN mode.
        reason: Why it is not what was asked for, or why ``auto`` chose NAT.
        leave: The mode that has to be left.
        keep: Whether everything is there already.
    """

    mode: Mode
    nic: str = ""
    reason: str = ""
    leave: Mode | None = None
    keep: bool = False


@dataclass(frozen=True)
class Place:
    """A host's place on a LAN, through one interface; what must be the same after a switch.

    Attributes:
        addresses: Addresses with prefix length. IPv6 ones only when they are static: others depend on the interface.
        routes: Pairs of destination and gateway.
        nameservers: The host's IPv4 DNS servers.
    """

    addresses: frozenset[str]
    routes: frozenset[tuple[str, str]]
    nameservers: frozenset[str]

    @property
    def gateways(self) -> list[str]:
        """The next hops of the default routes."""
        return sorted(gateway for destination, gateway in self.routes if destination == "default" and gateway)

    def lost(self, after: Place) -> list[str]:
        """Name what is missing from a later place."""
        return [
            *(f"address {address}" for address in sorted(self.addresses - after.addresses)),
            *(
                f"route {destination}" + (f" via {gateway}" if gateway else "")
                for destination, gateway in sorted(self.routes - after.routes)
            ),
            *(f"name server {server}" for server in sorted(self.nameservers - after.nameservers)),
        ]


def parse_links(text: str, wireless: frozenset[str]) -> dict[str, Link]:
    """Read ``ip -json -details link show``.

    Args:
        text: Its output.
        wireless: Names of the Wi-Fi interfaces, which that output does not tell.
    """
    return {
        entry["ifname"]: Link(
            name=entry["ifname"],
            mac=entry.get("address", ""),
            ethernet=entry.get("link_type") == "ether",
            kind=kind,
            controller=entry.get("master", ""),
            # A veth's is its peer.
            lower=entry.get("link", "") if kind != "veth" else "",
            wireless=entry["ifname"] in wireless,
        )
        for entry in json.loads(text or "[]")
        if "ifname" in entry
        for kind in [entry.get("linkinfo", {}).get("info_kind", "")]
    }


def parse_routes(text: str, *, ipv6: bool) -> tuple[Route, ...]:
    """Read ``ip -json route show``; a multipath route counts as one per next hop."""
    return tuple(
        Route(
            destination=entry["dst"],
            device=hop["dev"],
            gateway=hop.get("gateway") or hop.get("via", {}).get("host", ""),
            metric=entry.get("metric", 0),
            protocol=entry.get("protocol", ""),
            ipv6=ipv6,
        )
        for entry in json.loads(text or "[]")
        for hop in entry.get("nexthops") or [entry]
        if "dev" in hop and entry.get("type", "unicast") == "unicast"
    )


def parse_addresses(text: str) -> frozenset[str]:
    """Read ``ip -json address show`` and return the addresses that a host must keep."""
    return frozenset(
        f"{address['local']}/{address['prefixlen']}"
        for entry in json.loads(text or "[]")
        for address in entry.get("addr_info", [])
        if address.get("scope") == "global" and (address["family"] == "inet" or not address.get("dynamic"))
    )


def parse_nameservers(text: str) -> frozenset[str]:
    """Read the IPv4 servers from a ``resolv.conf``."""
    servers = set()
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            servers.add(words[1])
    return frozenset(servers)


def place(addresses: frozenset[str], routes: tuple[Route, ...], device: str, nameservers: frozenset[str]) -> Place:
    """Put together a host's place on the LAN behind ``device``."""
    return Place(
        addresses=addresses,
        routes=frozenset(
            (route.destination, route.gateway)
            for route in routes
            if route.device == device and route.protocol != "kernel" and not (route.ipv6 and route.protocol != "static")
        ),
        nameservers=nameservers,
    )


def parse_network_bridge(xml: str) -> str:
    """Return the bridge's name from a libvirt network's XML."""
    element = ET.fromstring(xml).find("bridge")  # noqa: S314 - written by libvirt itself
    return element.get("name", "") if element is not None else ""


def unfit(name: str, host: Host, bridge: str) -> str:
    """Tell why a NIC cannot be the bridge's uplink, or nothing when it can.

    Args:
        name: The NIC.
        host: What the host has.
        bridge: The bridge; its own ports are fit.
    """
    link = host.links.get(name)
    if link is None:
        return f"there is no network interface {name}"
    stacked = sorted(other.name for other in host.links.values() if other.lower == name)
    obstacles = {
        f"{name} is Wi-Fi, which cannot be bridged: access points accept no frames of machines behind a client": link.wireless,
        f"{name} is a bridge itself (`vmw_bridge: {name}` uses it as it is)": link.kind == "bridge",
        f"{name} is no wired network card": not link.ethernet or link.kind not in {"", "bridge", "veth"},
        f"{name} already belongs to {link.controller}": link.controller not in {"", bridge},
        f"{name} carries {', '.join(stacked)}, which a bridge would cut off": bool(stacked),
        f"{name} is not connected by NetworkManager, netplan or systemd-networkd": not link.controller
        and host.managers.get(name, Manager.NOBODY) is Manager.NOBODY,
    }
    return next((reason for reason, applies in obstacles.items() if applies), "")


def default_devices(routes: tuple[Route, ...]) -> list[str]:
    """Return the interfaces of the default routes, the preferred one first, IPv4 before IPv6."""
    defaults = sorted((route for route in routes if route.destination == "default"), key=lambda r: (r.ipv6, r.metric))
    return list(dict.fromkeys(route.device for route in defaults))


def metric(routes: tuple[Route, ...], device: str) -> int:
    """Return the metric of the IPv4 default route through a device, or 0."""
    return next((r.metric for r in routes if r.destination == "default" and r.device == device and not r.ipv6), 0)


def choose_uplink(host: Host, bridge: str) -> tuple[str, str]:
    """Find the wired NIC with the default route.

    Returns:
        Its name, or nothing and the reason why there is none.
    """
    devices = default_devices(host.routes)
    reasons = []
    for name in devices:
        reason = unfit(name, host, bridge)
        if not reason:
            return name, ""
        reasons.append(reason)
    return "", "; ".join(reasons) or "there is no default route"


def ports(host: Host, bridge: str) -> list[str]:
    """Return the interfaces in the bridge other than our uplink: those of running VMs."""
    return sorted(link.name for link in host.links.values() if link.controller == bridge and link.name != host.uplink)


def make_plan(uplink: str, bridge: str, host: Host) -> Plan:
    """Decide what the bridge is to be.

    ``auto`` decides only once: a bridge that works stays as it is, so that plugging in a cable never moves running VMs.

    Args:
        uplink: ``auto``, ``none`` or a NIC's name.
        bridge: The bridge's name.
        host: What the host has.

    Raises:
        VmwError: What was asked for cannot be, or would cut off running VMs.
    """
    if not INTERFACE_NAME.fullmatch(bridge):
        message = f"{bridge!r} cannot be the name of a bridge"
        raise VmwError(message, "vmw_bridge has up to 15 letters, digits, dots, dashes and underscores", "usage")
    link = host.links.get(bridge)
    if link is not None and link.kind != "bridge":
        message = f"{bridge} exists on this host and is no bridge"
        raise VmwError(message, "give the VMs' bridge another name: vmw_bridge in config.yml", "conflict")
    if host.uplink:
        return _from_lan(uplink, bridge, host)
    if host.network_bridge:
        return _from_nat(uplink, bridge, host)
    if link is not None:
        reason = ""
        if uplink not in (AUTO, NONE) and host.links.get(uplink, Link("")).controller != bridge:
            reason = f"{bridge} was made by somebody else and is used as it is, without {uplink}"
        return Plan(Mode.EXISTING, reason=reason, keep=True)
    if uplink == NONE:
        return Plan(Mode.NAT)
    if uplink == AUTO:
        nic, reason = choose_uplink(host, bridge)
        return Plan(Mode.LAN, nic) if nic else Plan(Mode.NAT, reason=reason)
    return _to_lan(uplink, bridge, host)


def _from_lan(uplink: str, bridge: str, host: Host) -> Plan:
    """Decide for a bridge that we gave a NIC."""
    if uplink in (AUTO, host.uplink):
        inside = host.links.get(host.uplink, Link("")).controller == bridge
        reason = "" if inside else f"{host.uplink} is not in {bridge} now, so the VMs have no network; is it plugged in?"
        # A run that was killed after its switch has left the NAT network's definition.
        leave = Mode.NAT if host.network_bridge == bridge else None
        return Plan(Mode.LAN, host.uplink, reason, leave=leave, keep=True)
    if uplink != NONE:
        message = f"{bridge} already has the uplink {host.uplink}"
        raise VmwError(message, f"take it out first with `vmw_bridge_uplink: none`, then ask for {uplink}", "conflict")
    _refuse_running(bridge, host)
    return Plan(Mode.NAT, host.uplink, leave=Mode.LAN)


def _from_nat(uplink: str, bridge: str, host: Host) -> Plan:
    """Decide for a bridge that our libvirt network makes."""
    if host.network_bridge != bridge:
        message = f"the VMs' libvirt network has the bridge {host.network_bridge}, and the setting is {bridge}"
        raise VmwError(message, f"set `vmw_bridge: {host.network_bridge}`, or remove the network with virsh", "conflict")
    if uplink in (AUTO, NONE):
        return Plan(Mode.NAT, keep=True)
    plan = _to_lan(uplink, bridge, host)
    _refuse_running(bridge, host)
    return Plan(Mode.LAN, plan.nic, leave=Mode.NAT)


def _to_lan(uplink: str, bridge: str, host: Host) -> Plan:
    """Decide for a NIC that was named."""
    reason = unfit(uplink, host, bridge)
    if reason:
        raise VmwError(reason, "set vmw_bridge_uplink to a wired NIC, or to none for a NAT network", "host_not_ready")
    return Plan(Mode.LAN, uplink)


def _refuse_running(bridge: str, host: Host) -> None:
    """Refuse to take the bridge away from VMs."""
    taken = ports(host, bridge)
    if taken:
        message = f"VMs run on {bridge} ({', '.join(taken)}), and changing its uplink would cut them off"
        raise VmwError(message, "stop them first: `vmw list`, `vmw stop NAME`", "conflict")


def free_subnet(taken: tuple[str, ...]) -> ipaddress.IPv4Network:
    """Pick a private /24 for the NAT network that nothing on this host has.

    Args:
        taken: Destinations of the host's routes, and its addresses with prefix length.

    Raises:
        VmwError: Every candidate is in use.
    """
    used = []
    for text in taken:
        if text != "default":
            network = ipaddress.ip_network(text, strict=False)
            if isinstance(network, ipaddress.IPv4Network):
                used.append(network)
    candidates = (
        *(f"192.168.{number}.0/24" for number in range(150, 255)),
        *(f"10.{number}.150.0/24" for number in range(150, 255)),
    )
    for text in candidates:
        candidate = ipaddress.IPv4Network(text)
        if not any(candidate.overlaps(network) for network in used):
            return candidate
    message = "every private network that the VMs could have is in use on this host"
    raise VmwError(message, "remove a route to 192.168.0.0/16 or 10.0.0.0/8, or name a bridge of your own", "conflict")


def describe(plan: Plan, bridge: str) -> str:
    """Word a plan for ``--diff``."""
    words = {
        Mode.LAN: f"{bridge} with the uplink {plan.nic}",
        Mode.NAT: f"{bridge} with NAT by libvirt",
        Mode.EXISTING: f"{bridge} as it was made by somebody else",
    }
    return f"{words[plan.mode]}\n"


def describe_now(bridge: str, host: Host) -> str:
    """Word what the host has for ``--diff``."""
    if host.uplink:
        return describe(Plan(Mode.LAN, host.uplink), bridge)
    if host.network_bridge:
        return describe(Plan(Mode.NAT), bridge)
    return describe(Plan(Mode.EXISTING), bridge) if bridge in host.links else f"no {bridge}\n"
