"""Closing the terminal of a process that has ended."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import ptyprocess

from vmw.runner.terminals import close_at_once

if TYPE_CHECKING:
    import pytest


def test_a_terminal_is_closed_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    # Given back after the test.
    monkeypatch.setattr(ptyprocess.PtyProcess, "delayafterclose", None, raising=False)
    close_at_once()
    process = ptyprocess.PtyProcess.spawn(["true"])
    process.wait()
    monkeypatch.setattr(time, "sleep", paused.append)
    process.close()
    assert process.closed
    assert sum(paused) == 0
