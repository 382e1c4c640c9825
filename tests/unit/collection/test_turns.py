"""Guests that start at once wait for each other only where they would starve each other."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import turns
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3})


def unused() -> None:
    """Nobody is to wait here."""
    raise AssertionError


class Starter:
    """A guest that starts, and is up when it is told so."""

    def __init__(self, state: State) -> None:
        self.began = threading.Event()
        self.up = threading.Event()
        self._thread = threading.Thread(target=self._start, args=(state,), daemon=True)
        self._thread.start()

    def _start(self, state: State) -> None:
        with turns.turn(state, "qemu", lambda: None):
            self.began.set()
            self.up.wait(10)

    def end(self) -> None:
        self.up.set()
        self._thread.join(10)


def test_an_emulated_guest_starts_for_each_cpu(tmp_path: Path) -> None:
    first, second = Starter(State(tmp_path)), Starter(State(tmp_path))
    assert first.began.wait(10)
    assert second.began.wait(10)
    third = Starter(State(tmp_path))
    assert not third.began.wait(0.3)
    second.end()
    assert third.began.wait(10)
    first.end()
    third.end()


def test_under_kvm_nobody_waits(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            assert not stack.enter_context(turns.turn(State(tmp_path), "kvm", unused))
    assert list(tmp_path.iterdir()) == []


def test_a_guest_that_never_comes_up_holds_nobody_back_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.2)
    with ExitStack() as stack:
        waited = [stack.enter_context(turns.turn(State(tmp_path), "qemu", lambda: None)) for _ in range(3)]
    assert waited == [False, False, True]
    assert sorted(path.name for path in (tmp_path / "locks").iterdir()) == ["starting-0", "starting-1"]


def test_a_turn_is_given_back_after_a_failure(tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.turn(State(tmp_path), "qemu", unused):
            _ = 1 / 0
    first = Starter(State(tmp_path))
    assert first.began.wait(10)
    first.end()


def test_who_is_removed_meanwhile_waits_no_longer(tmp_path: Path) -> None:
    def removed() -> None:
        message = "n is being removed"
        raise VmwError(message)

    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(turns.turn(State(tmp_path), "qemu", unused))
        with pytest.raises(VmwError, match="removed"), turns.turn(State(tmp_path), "qemu", removed):
            raise AssertionError
