from __future__ import annotations

import ipaddress
import json

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import bridge
from ansible_collections.vmw.worktree.plugins.module_utils.bridge import Host, Link, Manager, Mode, Place, Plan, Route
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

WIRED = Link("enp1s0", "52:54:00:00:00:01")
WIFI = Link("wlp2s0", "52:54:00:00:00:02", wireless=True)
VPN = Link("wg0", ethernet=False, kind="wireguard")
BRIDGE = Link("br0", kind="bridge")


def host(*links: Link, routes: tuple[Route, ...] = (), network_bridge: str = "", uplink: str = "", **managers: Manager) -> Host:
    return Host({link.name: link for link in links}, routes, managers, network_bridge, uplink)


def default(device: str, metric: int = 0, *, ipv6: bool = False) -> Route:
    return Route("default", device, "10.0.0.1", metric, "dhcp", ipv6)


PLAIN = host(WIRED, routes=(default("enp1s0"),), enp1s0=Manager.NETWORKD)


# --- reading -------------------------------------------------------------------------------------------------------


def test_links_are_read_with_what_iproute2_knows_and_what_it_does_not() -> None:
    text = json.dumps(
        [
            {"ifname": "lo", "link_type": "loopback", "address": "00:00:00:00:00:00"},
            {"ifname": "enp1s0", "link_type": "ether", "address": "52:54:00:00:00:01", "master": "br0"},
            {"ifname": "wlp2s0", "link_type": "ether", "address": "52:54:00:00:00:02"},
            {"ifname": "br0", "link_type": "ether", "address": "52:54:00:00:00:01", "linkinfo": {"info_kind": "bridge"}},
            {"ifname": "v20", "link_type": "ether", "link": "enp1s0", "linkinfo": {"info_kind": "vlan"}},
            {"ifname": "veth0", "link_type": "ether", "link": "enp1s0", "linkinfo": {"info_kind": "veth"}},
            {},
        ]
    )
    links = bridge.parse_links(text, frozenset({"wlp2s0"}))
    assert list(links) == ["lo", "enp1s0", "wlp2s0", "br0", "v20", "veth0"]
    assert links["enp1s0"] == Link("enp1s0", "52:54:00:00:00:01", controller="br0")
    assert links["wlp2s0"].wireless
    assert not links["lo"].ethernet
    assert links["br0"].kind == "bridge"
    assert [link.name for link in links.values() if link.lower == "enp1s0"] == ["v20"]


@pytest.mark.parametrize("text", ["", "[]", "[{}]"])
def test_no_links(text: str) -> None:
    assert bridge.parse_links(text, frozenset()) == {}


def test_routes_are_read_per_next_hop_and_without_what_is_no_way() -> None:
    text = json.dumps(
        [
            {"dst": "default", "gateway": "10.0.0.1", "dev": "enp1s0", "protocol": "dhcp", "metric": 100},
            {"dst": "10.0.0.0/24", "dev": "enp1s0", "protocol": "kernel", "scope": "link"},
            {
                "dst": "10.9.0.0/16",
                "nexthops": [{"gateway": "10.0.0.2", "dev": "enp1s0"}, {"via": {"host": "fe80::1"}, "dev": "e2"}],
            },
            {"type": "blackhole", "dst": "10.8.0.0/16"},
        ]
    )
    assert bridge.parse_routes(text, ipv6=False) == (
        Route("default", "enp1s0", "10.0.0.1", 100, "dhcp"),
        Route("10.0.0.0/24", "enp1s0", protocol="kernel"),
        Route("10.9.0.0/16", "enp1s0", "10.0.0.2"),
        Route("10.9.0.0/16", "e2", "fe80::1"),
    )


def test_addresses_to_keep_are_global_and_ipv6_ones_static() -> None:
    info = [
        {"family": "inet", "local": "10.0.0.5", "prefixlen": 24, "scope": "global", "dynamic": True},
        {"family": "inet", "local": "169.254.1.1", "prefixlen": 16, "scope": "link"},
        {"family": "inet6", "local": "2001:db8::5", "prefixlen": 64, "scope": "global"},
        {"family": "inet6", "local": "2001:db8::aaaa", "prefixlen": 64, "scope": "global", "dynamic": True},
        {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
    ]
    text = json.dumps([{"ifname": "enp1s0", "addr_info": info}, {}])
    assert bridge.parse_addresses(text) == {"10.0.0.5/24", "2001:db8::5/64"}


def test_name_servers_are_ipv4_ones() -> None:
    text = (
        "# nameserver 1.1.1.1\nsearch lan\nnameserver 10.0.0.1\nnameserver\nnameserver fe80::1%enp1s0\nnameserver 10.0.0.2 # b\n"
    )
    assert bridge.parse_nameservers(text) == {"10.0.0.1", "10.0.0.2"}


@pytest.mark.parametrize(
    ("xml", "name"),
    [
        ("<network><name>vmw</name><bridge name='br0' stp='off'/></network>", "br0"),
        ("<network><name>vmw</name><forward mode='bridge'/></network>", ""),
        ("<network><bridge stp='on'/></network>", ""),
    ],
)
def test_bridge_of_a_libvirt_network(xml: str, name: str) -> None:
    assert bridge.parse_network_bridge(xml) == name


def test_place_leaves_out_what_the_kernel_or_a_router_makes_anew() -> None:
    routes = (
        Route("default", "enp1s0", "10.0.0.1", 100, "dhcp"),
        Route("10.0.0.0/24", "enp1s0", protocol="kernel"),
        Route("default", "wlp2s0", "10.1.0.1"),
        Route("default", "enp1s0", "fe80::1", protocol="ra", ipv6=True),
        Route("2001:db8:1::/48", "enp1s0", "2001:db8::1", protocol="static", ipv6=True),
    )
    place = bridge.place(frozenset({"10.0.0.5/24"}), routes, "enp1s0", frozenset())
    assert place.routes == {("default", "10.0.0.1"), ("2001:db8:1::/48", "2001:db8::1")}
    assert place.gateways == ["10.0.0.1"]


def test_what_was_lost_is_named() -> None:
    before = Place(frozenset({"10.0.0.5/24"}), frozenset({("default", "10.0.0.1"), ("10.9.0.0/16", "")}), frozenset({"10.0.0.1"}))
    assert before.lost(before) == []
    more = Place(before.addresses | {"10.0.0.6/24"}, before.routes, before.nameservers | {"9.9.9.9"})
    assert before.lost(more) == []
    assert before.lost(Place(frozenset(), frozenset(), frozenset())) == [
        "address 10.0.0.5/24",
        "route 10.9.0.0/16",
        "route default via 10.0.0.1",
        "name server 10.0.0.1",
    ]


# --- which NIC -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "manager", "reason"),
    [
        (WIRED, Manager.NETWORK_MANAGER, ""),
        (WIRED, Manager.NETPLAN, ""),
        (WIRED, Manager.NETWORKD, ""),
        (Link("enp1s0", kind="veth"), Manager.NETWORKD, ""),
        (Link("enp1s0", controller="br0"), Manager.NOBODY, ""),
        (None, Manager.NOBODY, "there is no network interface enp1s0"),
        (WIRED, Manager.NOBODY, "is not connected by NetworkManager, netplan or systemd-networkd"),
        (Link("enp1s0", wireless=True), Manager.NETWORK_MANAGER, "is Wi-Fi"),
        (Link("enp1s0", kind="bridge"), Manager.NETWORKD, "`vmw_bridge: enp1s0`"),
        (Link("enp1s0", kind="bond"), Manager.NETWORKD, "is no wired network card"),
        (Link("enp1s0", kind="vlan"), Manager.NETWORKD, "is no wired network card"),
        (Link("enp1s0", kind="wireguard", ethernet=False), Manager.NETWORKD, "is no wired network card"),
        (Link("enp1s0", ethernet=False), Manager.NETWORKD, "is no wired network card"),
        (Link("enp1s0", controller="bond0"), Manager.NETWORKD, "already belongs to bond0"),
    ],
)
def test_fitness_of_a_nic(link: Link | None, manager: Manager, reason: str) -> None:
    found = bridge.unfit("enp1s0", host(*([link] if link else []), enp1s0=manager), "br0")
    assert reason in found
    assert bool(found) == bool(reason)


def test_nic_that_carries_other_interfaces_is_unfit() -> None:
    stacked = (Link("enp1s0.20", kind="vlan", lower="enp1s0"), Link("mac0", kind="macvlan", lower="enp1s0"))
    found = bridge.unfit("enp1s0", host(WIRED, *stacked, enp1s0=Manager.NETWORK_MANAGER), "br0")
    assert found == "enp1s0 carries enp1s0.20, mac0, which a bridge would cut off"


def test_default_routes_are_ordered_by_family_and_metric() -> None:
    routes = (
        default("wwan0", ipv6=True),
        default("wlp2s0", 600),
        Route("10.0.0.0/8", "tun0"),
        default("enp1s0", 100),
        default("enp1s0", 100, ipv6=True),
    )
    assert bridge.default_devices(routes) == ["enp1s0", "wlp2s0", "wwan0"]


def test_metric_of_the_default_route() -> None:
    routes = (default("enp1s0", 1024, ipv6=True), Route("10.0.0.0/8", "enp1s0", metric=5), default("enp1s0", 100))
    assert bridge.metric(routes, "enp1s0") == 100
    assert bridge.metric(routes, "wlp2s0") == 0


def test_auto_takes_the_wired_nic_behind_wifi_and_vpn() -> None:
    routes = (default("wg0", 50), default("wlp2s0", 90), default("enp1s0", 100))
    assert bridge.choose_uplink(host(WIRED, WIFI, VPN, routes=routes, enp1s0=Manager.NETPLAN), "br0") == ("enp1s0", "")


def test_auto_says_why_there_is_no_uplink() -> None:
    assert bridge.choose_uplink(host(WIRED, enp1s0=Manager.NETWORKD), "br0") == ("", "there is no default route")
    nic, reason = bridge.choose_uplink(host(WIFI, VPN, routes=(default("wg0"), default("wlp2s0", 600))), "br0")
    assert nic == ""
    assert "wg0 is no wired network card" in reason
    assert "wlp2s0 is Wi-Fi" in reason


# --- the plan ------------------------------------------------------------------------------------------------------


def test_first_run() -> None:
    assert bridge.make_plan("auto", "br0", PLAIN) == Plan(Mode.LAN, "enp1s0")
    assert bridge.make_plan("enp1s0", "br0", PLAIN) == Plan(Mode.LAN, "enp1s0")
    assert bridge.make_plan("none", "br0", PLAIN) == Plan(Mode.NAT)


def test_auto_falls_back_to_nat_with_the_reason() -> None:
    plan = bridge.make_plan("auto", "br0", host(WIFI, routes=(default("wlp2s0"),), wlp2s0=Manager.NETWORK_MANAGER))
    assert plan.mode is Mode.NAT
    assert "Wi-Fi" in plan.reason
    plan = bridge.make_plan("auto", "br0", host(WIRED, routes=(default("enp1s0"),), enp1s0=Manager.NOBODY))
    assert plan.mode is Mode.NAT
    assert "is not connected by" in plan.reason


@pytest.mark.parametrize("uplink", ["wlp2s0", "wg0", "enp9s0"])
def test_named_nic_that_is_unfit_is_refused(uplink: str) -> None:
    with pytest.raises(VmwError) as failure:
        bridge.make_plan(uplink, "br0", host(WIRED, WIFI, VPN, wlp2s0=Manager.NETWORK_MANAGER))
    assert failure.value.code == "host_not_ready"
    assert uplink in failure.value.message
    assert "none" in failure.value.hint


@pytest.mark.parametrize("uplink", ["auto", "none", "enp1s0"])
def test_bridge_of_somebody_else_is_used_as_it_is(uplink: str) -> None:
    port = Link("enp1s0", controller="br0")
    plan = bridge.make_plan(uplink, "br0", host(port, BRIDGE, routes=(default("br0"),)))
    assert plan == Plan(Mode.EXISTING, keep=True)


def test_bridge_of_somebody_else_without_the_named_nic_is_used_and_that_is_said() -> None:
    plan = bridge.make_plan("enp1s0", "br0", host(WIRED, BRIDGE, enp1s0=Manager.NETWORKD))
    assert plan.mode is Mode.EXISTING
    assert "without enp1s0" in plan.reason


def test_interface_that_is_no_bridge_is_a_conflict() -> None:
    with pytest.raises(VmwError, match="br0 exists on this host and is no bridge") as failure:
        bridge.make_plan("auto", "br0", host(Link("br0", kind="dummy")))
    assert failure.value.code == "conflict"


@pytest.mark.parametrize("name", ["", "..", "br 0", "br0\n", "a" * 16, "br/0", "-br0", "brü"])
def test_name_that_no_bridge_can_have_is_refused(name: str) -> None:
    with pytest.raises(VmwError) as failure:
        bridge.make_plan("none", name, PLAIN)
    assert failure.value.code == "usage"


LAN = host(Link("enp1s0", controller="br0"), BRIDGE, routes=(default("br0"),), uplink="enp1s0")
LAN_WITH_VM = host(*LAN.links.values(), Link("vnet0", kind="tun", controller="br0"), uplink="enp1s0")
NAT = host(WIRED, BRIDGE, routes=(default("enp1s0"),), network_bridge="br0", enp1s0=Manager.NETWORKD)
NAT_WITH_VM = host(WIRED, BRIDGE, Link("vnet0", kind="tun", controller="br0"), network_bridge="br0", enp1s0=Manager.NETWORKD)


@pytest.mark.parametrize("uplink", ["auto", "enp1s0"])
@pytest.mark.parametrize("state", [LAN, LAN_WITH_VM])
def test_lan_is_kept(uplink: str, state: Host) -> None:
    assert bridge.make_plan(uplink, "br0", state) == Plan(Mode.LAN, "enp1s0", keep=True)


@pytest.mark.parametrize("uplink", ["auto", "none"])
@pytest.mark.parametrize("state", [NAT, NAT_WITH_VM])
def test_nat_is_kept(uplink: str, state: Host) -> None:
    assert bridge.make_plan(uplink, "br0", state) == Plan(Mode.NAT, keep=True)


def test_nat_network_that_is_off_is_kept() -> None:
    assert bridge.make_plan("auto", "br0", host(WIRED, network_bridge="br0")) == Plan(Mode.NAT, keep=True)


@pytest.mark.parametrize("state", [host(WIRED, BRIDGE, uplink="enp1s0"), host(uplink="enp1s0")])
def test_lan_whose_nic_is_away_is_kept_and_that_is_said(state: Host) -> None:
    plan = bridge.make_plan("auto", "br0", state)
    assert (plan.mode, plan.keep) == (Mode.LAN, True)
    assert "is it plugged in?" in plan.reason


def test_named_nic_replaces_nat_and_none_replaces_lan() -> None:
    assert bridge.make_plan("enp1s0", "br0", NAT) == Plan(Mode.LAN, "enp1s0", leave=Mode.NAT)
    assert bridge.make_plan("none", "br0", LAN) == Plan(Mode.NAT, "enp1s0", leave=Mode.LAN)


@pytest.mark.parametrize(("network_bridge", "leave"), [("br0", Mode.NAT), ("virbr7", None)])
def test_lan_that_a_killed_run_made_still_has_to_leave_nat(network_bridge: str, leave: Mode | None) -> None:
    state = host(*LAN.links.values(), uplink="enp1s0", network_bridge=network_bridge)
    assert bridge.make_plan("auto", "br0", state) == Plan(Mode.LAN, "enp1s0", leave=leave, keep=True)


@pytest.mark.parametrize(("uplink", "state"), [("enp1s0", NAT_WITH_VM), ("none", LAN_WITH_VM)])
def test_running_vms_are_not_cut_off(uplink: str, state: Host) -> None:
    with pytest.raises(VmwError, match="vnet0") as failure:
        bridge.make_plan(uplink, "br0", state)
    assert failure.value.code == "conflict"
    assert "vmw stop" in failure.value.hint


def test_other_uplink_is_refused_with_the_way_to_it() -> None:
    with pytest.raises(VmwError, match="already has the uplink enp1s0") as failure:
        bridge.make_plan("enp2s0", "br0", host(*LAN.links.values(), Link("enp2s0"), uplink="enp1s0", enp2s0=Manager.NETWORKD))
    assert "none" in failure.value.hint


def test_network_with_another_bridge_is_a_conflict() -> None:
    with pytest.raises(VmwError, match="virbr7"):
        bridge.make_plan("auto", "br0", host(WIRED, network_bridge="virbr7"))


def test_named_nic_that_is_unfit_does_not_end_nat() -> None:
    with pytest.raises(VmwError, match="Wi-Fi"):
        bridge.make_plan("wlp2s0", "br0", host(WIFI, BRIDGE, network_bridge="br0"))


# --- NAT -----------------------------------------------------------------------------------------------------------


def test_free_subnet() -> None:
    assert str(bridge.free_subnet(())) == "192.168.150.0/24"
    assert str(bridge.free_subnet(("default", "192.168.150.7/24", "2001:db8::/32", "192.168.151.0/30"))) == "192.168.152.0/24"
    assert str(bridge.free_subnet(("192.168.0.0/16",))) == "10.150.150.0/24"


def test_free_subnet_overlaps_nothing() -> None:
    taken = ("192.168.128.0/19", "192.168.160.5/32", "172.17.0.0/16", "10.0.0.0/8")
    subnet = bridge.free_subnet(taken)
    assert subnet.prefixlen == 24
    assert not any(subnet.overlaps(ipaddress.IPv4Network(text, strict=False)) for text in taken)


def test_no_free_subnet() -> None:
    with pytest.raises(VmwError) as failure:
        bridge.free_subnet(("192.168.0.0/16", "10.0.0.0/8"))
    assert failure.value.code == "conflict"


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [(PLAIN, "no br0\n"), (LAN, "br0 with the uplink enp1s0\n"), (NAT, "br0 with NAT by libvirt\n")],
)
def test_words_for_what_there_is(state: Host, words: str) -> None:
    assert bridge.describe_now("br0", state) == words


def test_words_for_a_kept_state_are_the_same_before_and_after() -> None:
    for state in (LAN, NAT, host(BRIDGE)):
        assert bridge.describe(bridge.make_plan("auto", "br0", state), "br0") == bridge.describe_now("br0", state)
