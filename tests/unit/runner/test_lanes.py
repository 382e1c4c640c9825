"""Programs side by side: their lines, their end, and what an interruption does to them."""

from __future__ import annotations

import os
import re
import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner import lanes
from runner.lanes import INTERRUPTED, TOO_LONG, Programs, labelled, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = 60


def start(programs: Programs, script: str, seconds: float = LONG) -> int:
    return programs.run(["sh", "-c", script], seconds, cwd=Path("/"), env=dict(os.environ))


def shown(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that came out, without their times."""
    return [re.sub(r"^ *\d+:\d\d ", "", line) for line in capfd.readouterr().out.splitlines()]


def test_a_program_without_a_lane_has_our_own_streams(capfd: pytest.CaptureFixture[str]) -> None:
    assert start(Programs(), "echo out; echo err >&2; exit 3") == 3
    assert capfd.readouterr() == ("out\n", "err\n")


def test_in_a_lane_each_line_has_its_label(capfd: pytest.CaptureFixture[str]) -> None:
    with labelled("one"):
        assert start(Programs(), "echo out; echo err >&2; printf end") == 0
    assert shown(capfd) == ["one     | out", "one     | err", "one     | end"]
    assert start(Programs(), "echo bare") == 0
    assert capfd.readouterr().out == "bare\n"


def test_lines_of_two_lanes_come_out_whole(capfd: pytest.CaptureFixture[str]) -> None:
    programs = Programs()

    def lane(label: str, letter: str) -> None:
        with labelled(label):
            for _ in range(3):
                start(programs, f"for i in $(seq 200); do printf {letter}; printf '{letter}{letter}\\n'; done")

    side_by_side([partial(lane, "one", "a"), partial(lane, "two", "b")], programs)
    assert sorted(shown(capfd)) == ["one     | aaa"] * 600 + ["two     | bbb"] * 600


def test_a_line_that_stays_incomplete_is_shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SLOW_SECONDS", 0.2)
    with labelled("one"):
        start(Programs(), "printf 'test_slow '; sleep 1; echo PASSED; echo next")
    assert shown(capfd) == ["one     | test_slow ...", "one     | test_slow PASSED", "one     | next"]


def test_a_program_that_takes_too_long_may_clean_up(capfd: pytest.CaptureFixture[str]) -> None:
    with labelled("one"):
        assert start(Programs(), "sleep 60 & trap 'kill $!; echo cleaned; exit' INT; wait", 2) == TOO_LONG
    assert "one     | cleaned" in shown(capfd)


def test_one_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "KILL_SECONDS", 1)
    assert start(Programs(), "trap '' INT; while true; do sleep 1; done", 0.5) == TOO_LONG


def test_a_lane_that_fails_does_not_stop_the_other() -> None:
    done = threading.Event()

    def broken() -> None:
        message = "broken"
        raise ValueError(message)

    def sound() -> None:
        start(Programs(), "sleep 0.5")
        done.set()

    with pytest.raises(ValueError, match="broken"):
        side_by_side([broken, sound], Programs())
    assert done.is_set()


def interrupt_when(path: Path, wanted: int) -> None:
    """Interrupt this process as a terminal does, once so many lines are in a file."""

    def wait() -> None:
        while not path.exists() or len(path.read_text().splitlines()) < wanted:
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_an_interruption_ends_all_lanes_and_starts_nothing_more(tmp_path: Path) -> None:
    programs = Programs()
    log = tmp_path / "log"
    codes: dict[str, list[int]] = {"one": [], "two": []}

    def lane(label: str) -> None:
        with labelled(label):
            script = f"sleep 60 & trap 'kill $!; echo cleaned {label} >> {log}; exit 5' INT; echo begun >> {log}; wait"
            codes[label] = [start(programs, script), start(programs, f"echo more >> {log}")]

    work: list[Callable[[], None]] = [partial(lane, label) for label in codes]
    interrupt_when(log, 2)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, programs)
    assert codes == {"one": [5, INTERRUPTED], "two": [5, INTERRUPTED]}
    assert sorted(log.read_text().splitlines()) == ["begun", "begun", "cleaned one", "cleaned two"]
