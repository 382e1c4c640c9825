"""The host's table of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import neighbours as module

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TEXT = """\
IP address       HW type     Flags       HW address            Mask     Device
192.168.1.7      0x1         0x2         52:54:00:AA:BB:CC     *        br0
192.168.1.8      0x1         0x0         00:00:00:00:00:00     *        br0
cut off
"""


def test_neighbours_that_are_known_for_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "arp"
    table.write_text(TEXT)
    monkeypatch.setattr(module, "TABLE", table)
    assert module.neighbours() == {"192.168.1.7": "52:54:00:aa:bb:cc"}


def test_a_table_that_is_not_there_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TABLE", tmp_path / "none")
    assert module.neighbours() == {}
