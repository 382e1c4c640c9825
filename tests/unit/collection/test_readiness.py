"""What a wait takes for the guest, and what ends it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent, libvirt_connection, neighbours, readiness
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.readiness import Answer
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAC = "52:54:00:00:00:ab"
ADDRESS = "192.0.2.8"
HERE = "127.0.0.1"
GREETING = b"SSH-2.0-x\r\n"
INSTANCE = replace(record(), mac=MAC)
SESSION = replace(INSTANCE, libvirt_uri="qemu:///session", ssh_port=22017)


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding, which a virtual environment cannot have."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name
    VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT = 1
    VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK = -2


class Domain:
    """A domain whose guest has an agent, or not yet."""

    def __init__(self, agent: list[str] | None, state: tuple[int, int] = (1, 1), *, active: bool = True) -> None:
        self.agent = agent
        self.active = active
        self._state = state
        self.limits: list[tuple[int, ...]] = []

    def agentSetResponseTimeout(self, *limit: int) -> None:  # noqa: N802 - libvirt's name
        self.limits.append(limit)

    def interfaceAddresses(self, source: int, _flags: int) -> dict[str, Any]:  # noqa: N802 - libvirt's name
        assert source == Libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        if self.agent is None:
            raise LibvirtError
        card = {"hwaddr": MAC.upper(), "addrs": [{"addr": address, "type": 0} for address in self.agent]}
        return {"lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1", "type": 0}]}, "eth0": card}

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self.active)

    def state(self) -> list[int]:
        return list(self._state)


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_connection, "libvirt", Libvirt)
    monkeypatch.setattr(guest_agent, "libvirt", Libvirt)


def test_the_agent_tells_the_address() -> None:
    assert libvirt_connection.guest_address(Domain([ADDRESS]), INSTANCE) == ADDRESS
    assert libvirt_connection.guest_address(Domain([]), INSTANCE) == ""
    assert libvirt_connection.guest_address(Domain(None), INSTANCE) == ""


@pytest.mark.parametrize("words", ["169.254.1.1", "fe80::1", "127.0.0.1", "-oProxyCommand=x", "224.0.0.1", ""])
def test_what_is_no_address_of_a_guest_is_passed_over(words: str) -> None:
    assert libvirt_connection.guest_address(Domain([words, ADDRESS]), INSTANCE) == ADDRESS


@pytest.mark.parametrize(("told", "reached"), [([ADDRESS], "127.0.0.1"), (["169.254.2.1"], "127.0.0.1"), ([], ""), (None, "")])
def test_a_vm_of_the_users_own_libvirt_is_reached_at_the_loopback(told: list[str] | None, reached: str) -> None:
    assert libvirt_connection.guest_address(Domain(told), SESSION) == reached


class Server:
    """An SSH server, or what a test has it be: it greets whoever connects."""

    def __init__(self, greeting: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._greeting = greeting
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.sendall(self._greeting)

    def close(self) -> None:
        """End it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Server]]:
    """Have a server stand at SSH's port of the loopback."""
    servers: list[Server] = []

    def start(greeting: bytes) -> Server:
        servers.append(Server(greeting))
        monkeypatch.setattr(readiness, "SSH_PORT", servers[-1].port)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the stand-in for the host's neighbour table, which is empty."""
    table = tmp_path / "arp"
    table.write_text("IP address       HW type     Flags       HW address            Mask     Device\n")
    monkeypatch.setattr(neighbours, "TABLE", table)
    return table


def add_neighbour(table: Path, address: str, mac: str, flags: str = "0x2") -> None:
    with table.open("a") as handle:
        handle.write(f"{address}     0x1         {flags}         {mac}     *        br0\n")


@pytest.mark.parametrize(("answer", "found"), [(Answer.OWN, HERE), (Answer.NOTHING, "")])
def test_ssh_is_there_when_the_vms_own_key_is_shown(
    monkeypatch: pytest.MonkeyPatch, table: Path, serve: Callable[[bytes], Server], answer: Answer, found: str
) -> None:
    serve(GREETING)
    monkeypatch.setattr(readiness, "ssh_answer", lambda _address, _key, _port: answer)
    assert readiness.ssh_address(HERE, "key", INSTANCE) == found
    assert readiness.ssh_address("", "key", INSTANCE) == ""


def test_its_key_is_asked_for_at_its_own_port(
    monkeypatch: pytest.MonkeyPatch, table: Path, serve: Callable[[bytes], Server]
) -> None:
    asked: list[tuple[str, int]] = []

    def answer(address: str, _key: str, port: int) -> Answer:
        asked.append((address, port))
        return Answer.OWN

    session = replace(SESSION, ssh_port=serve(GREETING).port)
    monkeypatch.setattr(readiness, "SSH_PORT", 1)
    monkeypatch.setattr(readiness, "ssh_answer", answer)
    # Its card says nothing of who answers at the loopback.
    add_neighbour(table, HERE, MAC)
    assert readiness.ssh_address(HERE, "key", session) == HERE
    assert asked == [(HERE, session.ssh_port)]


def test_another_machine_at_the_guests_address_is_told(
    monkeypatch: pytest.MonkeyPatch, table: Path, serve: Callable[[bytes], Server]
) -> None:
    serve(GREETING)
    monkeypatch.setattr(readiness, "ssh_answer", lambda _address, _key, _port: Answer.OTHER)
    add_neighbour(table, HERE, "52:54:00:ff:ff:ff")
    with pytest.raises(VmwError, match=HERE) as caught:
        readiness.ssh_address(HERE, "key", INSTANCE)
    assert "taken the address" in caught.value.hint


def test_an_answer_from_the_vms_own_card_needs_no_handshake(
    monkeypatch: pytest.MonkeyPatch, table: Path, serve: Callable[[bytes], Server]
) -> None:
    serve(GREETING)
    monkeypatch.setattr(readiness, "ssh_answer", lambda _address, _key, _port: Answer.OTHER)
    add_neighbour(table, HERE, MAC.upper())
    assert readiness.ssh_address(HERE, "key", INSTANCE) == HERE


def test_without_a_server_there_is_no_address(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    with socket.create_server((HERE, 0)) as server:
        monkeypatch.setattr(readiness, "SSH_PORT", server.getsockname()[1])
    add_neighbour(table, HERE, MAC)
    assert readiness.ssh_address(HERE, "key", INSTANCE) == ""


@pytest.mark.parametrize("words", [b"HTTP/1.1 400\r\n", b""])
def test_a_server_is_known_by_its_greeting(
    monkeypatch: pytest.MonkeyPatch, table: Path, serve: Callable[[bytes], Server], words: bytes
) -> None:
    serve(words)
    monkeypatch.setattr(readiness, "ssh_answer", lambda _address, _key, _port: Answer.OWN)
    assert readiness.ssh_address(HERE, "key", INSTANCE) == ""


def wait(tmp_path: Path, domain: Domain, phase: str = "address") -> str:
    files = InstanceFiles(State(tmp_path), "n")
    return readiness.wait(files, phase, 0, lambda: domain, lambda _domain: "")


def test_a_phase_that_is_not_reached_is_named_with_the_likely_cause_and_the_log(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="did not reach the phase 'address' in 0 s") as caught:
        wait(tmp_path, Domain([]))
    assert "DHCP" in caught.value.hint
    assert caught.value.log == f"{tmp_path}/instances/n/console.log"


def test_a_guest_that_cannot_write_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="disk is full") as caught:
        wait(tmp_path, Domain([], state=(3, 5)))
    assert "virsh resume n" in caught.value.hint


def test_a_guest_that_did_not_take_its_identity_is_told_at_once(tmp_path: Path) -> None:
    console = InstanceFiles(State(tmp_path), "n").console
    console.parent.mkdir(parents=True)
    console.write_text("boot\r\nvmw-identity: failed to write the files\r\n")
    with pytest.raises(VmwError, match="did not take its identity: failed to write the files"):
        wait(tmp_path, Domain([]))


def test_a_vm_that_goes_off_meanwhile_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="n went off while vmw waited for its ssh") as caught:
        wait(tmp_path, Domain([], active=False), "ssh")
    assert caught.value.log == f"{tmp_path}/instances/n/console.log"


def test_who_waits_for_the_end_is_not_troubled_by_it(tmp_path: Path) -> None:
    files = InstanceFiles(State(tmp_path), "n")
    console = files.console
    console.parent.mkdir(parents=True)
    console.write_text("(initramfs)")
    assert readiness.wait(files, "off", 0, lambda: None, lambda domain: "yes" if domain is None else "") == "yes"
    with pytest.raises(VmwError, match="did not reach the phase 'off'") as caught:
        readiness.wait(files, "off", 0, lambda: Domain([]), lambda _domain: "")
    assert "--force" in caught.value.hint


def test_who_waits_for_the_end_of_a_guest_that_cannot_write_is_told_at_once(tmp_path: Path) -> None:
    files = InstanceFiles(State(tmp_path), "n")
    with pytest.raises(VmwError, match=r"n is paused and cannot shut down, .* disk is full") as caught:
        readiness.wait(files, "off", 60, lambda: Domain([], state=(3, 5)), lambda domain: "" if domain.isActive() else "yes")
    assert "virsh resume n`; or `vmw stop n --force" in caught.value.hint
    gone = Domain([], active=False, state=(3, 5))
    assert readiness.wait(files, "off", 0, lambda: gone, lambda domain: "" if domain.isActive() else "yes") == "yes"


def test_what_is_there_is_found_at_the_first_look_whatever_the_console_says(tmp_path: Path) -> None:
    files = InstanceFiles(State(tmp_path), "n")
    files.console.parent.mkdir(parents=True)
    files.console.write_text("Kernel panic - not syncing: x")
    assert readiness.wait(files, "ssh", 0, lambda: Domain([]), lambda _domain: ADDRESS) == ADDRESS


def test_a_phase_is_looked_for_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["", "", ADDRESS]
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    files = InstanceFiles(State(tmp_path), "n")
    assert readiness.wait(files, "address", 60, lambda: Domain([]), lambda _domain: answers.pop(0)) == ADDRESS
    assert pauses == [readiness.POLL_SECONDS] * 2


@pytest.mark.parametrize("phase", ["address", "ssh", "shares", "off"])
def test_every_phase_has_a_likely_cause(tmp_path: Path, phase: str) -> None:
    with pytest.raises(VmwError, match=f"the phase '{phase}'") as caught:
        wait(tmp_path, Domain([]), phase)
    assert caught.value.hint


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:  # noqa: ANN401 - a function
    """Put another ssh-keyscan in its place, which prints what a test says."""

    def install(output: str) -> None:
        program, text = tmp_path / "ssh-keyscan", tmp_path / "shown"
        text.write_text(output)
        program.write_text(f"#!/bin/sh\ncat '{text}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", Answer.NOTHING),
        ("# 192.0.2.8:22 SSH-2.0-OpenSSH\n", Answer.NOTHING),
        ("# 192.0.2.8:22 SSH-2.0-OpenSSH\n192.0.2.8 ssh-ed25519 OWN\n", Answer.OWN),
        ("192.0.2.8 ssh-ed25519 OTHER\n", Answer.OTHER),
        ("192.0.2.8 ssh-rsa OWN\n", Answer.OTHER),
        ("192.0.2.8 ssh-ed25519 OWNER\n", Answer.OTHER),
    ],
)
def test_a_server_is_the_vms_by_its_whole_key(scan: Any, output: str, expected: Answer) -> None:  # noqa: ANN401
    scan(output)
    assert readiness.ssh_answer(ADDRESS, "ssh-ed25519 OWN") is expected


MOUNTS = """\
sysfs /sys sysfs rw,nosuid 0 0
/dev/vda1 / ext4 rw 0 0
vmw:repo /home/claude/a\\040b virtiofs rw 0 0
vmw:secrets /s virtiofs ro 0 0
vmw:git /x\\134040y virtiofs rw 0 0
cut
"""


@pytest.mark.parametrize(
    ("places", "nologin", "ready"),
    [
        (["/home/claude/a b", "/s"], None, True),
        (["/home/claude/a b", "/s"], "System is going down.\n", False),
        (["/home/claude/a b", "/elsewhere"], None, False),
        (["/x\\040y"], None, True),
        (["/x y"], None, False),
        ([], None, True),
    ],
)
def test_shares_are_there_when_the_guest_says_so(
    monkeypatch: pytest.MonkeyPatch, places: list[str], nologin: str | None, *, ready: bool
) -> None:
    files = {"/proc/self/mounts": MOUNTS, "/run/nologin": nologin}
    monkeypatch.setattr(guest_agent, "read_file", lambda _domain, path: files[path])
    assert readiness.shares_mounted(Domain([]), places) == ready


def test_an_agent_that_does_not_answer_yet_has_no_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_file(*_arguments: object) -> None:
        message = "the guest's agent does not answer"
        raise VmwError(message)

    monkeypatch.setattr(guest_agent, "read_file", read_file)
    assert not readiness.shares_mounted(Domain([]), [])


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> readiness.Guest:
    files = InstanceFiles(State(tmp_path), "one")
    files.save(record())
    files.host_key.with_suffix(".pub").write_text("ssh-ed25519 OWN root@one\n")
    monkeypatch.setattr(readiness, "find_own_domain", lambda *_arguments: Domain([ADDRESS]))
    return readiness.Guest(files, replace(record(), mac=MAC), object(), 0)


def test_a_guest_tells_its_address_and_shows_its_key_without_the_comment(
    guest: readiness.Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def address(address: str, key: str, _instance: object) -> str:
        keys.append(key)
        return address

    monkeypatch.setattr(readiness, "ssh_address", address)
    assert guest.address() == guest.ssh() == ADDRESS
    assert keys == ["ssh-ed25519 OWN"]


@pytest.mark.parametrize("phase", ["address", "ssh"])
@pytest.mark.parametrize("active", [True, False])
def test_a_guest_that_never_answers_holds_nobody_up(
    guest: readiness.Guest, monkeypatch: pytest.MonkeyPatch, phase: str, *, active: bool
) -> None:
    domain = Domain([ADDRESS], active=active)
    monkeypatch.setattr(readiness, "find_own_domain", lambda *_arguments: domain)
    monkeypatch.setattr(readiness, "ssh_address", lambda address, *_arguments: address)
    with contextlib.nullcontext() if active else pytest.raises(VmwError, match="went off"):
        getattr(guest, phase)()
    # What others ask may take longer.
    assert domain.limits == [(guest_agent.ANSWER_SECONDS, 0), (Libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)]


def test_a_guest_that_libvirt_does_not_know_is_told(guest: readiness.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "find_own_domain", lambda *_arguments: None)
    with pytest.raises(VmwError, match="went off"):
        guest.address()


def test_a_guest_is_off_when_its_domain_is(guest: readiness.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VmwError, match="'off'"):
        guest.off()
    monkeypatch.setattr(readiness, "find_own_domain", lambda *_arguments: Domain([], active=False))
    guest.off()


def test_a_guest_without_its_shares_is_told(guest: readiness.Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "shares_mounted", lambda _domain, places: places == ["/there"])
    guest.shares(["/there"])
    with pytest.raises(VmwError, match="'shares'"):
        guest.shares(["/elsewhere"])
