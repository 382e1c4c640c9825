"""Data and stand-ins that several of the wrapper's tests use."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmw.runner.playbook import Outcome
from vmw.runner.resources import Resources
from vmw.runner.timings import Timing

if TYPE_CHECKING:
    from vmw.runner.playbook import Run

ROOT = Path(__file__).parents[3]
STREAMS = Path(__file__).parent / "streams"


def stream(name: str) -> list[dict[str, Any]]:
    """Return a recorded stream of events."""
    events: list[dict[str, Any]] = json.loads((STREAMS / f"{name}.json").read_text())
    return events


TIMINGS = (Timing("wrapper", 1.0), Timing("domain", 2.5, (Timing("kernel", 2.0),)), Timing("total", 3.5))


@dataclass
class FakeAnsible:
    """Stands where ansible-runner would be run."""

    runs: list[Run] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    changed: int = 1

    def run(self, run: Run) -> Outcome:
        self.runs.append(run)
        return Outcome(self.results, self.changed, TIMINGS, Resources(0.5, 26.0, 4.0, 61.0))
