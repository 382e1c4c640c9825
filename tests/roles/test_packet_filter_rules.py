"""The packet filter's rules in the kernel, between network namespaces: who reaches whom, and who would without the rule."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import frames
import pytest
from filter_bed import (
    CONTAINERS,
    HOST,
    HOST6,
    INTERNET,
    INTERNET6,
    NAT_PREFIX,
    NEIGHBOUR,
    NEIGHBOUR6,
    PUBLIC,
    ROUTER,
    ROUTER6,
    USER,
    VM,
    Bed,
)
from vmw_filter import FilterError, kernel, ruleset, service

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = Path(__file__).parents[2] / "roles/packet_filter/files"
MODES = ("internet", "allowlist", "offline", "open")
DNS, WEB, SERVICE, PROXY = 53, 80, 2222, 47100
METADATA, LINK_LOCAL, ULA = "169.254.169.254", "169.254.7.7", "fd00:7::7"


def make(tmp_path_factory: pytest.TempPathFactory, *, nat: bool) -> Iterator[Bed]:
    bed = Bed(tmp_path_factory.mktemp("filter"), nat=nat)
    try:
        bed.make()
        yield bed
    finally:
        bed.remove()


@pytest.fixture(scope="module")
def lan_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    yield from make(tmp_path_factory, nat=False)


@pytest.fixture(scope="module")
def nat_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    yield from make(tmp_path_factory, nat=True)


def fresh(bed: Bed) -> Bed:
    """Give both VMs the usual policy, and what a DHCP server says."""
    bed.fresh()
    assert bed.leases() == {(vm.tap, vm.address) for vm in bed.vms}
    return bed


@pytest.fixture
def lan(lan_bed: Bed) -> Bed:
    return fresh(lan_bed)


@pytest.fixture
def nat(nat_bed: Bed) -> Bed:
    return fresh(nat_bed)


@pytest.fixture(params=["lan", "nat"])
def bed(request: pytest.FixtureRequest) -> Bed:
    bed: Bed = request.getfixturevalue(request.param)
    return bed


# --- where a VM gets to ---


@pytest.mark.parametrize("address", [INTERNET, INTERNET6])
def test_internet_is_reached(lan: Bed, address: str) -> None:
    assert lan.connects("vm1", address, WEB, where="router", wanted=True)
    assert lan.exchanges("vm1", address, 4433, where="router", wanted=True)


def test_internet_is_reached_through_nat(nat: Bed) -> None:
    assert nat.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    assert nat.exchanges("vm1", INTERNET, 4433, where="router", wanted=True)


@pytest.mark.parametrize(
    ("address", "where"), [(NEIGHBOUR, "neighbour"), (NEIGHBOUR6, "neighbour"), (ROUTER, "router"), (ROUTER6, "router")]
)
def test_lan_is_not_reached(lan: Bed, address: str, where: str) -> None:
    vm, _ = lan.vms
    lan.set_mode(vm, "open")
    assert lan.connects("vm1", address, WEB, where=where, wanted=True)
    assert lan.exchanges("vm1", address, 4433, where=where, wanted=True)
    for mode in ("internet", "allowlist", "offline"):
        lan.set_mode(vm, mode)
        assert not lan.connects("vm1", address, WEB, where=where, wanted=False)
    assert not lan.exchanges("vm1", address, 4433, where=where, wanted=False)
    assert (address, "tcp", WEB) in lan.refused(vm)
    assert (address, "udp", 4433) in lan.refused(vm)


@pytest.mark.parametrize(("address", "where"), [(NEIGHBOUR, "neighbour"), (ROUTER, "router")])
def test_lan_behind_the_host_is_not_reached(nat: Bed, address: str, where: str) -> None:
    vm, _ = nat.vms
    nat.set_mode(vm, "open")
    assert nat.connects("vm1", address, WEB, where=where, wanted=True)
    nat.set_mode(vm, "internet")
    assert not nat.connects("vm1", address, WEB, where=where, wanted=False)
    assert (address, "tcp", WEB) in nat.refused(vm)


def test_lan_is_not_reached_through_the_host_as_a_router(lan: Bed) -> None:
    lan.ip("vm1", f"route add {NEIGHBOUR}/32 via {HOST}")
    try:
        lan.set_mode(lan.vms[0], "open")
        assert lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=True)
        lan.set_mode(lan.vms[0], "internet")
        assert not lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=False)
    finally:
        lan.ip("vm1", f"route del {NEIGHBOUR}/32")


@pytest.mark.parametrize("address", [METADATA, LINK_LOCAL, ULA])
def test_special_addresses_of_the_link_are_not_reached(lan: Bed, address: str) -> None:
    bits = 128 if ":" in address else 32
    lan.ip("router", f"address add {address}/{bits} dev eth0" + (" nodad" if bits == 128 else ""))
    lan.ip("vm1", f"route add {address}/{bits} dev eth0")
    try:
        lan.set_mode(lan.vms[0], "open")
        assert lan.connects("vm1", address, WEB, where="router", wanted=True)
        lan.set_mode(lan.vms[0], "internet")
        assert not lan.connects("vm1", address, WEB, where="router", wanted=False)
        assert (address, "tcp", WEB) in lan.refused(lan.vms[0])
    finally:
        lan.ip("router", f"address del {address}/{bits} dev eth0")
        lan.ip("vm1", f"route del {address}/{bits} dev eth0")


def test_link_local_neighbour_is_not_reached(lan: Bed) -> None:
    links = json.loads(lan.run("neighbour", "ip", "-j", "-6", "address", "show", "dev", "eth0", "scope", "link"))
    address = next(item["local"] for link in links for item in link.get("addr_info", ()) if "local" in item)
    lan.set_mode(lan.vms[0], "open")
    assert lan.connects("vm1", address, WEB, where="neighbour", wanted=True)
    lan.set_mode(lan.vms[0], "internet")
    assert not lan.connects("vm1", address, WEB, where="neighbour", wanted=False)


@pytest.mark.parametrize("address", [ROUTER, ROUTER6])
def test_networks_resolver_is_asked_only_in_the_mode_internet(lan: Bed, address: str) -> None:
    assert lan.exchanges("vm1", address, DNS, where="router", wanted=True)
    assert lan.connects("vm1", address, DNS, where="router", wanted=True)
    assert not lan.connects("vm1", address, WEB, where="router", wanted=False)
    for mode in ("allowlist", "offline"):
        lan.set_mode(lan.vms[0], mode)
        assert not lan.exchanges("vm1", address, DNS, where="router", wanted=False)


def test_neighbour_is_no_resolver(lan: Bed) -> None:
    assert not lan.exchanges("vm1", NEIGHBOUR, DNS, where="neighbour", wanted=False)
    lan.resolvers.write_text(f"nameserver {NEIGHBOUR}\n")
    try:
        lan.refresh()
        assert lan.exchanges("vm1", NEIGHBOUR, DNS, where="neighbour", wanted=True)
    finally:
        lan.resolvers.write_text(f"nameserver {ROUTER}\n")


def test_hosts_own_resolver_is_asked_on_its_nat_network(nat: Bed) -> None:
    assert nat.exchanges("vm1", nat.gateway, DNS, where="host", wanted=True)
    assert nat.connects("vm1", nat.gateway, DNS, where="host", wanted=True)
    assert not nat.exchanges("vm1", HOST, DNS, where="host", wanted=False)
    nat.set_mode(nat.vms[0], "allowlist")
    assert not nat.exchanges("vm1", nat.gateway, DNS, where="host", wanted=False)


@pytest.mark.parametrize("family", [4, 6])
def test_vms_do_not_reach_each_other(lan: Bed, family: int) -> None:
    one, two = lan.vms
    address = two.address if family == 4 else two.address6
    lan.set_mode(one, "open")
    assert not lan.connects("vm1", address, SERVICE, where="vm2", wanted=False)
    lan.set_mode(two, "open")
    assert lan.connects("vm1", address, SERVICE, where="vm2", wanted=True)
    lan.set_mode(one, "internet")
    assert not lan.connects("vm1", address, SERVICE, where="vm2", wanted=False)


@pytest.mark.parametrize("mode", ["internet", "offline"])
def test_hosts_services_are_not_reached_at_any_address(bed: Bed, mode: str) -> None:
    addresses = [bed.host_address, CONTAINERS, PUBLIC, HOST] + ([HOST6] if not bed.nat else [])
    for address in {CONTAINERS, PUBLIC, HOST} - {bed.host_address}:
        bed.ip("vm1", f"route replace {address}/32 via {bed.host_address}")
    bed.set_mode(bed.vms[0], "open")
    for address in addresses:
        assert bed.connects("vm1", address, SERVICE, where="host", wanted=True), address
    bed.set_mode(bed.vms[0], mode)
    for address in addresses:
        assert not bed.connects("vm1", address, SERVICE, where="host", wanted=False), address
    assert {(address, "tcp", SERVICE) for address in addresses} <= bed.refused(bed.vms[0])


def test_proxys_port_is_the_vms_alone(lan: Bed) -> None:
    one, two = lan.vms
    for mode in ("internet", "allowlist"):
        lan.set_mode(one, mode, PROXY)
        assert lan.connects("vm1", HOST, PROXY, where="host", wanted=True)
    assert not lan.connects("vm2", HOST, PROXY, where="host", wanted=False)
    assert not lan.connects("neighbour", HOST, PROXY, where="host", wanted=False)
    assert lan.connects("neighbour", HOST, SERVICE, where="host", wanted=True)
    lan.set_mode(two, "internet", PROXY + 1)
    assert not lan.connects("vm1", HOST, PROXY + 1, where="host", wanted=False)
    with taking_the_card_of(lan, one):
        assert not lan.connects("neighbour", HOST, PROXY, where="host", wanted=False)
        lan.flush()
        assert lan.connects("neighbour", HOST, PROXY, where="host", wanted=True)
        lan.load()
    lan.set_mode(one, "offline", PROXY)
    assert not lan.connects("vm1", HOST, PROXY, where="host", wanted=False)


@contextlib.contextmanager
def taking_the_card_of(lan: Bed, vm: VM) -> Iterator[None]:
    """Have the neighbour be a VM on the LAN, by both addresses."""
    (before,) = json.loads(lan.run("neighbour", "ip", "-j", "link", "show", "dev", "eth0"))
    lan.ip("neighbour", f"link set eth0 address {vm.mac}", f"address del {NEIGHBOUR}/24 dev eth0")
    lan.ip("neighbour", f"address add {vm.address}/24 dev eth0")
    try:
        yield
    finally:
        lan.ip("neighbour", f"address del {vm.address}/24 dev eth0", f"address add {NEIGHBOUR}/24 dev eth0")
        lan.ip("neighbour", f"link set eth0 address {before['address']}")
        # The route that went with the address.
        lan.ip("neighbour", f"route replace {NAT_PREFIX}.0/24 via {HOST}")


def test_card_of_before_is_not_cut_off(lan: Bed) -> None:
    """A VM that runs since before it had a tap of its own has the same address on a card that libvirt named."""
    vm, _ = lan.vms
    lan.set_mode(vm, "open")
    lan.add("old")
    lan.ip("host", f"link set {vm.tap} down")
    try:
        for port, wanted in (("vnet7", True), ("eth7", False)):
            lan.cable("old", "eth0", "host", port, "br0", vm.mac)
            lan.ip("old", f"address add {vm.address}/24 dev eth0")
            assert lan.connects("old", HOST, SERVICE, where="host", wanted=wanted) is wanted
            lan.ip("old", "link del eth0")
    finally:
        lan.ip("host", f"link set {vm.tap} up")
        lan.remove("old")


@pytest.mark.parametrize("mode", ["allowlist", "offline"])
def test_nothing_of_the_internet_is_reached_offline(bed: Bed, mode: str) -> None:
    assert bed.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    bed.set_mode(bed.vms[0], mode)
    assert not bed.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    assert not bed.exchanges("vm1", INTERNET, DNS, where="router", wanted=False)


# --- who gets to a VM ---


@pytest.mark.parametrize("mode", MODES)
def test_host_reaches_its_vm_in_every_mode(bed: Bed, mode: str) -> None:
    vm, _ = bed.vms
    bed.set_mode(vm, mode)
    assert bed.connects("host", vm.address, 22, where="vm1", wanted=True)
    assert bed.exchanges("host", vm.address, 4433, where="vm1", wanted=True)
    if not bed.nat:
        assert bed.connects("host", vm.address6, 22, where="vm1", wanted=True)
    # A bridge that has forgotten where the VM is sends copies to every port.
    bed.ip("host", "link set br0 type bridge fdb_flush")
    assert bed.connects("host", vm.address, 22, where="vm1", wanted=True)


@pytest.mark.parametrize("family", [4, 6])
def test_lan_does_not_reach_a_vm(lan: Bed, family: int) -> None:
    vm, _ = lan.vms
    address = vm.address if family == 4 else vm.address6
    # The VM's own rules would stop the answers as well, so what comes in is looked at.
    probe = b"unasked" * 4
    with lan.inside("neighbour"):
        client = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)

    def send() -> None:
        client.sendto(probe, (address, 4433))

    with client:
        lan.set_mode(vm, "open")
        assert lan.connects("neighbour", address, 22, where="vm1", wanted=True)
        assert lan.arrives("vm1", "eth0", send, probe, wanted=True)
        for mode in ("internet", "allowlist", "offline"):
            lan.set_mode(vm, mode)
            assert not lan.connects("neighbour", address, 22, where="vm1", wanted=False)
            assert not lan.arrives("vm1", "eth0", send, probe, wanted=False)


def test_lan_does_not_reach_a_vm_behind_the_host(nat: Bed) -> None:
    vm, _ = nat.vms
    nat.set_mode(vm, "open")
    assert nat.connects("neighbour", vm.address, 22, where="vm1", wanted=True)
    nat.set_mode(vm, "internet")
    assert not nat.connects("neighbour", vm.address, 22, where="vm1", wanted=False)


def test_internets_answer_comes_in_only_where_the_vm_asked(bed: Bed) -> None:
    vm, _ = bed.vms
    answer = b"an answer to nothing"
    with bed.inside("vm1"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client, bed.listening("router", INTERNET, 4433, socket.SOCK_DGRAM) as server:
        server.settimeout(5)
        client.sendto(b"question", (INTERNET, 4433))
        _, peer = server.recvfrom(64)
        assert bed.arrives("vm1", "eth0", lambda: _send(server, answer, peer), answer, wanted=True)
        bed.set_mode(vm, "offline")
        assert not bed.arrives("vm1", "eth0", lambda: _send(server, answer, peer), answer, wanted=False)
        bed.set_mode(vm, "internet")
        assert bed.arrives("vm1", "eth0", lambda: _send(server, answer, peer), answer, wanted=True)
    with bed.listening("router", INTERNET, 4434, socket.SOCK_DGRAM) as other:
        target = (vm.address, peer[1]) if bed.nat else peer
        assert not bed.arrives("vm1", "eth0", lambda: _send(other, answer, target), answer, wanted=False)
        bed.set_mode(vm, "open")
        assert bed.arrives("vm1", "eth0", lambda: _send(other, answer, target), answer, wanted=True)


def _send(server: socket.socket, data: bytes, peer: object) -> None:
    server.sendto(data, peer)  # type: ignore[call-overload]


@pytest.mark.parametrize("where", ["router", "neighbour"])
def test_dhcp_server_behind_the_host_gives_a_vm_no_address(nat: Bed, where: str) -> None:
    vm, _ = nat.vms
    nat.set_mode(vm, "open")
    before = nat.leases()
    message = frames.dhcp(2, vm.mac, 5, nat.gateway)
    with nat.listening(where, {"router": INTERNET, "neighbour": NEIGHBOUR}[where], 67, socket.SOCK_DGRAM) as server:
        assert nat.arrives("vm1", "eth0", lambda: _send(server, message, (vm.address, 68)), message, wanted=True)
    assert nat.leases() == before
    nat.lease(vm, nat.gateway)
    assert nat.leases() == before | {(vm.tap, nat.gateway)}


# --- changes while it runs ---


def test_connection_ends_when_the_policy_forbids_it(bed: Bed) -> None:
    vm, _ = bed.vms
    for address, port in ((INTERNET, WEB), (bed.host_address, PROXY)):
        bed.set_mode(vm, "internet", PROXY)
        where = "router" if address == INTERNET else "host"
        with bed.listening(where, "0.0.0.0", port) as server, bed.inside("vm1"):  # noqa: S104
            client = socket.create_connection((address, port), 5)
            with client, server.accept()[0] as connection:
                connection.settimeout(0.4)
                client.sendall(b"before")
                assert connection.recv(64) == b"before"
                bed.set_mode(vm, "offline", PROXY)
                client.sendall(b"after")
                with pytest.raises(TimeoutError):
                    connection.recv(64)
                bed.set_mode(vm, "internet", PROXY)
                connection.settimeout(10)
                assert connection.recv(64) == b"after"


def test_change_of_one_vm_leaves_what_is_known_of_the_others(lan: Bed) -> None:
    one, two = lan.vms
    assert not lan.connects("vm1", NEIGHBOUR, WEB, wanted=False)
    assert not lan.connects("vm2", NEIGHBOUR, WEB, wanted=False)
    with lan.inside("vm2"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client, lan.listening("router", INTERNET, 4433, socket.SOCK_DGRAM) as server:
        client.sendto(b"question", (INTERNET, 4433))
        server.settimeout(5)
        _, peer = server.recvfrom(64)
        lan.set_mode(one, "offline")
        lan.set_mode(one, "internet")
        assert lan.leases() == {(vm.tap, vm.address) for vm in lan.vms}
        assert lan.refused(two) == {(NEIGHBOUR, "tcp", WEB)} == lan.refused(one)
        assert lan.arrives("vm2", "eth0", lambda: _send(server, b"answer" * 3, peer), b"answer" * 3, wanted=True)
    assert lan.ask(verb="remove", name=one.name) == {"ok": True, "changed": True}
    assert lan.leases() == {(two.tap, two.address)}
    assert lan.refused(two) == {(NEIGHBOUR, "tcp", WEB)}
    assert lan.connects("vm2", INTERNET, WEB, where="router", wanted=True)


def test_tap_without_a_policy_reaches_nothing(lan: Bed) -> None:
    vm, _ = lan.vms
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    lan.ask(verb="remove", name=vm.name)
    assert not lan.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    assert not lan.connects("vm1", HOST, SERVICE, where="host", wanted=False)
    lan.flush()
    assert lan.connects("vm1", HOST, SERVICE, where="host", wanted=True)


def test_rules_are_back_after_somebody_flushed_all(bed: Bed) -> None:
    bed.refresh()
    bed.flush()
    assert bed.connects("vm1", bed.host_address, SERVICE, where="host", wanted=True)
    bed.refresh()
    assert not bed.connects("vm1", bed.host_address, SERVICE, where="host", wanted=False)
    assert bed.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    assert bed.leases() == {(vm.tap, vm.address) for vm in bed.vms}


def test_vm_that_is_resumed_after_a_reboot_of_the_host_has_its_address(bed: Bed) -> None:
    vm, other = bed.vms
    bed.refresh()
    bed.flush()
    shutil.rmtree(bed.store.runtime)
    policy = bed.store.policies()[USER, other.name]
    bed.store.save(USER, dataclasses.replace(policy, mac="52:54:00:00:00:77"))
    bed.load()
    assert bed.leases() == {(vm.tap, vm.address)}
    assert bed.connects("vm1", INTERNET, WEB, where="router", wanted=True)


def test_nothing_is_reached_before_the_network_is_known(lan: Bed) -> None:
    """At boot the rules are loaded first; a public prefix of the link is then not known to be one."""
    vm, _ = lan.vms
    prefix, neighbour = "9.9.7.0/24", "9.9.7.20"
    lan.ip("neighbour", f"address add {neighbour}/32 dev eth0")
    lan.ip("vm1", f"route add {prefix} dev eth0")
    addresses = [f"{HOST}/24", f"{HOST6}/64"]
    lan.ip("host", *(f"address del {address} dev br0" for address in addresses))
    try:
        lan.load()
        for address in (INTERNET, INTERNET6):
            assert not lan.connects("vm1", address, WEB, where="router", wanted=False)
        assert not lan.connects("vm1", neighbour, WEB, where="neighbour", wanted=False)
        # The address is renewed nevertheless, and from near servers alone.
        lan.lease(vm)
        assert (vm.tap, vm.address) in lan.leases()
        lan.ip("host", *(f"address add {address} dev br0" for address in (*addresses, "9.9.7.10/24")))
        lan.ip("host", f"route replace default via {ROUTER}", f"-6 route replace default via {ROUTER6}")
        lan.refresh()
        for address in (INTERNET, INTERNET6):
            assert lan.connects("vm1", address, WEB, where="router", wanted=True)
        assert not lan.connects("vm1", neighbour, WEB, where="neighbour", wanted=False)
        lan.set_mode(vm, "open")
        assert lan.connects("vm1", neighbour, WEB, where="neighbour", wanted=True)
    finally:
        lan.ip(
            "host", "address replace 9.9.7.10/24 dev br0", "address del 9.9.7.10/24 dev br0", f"address replace {HOST}/24 dev br0"
        )
        lan.ip("host", f"address replace {HOST6}/64 dev br0 nodad")
        lan.ip("host", f"route replace default via {ROUTER}", f"-6 route replace default via {ROUTER6}")
        lan.ip("neighbour", f"address del {neighbour}/32 dev eth0")
        lan.ip("vm1", f"route del {prefix}")


def test_load_keeps_the_sets_of_this_version(lan: Bed) -> None:
    vm, other = lan.vms
    assert not lan.connects("vm1", NEIGHBOUR, WEB, wanted=False)
    lan.store.forget(USER, other.name)
    lan.load()
    assert lan.refused(vm) == {(NEIGHBOUR, "tcp", WEB)}
    assert (vm.tap, vm.address) in lan.leases()
    with lan.inside("host"):
        assert kernel.tables() == kernel.Tables(loaded=True, keys=frozenset({vm.tap.removeprefix("vmw-")}))


def test_load_adds_what_the_tables_of_this_version_lack(lan: Bed) -> None:
    vm, _ = lan.vms
    policies = lan.store.state / str(USER)
    policies.rename(policies.with_suffix(".away"))
    lan.load()
    assert not lan.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    policies.with_suffix(".away").rename(policies)
    lan.load()
    lan.lease(vm)
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)


def test_load_replaces_tables_of_another_version_and_leases_go_over(lan: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    vm, _ = lan.vms
    assert not lan.connects("vm1", NEIGHBOUR, WEB, wanted=False)
    lan.refresh()
    (lan.store.state / "leases.json").unlink()
    monkeypatch.setattr(ruleset, "version", lambda: "0123456789ab")
    lan.load()
    assert "version_0123456789ab" in lan.run("host", "nft", "list", "table", "inet", "vmw")
    assert lan.refused(vm) == set()
    assert lan.leases() == {(vm.tap, vm.address) for vm in lan.vms}
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)


def test_host_without_rules_closes_when_they_cannot_be_loaded(lan: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    lan.flush()
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    monkeypatch.setattr(ruleset, "replace_all", lambda *_: "no rule of nft\n")
    with pytest.raises(FilterError, match="nft: "):
        lan.load()
    assert not lan.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    monkeypatch.undo()
    lan.load()
    for vm in lan.vms:
        lan.lease(vm)
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)


def test_host_without_rules_is_closed_without_the_program_and_one_with_rules_stays_as_it_is(lan: Bed) -> None:
    close = ("nft", "-f", str(FILES / "closed.nft"))
    with pytest.raises(AssertionError, match="File exists"):
        lan.run("host", *close)
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    lan.refresh()
    lan.flush()
    lan.run("host", *close)
    assert not lan.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    assert lan.connects("neighbour", HOST, SERVICE, where="host", wanted=True)
    lan.load()
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)


@pytest.mark.parametrize("unit", ["vmw-filter.service", "nftables.service.d/vmw.conf"])
def test_units_close_before_they_load(unit: str) -> None:
    commands = [line.partition("=") for line in (FILES / "systemd" / unit).read_text().splitlines() if line.startswith("Exec")]
    loads = [number for number, (_, _, command) in enumerate(commands) if command.endswith("/vmw-filter load")]
    assert loads
    for number in loads:
        name, _, _ = commands[number]
        closing = {"ExecStart": "ExecStartPre"}.get(name, name)
        if name == "ExecReload" and unit == "vmw-filter.service":
            # Its tables are there.
            continue
        assert commands[number - 1] == (closing, "=", "-/usr/sbin/nft -f /usr/local/lib/vmw/closed.nft")


def test_unreadable_policy_closes_its_vm_alone(lan: Bed) -> None:
    vm, other = lan.vms
    path = lan.store.state / str(USER) / f"{vm.name}.json"
    path.write_text("{")
    lan.load()
    assert not lan.connects("vm1", INTERNET, WEB, where="router", wanted=False)
    assert lan.connects("vm2", INTERNET, WEB, where="router", wanted=True)
    lan.set_mode(vm, "internet")
    lan.lease(vm)
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    assert other.name == "vm2"


def test_rules_hold_where_bridged_packets_are_handed_to_the_hosts_filters(lan: Bed) -> None:
    lan.bridge_netfilter(on=True)
    try:
        assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
        assert lan.connects("vm1", INTERNET6, WEB, where="router", wanted=True)
        assert lan.exchanges("vm1", ROUTER, DNS, where="router", wanted=True)
        assert lan.connects("host", lan.vms[0].address, 22, where="vm1", wanted=True)
        assert not lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=False)
        assert not lan.connects("neighbour", lan.vms[0].address, 22, where="vm1", wanted=False)
        # A frame that the host's filters have seen is none that the host forwards.
        lan.lease(lan.vms[0], METADATA)
        assert (lan.vms[0].tap, METADATA) in lan.leases()
    finally:
        lan.bridge_netfilter(on=False)


def test_container_of_the_host_does_not_reach_a_vm(bed: Bed) -> None:
    vm, _ = bed.vms
    bed.add("box")
    try:
        bed.cable("box", "eth0", "host", "box0", "docker0")
        bed.ip("box", "address add 172.17.0.2/16 dev eth0", f"route add default via {CONTAINERS}")
        # As Docker has it, so that the VM sees the host's address and the answer comes back.
        hide = "type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 masquerade"
        bed.nft(f"table ip hide {{ chain postrouting {{ {hide}; }}; }}")
        bed.set_mode(vm, "open")
        assert bed.connects("box", vm.address, 22, where="vm1", wanted=True)
        bed.set_mode(vm, "internet")
        assert not bed.connects("box", vm.address, 22, where="vm1", wanted=False)
        bed.nft("delete table ip hide")
    finally:
        bed.remove("box")


def test_policy_that_cannot_be_stored_does_not_hold(lan: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    vm, other = lan.vms

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(lan.store, "save", fail)
        with pytest.raises(OSError, match="No space"):
            lan.set_mode(vm, "open")
    assert not lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=False)
    assert lan.connects("vm1", INTERNET, WEB, where="router", wanted=True)
    assert lan.set_mode(vm, "open")["changed"] is True
    assert lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=True)
    lan.ask(verb="remove", name=vm.name)
    with monkeypatch.context() as full:
        full.setattr(lan.store, "save", fail)
        with pytest.raises(OSError, match="No space"):
            lan.set_mode(vm, "open")
    with lan.inside("host"):
        assert kernel.tables().keys == {other.tap.removeprefix("vmw-")}


# --- who asks ---


def test_users_have_policies_of_their_own(lan: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    # They are no users of this machine, whose groups could be looked up.
    monkeypatch.setattr(service, "check_member", lambda _owner: None)
    # One without a file, so that no directory has to be open to them.
    name = f"vmw-filter-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()

        def ask(user: int, **fields: object) -> dict[str, Any]:
            program = (
                "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + sys.argv[1]);"
                " s.sendall(sys.argv[2].encode() + b'\\n'); print(s.makefile().readline())"
            )
            argv = ["/usr/bin/python3", "-c", program, name, json.dumps(fields)]
            with subprocess.Popen(argv, user=user, stdout=subprocess.PIPE, text=True, cwd="/") as client:
                with lan.filtering(), listener.accept()[0] as connection:
                    service.serve(connection, lan.store)
                reply: dict[str, Any] = json.loads(client.communicate()[0])
            return reply

        vm, _ = lan.vms
        wanted = {"verb": "set", "name": vm.name, "tap": vm.tap, "mac": vm.mac, "bridge": "br0", "mode": "open", "proxy_port": 0}
        other = {**wanted, "name": "mine", "tap": "vmw-0000000f", "mac": "52:54:00:00:00:0f"}
        assert ask(4711, **other)["changed"] is True
        assert ask(4711, verb="remove", name=vm.name) == {"ok": True, "changed": False}
        assert "a VM of another user" in ask(4711, **wanted)["error"]
        assert ask(4711, verb="refused", name=vm.name)["ok"] is False
        assert [policy["name"] for policy in ask(4711, verb="status")["policies"]] == ["mine"]
        assert [policy["name"] for policy in ask(USER, verb="status")["policies"]] == ["vm1", "vm2"]
        assert not lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=False)
        assert ask(USER, **wanted)["changed"] is True
        assert lan.connects("vm1", NEIGHBOUR, WEB, where="neighbour", wanted=True)
        assert ask(4711, verb="remove", name="mine") == {"ok": True, "changed": True}


def test_two_requests_at_once_are_both_done(lan: Bed) -> None:
    def change(number: int) -> None:
        for mode in ("offline", "open", "allowlist"):
            lan.set_mode(lan.vms[number], mode)

    threads = [threading.Thread(target=change, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [policy["mode"] for policy in lan.ask(verb="status")["policies"]] == ["allowlist", "allowlist"]


def test_refusals_are_counted_and_the_newest_is_last(lan: Bed) -> None:
    vm, _ = lan.vms
    for port in (81, 82, 81):
        assert not lan.connects("vm1", NEIGHBOUR, port, wanted=False)
    found = lan.ask(verb="refused", name=vm.name)["refused"]
    counts = {item["port"]: item["count"] for item in found}
    assert counts[81] > counts[82] >= 1
    assert [item["time"] for item in found] == sorted(item["time"] for item in found)


def test_missing_bridge_is_refused(lan: Bed) -> None:
    vm, _ = lan.vms
    fields = {"name": vm.name, "tap": vm.tap, "mac": vm.mac, "mode": "internet", "proxy_port": 0}
    with pytest.raises(FilterError, match="no bridge br7"):
        lan.ask(verb="set", bridge="br7", **fields)
    with pytest.raises(FilterError, match="no bridge eth0"):
        lan.ask(verb="set", bridge="eth0", **fields)
