"""Files of the state directory."""

from __future__ import annotations

import json
import os
import pwd
import threading
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import State, command, qemu_peer, write_file, write_json

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert write_file(path, "a", 0o600)
    assert not write_file(path, "a", 0o600)
    assert write_file(path, "b", 0o600)
    assert write_file(path, "b", 0o644)
    assert path.read_text() == "b"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_file(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_json_keeps_every_character(tmp_path: Path) -> None:
    write_json(tmp_path / "f", {"a": "ü {{ x }}"})
    assert json.loads((tmp_path / "f").read_text()) == {"a": "ü {{ x }}"}


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    here = State(tmp_path)
    entered = threading.Event()

    def second() -> None:
        with here.lock("instances"):
            entered.set()

    with here.lock("instances"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()


def test_a_lock_that_is_not_free_in_time_is_told(tmp_path: Path) -> None:
    here = State(tmp_path)
    with here.lock("start-one"), pytest.raises(VmwError, match=r"'start-one' for 0 s") as caught, here.lock("start-one", 0.2):
        pass
    assert caught.value.code == "conflict"
    assert str(tmp_path / "locks/start-one") in caught.value.hint
    with here.lock("start-one", 0):
        pass


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    here = State(tmp_path)
    entered = threading.Event()

    def second() -> None:
        with here.lock("one", 30):
            entered.set()

    with here.lock("one"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()


def test_a_missing_program_and_a_failing_one_are_told_apart() -> None:
    with pytest.raises(VmwError) as missing:
        command("vmw-no-such-program")
    assert missing.value.code == "host_not_ready"
    with pytest.raises(VmwError) as failing:
        command("sh", "-c", "echo first >&2; echo last words >&2; exit 3", hint="do this")
    assert "last words" in failing.value.message
    assert failing.value.hint == "do this"
    assert command("printf", "%s", "out") == "out"


def test_session_mode_lets_nobody_else_in() -> None:
    assert qemu_peer("qemu:///session") == ""


def test_qemus_user_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", unknown)
    with pytest.raises(VmwError) as caught:
        qemu_peer("qemu:///system")
    assert caught.value.code == "host_not_ready"
