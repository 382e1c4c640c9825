"""What the rules follow of the host's network: prefixes of neighbours, and resolvers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

SHORTEST_PREFIX = {4: 8, 6: 16}
"""Routes to more than that are parts of a default route, as a VPN for all traffic sets them."""

_HARDWARE = {None, "bond", "team", "vlan"}


@dataclass(frozen=True)
class Link:
    """A network interface.

    Attributes:
        name: Its name.
        kind: The kernel's word for what it is, or None for hardware.
        controller: The bridge that it is a port of, or nothing.
        addresses: Its addresses.
        prefixes: Prefixes of its addresses.
    """

    name: str
    kind: str | None = None
    controller: str = ""
    addresses: tuple[Address, ...] = ()
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True)
class Route:
    """A route of the main table.

    Attributes:
        destination: Where it leads; 0.0.0.0/0 or ::/0 for the default route.
        device: Through which interface, or nothing for one that leads nowhere.
        gateway: The next hop, or None where the destination is on the link.
        metric: Which one of several counts: the least.
    """

    destination: Prefix
    device: str
    gateway: Address | None = None
    metric: int = 0

    @property
    def default(self) -> bool:
        """Whether it leads to everywhere."""
        return self.destination.prefixlen == 0


@dataclass(frozen=True)
class Network:
    """The host's network at one moment.

    Attributes:
        links: Its interfaces.
        routes: Its routes.
        resolvers: The name servers that it asks.
    """

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    resolvers: tuple[Address, ...] = ()

    def is_bridge(self, name: str) -> bool:
        """Tell whether there is a bridge of that name."""
        return any(link.name == name and link.kind == "bridge" for link in self.links)


@dataclass(frozen=True)
class Facts:
    """What the rules follow.

    Attributes:
        near: Prefixes of the host's neighbours and of what it reaches elsewhere than on the internet, and its own addresses.
        resolvers: Name servers that VMs may ask.
        bridges: The bridges' own addresses.
    """

    near: tuple[Prefix, ...] = ()
    resolvers: tuple[Address, ...] = ()
    bridges: tuple[Address, ...] = field(default=())

    @property
    def known(self) -> bool:
        """Whether the network of any bridge is known; until then anything may be a neighbour."""
        return any(not address.is_link_local for address in self.bridges)


def parse_links(found: Iterable[dict[str, Any]]) -> tuple[Link, ...]:
    """Read what `ip -json -details address show` says."""
    links = []
    for item in found:
        interfaces = [
            ipaddress.ip_interface(f"{address['local']}/{address['prefixlen']}")
            for address in item.get("addr_info", ())
            if "local" in address
        ]
        links.append(
            Link(
                item["ifname"],
                item.get("linkinfo", {}).get("info_kind"),
                item.get("master", ""),
                tuple(interface.ip for interface in interfaces),
                tuple(interface.network for interface in interfaces),
            )
        )
    return tuple(links)


def parse_routes(found: Iterable[dict[str, Any]], version: int) -> tuple[Route, ...]:
    """Read what `ip -json route show` says of one version of IP."""
    anywhere = {4: "0.0.0.0/0", 6: "::/0"}[version]
    routes = []
    for item in found:
        if item.get("type", "unicast") != "unicast":
            continue
        destination = ipaddress.ip_network(anywhere if item["dst"] == "default" else item["dst"], strict=False)
        metric = item.get("metric", 0)
        for hop in item.get("nexthops", (item,)):
            # IPv4 through a gateway that has IPv6 is "via", with the family apart.
            gateway = hop.get("gateway") or hop.get("via", {}).get("host")
            routes.append(Route(destination, hop.get("dev", ""), ipaddress.ip_address(gateway) if gateway else None, metric))
    return tuple(routes)


def parse_resolvers(texts: Iterable[str]) -> tuple[Address, ...]:
    """Read the name servers of files in the form of resolv.conf(5)."""
    found: list[Address] = []
    for line in "\n".join(texts).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(ipaddress.ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


def route_to(address: Address, routes: Sequence[Route]) -> Route | None:
    """Return the route to an address: the most specific one, of those the one with the least metric."""
    fitting = [route for route in routes if route.destination.version == address.version and address in route.destination]
    return min(fitting, key=lambda route: (-route.destination.prefixlen, route.metric), default=None)


def make_facts(network: Network, bridges: Iterable[str]) -> Facts:
    """Find what the rules follow.

    Args:
        network: The host's network.
        bridges: The bridges of the VMs.
    """
    own: list[Address] = []
    resolvers: list[Address] = []
    for bridge in sorted(set(bridges)):
        addresses = [address for link in network.links if link.name == bridge for address in link.addresses]
        own += addresses
        resolvers += _resolvers(network, bridge, addresses)
    return Facts(_near(network), _sorted(resolvers), _sorted(own))


def _near(network: Network) -> tuple[Prefix, ...]:
    """Return where the host has neighbours, or leads to by another way than that to the internet."""
    outward = {route.device for route in network.routes if route.default}
    prefixes = [ipaddress.ip_network(address) for link in network.links for address in link.addresses]
    prefixes += [prefix for link in network.links for prefix in link.prefixes]
    prefixes += [
        route.destination
        for route in network.routes
        if route.destination.prefixlen >= SHORTEST_PREFIX[route.destination.version]
        and (route.gateway is None or route.device not in outward)
    ]
    # A peer's address may stand with a prefix that is no network.
    fours = [prefix for prefix in prefixes if isinstance(prefix, ipaddress.IPv4Network) and prefix.prefixlen]
    sixes = [prefix for prefix in prefixes if isinstance(prefix, ipaddress.IPv6Network) and prefix.prefixlen]
    return (*ipaddress.collapse_addresses(fours), *ipaddress.collapse_addresses(sixes))


def _resolvers(network: Network, bridge: str, own: Sequence[Address]) -> list[Address]:
    """Return the name servers of a bridge's network."""
    gateways = [route.gateway for route in network.routes if route.default and route.device == bridge and route.gateway]
    uplinks = [link for link in network.links if link.controller == bridge and link.kind in _HARDWARE]
    through = [address for address in network.resolvers if address in own or _leads_through(address, bridge, network.routes)]
    # With neither a way out nor a wired port the network is one that the host itself serves.
    return [*gateways, *through, *(() if gateways or uplinks else own)]


def _leads_through(address: Address, bridge: str, routes: Sequence[Route]) -> bool:
    if address.is_loopback:
        return False
    route = route_to(address, routes)
    return route is not None and route.device == bridge


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    return tuple(sorted(set(addresses), key=lambda address: (address.version, int(address))))
