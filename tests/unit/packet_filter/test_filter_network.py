"""What the rules follow of a host's network."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from vmw_filter.addresses import RESERVED4, RESERVED6, hexadecimal, host_part, interface_identifier
from vmw_filter.network import Facts, Network, make_facts, parse_links, parse_resolvers, parse_routes

Items = list[dict[str, Any]]
LO = {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}, {"local": "::1", "prefixlen": 128}]}


def link(name: str, *addresses: str, kind: str = "", controller: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"ifname": name, "addr_info": [{}]}
    for address in addresses:
        local, _, length = address.partition("/")
        found["addr_info"].append({"local": local, "prefixlen": int(length)})
    if kind:
        found["linkinfo"] = {"info_kind": kind}
    if controller:
        found["master"] = controller
    return found


def network(links: Items, four: Items, six: Items, resolvers: str = "") -> Network:
    return Network(parse_links(links), (*parse_routes(four, 4), *parse_routes(six, 6)), parse_resolvers([resolvers]))


def texts(facts: Facts) -> dict[str, list[str]]:
    return {name: [str(item) for item in getattr(facts, name)] for name in ("near", "resolvers", "bridges")}


LAN: tuple[Items, Items, Items] = (
    [LO, link("enp3s0", controller="br0"), link("br0", "192.168.1.10/24", "2a05:d000:7::10/64", "fe80::1/64", kind="bridge")],
    [
        {"dst": "default", "gateway": "192.168.1.1", "dev": "br0", "metric": 425},
        {"dst": "192.168.1.0/24", "dev": "br0", "scope": "link"},
    ],
    [{"dst": "2a05:d000:7::/64", "dev": "br0"}, {"dst": "default", "gateway": "fe80::ff", "dev": "br0"}],
)
NAT: tuple[Items, Items, Items] = (
    [
        LO,
        link("wlan0", "192.168.1.10/24"),
        link("br0", "192.168.150.1/24", kind="bridge"),
        link("vnet0", kind="tun", controller="br0"),
    ],
    [{"dst": "default", "gateway": "192.168.1.1", "dev": "wlan0"}, {"dst": "192.168.150.0/24", "dev": "br0"}],
    [],
)


def test_lan_has_the_router_and_the_hosts_own_resolvers() -> None:
    facts = make_facts(network(*LAN, "nameserver 192.168.1.53\nnameserver 127.0.0.53\n"), ["br0"])
    assert texts(facts) == {
        "near": ["127.0.0.0/8", "192.168.1.0/24", "::1/128", "2a05:d000:7::/64", "fe80::/64"],
        "resolvers": ["192.168.1.1", "192.168.1.53", "fe80::ff"],
        "bridges": ["192.168.1.10", "2a05:d000:7::10", "fe80::1"],
    }


def test_network_is_known_from_a_bridges_first_address_on() -> None:
    links, four, six = LAN
    assert make_facts(network(*LAN), ["br0"]).known
    assert not make_facts(network(links, four, six), ["br1"]).known
    for addresses in ((), ("fe80::1/64",)):
        assert not make_facts(network([LO, link("br0", *addresses, kind="bridge")], [], []), ["br0"]).known


def test_resolver_behind_the_lans_router_counts_and_one_of_a_vpn_does_not() -> None:
    links, four, six = LAN
    four = [*four, {"dst": "10.8.0.0/16", "dev": "tun0"}]
    facts = make_facts(
        network([*links, link("tun0", "10.8.0.2/32")], four, six, "nameserver 10.1.0.53\nnameserver 10.8.0.1"), ["br0"]
    )
    assert texts(facts)["resolvers"] == ["10.1.0.53", "192.168.1.1", "fe80::ff"]
    assert "10.8.0.0/16" in texts(facts)["near"]


def test_nat_network_has_the_host_as_its_resolver_and_not_the_hosts_own() -> None:
    facts = make_facts(network(*NAT, "nameserver 192.168.1.1"), ["br0"])
    assert texts(facts)["resolvers"] == ["192.168.150.1"]
    assert {"192.168.1.0/24", "192.168.150.0/24"} <= set(texts(facts)["near"])


def test_lan_without_a_route_out_does_not_make_the_host_a_resolver() -> None:
    links, four, six = LAN
    facts = make_facts(network(links, four[1:], six[:1]), ["br0"])
    assert facts.resolvers == ()


def test_public_prefix_behind_a_vpn_is_near_and_a_default_route_in_parts_is_not() -> None:
    links, four, six = LAN
    four = [
        *four,
        {"dst": "9.9.0.0/16", "gateway": "10.8.0.1", "dev": "tun0"},
        {"dst": "0.0.0.0/1", "dev": "tun0"},
        {"dst": "8.8.4.4", "gateway": "192.168.1.1", "dev": "br0"},
        {"type": "blackhole", "dst": "7.7.0.0/16", "dev": "lo"},
    ]
    facts = make_facts(network(links, four, [*six, {"dst": "2000::/3", "dev": "tun0"}]), ["br0"])
    near = set(texts(facts)["near"])
    assert "9.9.0.0/16" in near
    assert near.isdisjoint({"0.0.0.0/1", "8.8.4.4/32", "7.7.0.0/16", "2000::/3"})


def test_route_with_several_next_hops_is_read() -> None:
    hops = [{"gateway": "192.168.1.1", "dev": "br0"}, {"via": {"family": "inet6", "host": "fe80::1"}, "dev": "wlan0"}]
    routes = parse_routes([{"dst": "default", "nexthops": hops}], 4)
    assert [(str(route.gateway), route.device, route.default) for route in routes] == [
        ("192.168.1.1", "br0", True),
        ("fe80::1", "wlan0", True),
    ]


def test_bridge_is_told_from_other_links() -> None:
    found = network(*LAN)
    assert found.is_bridge("br0")
    assert not found.is_bridge("enp3s0")
    assert not found.is_bridge("br1")


def test_resolvers_are_read_with_what_else_is_there() -> None:
    text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 192.168.1.1\nnameserver fe80::1%br0\nnameserver\nnameserver none\n"
    assert [str(address) for address in parse_resolvers([text, text])] == ["192.168.1.1", "fe80::1"]


NOT_ON_THE_INTERNET = """
    10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 127.0.0.1 169.254.169.254 0.0.0.0 198.18.0.1 192.0.2.1 198.51.100.1
    203.0.113.1 224.0.0.251 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::ffff:10.0.0.1 64:ff9b::a00:1 64:ff9b:1::1 100::1 2001::1 2001:2::1 2001:db8::1 2002:a00:1::1 3fff::1 fc00::1 fd00::1
    fe80::1 fec0::1 ff02::fb 5f00::1
"""


@pytest.mark.parametrize("address", NOT_ON_THE_INTERNET.split())
def test_address_that_is_not_on_the_internet_is_reserved(address: str) -> None:
    assert _reserved(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.128.0.1", "172.32.0.1", "192.169.0.1", "223.255.255.255",
     "2a00:1450::1", "2001:4860:4860::8888", "2001:200::1", "2606:4700::1", "3ffe::1"],
)  # fmt: skip
def test_address_on_the_internet_is_not(address: str) -> None:
    assert not _reserved(address)


def _reserved(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return any(address in ipaddress.ip_network(prefix) for prefix in (RESERVED4 if address.version == 4 else RESERVED6))


def test_interface_identifier_is_that_of_the_kernel() -> None:
    assert interface_identifier("52:54:00:aa:bb:cc") == "505400fffeaabbcc"
    assert ipaddress.ip_address(host_part("52:54:00:aa:bb:cc")) == ipaddress.ip_address("::5054:ff:feaa:bbcc")
    assert hexadecimal("52:54:00:aa:bb:cc") == "0x525400aabbcc"
