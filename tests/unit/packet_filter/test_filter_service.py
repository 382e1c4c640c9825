"""One request on a socket, what is stored, and the command."""

from __future__ import annotations

import configparser
import dataclasses
import ipaddress
import json
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filter_support import line, policy
from vmw_filter import FilterError, __main__, control, kernel, ruleset, service, ufw
from vmw_filter.kernel import parse_leases, parse_refusals
from vmw_filter.network import Link, Network
from vmw_filter.policy import Mode, Request
from vmw_filter.store import MAX_POLICIES, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state", tmp_path / "run")


class Kernel:
    """A kernel that takes every transaction and remembers it.

    Attributes:
        applied: The transactions.
        is_loaded: Whether tables are there.
        keys: The VMs in them.
        fails: How many of the next transactions it refuses.
    """

    def __init__(self) -> None:
        self.applied: list[str] = []
        self.is_loaded = True
        self.keys: set[str] = set()
        self.fails = 0

    def apply(self, text: str) -> None:
        if self.fails:
            self.fails -= 1
            message = "nft: no"
            raise FilterError(message)
        self.applied.append(text)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(kernel, "apply", fake.apply)
    monkeypatch.setattr(kernel, "tables", lambda: kernel.Tables(fake.is_loaded, frozenset(fake.keys)))
    monkeypatch.setattr(kernel, "leases", list)
    monkeypatch.setattr(kernel, "network", lambda: Network((Link("br0", "bridge"),)))
    return fake


def ask(store: Store, data: bytes, *, close: bool = True) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        if close:
            ours.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=service.serve, args=(theirs, store))
        thread.start()
        with ours.makefile() as replies:
            reply: dict[str, Any] = json.loads(replies.readline())
        thread.join()
    return reply


def test_policy_is_stored_for_who_asks_and_told(
    store: Store, tables: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ufw, "RULES", tmp_path / "user.rules")
    assert ask(store, line() + b"\n", close=False) == {"ok": True, "changed": True}
    path = store.state / str(os.getuid()) / "feature-x.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    status = ask(store, b'{"verb": "status"}\n')
    stored = {key: value for key, value in json.loads(line()).items() if key not in {"schema", "verb"}}
    assert status == {"ok": True, "version": 1, "loaded": True, "policies": [stored], "ufw": []}
    assert len(tables.applied) == 1


def test_what_ufw_lets_in_on_a_bridge_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ufw, "RULES", tmp_path / "user.rules")
    tuples = (
        "allow udp 67 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=766d77",
        "allow any 53 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=766d77",
        "route:allow any any 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=766d77",
        "allow tcp 47234 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=766d77",
        "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
        "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=776562",
        "allow tcp 82 0.0.0.0/0 any 0.0.0.0/0 in_br0",
        "deny tcp 81 0.0.0.0/0 any 0.0.0.0/0 in_br0 comment=766d77",
    )
    ufw.RULES.write_text("".join(f"\n### tuple ### {line}\n-A ufw-user-input -j ACCEPT\n" for line in tuples))
    assert ufw.openings() == ["br0 any 53", "br0 route", "br0 tcp 47234", "br0 tcp 80", "br0 tcp 82", "br0 udp 67"]


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"{}", line(), line() + b"\n" + line() + b"\n", b"x" * 9000 + b"\n", line(tap="eth0") + b"\n"]
)
def test_hostile_request_has_a_reply_and_changes_nothing(store: Store, tables: Kernel, data: bytes) -> None:
    reply = ask(store, data)
    assert reply["ok"] is False
    assert set(reply) == {"ok", "error", "hint"}
    assert tables.applied == []
    assert not store.state.exists()


def test_request_that_does_not_come_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PATIENCE_S", 0.05)
    assert ask(store, b'{"verb"', close=False)["error"] == "there is no whole request"


def test_unchanged_policy_is_not_applied_again_unless_the_kernel_lost_it(store: Store, tables: Kernel) -> None:
    request = Request("set", "vm1", policy(1))
    assert control.answer(store, request, 1000)["changed"] is True
    tables.keys = {"00000001"}
    assert control.answer(store, request, 1000)["changed"] is False
    assert "chain" not in tables.applied[-1]
    tables.keys = set()
    assert control.answer(store, request, 1000)["changed"] is True
    tables.keys, tables.is_loaded = {"00000001"}, False
    assert control.answer(store, request, 1000)["changed"] is True
    assert "add table" in tables.applied[-1]


def test_policy_that_the_kernel_refuses_is_not_stored(store: Store, tables: Kernel) -> None:
    control.answer(store, Request("set", "vm1", policy(1)), 1000)
    tables.fails = 1
    with pytest.raises(FilterError):
        control.answer(store, Request("set", "vm1", policy(1, Mode.OPEN)), 1000)
    assert store.policies() == {(1000, "vm1"): policy(1)}


def test_card_that_a_vm_no_longer_has_is_removed_with_the_change(store: Store, tables: Kernel) -> None:
    control.answer(store, Request("set", "vm1", policy(1)), 1000)
    moved = policy(1).__class__(**{**policy(1).as_dict(), "tap": "vmw-000000ff"})
    control.answer(store, Request("set", "vm1", moved), 1000)
    assert "delete chain bridge vmw guard_00000001\n" in tables.applied[-1]


def test_remove_is_idempotent_and_spares_others(store: Store, tables: Kernel) -> None:
    control.answer(store, Request("set", "vm1", policy(1)), 1000)
    assert control.answer(store, Request("remove", "vm1"), 1001) == {"ok": True, "changed": False}
    assert control.answer(store, Request("remove", "vm1"), 1000) == {"ok": True, "changed": True}
    assert control.answer(store, Request("remove", "vm1"), 1000) == {"ok": True, "changed": False}
    assert store.policies() == {}


def test_one_user_has_no_policies_without_end(store: Store, tables: Kernel) -> None:
    for number in range(MAX_POLICIES):
        one = policy(1).__class__(
            f"vm{number}", f"vmw-{number:08x}", f"52:54:00:00:{number // 256:02x}:{number % 256:02x}", "br0", Mode.OPEN
        )
        store.save(1000, one)
    extra = policy(1).__class__("extra", "vmw-ffffffff", "52:54:00:ff:ff:ff", "br0", Mode.OPEN)
    with pytest.raises(FilterError, match="policies already"):
        control.answer(store, Request("set", "extra", extra), 1000)
    assert control.answer(store, Request("set", "extra", extra), 1001)["changed"] is True


def test_load_closes_a_host_without_tables_when_it_fails(store: Store, tables: Kernel) -> None:
    tables.fails = 1
    with pytest.raises(FilterError):
        control.load(store)
    assert tables.applied == []
    tables.is_loaded, tables.fails = False, 1
    with pytest.raises(FilterError):
        control.load(store)
    assert tables.applied == [ruleset.CLOSED]


def test_stored_policies_that_cannot_be_read_are_left_out(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.save(1000, policy(1))
    for name, text in (
        ("vm2", "{"),
        ("vm3", json.dumps(policy(4).as_dict())),
        ("vm5", json.dumps({**policy(5).as_dict(), "tap": "x"})),
    ):
        (store.state / "1000" / f"{name}.json").write_text(text)
    (store.state / "1000" / ".vm6.json.new").write_text("{")
    assert store.policies() == {(1000, "vm1"): policy(1)}
    assert capsys.readouterr().err.count("is left out") == 3


def test_leases_are_stored_and_nonsense_is_none(store: Store) -> None:
    store.save(1000, policy(1))
    leases = [ruleset.Lease("vmw-00000001", ipaddress.IPv4Address("10.0.0.1"), 70)]
    store.save_leases([*leases, ruleset.Lease("vmw-00000002", ipaddress.IPv4Address("10.0.0.2"), 70)], 1000)
    path = store.state / "leases.json"
    assert json.loads(path.read_text()) == [["vmw-00000001", policy(1).mac, "10.0.0.1", 1070]]
    assert store.policies() == {(1000, "vm1"): policy(1)}
    assert store.leases(1000) == leases
    for text in ("", "{", "[[1]]", '[["a", "b", "c", 1]]', "7"):
        path.write_text(text)
        assert store.leases(1000) == []


def test_stored_lease_holds_until_its_end_for_the_card_that_it_was_given_to(store: Store) -> None:
    store.save(1000, policy(1))
    store.save_leases([ruleset.Lease("vmw-00000001", ipaddress.IPv4Address("10.0.0.1"), 70)], 1000)
    assert [lease.seconds for lease in store.leases(1060)] == [10]
    assert store.leases(1070) == []
    # A clock that went back.
    assert [lease.seconds for lease in store.leases(-(10**9))] == [365 * 86400]
    store.save(1000, dataclasses.replace(policy(1), mac="52:54:00:00:00:77"))
    assert store.leases(1060) == []


def test_leases_are_written_when_they_are_others_or_renewed(store: Store) -> None:
    store.save(1000, policy(1))
    path = store.state / "leases.json"

    def saved(address: str, now: float, seconds: int = 100_000) -> bool:
        path.unlink(missing_ok=True)
        store.save_leases([lease], 1000)
        before = path.stat().st_ino
        store.save_leases([ruleset.Lease(lease.tap, ipaddress.IPv4Address(address), seconds)], now)
        return path.stat().st_ino != before

    lease = ruleset.Lease("vmw-00000001", ipaddress.IPv4Address("10.0.0.1"), 100_000)
    assert not saved("10.0.0.1", 1060, 99_941)
    assert saved("10.0.0.2", 1060)
    assert saved("10.0.0.1", 1000 + 7200)


def test_listings_of_nft_are_read() -> None:
    elements = [
        {"elem": {"val": {"concat": ["10.0.0.1", 6, 80]}, "expires": 86390, "counter": {"packets": 3, "bytes": 180}}},
        {"elem": {"val": {"concat": ["10.0.0.2", "udp", 53]}, "expires": 86400, "counter": {"packets": 1, "bytes": 60}}},
        {"elem": {"val": {"concat": ["fe80::1", "ipv6-icmp"]}, "expires": 1, "counter": {"packets": 1, "bytes": 60}}},
    ]
    found = parse_refusals([{"metainfo": {}}, {"set": {"name": "refused4_00000001", "elem": elements}}])
    assert [(item.address, item.protocol, item.port, item.count, item.seconds) for item in found] == [
        ("10.0.0.1", "tcp", 80, 3, 10),
        ("10.0.0.2", "udp", 53, 1, 0),
        ("fe80::1", "icmpv6", 0, 1, 86399),
    ]
    leases = [{"elem": {"val": {"concat": ["vmw-00000001", value]}, "expires": 7}} for value in (167772161, "0x0a000002")]
    assert [str(lease.address) for lease in parse_leases([{"set": {"elem": leases}}])] == ["10.0.0.1", "10.0.0.2"]
    assert parse_leases([{"set": {"name": "leases"}}]) == []


@pytest.mark.parametrize("arguments", [[], ["stop"], ["load", "more"]])
def test_unknown_verb_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_flood_of_connections_does_not_end_the_socket() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(Path(__main__.__file__).parents[1] / "systemd/vmw-filter.socket")
    found = unit["Socket"]
    assert found["TriggerLimitIntervalSec"] == "0"
    assert int(found["MaxConnectionsPerSource"]) < int(found["MaxConnections"])


def test_failure_is_told_in_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Store) -> None:
        message = "nft: no"
        raise FilterError(message, "run `vmw host`")

    monkeypatch.setattr(__main__, "load", fail)
    assert __main__.main(["load"]) == 1
    assert capsys.readouterr().err == "nft: no\nhint: run `vmw host`\n"


def test_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Store) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "refresh", interrupt)
    assert __main__.main(["refresh"]) == 130


@pytest.mark.parametrize(
    ("owner", "members", "primary", "allowed"),
    [
        (0, [], 5, True),
        (1000, ["dev"], 5, True),
        (1000, [], 104, True),
        (1000, ["other"], 5, False),
        (4242, ["dev"], 5, False),
    ],
)
def test_only_who_may_run_vms_is_answered(
    monkeypatch: pytest.MonkeyPatch, owner: int, members: list[str], primary: int, *, allowed: bool
) -> None:
    users = {1000: SimpleNamespace(pw_name="dev", pw_gid=primary)}
    monkeypatch.setattr("pwd.getpwuid", users.__getitem__)
    monkeypatch.setattr("grp.getgrnam", {"libvirt": SimpleNamespace(gr_mem=members, gr_gid=104)}.__getitem__)
    if allowed:
        service.check_member(owner)
    else:
        with pytest.raises(FilterError, match="not in the group libvirt"):
            service.check_member(owner)
