# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Which addresses are the internet's: those of the host, of its networks and of special use are not."""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from pathlib import Path
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The well-known prefix of RFC 6052: where the host has IPv6 alone, such addresses lead to IPv4 ones."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

SPECIAL = tuple(
    ipaddress.ip_network(prefix)
    for prefix in (
        # What `ipaddress` counts as global in some releases, from the registries of RFC 6890.
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
        # Teredo and the other protocols of IETF's block, documentation, and 6to4, which leads to IPv4 addresses.
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)

PROC_NET = Path("/proc/net")
ROUTE4_COLUMNS = 8
ROUTE6_COLUMNS = 10
ADDRESS6_COLUMNS = 6

REJECT = 0x200
"""Flag of a route that leads nowhere: RTF_REJECT of linux/route.h."""

SHORTEST_PREFIX = {4: 8, 6: 16}
"""Routes to more than that are parts of a default route, as a VPN for all traffic sets them: so the packet filter sees it."""

KNOWN_SECONDS = 1.0
"""How long what is near is not looked at again."""

_NOTHING4 = "00000000"
_NOTHING6 = "0" * 32
_ANY_PORT = 9


def is_public(text: str) -> bool:
    """Tell whether an address is one of the internet, judged by itself.

    Addresses that carry an IPv4 address to which the host would connect are judged by that one.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = _carried(address)
        if inner is not None:
            return is_public(str(inner))
        if address not in GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in SPECIAL)


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address to which a mapped or a NAT64 one leads."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None


def neighbourhood(routes4: str, routes6: str, addresses6: str = "") -> list[Network]:
    """Return where the host has neighbours, or leads to by another way than that to the internet.

    The packet filter calls the same ``near``: every prefix on a link, a bridge's or another's, and what a route leads to that
    does not go where a default route goes, as into a VPN. The prefixes of IPv4 addresses are among the routes.

    Args:
        routes4: The text of /proc/net/route.
        routes6: The text of /proc/net/ipv6_route, which has the host's own addresses too.
        addresses6: The text of /proc/net/if_inet6.
    """
    routes = [*_routes4(routes4), *_routes6(routes6)]
    outward = {device for network, device, _ in routes if not network.prefixlen}
    near = [
        network
        for network, device, through_router in routes
        if network.prefixlen >= SHORTEST_PREFIX[network.version] and not (through_router and device in outward)
    ]
    rows = [row for row in map(str.split, addresses6.splitlines()) if len(row) >= ADDRESS6_COLUMNS]
    return list(dict.fromkeys((*near, *(_network6(row[0], row[2]) for row in rows))))


def _routes4(text: str) -> list[tuple[Network, str, bool]]:
    """Return for each route where it leads, through which interface, and whether by a router; without those to nowhere."""
    rows = [row for row in map(str.split, text.splitlines()[1:]) if len(row) >= ROUTE4_COLUMNS]
    return [(_network4(row[1], row[7]), row[0], row[2] != _NOTHING4) for row in rows if not int(row[3], 16) & REJECT]


def _routes6(text: str) -> list[tuple[Network, str, bool]]:
    rows = [row for row in map(str.split, text.splitlines()) if len(row) >= ROUTE6_COLUMNS]
    return [(_network6(row[0], row[1]), row[9], row[4] != _NOTHING6) for row in rows if not int(row[8], 16) & REJECT]


def _network4(where: str, mask: str) -> Network:
    """Read the prefix of an IPv4 route, which is in the byte order of the machine."""
    address, netmask = (ipaddress.IPv4Address(struct.pack("=I", int(field, 16))) for field in (where, mask))
    return ipaddress.IPv4Network(f"{address}/{netmask}", strict=False)


def _network6(where: str, length: str) -> Network:
    return ipaddress.IPv6Network((int(where, 16), int(length, 16)), strict=False)


class Neighbourhood:
    """What is near, looked at again after a moment: the host's network changes while VMs run.

    Args:
        directory: Where the kernel's tables are.
    """

    def __init__(self, directory: Path = PROC_NET) -> None:
        """Begin with nothing known."""
        self._directory = directory
        self._near: list[Network] = []
        self._until = float("-inf")

    def now(self) -> list[Network]:
        """Return the prefixes.

        Raises:
            OSError: They cannot be read, and nothing is known to be far.
        """
        now = time.monotonic()
        if now >= self._until:
            self._near = neighbourhood(*map(self._read, ("route", "ipv6_route", "if_inet6")))
            self._until = now + KNOWN_SECONDS
        return self._near

    def _read(self, name: str) -> str:
        try:
            return (self._directory / name).read_text()
        except FileNotFoundError:
            # A kernel without IPv6 has no such tables.
            return ""


def is_own(text: str) -> bool:
    """Tell whether an address is the host's: the kernel would send to it from that very address. Nothing is sent."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((text, _ANY_PORT))
            return ipaddress.ip_address(probe.getsockname()[0]) == ipaddress.ip_address(text)
    except (OSError, ValueError):
        return False


def may_be_reached(text: str, near: list[Network]) -> bool:
    """Tell whether a guest may be connected to an address: a public one, neither the host's nor a neighbour's.

    Args:
        text: The address.
        near: What `Neighbourhood.now` returned.
    """
    if not is_public(text):
        return False
    address = ipaddress.ip_address(text)
    inner = _carried(address) if isinstance(address, ipaddress.IPv6Address) else None
    ends = [address] if inner is None else [address, inner]
    return not any(is_own(str(each)) or any(each in network for network in near) for each in ends)
