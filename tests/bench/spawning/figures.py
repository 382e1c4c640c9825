"""Figures: what a run gave, the order of runs, and the tables. Nothing here looks at the machine."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = 1
"""Version of the file that `--json` writes; fields are only ever added."""

LIMIT = "limit"
"""The row that the others are compared with."""

FAILURE_CHARACTERS = 2000
MIB_KIB = 1024


@dataclass
class Run:
    """One measurement.

    Attributes:
        row: The row that was measured.
        round: Number of the round, from 1.
        seconds: From the command to `ssh ... true`, or None when that was not reached.
        failure: Why it was not reached, or what was wrong afterwards; such a run is not in the statistics.
        cpu_seconds: CPU time of the command and all that it started and waited for; None where that is not measured.
        peak_kib: The largest resident memory of one process of these.
        notes: What else the row tells.
    """

    row: str
    round: int
    seconds: float | None = None
    failure: str = ""
    cpu_seconds: float | None = None
    peak_kib: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the run as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """The statistics of one row, in seconds."""

    median: float
    low: float
    high: float
    runs: int
    failed: int


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each begins one further, so that a busy moment or a warm cache favours none.

    Args:
        names: The rows.
        number: The round, from 0.
    """
    start = number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def summarise(runs: Sequence[Run], row: str) -> Summary | None:
    """Return the statistics of a row, or None when none of its runs succeeded."""
    own = [run for run in runs if run.row == row]
    taken = [run.seconds for run in own if run.seconds is not None and not run.failure]
    if not taken:
        return None
    return Summary(statistics.median(taken), min(taken), max(taken), len(taken), len(own) - len(taken))


def count_failed(runs: Sequence[Run], row: str) -> int:
    """Return how many runs of a row failed."""
    return sum(bool(run.failure) for run in runs if run.row == row)


def rows(titles: Mapping[str, str], runs: Sequence[Run], skipped: Mapping[str, str]) -> list[list[str]]:
    """Return the cells of the comparison.

    Args:
        titles: The rows' titles by name, in the order of the table.
        runs: All runs.
        skipped: Why a row was not measured.
    """
    limit = summarise(runs, LIMIT)
    lines = []
    for name, title in titles.items():
        summary = summarise(runs, name)
        if name in skipped:
            lines.append([title, "skipped", "", "", "", "", "0"])
            continue
        failed = count_failed(runs, name)
        if summary is None:
            lines.append(
                [title, "failed" if failed else "not reached", "", "", "", "", f"0{f', {failed} failed' if failed else ''}"]
            )
            continue
        lines.append(
            [
                title,
                f"{summary.median:.1f} s",
                f"{summary.low:.1f}-{summary.high:.1f}",
                f"{summary.median / limit.median:.2f}" if limit else "-",
                *_own_use([run for run in runs if run.row == name and not run.failure]),
                f"{summary.runs}{f', {failed} failed' if failed else ''}",
            ]
        )
    return lines


HEADER = ["What", "Median", "Range", "To the limit", "Own CPU", "Own memory", "Runs"]


def _own_use(runs: Sequence[Run]) -> list[str]:
    cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
    peaks = [run.peak_kib for run in runs if run.peak_kib is not None]
    return [
        f"{statistics.median(cpu):.1f} s" if cpu else "",
        f"{max(peaks) / MIB_KIB:.0f} MiB" if peaks else "",
    ]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    ruled = [header, ["-" * width for width in widths], *lines]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in ruled)


def failures(titles: Mapping[str, str], runs: Sequence[Run]) -> list[str]:
    """Return a line for each run that failed."""
    return [
        f"failed: {titles[run.row]}, round {run.round}: {run.failure[-FAILURE_CHARACTERS:].strip()}"
        for run in runs
        if run.failure
    ]


@dataclass(frozen=True)
class Strip:
    """One row of the plot.

    Attributes:
        label: The row's title, with its failed runs.
        seconds: The single runs.
        median: The median, or None when no run succeeded.
        own: Whether it is vmw's.
    """

    label: str
    seconds: list[float]
    median: float | None
    own: bool


def strips(data: Mapping[str, Any]) -> list[Strip]:
    """Return what is to be drawn of the content of a `--json` file, in the order of its table; skipped rows are left out."""
    runs = [Run(**run) for run in data["runs"]]
    found = []
    for name, title in data["titles"].items():
        if name in data["skipped"]:
            continue
        summary = summarise(runs, name)
        failed = count_failed(runs, name)
        found.append(
            Strip(
                label=f"{title} ({failed} failed)" if failed else title,
                seconds=[run.seconds for run in runs if run.row == name and run.seconds is not None and not run.failure],
                median=summary.median if summary else None,
                own=name.startswith("vmw-"),
            )
        )
    return found
