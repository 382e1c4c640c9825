from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from wrapper_support import stream

from vmw.display import timings as display
from vmw.runner.resources import Resources
from vmw.runner.timings import Timeline, Timing, reported, with_host_set_up

if TYPE_CHECKING:
    from collections.abc import Iterable

MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)
BOOT = 1000.0
"""Seconds since the boot at midnight; the tests count from there."""

LATENCY = 0.1


@dataclass
class Clocks:
    """The time since the boot and the time of day, which may be set."""

    seconds: float = 0.0
    set_forward: float = 0.0

    def boot(self) -> float:
        return BOOT + self.seconds

    def wall(self) -> float:
        return MIDNIGHT.timestamp() + self.seconds + self.set_forward


@dataclass
class Followed:
    """A run that is followed from its start at midnight."""

    clocks: Clocks
    timeline: Timeline

    def hand_over(self, seconds: float) -> None:
        self.clocks.seconds = seconds
        self.timeline.handed_over()

    def feed(self, events: Iterable[dict[str, Any]]) -> None:
        """Feed events as the poll does, late."""
        for event in events:
            stamp = event.get("created")
            if isinstance(stamp, str):
                self.clocks.seconds = (datetime.fromisoformat(stamp) - MIDNIGHT).total_seconds() + LATENCY
            self.timeline.feed(event)

    def rows(self, returned: float) -> dict[str, float]:
        return {row.phase: round(row.seconds, 6) for row in self.timeline.timings(BOOT + returned)}


@pytest.fixture
def followed() -> Followed:
    clocks = Clocks()
    return Followed(clocks, Timeline(BOOT, clocks.boot, clocks.wall))


def _event(kind: str, seconds: float, role: str = "", **data: object) -> dict[str, Any]:
    stamp = (MIDNIGHT + timedelta(seconds=seconds)).isoformat()
    about = {"role": f"vmw.worktree.{role}"} if role else {}
    return {"event": kind, "created": stamp, "event_data": {"task": "Do it", **about, **data}}


def _start(seconds: float, role: str = "", **data: object) -> dict[str, Any]:
    return _event("playbook_on_task_start", seconds, role, **data)


def _end(seconds: float, role: str = "", kind: str = "runner_on_ok", **data: object) -> dict[str, Any]:
    return _event(kind, seconds, role, **data)


def test_a_recorded_run(followed: Followed) -> None:
    # The first stamp is of 2:09:44.15, the last one of 2:09:50.69.
    minutes = 2 * 3600 + 9 * 60
    followed.timeline = Timeline(BOOT + minutes + 39, followed.clocks.boot, followed.clocks.wall)
    followed.hand_over(minutes + 40)
    followed.feed(stream("timings"))
    rows = followed.timeline.timings(BOOT + minutes + 51)
    assert [(row.phase, round(row.seconds, 3)) for row in rows] == [
        ("wrapper", 1.0),
        ("Ansible start", 4.991),
        ("first", 4.025),
        ("cloud_init", 1.666),
        ("Ansible end", 0.318),
        ("total", 12.0),
    ]
    assert {row.phase: row.details for row in rows if row.details} == {
        "cloud_init": (Timing("QEMU start", 0.25), Timing("kernel", 1.0))
    }


def test_a_role_lasts_until_the_first_task_of_the_next(followed: Followed) -> None:
    followed.hand_over(1)
    followed.feed([_start(3, "instance"), _end(4, "instance"), _start(5, "instance"), _end(6, "instance")])
    followed.feed([_start(8, "disk"), _end(9, "disk"), _event("playbook_on_stats", 10)])
    assert followed.rows(12) == {"wrapper": 1, "Ansible start": 2, "instance": 5, "disk": 1, "Ansible end": 3, "total": 12}


def test_a_role_that_comes_back_has_one_row(followed: Followed) -> None:
    followed.hand_over(1)
    followed.feed([_start(1, "instance"), _start(2, "git"), _start(4, "instance"), _end(7, "instance")])
    followed.feed([_event("playbook_on_handler_task_start", 8, "git"), _end(9, "git")])
    assert followed.rows(9) == {
        "wrapper": 1, "Ansible start": 0, "instance": 1 + 4, "git": 2 + 1, "Ansible end": 0, "total": 9,
    }  # fmt: skip


def test_a_task_without_a_role_has_a_row_of_its_own(followed: Followed) -> None:
    followed.hand_over(0)
    followed.feed([_start(1, task="Look around. Twice"), _end(2), _start(3, "disk"), _end(4, "disk")])
    assert followed.rows(4)["Look around. Twice"] == 2


@pytest.mark.parametrize("kind", ["runner_on_ok", "runner_on_skipped", "runner_on_failed", "runner_on_unreachable"])
def test_ansible_ends_from_the_end_of_the_last_task(followed: Followed, kind: str) -> None:
    followed.hand_over(0)
    followed.feed([_start(1, "disk"), _end(2, "disk", kind), _event("playbook_on_stats", 3)])
    assert followed.rows(5)["Ansible end"] == 3


def test_ansible_ends_from_the_end_of_the_playbook_when_the_last_task_has_none(followed: Followed) -> None:
    followed.hand_over(0)
    followed.feed([_start(1, "disk"), _end(2, "disk"), _start(3, "disk"), _event("playbook_on_stats", 4)])
    assert followed.rows(5) == {"wrapper": 0, "Ansible start": 1, "disk": 3, "Ansible end": 1, "total": 5}


def test_a_run_without_tasks(followed: Followed) -> None:
    followed.hand_over(2)
    followed.feed([{"event": "playbook_on_stats"}])
    assert followed.rows(5) == {"wrapper": 2, "Ansible start": 0, "Ansible end": 3, "total": 5}


def test_a_run_that_says_nothing(followed: Followed) -> None:
    followed.hand_over(2)
    assert followed.rows(5) == {"wrapper": 2, "Ansible start": 3, "Ansible end": 0, "total": 5}


def test_the_rows_add_up(followed: Followed) -> None:
    followed.hand_over(0.3)
    followed.feed([_start(1.1, "instance"), _end(1.7, "instance"), _start(1.9, "domain"), _end(7.77, "domain")])
    *rows, total = followed.timeline.timings(BOOT + 8.123)
    assert sum(row.seconds for row in rows) == pytest.approx(total.seconds) == pytest.approx(8.123)


@pytest.mark.parametrize("stamp", [None, "yesterday", 5, ["x"]])
def test_an_event_without_a_stamp_is_of_now(followed: Followed, stamp: object) -> None:
    followed.hand_over(0)
    followed.clocks.seconds = 4
    followed.timeline.feed({"event": "playbook_on_task_start", "created": stamp, "event_data": {"role": "a.b.disk"}})
    assert followed.rows(5)["Ansible start"] == 4


def test_a_stamp_without_a_zone_is_utc(followed: Followed) -> None:
    followed.hand_over(0)
    followed.clocks.seconds = 4
    followed.timeline.feed({**_start(3, "disk"), "created": "2026-11-25T00:00:03"})
    assert followed.rows(5)["Ansible start"] == 3


@pytest.mark.parametrize("hours", [-1, 1])
def test_setting_the_time_of_day_makes_no_phase_negative_or_long(followed: Followed, hours: int) -> None:
    followed.hand_over(0)
    followed.feed([_start(1, "instance")])
    followed.clocks.set_forward = 3600 * hours
    # This one was stamped before, and is taken in afterwards.
    followed.feed([_start(2, "disk")])
    followed.clocks.seconds = 3
    followed.timeline.feed(_end(3 + followed.clocks.set_forward, "disk"))
    rows = followed.rows(4)
    assert all(0 <= seconds <= 4 for seconds in rows.values())
    assert rows["Ansible end"] == 1
    assert rows["total"] == 4


def test_events_of_no_use_are_passed_over(followed: Followed) -> None:
    followed.hand_over(0)
    followed.feed([{}, {"event": "verbose"}, {"event": "runner_on_ok", "event_data": None}])
    followed.feed([{"event": "playbook_on_task_start", "event_data": {}}, {"event": "playbook_on_task_start", "event_data": "x"}])
    assert followed.rows(1)["total"] == 1


def test_what_modules_report_belongs_to_the_role_of_their_task(followed: Followed) -> None:
    followed.hand_over(0)
    followed.feed([_start(1, "disk"), _end(2, "disk", res={"timings": [{"phase": "clone", "seconds": 0.5}]})])
    followed.feed([_start(3, "domain"), _end(4, "domain", res={"timings": [{"phase": "kernel", "seconds": 9}]})])
    followed.feed([_start(5, "domain"), _end(6, "domain", res={"timings": [{"phase": "ssh", "seconds": 0.25}]})])
    details = {row.phase: row.details for row in followed.timeline.timings(BOOT + 6)}
    assert details["disk"] == (Timing("clone", 0.5),)
    assert details["domain"] == (Timing("kernel", 9.0), Timing("ssh", 0.25))
    assert details["total"] == ()


def test_a_loop_reports_item_by_item() -> None:
    items = [{"timings": [{"phase": "one", "seconds": 1}]}, None, {}, {"timings": [{"phase": "two", "seconds": 2}]}]
    assert list(reported({"results": items})) == [Timing("one", 1.0), Timing("two", 2.0)]


@pytest.mark.parametrize(
    "result",
    [
        None,
        "text",
        {"results": 3},
        {"timings": None},
        {"timings": "text"},
        {"timings": {"phase": "kernel", "seconds": 1}},
        *(
            {"timings": [entry]}
            for entry in (
                None,
                ["kernel", 1],
                {"phase": "kernel"},
                {"seconds": 1},
                {"phase": 7, "seconds": 1},
                {"phase": " ", "seconds": 1},
                {"phase": "kernel", "seconds": "1"},
                {"phase": "kernel", "seconds": True},
                {"phase": "kernel", "seconds": -0.1},
                {"phase": "kernel", "seconds": float("nan")},
                {"phase": "kernel", "seconds": float("inf")},
                {"phase": "kernel", "seconds": 10**400},
            )
        ),
    ],
)
def test_malformed_reports_are_ignored(result: object) -> None:
    assert list(reported(result)) == []


def test_a_malformed_report_does_not_cost_the_others() -> None:
    entries = [{"phase": "kernel", "seconds": 1}, {"phase": None}, {"phase": "ssh", "seconds": 0}]
    assert list(reported({"timings": entries})) == [Timing("kernel", 1.0), Timing("ssh", 0.0)]


def test_json_is_to_the_millisecond_and_has_details_where_there_are_any() -> None:
    row = Timing("domain", 1.23456, (Timing("kernel", 0.98765),))
    assert row.as_dict() == {"phase": "domain", "seconds": 1.235, "details": [{"phase": "kernel", "seconds": 0.988}]}


def test_the_set_up_of_the_machine_comes_out_of_the_wrappers_time() -> None:
    rows = (Timing("wrapper", 61.5), Timing("Ansible start", 1.0), Timing("total", 62.5))
    split = (Timing("wrapper", 1.5), Timing("host set-up", 60.0), Timing("Ansible start", 1.0), Timing("total", 62.5))
    assert with_host_set_up(rows, 60.0) == split
    assert with_host_set_up(rows, 0.0) == rows
    assert with_host_set_up((), 60.0) == ()
    assert with_host_set_up(rows, 1000.0)[:2] == (Timing("wrapper", 0.0), Timing("host set-up", 61.5))


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = (
        Timing("wrapper", 0.125),
        Timing("domain", 1234.5, (Timing("QEMU start", 0.25), Timing("evil\x1b[2J", 3.0))),
        Timing("total", 1234.625),
    )
    display.show(rows, Resources(0.5, 26.4, 4.25, 61.0))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "PHASE          SECONDS",
        "wrapper           0.12",
        "domain         1234.50",
        "  QEMU start      0.25",
        "  evil\\x1b[2J     3.00",
        "total          1234.62",
        "CPU time and peak memory: wrapper 0.50 s, 26 MiB; Ansible 4.25 s, 61 MiB",
    ]
