from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.bridge import Place
from ansible_collections.vmw.worktree.plugins.module_utils.bridge_switch import ROLLBACK_UNIT, Switch
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import InterruptedByUserError
from ansible_collections.vmw.worktree.plugins.modules import bridge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOME = Place(frozenset({"10.0.0.5/24"}), frozenset({("default", "10.0.0.1")}), frozenset())
NOWHERE = Place(frozenset(), frozenset(), frozenset())
MOVE = Switch("enp1s0", "br0", "forward\n", "backward\n", "again", save=[["save"]], finish=[["finish"]])
ROLLBACK_SERVICE = f"{ROLLBACK_UNIT}.service"


class Machine:
    """A host of which only the interfaces' places and the programs that were run are known."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.places = {"enp1s0": HOME, "br0": HOME}
        self.ran: list[str] = []
        self.reactions: dict[str, Callable[[], None]] = {}
        self.interrupted = False

    def check(self) -> None:
        if self.interrupted:
            raise InterruptedByUserError

    def run(self, *argv: str) -> str:
        words = " ".join(argv)
        self.ran.append(words)
        for part, react in self.reactions.items():
            if part in words:
                react()
        return ""

    def index(self, part: str) -> int:
        return next(number for number, words in enumerate(self.ran) if part in words)

    def did(self, part: str) -> bool:
        return any(part in words for words in self.ran)

    def arrive(self, device: str, place: Place) -> Callable[[], None]:
        return lambda: self.places.update({device: place})

    def fail(self) -> None:
        message = "`save` failed"
        raise VmwError(message)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "work")
    monkeypatch.setattr(bridge, "WORK", machine.work)
    monkeypatch.setattr(bridge, "ARMED", machine.work / "armed")
    monkeypatch.setattr(bridge, "command", machine.run)
    monkeypatch.setattr(bridge, "attempt", machine.run)
    monkeypatch.setattr(bridge, "read_place", lambda device: machine.places[device])
    monkeypatch.setattr(bridge, "answers", lambda _gateway, _device: True)
    monkeypatch.setattr(bridge, "CallerWatch", lambda: machine)
    return machine


def test_switch_is_armed_then_made_then_saved_then_confirmed(machine: Machine) -> None:
    bridge.perform(MOVE, 60)
    steps = ("--on-active=60", "RuntimeMaxSec=30000ms", "save", f"systemctl stop {ROLLBACK_UNIT}.timer", "finish")
    order = [machine.index(step) for step in steps]
    assert order == sorted(order)
    assert not machine.did(ROLLBACK_SERVICE)
    assert not machine.work.exists()


def test_switch_that_loses_something_is_taken_back_and_not_saved(machine: Machine) -> None:
    machine.places["br0"] = NOWHERE
    with pytest.raises(VmwError) as failure:
        bridge.perform(MOVE, 0)
    assert failure.value.message == (
        "without enp1s0 br0 had no address 10.0.0.5/24, no route default via 10.0.0.1, so the switch was taken back"
    )
    assert machine.did(f"systemctl start {ROLLBACK_SERVICE}")
    assert "save" not in machine.ran
    assert "finish" not in machine.ran


def test_what_the_host_lacks_after_the_rollback_is_said(machine: Machine) -> None:
    machine.places["br0"] = NOWHERE
    machine.reactions["forward"] = machine.arrive("enp1s0", NOWHERE)
    with pytest.raises(VmwError, match=r"taken back; enp1s0 has no address 10.0.0.5/24, no route default via 10.0.0.1 yet"):
        bridge.perform(MOVE, 0)


def test_switch_that_cannot_be_saved_is_taken_back(machine: Machine) -> None:
    machine.reactions["save"] = machine.fail
    with pytest.raises(VmwError, match=r"`save` failed, so the switch was taken back"):
        bridge.perform(MOVE, 60)
    assert machine.did(f"systemctl start {ROLLBACK_SERVICE}")
    assert machine.work.exists()


def test_switch_that_systemd_took_back_at_the_last_moment_is_no_success(machine: Machine) -> None:
    machine.reactions["save"] = (machine.work / "armed").unlink
    with pytest.raises(VmwError, match="took more than 60 seconds"):
        bridge.perform(MOVE, 60)
    assert "finish" not in machine.ran


def test_interrupted_switch_is_taken_back_without_waiting(machine: Machine) -> None:
    machine.interrupted = True
    with pytest.raises(InterruptedByUserError):
        bridge.perform(MOVE, 60)
    assert machine.ran[-1] == f"systemctl start --no-block {ROLLBACK_SERVICE}"


@pytest.mark.parametrize(("failure", "passes"), [(VmwError("missing"), False), (InterruptedByUserError(), True)])
def test_interruption_is_not_taken_for_the_failure_of_a_program(
    monkeypatch: pytest.MonkeyPatch,
    failure: VmwError,
    passes: bool,  # noqa: FBT001
) -> None:
    def fail(*_argv: str) -> str:
        raise failure

    monkeypatch.setattr(bridge, "command", fail)
    with pytest.raises(InterruptedByUserError) if passes else contextlib.nullcontext():
        assert bridge.attempt("program") == ""


def test_switch_is_not_begun_where_the_gateway_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "answers", lambda _gateway, _device: False)
    with pytest.raises(VmwError, match="could not be verified"):
        bridge.perform(MOVE, 60)
    assert machine.ran == []


@pytest.mark.parametrize(
    "place",
    [
        NOWHERE,
        Place(frozenset({"10.0.0.5/24"}), frozenset(), frozenset()),
        Place(frozenset(), frozenset({("default", "fe80::1")}), frozenset()),
    ],
)
def test_nic_with_nothing_to_verify_is_refused(machine: Machine, place: Place) -> None:
    machine.places["enp1s0"] = place
    with pytest.raises(VmwError, match="could not be verified") as failure:
        bridge.to_bridge("br0", "enp1s0")
    assert failure.value.code == "host_not_ready"


def test_interrupted_switch_is_settled_first(machine: Machine) -> None:
    machine.work.mkdir()
    armed = machine.work / "armed"
    armed.touch()
    machine.reactions["systemctl start"] = armed.unlink
    bridge.settle(check_mode=False)
    assert machine.did(f"systemctl start {ROLLBACK_SERVICE}")


def test_interrupted_switch_that_cannot_be_settled_is_a_conflict(machine: Machine) -> None:
    machine.work.mkdir()
    (machine.work / "armed").touch()
    for check_mode in (True, False):
        with pytest.raises(VmwError, match="is not taken back yet") as failure:
            bridge.settle(check_mode=check_mode)
        assert failure.value.code == "conflict"
        assert machine.did("systemctl start") is not check_mode


def test_nothing_is_settled_where_no_switch_was_interrupted(machine: Machine) -> None:
    bridge.settle(check_mode=False)
    assert not machine.did("systemctl start")
