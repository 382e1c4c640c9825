"""What a wait takes for the guest, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import libvirt_connection
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import guest_wait
from ansible_collections.vmw.worktree.plugins.modules.guest_wait import Answer

if TYPE_CHECKING:
    from pathlib import Path

MAC = "52:54:00:00:00:01"
ADDRESS = "192.0.2.8"


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding, which a virtual environment cannot have."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name
    VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT = 1


class Domain:
    """A domain whose guest has an agent, or not yet."""

    def __init__(self, agent: list[str] | None, state: tuple[int, int] = (1, 1)) -> None:
        self.agent = agent
        self._state = state

    def interfaceAddresses(self, source: int, _flags: int) -> dict[str, Any]:  # noqa: N802 - libvirt's name
        assert source == Libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        if self.agent is None:
            raise LibvirtError
        card = {"hwaddr": MAC.upper(), "addrs": [{"addr": address, "type": 0} for address in self.agent]}
        return {"lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1", "type": 0}]}, "eth0": card}

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return 1

    def state(self) -> list[int]:
        return list(self._state)


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_wait, "libvirt", Libvirt)
    monkeypatch.setattr(libvirt_connection, "libvirt", Libvirt)


def test_the_agent_tells_the_address() -> None:
    assert libvirt_connection.guest_address(Domain([ADDRESS]), MAC) == ADDRESS
    assert libvirt_connection.guest_address(Domain([]), MAC) == ""
    assert libvirt_connection.guest_address(Domain(None), MAC) == ""


@pytest.mark.parametrize("words", ["169.254.1.1", "fe80::1", "127.0.0.1", "-oProxyCommand=x", "224.0.0.1", ""])
def test_what_is_no_address_of_a_guest_is_passed_over(words: str) -> None:
    assert libvirt_connection.guest_address(Domain([words, ADDRESS]), MAC) == ADDRESS


@pytest.mark.parametrize(("answer", "found"), [(Answer.OWN, ADDRESS), (Answer.NOTHING, "")])
def test_ssh_is_there_when_the_vms_own_key_is_shown(monkeypatch: pytest.MonkeyPatch, answer: Answer, found: str) -> None:
    monkeypatch.setattr(guest_wait, "ssh_answer", lambda _address, _key: answer)
    assert guest_wait.ssh_address(ADDRESS, "key") == found
    assert guest_wait.ssh_address("", "key") == ""


def test_another_machine_at_the_guests_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_wait, "ssh_answer", lambda _address, _key: Answer.OTHER)
    with pytest.raises(VmwError, match=ADDRESS) as caught:
        guest_wait.ssh_address(ADDRESS, "key")
    assert "taken the address" in caught.value.hint


def wait(tmp_path: Path, domain: Domain, phase: str = "address") -> str:
    files = InstanceFiles(State(tmp_path), "n")
    return guest_wait.wait(files, phase, 0, lambda: domain, lambda _domain: "")


def test_a_phase_that_is_not_reached_is_named_with_the_likely_cause_and_the_log(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="did not reach the phase 'address' in 0 s") as caught:
        wait(tmp_path, Domain([]))
    assert "DHCP" in caught.value.hint
    assert caught.value.log == f"{tmp_path}/instances/n/console.log"


def test_a_guest_that_cannot_write_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="disk is full") as caught:
        wait(tmp_path, Domain([], state=(3, 5)))
    assert "virsh resume n" in caught.value.hint
