"""Frames that a hostile guest writes: each gets through without the filter, and with it not even in the mode `open`."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import frames
import pytest
from filter_bed import ARRIVES_S, ETH_P_ALL, HOST, INTERNET, INTERNET6, NEIGHBOUR, PREFIX4, ROUTER, ROUTER6, USER, VM, Bed

if TYPE_CHECKING:
    from collections.abc import Iterator

STP = "01:80:c2:00:00:00"
ALL_NODES = "ff02::1"
FREE = f"{PREFIX4}.99"
BROADCAST4 = "255.255.255.255"
ANY4 = "0.0.0.0"  # noqa: S104 - a sender's address
MARKER = struct.Struct("!8sI4s")
MORE_FRAGMENTS = 0x2000
"""The flag that more fragments follow."""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    bed = Bed(tmp_path_factory.mktemp("filter"), nat=False)
    try:
        bed.make()
        yield bed
    finally:
        bed.remove()


@pytest.fixture
def lan(bed: Bed) -> Bed:
    """Give both VMs the mode `open` and what a DHCP server says."""
    bed.fresh("open")
    return bed


def four(source: str, payload: bytes, protocol: int = 17, *, fragment: int = 0, options: bytes = b"") -> bytes:
    return frames.ipv4(source, BROADCAST4, protocol, payload, fragment=fragment, options=options)


def neighbour_message(kind: int, target: str) -> bytes:
    return frames.icmpv6(kind, bytes(4) + socket.inet_pton(socket.AF_INET6, target))


def honest(vm: VM) -> dict[str, bytes]:
    """Return what a VM may send, for it is what it says."""
    ask = frames.udp(68, 67, frames.dhcp(1, vm.mac, 1))
    ethernet = {
        "arp request": (frames.ARP, frames.arp(1, vm.mac, vm.address, NEIGHBOUR)),
        "arp probe": (frames.ARP, frames.arp(1, vm.mac, ANY4, vm.address)),
        "arp reply": (frames.ARP, frames.arp(2, vm.mac, vm.address, NEIGHBOUR)),
        "ipv4": (frames.IPV4, four(vm.address, frames.udp(4000, 4000, b""))),
        "dhcp discover": (frames.IPV4, four(ANY4, ask)),
        "dhcp renewal": (frames.IPV4, four(vm.address, ask)),
        "ipv6": (frames.IPV6, frames.ipv6(vm.address6, ALL_NODES, 17, frames.udp(4000, 4000, b""))),
        "neighbour advertisement": (frames.IPV6, frames.ipv6(vm.link_local, ALL_NODES, 58, neighbour_message(136, vm.address6))),
        "duplicate address detection": (frames.IPV6, frames.ipv6("::", ALL_NODES, 58, neighbour_message(135, vm.address6))),
        "router solicitation": (frames.IPV6, frames.ipv6("::", "ff02::2", 58, frames.icmpv6(133, bytes(4)))),
    }
    return {name: frames.ethernet(vm.mac, frames.BROADCAST, kind, payload) for name, (kind, payload) in ethernet.items()}


def hostile(vm: VM, other: VM) -> dict[str, bytes]:
    """Return what a VM must not send."""
    own, anything = vm.address, frames.udp(4000, 4000, b"")
    asking = frames.udp(68, 67, frames.dhcp(1, vm.mac, 1))
    in_anothers_name = frames.udp(68, 67, frames.dhcp(1, other.mac, 3))
    advertisement = frames.icmpv6(134, bytes(12))
    packets4 = {
        "ipv4 of nobody": four(FREE, anything),
        "ipv4 of another vm": four(other.address, anything),
        "ipv4 of the router": four(ROUTER, anything),
        "ipv4 link-local": four("169.254.1.1", anything),
        "ipv4 unspecified": four(ANY4, anything),
        "dhcp server": four(own, frames.udp(67, 68, frames.dhcp(2, other.mac, 5, FREE))),
        "dhcp in the name of another": four(ANY4, in_anothers_name),
        "dhcp in the name of another, with an address": four(own, in_anothers_name),
        "dhcp in fragments": four(own, asking, fragment=MORE_FRAGMENTS),
        "dhcp cut short": four(own, asking[:30]),
        "icmp redirect": four(own, bytes([5, 1]) + bytes(30), 1),
        "icmp router advertisement": four(own, bytes([9, 0]) + bytes(30), 1),
        "igmp query": four(own, bytes([0x11, 0]) + bytes(6), 2),
        "source route": four(own, anything, options=b"\x83\x07\x04" + bytes(5)),
    }
    link, options = vm.link_local, bytes([58, 0, 1, 4, 0, 0, 0, 0])
    packets6 = {
        "ipv6 of nobody": frames.ipv6("fe80::1:2:3:4", ALL_NODES, 17, anything),
        "ipv6 of the router": frames.ipv6(ROUTER6, ALL_NODES, 17, anything),
        "ipv6 of another vm": frames.ipv6(other.address6, ALL_NODES, 17, anything),
        "neighbour advertisement of the router": frames.ipv6(link, ALL_NODES, 58, neighbour_message(136, ROUTER6)),
        "neighbour advertisement of another vm": frames.ipv6(link, ALL_NODES, 58, neighbour_message(136, other.address6)),
        "detection of another's address": frames.ipv6("::", ALL_NODES, 58, neighbour_message(135, other.address6)),
        "router advertisement": frames.ipv6(link, ALL_NODES, 58, advertisement),
        "router advertisement after options": frames.ipv6(link, ALL_NODES, 60, options + advertisement),
        "router advertisement in fragments": frames.ipv6(link, ALL_NODES, 44, bytes([58, 0, 0, 1, 0, 0, 0, 7]) + advertisement),
        "router advertisement after hop-by-hop": frames.ipv6(link, ALL_NODES, 0, options + advertisement),
        "routing header": frames.ipv6(link, ALL_NODES, 43, bytes([17, 0, 4, 0, 0, 0, 0, 0]) + anything),
        "icmpv6 redirect": frames.ipv6(link, ALL_NODES, 58, frames.icmpv6(137, bytes(36))),
        "mld query": frames.ipv6(link, ALL_NODES, 58, frames.icmpv6(130, bytes(20))),
        "dhcpv6 server": frames.ipv6(link, ALL_NODES, 17, frames.udp(547, 546, bytes(8))),
    }  # fmt: skip
    arps = {
        "arp of the router": frames.arp(2, vm.mac, ROUTER, NEIGHBOUR),
        "arp of another vm": frames.arp(1, vm.mac, other.address, other.address),
        "arp of nobody": frames.arp(1, vm.mac, FREE, NEIGHBOUR),
        "arp with another's mac inside": frames.arp(2, "02:00:00:00:00:02", own, NEIGHBOUR),
        "arp reply of no address": frames.arp(2, vm.mac, ANY4, NEIGHBOUR),
        "rarp": frames.arp(3, vm.mac, own, NEIGHBOUR),
    }
    found = {name: frames.ethernet(vm.mac, frames.BROADCAST, frames.IPV4, packet) for name, packet in packets4.items()}
    found |= {name: frames.ethernet(vm.mac, frames.BROADCAST, frames.IPV6, packet) for name, packet in packets6.items()}
    found |= {name: frames.ethernet(vm.mac, frames.BROADCAST, frames.ARP, packet) for name, packet in arps.items()}
    plain = frames.ethernet(vm.mac, frames.BROADCAST, frames.IPV4, four(own, anything))
    return {
        **found,
        "another's mac": frames.ethernet(other.mac, frames.BROADCAST, frames.IPV4, four(own, anything)),
        "nobody's mac": frames.ethernet("02:00:00:00:00:02", frames.BROADCAST, frames.ARP, arps["arp of nobody"]),
        "vlan": frames.tagged(plain),
        "vlan of number 0": frames.tagged(plain, 0),
        "vlan in a vlan": frames.tagged(frames.tagged(plain), 9, frames.QINQ),
        "spanning tree": frames.ethernet(vm.mac, STP, 38, bytes.fromhex("424203") + bytes(35)),
        "another protocol": frames.ethernet(vm.mac, frames.BROADCAST, 0x88B5, bytes(46)),
    }


def passing(lan: Bed, sent: dict[str, bytes], end: str = "ipv4") -> set[str]:
    """Send frames as the first VM, at the end an honest one, and return the names of those that come out at a neighbour."""
    vm = lan.vms[0]
    markers = {MARKER.pack(b"<marker ", number, b">..<"): name for number, name in enumerate(sent)}
    last = MARKER.pack(b"<marker ", len(sent), b">..<")
    with lan.inside("neighbour"):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    found: set[str] = set()
    with raw:
        raw.bind(("eth0", ETH_P_ALL))
        for marker, name in markers.items():
            # Behind the packet's own end, where nothing looks.
            vm.send_raw(sent[name] + marker)
        vm.send_raw(honest(vm)[end] + last)
        deadline = time.monotonic() + ARRIVES_S
        while (left := deadline - time.monotonic()) > 0:
            if select.select([raw], [], [], left)[0]:
                tail = raw.recv(2048)[-MARKER.size :]
                if tail == last:
                    return found
                if tail in markers:
                    found.add(markers[tail])
    message = "the last frame, an honest one, did not come"
    raise AssertionError(message)


def test_hostile_frames_get_through_without_the_filter_and_not_with_it(lan: Bed) -> None:
    sent = hostile(*lan.vms)
    assert passing(lan, sent) == set()
    lan.flush()
    assert passing(lan, sent) == set(sent)


def test_honest_frames_get_through(lan: Bed) -> None:
    sent = honest(lan.vms[0])
    assert passing(lan, sent) == set(sent)


def test_nothing_of_the_link_gets_out_in_the_mode_offline_but_what_finds_the_router(lan: Bed) -> None:
    vm, _ = lan.vms
    sent = {name: frame for name, frame in honest(vm).items() if name not in {"ipv4", "ipv6"}}
    # Neighbour discovery to elsewhere would be a way out.
    abroad = {
        "discovery": frames.ethernet(
            vm.mac, frames.BROADCAST, frames.IPV6, frames.ipv6(vm.address6, "2a00:1450::1", 58, neighbour_message(135, ROUTER6))
        ),
        "multicast dns": frames.ethernet(
            vm.mac, "01:00:5e:00:00:fb", frames.IPV4, frames.ipv4(vm.address, "224.0.0.251", 17, frames.udp(5353, 5353, b""))
        ),
    }
    assert passing(lan, sent | abroad) == set(sent | abroad)
    lan.set_mode(vm, "offline")
    assert passing(lan, sent | abroad, "arp request") == set(sent)


def test_packet_past_the_bridge_does_not_reach_the_host(lan: Bed) -> None:
    """A bridge hands frames to LLDP's group to the port's own device, where the host would take the packet in them."""
    vm, _ = lan.vms
    packet = frames.ipv4(vm.address, HOST, 17, frames.udp(4000, 2223, b"past the bridge"))
    vm_frame = frames.ethernet(vm.mac, frames.LLDP, frames.IPV4, packet)
    with lan.listening("host", "0.0.0.0", 2223, socket.SOCK_DGRAM) as server:  # noqa: S104
        server.settimeout(ARRIVES_S)
        lan.flush()
        vm.send_raw(vm_frame)
        assert server.recv(64) == b"past the bridge"
        lan.load()
        vm.send_raw(vm_frame)
        lan.lease(vm)
        # In the mode `open` the ordinary way is open.
        vm.send_raw(
            frames.ethernet(
                vm.mac, frames.BROADCAST, frames.IPV4, frames.ipv4(vm.address, BROADCAST4, 17, frames.udp(4000, 2223, b"last"))
            )
        )
        assert server.recv(64) == b"last"


# --- leases ---


def test_address_counts_from_the_servers_acknowledgement_on(lan: Bed) -> None:
    vm, other = lan.vms
    lan.flush()
    lan.load()
    assert lan.leases() == set()
    assert not lan.connects("vm1", NEIGHBOUR, 80, where="neighbour", wanted=False)
    lan.lease(vm, kind=2)
    lan.lease(vm, kind=6)
    lan.lease(vm, mac="52:54:00:00:00:77")
    lan.lease(vm, ANY4)
    assert lan.leases() == set()
    lan.lease(vm)
    assert lan.leases() == {(vm.tap, vm.address)}
    assert other.address != vm.address
    assert lan.connects("vm1", NEIGHBOUR, 80, where="neighbour", wanted=True)


def test_vm_gives_another_no_address(lan: Bed) -> None:
    vm, other = lan.vms
    message = frames.udp(67, 68, frames.dhcp(2, other.mac, 5, FREE))
    vm.send(frames.IPV4, four(vm.address, message))
    lan.lease(other)
    assert (other.tap, FREE) not in lan.leases()
    lan.lease(other, FREE)
    assert (other.tap, FREE) in lan.leases()


@pytest.mark.parametrize("mode", ["internet", "open"])
def test_dhcp_goes_to_near_servers_alone(bed: Bed, mode: str) -> None:
    bed.fresh(mode)
    vm, _ = bed.vms

    def asked(server: str) -> bytes:
        message = frames.udp(68, 67, frames.dhcp(1, vm.mac, 3))
        return frames.ethernet(vm.mac, frames.BROADCAST, frames.IPV4, frames.ipv4(vm.address, server, 17, message))

    sent = {server: asked(server) for server in (ROUTER, INTERNET, BROADCAST4)}
    assert passing(bed, sent, "arp request") == {ROUTER, BROADCAST4}
    bed.flush()
    assert passing(bed, sent, "arp request") == set(sent)


@pytest.mark.parametrize("mode", ["internet", "open"])
def test_accomplice_on_the_internet_gives_a_vm_no_address(bed: Bed, mode: str) -> None:
    """Another's answer, such as one with the router's address, would let the VM be that one."""
    bed.fresh(mode)
    vm, other = bed.vms
    known = {(vm.tap, vm.address), (other.tap, other.address)}
    message = frames.udp(67, 68, frames.dhcp(2, vm.mac, 5, ROUTER))
    near = frames.ipv4(ROUTER, vm.address, 17, message)
    abroad = frames.ipv4(INTERNET, vm.address, 17, message)
    abroad6 = frames.ipv6(INTERNET6, vm.address6, 17, message)
    with bed.inside("router"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for kind, packet in ((frames.IPV4, abroad), (frames.IPV6, abroad6)):
            raw.send(frames.ethernet("02:00:00:00:00:01", vm.mac, kind, packet))
            assert bed.leases() == known
        raw.send(frames.ethernet("02:00:00:00:00:01", vm.mac, frames.IPV4, near))
        assert bed.leases() == known | {(vm.tap, ROUTER)}


def test_new_address_replaces_the_old_one(lan: Bed) -> None:
    vm, other = lan.vms
    # The kernel tells a lease's age in seconds.
    time.sleep(1.1)
    lan.lease(vm, FREE)
    assert {(vm.tap, vm.address), (vm.tap, FREE)} <= lan.leases()
    lan.refresh()
    assert lan.leases() == {(vm.tap, FREE), (other.tap, other.address)}


def test_leases_of_before_are_restored_for_vms_that_have_a_policy(lan: Bed) -> None:
    vm, other = lan.vms
    lan.refresh()
    lan.store.forget(1000, other.name)
    lan.flush()
    lan.load()
    assert lan.leases() == {(vm.tap, vm.address)}


@pytest.mark.parametrize("change", [{"tap": "vmw-000000ff"}, {"mac": "52:54:00:00:00:ff"}])
def test_card_that_changed_has_no_address_of_before(lan: Bed, change: dict[str, str]) -> None:
    vm, other = lan.vms
    lan.set_mode(vm, "offline")
    assert (vm.tap, vm.address) in lan.leases()
    wanted = {"name": vm.name, "tap": vm.tap, "mac": vm.mac, "bridge": "br0", "mode": "open", "proxy_port": 0}
    assert lan.ask(verb="set", **{**wanted, **change})["changed"] is True
    assert lan.leases() == {(other.tap, other.address)}


@pytest.mark.parametrize("verb", ["load", "refresh"])
def test_card_without_a_policy_has_no_address(lan: Bed, verb: str) -> None:
    vm, other = lan.vms
    lan.store.forget(USER, vm.name)
    assert (vm.tap, vm.address) in lan.leases()
    {"load": lan.load, "refresh": lan.refresh}[verb]()
    assert lan.leases() == {(other.tap, other.address)}
