"""Figures of the network: what a run gave, ratios within a round, and the tables. Nothing here looks at the machine."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SCHEMA = 1
"""Version of the file that `--json` writes; fields are only ever added."""

SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "bit/s": ((1e9, "Gbit/s"), (1e6, "Mbit/s")),
    "/s": ((1.0, "/s"),),
}
"""How each unit is written, the largest first."""

ROUND_FROM = 100
"""Figures from here on have no digit after the point."""

OBJECTS = ("chain", "rule", "set", "map")


@dataclass(frozen=True)
class Measure:
    """A figure that each run of a section gives.

    Attributes:
        title: What it is.
        unit: One of `SCALES`.
    """

    title: str
    unit: str


@dataclass(frozen=True)
class Section:
    """Rows that are measured in turns and compared with each other.

    Attributes:
        name: As the runs have it.
        title: What it is about.
        rows: The rows' titles by name; the others are compared with the first.
        measures: What is measured, by name.
    """

    name: str
    title: str
    rows: dict[str, str]
    measures: dict[str, Measure]

    @property
    def base(self) -> str:
        """The row that the others are compared with."""
        return next(iter(self.rows))


@dataclass
class Run:
    """One run of a row.

    Attributes:
        section: The section.
        row: The row.
        round: Number of the round, from 1.
        values: What was measured, in whole units.
        failure: Why nothing was; such a run is not in the statistics.
    """

    section: str
    row: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the run as plain data."""
        return asdict(self)


def taken(runs: Iterable[Run], section: str, row: str, measure: str) -> dict[int, float]:
    """Return a measure of a row by round, without the runs that failed."""
    return {
        run.round: run.values[measure]
        for run in runs
        if (run.section, run.row) == (section, row) and not run.failure and measure in run.values
    }


def ratio(values: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """Return the median of the ratios of each round, which has one speed of the machine; None where no round has both."""
    found = [value / base[number] for number, value in values.items() if base.get(number)]
    return statistics.median(found) if found else None


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return what a figure is divided by and the name of that unit."""
    return next((each for each in SCALES[unit] if value >= each[0]), SCALES[unit][-1])


def number(value: float) -> str:
    """Write a figure with three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= ROUND_FROM else f"{value:.3g}"


def summary(values: Iterable[float], unit: str) -> tuple[str, str]:
    """Return median and range for reading, both in the unit that fits the median."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    divisor, name = scale(middle, unit)
    return f"{number(middle / divisor)} {name}", f"{number(ordered[0] / divisor)}-{number(ordered[-1] / divisor)}"


def header(section: Section) -> list[str]:
    """Return the heads of a section's table."""
    return ["What", "With", "Median", "Range", f"To {section.rows[section.base]}", "Runs"]


def lines(section: Section, runs: Sequence[Run]) -> list[list[str]]:
    """Return the cells of a section's table."""
    cells = []
    failed = Counter(run.row for run in runs if run.section == section.name and run.failure)
    for measure, about in section.measures.items():
        base = taken(runs, section.name, section.base, measure)
        for row, title in section.rows.items():
            values = taken(runs, section.name, row, measure)
            if not values:
                cells.append([about.title, title, "failed" if failed[row] else "not reached", "", "", _count(0, failed[row])])
                continue
            compared = ratio(values, base)
            cells.append(
                [
                    about.title,
                    title,
                    *summary(values.values(), about.unit),
                    "-" if compared is None else f"{compared:.2f}",
                    _count(len(values), failed[row]),
                ]
            )
    return cells


def failures(sections: Iterable[Section], runs: Sequence[Run]) -> list[str]:
    """Return a line for each run that failed."""
    return [
        f"failed: {section.title}: {section.rows[run.row]}, round {run.round}: {run.failure}"
        for section in sections
        for run in runs
        if run.section == section.name and run.failure
    ]


def count_objects(listing: Mapping[str, Any]) -> dict[str, int]:
    """Count what tables are made of.

    Args:
        listing: What `nft --json list ruleset` prints, of the tables that are meant.

    Returns:
        How many chains, rules, sets and maps there are, and elements in these when it was listed.
    """
    counted = dict.fromkeys((*OBJECTS, "element"), 0)
    for entry in listing["nftables"]:
        for kind, content in entry.items():
            if kind in OBJECTS:
                counted[kind] += 1
                counted["element"] += len(content.get("elem", ()))
    return counted


def _count(good: int, failed: int) -> str:
    return f"{good}{f', {failed} failed' if failed else ''}"
