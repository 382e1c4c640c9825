"""What a guest is told that was suspended, with an agent that only knows the time."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent, guest_clock

if TYPE_CHECKING:
    import pytest


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name


class Guest:
    """A guest's agent, with a clock that is behind."""

    def __init__(self, behind: float, *, deaf: bool = False, stubborn: bool = False) -> None:
        self.behind, self.deaf, self.stubborn = behind, deaf, stubborn
        self.orders: list[str] = []

    def qemuAgentCommand(self, _domain: object, order: str, _timeout: int, _flags: int) -> str:  # noqa: N802 - libvirt's name
        asked = json.loads(order)
        self.orders.append(asked["execute"])
        if self.deaf:
            raise LibvirtError
        if asked["execute"] == "guest-get-time":
            return json.dumps({"return": int((time.time() - self.behind) * 1e9)})
        if asked["execute"] == "guest-set-time":
            self.behind = self.behind if self.stubborn else time.time() - asked["arguments"]["time"] / 1e9
            # Without hwclock(8).
            raise LibvirtError
        return json.dumps({"return": {"pid": 1}})


def wake(monkeypatch: pytest.MonkeyPatch, guest: Guest) -> list[str]:
    """Return the warnings."""
    monkeypatch.setattr(guest_agent, "libvirt", Libvirt)
    monkeypatch.setattr(guest_agent, "libvirt_qemu", guest)
    monkeypatch.setattr(guest_clock, "is_running", lambda _domain: True)
    monkeypatch.setattr(guest_clock, "AGENT_SECONDS", 0)
    warnings: list[str] = []
    guest_clock.wake("one", object(), "52:54:00:aa:bb:cc", warnings.append)
    return warnings


def test_a_clock_that_stood_still_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(3600)
    assert wake(monkeypatch, guest) == []
    assert guest.behind < 1
    assert guest.orders[-1] == "guest-exec"


def test_a_clock_that_is_right_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(0)
    assert wake(monkeypatch, guest) == []
    assert guest.orders == ["guest-get-time", "guest-exec"]


def test_a_clock_that_cannot_be_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = wake(monkeypatch, Guest(3600, stubborn=True))
    assert "3600 s off" in warning


def test_an_agent_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = wake(monkeypatch, Guest(0, deaf=True))
    assert "does not answer" in warning


def test_one_that_went_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_clock, "is_running", lambda _domain: False)
    assert guest_clock.wait_for_agent(object(), 60) is None
