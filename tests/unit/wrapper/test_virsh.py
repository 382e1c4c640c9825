from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services import virsh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATS = """Domain: 'one'
  state.state=1
  state.reason=1

Domain: 'two'
  state.state=5
  state.reason=2

Domain: 'three'

"""

TABLE = """ Name       MAC address          Protocol     Address
-------------------------------------------------------------------------------
 lo         00:00:00:00:00:00    ipv4         127.0.0.1/8
 -          -                    ipv6         ::1/128
 ens2       52:54:00:AA:bb:cc    ipv6         fe80::5054:ff:feaa:bbcc/64
 -          -                    ipv6         2001:db8::7/64
 -          -                    ipv4         192.168.1.7/24
 docker0    02:42:00:00:00:01    ipv4         172.17.0.1/16
"""


def test_states() -> None:
    assert virsh.parse_states(STATS) == {"one": "running", "two": "shut off", "three": "unknown"}
    assert virsh.parse_states("") == {}


def test_the_best_address_of_each_interface() -> None:
    assert virsh.parse_addresses(TABLE) == {"52:54:00:aa:bb:cc": "192.168.1.7", "02:42:00:00:00:01": "172.17.0.1"}


def test_who_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virsh, "neighbours", lambda: {"192.168.1.7": "52:54:00:aa:bb:cc"})
    assert virsh.reached() == {"52:54:00:aa:bb:cc": "192.168.1.7"}


def test_saved_memory_makes_a_domain_that_is_off_a_suspended_one() -> None:
    states = virsh.parse_states(f"two\nother\none\n\n{STATS}")
    assert states == {"one": "running", "two": "suspended", "three": "unknown"}


def test_one_process_for_all_states(fake_program: Callable[[str, str], Path]) -> None:
    calls = fake_program("virsh", f"cat <<'END'\n{STATS}END")
    assert virsh.Virsh("test:///default").states()["one"] == "running"
    assert calls.read_text().splitlines() == [
        "-q -c test:///default list --all --with-managed-save --name; domstats --state --nowait"
    ]


def test_libvirt_that_does_not_answer(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "echo 'error: failed to connect to the hypervisor' >&2; echo 'error: no socket' >&2; exit 1")
    with pytest.raises(VmwError) as caught:
        virsh.Virsh("test:///default").states()
    assert caught.value.message == "libvirt does not answer: no socket"
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY


def test_no_virsh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmwError) as caught:
        virsh.Virsh("test:///default").states()
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY
    assert "vmw host" in caught.value.hint


MACS = {"a": "52:54:00:00:00:01", "b": "52:54:00:00:00:02"}


def _answers(lease: str, agent: str) -> str:
    def rows(text: str) -> str:
        return "".join(f" vnet0 {mac} ipv4 {address}/24\n" for mac, address in (pair.split("=") for pair in text.split()))

    return f'case "$*" in *lease*) printf %s "{rows(lease)}";; *agent*) printf %s "{rows(agent)}";; esac'


def test_leases_win_over_the_agent_and_the_neighbours(
    fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program("virsh", _answers(f"{MACS['a']}=10.0.0.1", f"{MACS['a']}=10.0.0.2"))
    monkeypatch.setattr(virsh, "reached", lambda: {MACS["a"]: "10.0.0.3", MACS["b"]: "10.0.0.4"})
    assert virsh.best_addresses(virsh.Virsh("test:///default"), MACS) == {"a": "10.0.0.1", "b": "10.0.0.4"}


def test_one_process_for_each_source(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_program("virsh", _answers("", f"{MACS['a']}=10.0.0.2 {MACS['b']}=10.0.0.3"))
    monkeypatch.setattr(virsh, "reached", dict)
    assert virsh.best_addresses(virsh.Virsh("test:///default"), MACS) == {"a": "10.0.0.2", "b": "10.0.0.3"}
    assert sorted(calls.read_text().splitlines()) == [
        "-q -c test:///default domifaddr a --source agent; domifaddr b --source agent",
        "-q -c test:///default domifaddr a --source lease; domifaddr b --source lease",
    ]


def test_a_hanging_agent_is_not_waited_for(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program("virsh", 'case "$*" in *agent*) exec sleep 60;; esac')
    monkeypatch.setattr(virsh, "reached", lambda: {MACS["a"]: "10.0.0.9"})
    monkeypatch.setattr(virsh, "AGENT_SECONDS", 0.1)
    assert virsh.best_addresses(virsh.Virsh("test:///default"), MACS) == {"a": "10.0.0.9"}


def test_a_guest_is_asked_only_where_the_host_knows_nothing(
    fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_program("virsh", _answers("", f"{MACS['a']}=10.0.0.2 {MACS['b']}=10.0.0.3"))
    monkeypatch.setattr(virsh, "reached", lambda: {MACS["a"]: "10.0.0.9"})
    query = virsh.Virsh("test:///default")
    assert virsh.quick_addresses(query, {"a": MACS["a"]}, "") == {"a": "10.0.0.9"}
    assert not calls.exists()
    leases = f" vnet0 {MACS['a']} ipv4 10.0.0.7/24\n"
    assert virsh.quick_addresses(query, MACS, leases) == {"a": "10.0.0.7", "b": "10.0.0.3"}
    assert calls.read_text() == "-q -c test:///default domifaddr b --source agent\n"
