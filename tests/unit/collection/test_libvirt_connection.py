"""What a person is told when libvirt refuses."""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import _refusal_hint

if TYPE_CHECKING:
    import pytest

DENIED = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied"


def members(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the group have these members."""
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", "109", list(names))))


def test_somebody_outside_the_group_is_sent_to_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    members(monkeypatch, "somebody-else")
    assert "vmw host" in _refusal_hint(DENIED)


def test_somebody_who_joined_since_the_login_is_told_to_log_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    members(monkeypatch, pwd.getpwuid(os.getuid()).pw_name)
    assert "log in again" in _refusal_hint(DENIED)


def test_a_libvirt_that_does_not_run_is_another_matter() -> None:
    assert "vmw doctor" in _refusal_hint("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file")
