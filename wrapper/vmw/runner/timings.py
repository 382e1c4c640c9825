"""How long each phase of a run took, as a state machine over Ansible's events without any input or output but two clocks."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmw.runner.events import Event

WRAPPER = "wrapper"
HOST_SET_UP = "host set-up"
ANSIBLE_START = "Ansible start"
ANSIBLE_END = "Ansible end"
TOTAL = "total"

_TASK_STARTS = frozenset({"playbook_on_task_start", "playbook_on_handler_task_start"})
_TASK_ENDS = frozenset(
    {"runner_on_ok", "runner_on_skipped", "runner_on_failed", "runner_on_unreachable", "runner_on_async_failed"}
)


def now() -> float:
    """Return the seconds since the machine's boot: the clock of all rows, as it is that of a process's start in /proc."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Timing:
    """How long a phase took.

    Args:
        phase: Its name.
        seconds: Its length.
        details: Parts of it that modules reported, in their order; they may overlap and need not add up.
    """

    phase: str
    seconds: float
    details: tuple[Timing, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the timing for JSON, to the millisecond."""
        own: dict[str, Any] = {"phase": self.phase, "seconds": round(self.seconds, 3)}
        return {**own, "details": [detail.as_dict() for detail in self.details]} if self.details else own


@dataclass
class Timeline:
    """Follow one playbook run, from the start of the program on. The rows follow each other without a gap.

    Args:
        began: When the program started, on ``clock``.
        clock: Returns seconds of the clock that all rows use; replaced in tests.
        wall: Returns the time of day in seconds since 1970, which events are stamped with; replaced in tests.
    """

    began: float
    clock: Callable[[], float] = now
    wall: Callable[[], float] = time.time
    _phase: str = WRAPPER
    _since: float = field(init=False)
    _latest: float = field(init=False)
    _tasks_ended: float | None = None
    _seconds: dict[str, float] = field(default_factory=dict)
    _details: dict[str, list[Timing]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin the first phase."""
        self._since = self._latest = self.began

    def handed_over(self) -> None:
        """Note that ansible-runner takes over now."""
        self._enter(ANSIBLE_START, self._not_before(self.clock()))

    def feed(self, event: Event) -> None:
        """Take the next event; one that says nothing of use is passed over."""
        kind = event.get("event")
        data = event.get("event_data")
        data = data if isinstance(data, dict) else {}
        if kind in _TASK_STARTS:
            self._tasks_ended = None
            self._enter(_row_of(data), self._moment(event))
        elif kind in _TASK_ENDS:
            self._tasks_ended = self._moment(event)
            self._details.setdefault(self._phase, []).extend(reported(data.get("res")))
        elif kind == "playbook_on_stats" and self._tasks_ended is None:
            self._tasks_ended = self._moment(event)

    def timings(self, returned: float) -> tuple[Timing, ...]:
        """Return all rows and their total. Nothing may be fed afterwards.

        Args:
            returned: When ansible-runner returned, on ``clock``.
        """
        end = self._not_before(returned)
        self._enter(ANSIBLE_END, end if self._tasks_ended is None else self._tasks_ended)
        self._leave(end)
        rows = [Timing(phase, seconds, tuple(self._details.get(phase, ()))) for phase, seconds in self._seconds.items()]
        return (*rows, Timing(TOTAL, sum(row.seconds for row in rows)))

    def _enter(self, phase: str, moment: float) -> None:
        if phase and phase != self._phase:
            self._leave(moment)
            self._phase = phase

    def _leave(self, moment: float) -> None:
        # A role that comes back, as for its handlers, has one row with all its time.
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + moment - self._since
        self._since = moment

    def _moment(self, event: Event) -> float:
        """Return when an event was made: its age by its own stamp, which the latency of the poll does not touch."""
        stamp = _stamp(event.get("created"))
        age = 0.0 if stamp is None else max(0.0, self.wall() - stamp)
        return self._not_before(self.clock() - age)

    def _not_before(self, moment: float) -> float:
        # The time of day may be set while Ansible runs; that must not make a phase negative.
        self._latest = max(self._latest, moment)
        return self._latest


def with_host_set_up(rows: tuple[Timing, ...], seconds: float) -> tuple[Timing, ...]:
    """Give the set-up of the machine, which came before the run, a row of its own.

    Args:
        rows: A run's rows, the wrapper's first.
        seconds: How long the set-up took; with 0 there was none.
    """
    if not rows or seconds <= 0:
        return rows
    seconds = min(seconds, rows[0].seconds)
    return (Timing(rows[0].phase, rows[0].seconds - seconds), Timing(HOST_SET_UP, seconds), *rows[1:])


def reported(result: object) -> Iterator[Timing]:
    """Yield what a module's result has in its key ``timings``, of a loop item by item; what is malformed is left out."""
    if not isinstance(result, dict):
        return
    items = result.get("results")
    for each in (result, *(items if isinstance(items, list) else ())):
        found = each.get("timings") if isinstance(each, dict) else None
        for entry in found if isinstance(found, list) else ():
            timing = _timing(entry)
            if timing:
                yield timing


def _timing(entry: object) -> Timing | None:
    if not isinstance(entry, dict):
        return None
    phase, seconds = entry.get("phase"), entry.get("seconds")
    if not isinstance(phase, str) or not phase.strip() or isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    # JSON from Python may hold NaN and infinity, which other programs do not read, and integers beyond any float.
    return Timing(phase, float(seconds)) if 0 <= seconds <= sys.float_info.max else None


def _row_of(data: dict[str, Any]) -> str:
    """Return the row that a task belongs to: its role without the collection's name, or the task itself."""
    return str(data.get("role") or "").rpartition(".")[2] or str(data.get("task") or "").strip()


def _stamp(created: object) -> float | None:
    """Return an event's time in seconds since 1970, or None when it has none."""
    try:
        moment = datetime.fromisoformat(str(created))
    except ValueError:
        return None
    # A stamp without a zone is UTC.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
