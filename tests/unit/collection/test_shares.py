"""The units on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import ShareSpec
from ansible_collections.vmw.worktree.plugins.modules import shares

if TYPE_CHECKING:
    from pathlib import Path

SHARES = [ShareSpec("vmw:repo", "/w", read_only=False), ShareSpec("vmw:secrets", "/s", read_only=True)]


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for the user's units, with a virtiofsd that knows every option."""
    monkeypatch.setattr(shares, "unit_directory", lambda: tmp_path / "units")
    monkeypatch.setattr(shares, "find_virtiofsd", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setattr(shares, "command", lambda *_argv: "--readonly --translate-uid --translate-gid")
    return tmp_path / "units"


def test_every_unit_is_written_at_once(units: Path) -> None:
    assert shares.write_units("n", "/run/vmw/me", SHARES, check_mode=False)
    assert sorted(path.name for path in units.iterdir()) == [
        "vmw-n-repo.service",
        "vmw-n-repo.socket",
        "vmw-n-secrets.service",
        "vmw-n-secrets.socket",
    ]
    assert not shares.write_units("n", "/run/vmw/me", SHARES, check_mode=False)


def test_check_mode_says_and_writes_nothing(units: Path) -> None:
    assert shares.write_units("n", "/run/vmw/me", SHARES, check_mode=True)
    assert not units.exists()
