"""Which MAC address a new VM gets."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import network_card
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.network_card import CARDS, mac_address, taken_addresses
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import record

if TYPE_CHECKING:
    from pathlib import Path


def test_a_name_gets_the_address_that_it_had() -> None:
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", mac_address("a", set()))
    assert mac_address("a", set()) == mac_address("a", set())


def test_an_address_that_is_taken_is_not_given_twice() -> None:
    taken: set[str] = set()
    for _ in range(3 * CARDS):
        address = mac_address("a", taken)
        assert address not in taken
        taken.add(address)


def test_one_vm_after_the_other_needs_few_addresses() -> None:
    names = [f"branch-{number}" for number in range(500)]
    assert len({mac_address(name, set()) for name in names}) == CARDS
    # As many VMs at once as there are addresses need no others.
    taken: set[str] = set()
    for name in names[:CARDS]:
        taken.add(mac_address(name, taken))
    assert taken == {mac_address(name, set()) for name in names}


@pytest.mark.parametrize("machine", ["0123456789abcdef0123456789abcdef\n", None])
def test_another_host_has_other_addresses(machine: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = mac_address("a", set())
    if machine:
        (tmp_path / "machine-id").write_text(machine)
    monkeypatch.setattr(network_card, "MACHINE_ID", tmp_path / "machine-id")
    assert mac_address("a", set()) != before


def test_another_user_has_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mac_address("a", set())
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert mac_address("a", set()) != before


def test_the_addresses_of_all_vms_are_taken_also_without_a_record(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert taken_addresses(state) == set()
    files = InstanceFiles(state, "one")
    files.directory.mkdir(parents=True)
    files.save(record())
    broken = state.instances / "broken"
    broken.mkdir()
    (broken / "instance.json").write_text("{")
    (broken / "domain.xml").write_text('<interface type="bridge"><mac address="52:54:00:aa:bb:cc" /></interface>')
    assert taken_addresses(state) == {"52:54:00:00:00:01", "52:54:00:aa:bb:cc"}
