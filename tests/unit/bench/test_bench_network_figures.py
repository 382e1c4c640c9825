"""Ratios, units and tables of the network benchmark, and what it reads of nft and iperf3."""

from __future__ import annotations

import json

import pytest
from networking import figures, filtering, streams
from networking.figures import Measure, Run, Section
from spawning.machine import BenchError

SECTION = Section("filter", "packet filter", {"none": "no table", "many": "20 VMs"}, {"trip": Measure("round trip", "s")})


def runs() -> list[Run]:
    return [
        Run("filter", "none", 1, {"trip": 100e-6}),
        Run("filter", "many", 1, {"trip": 110e-6}),
        Run("filter", "none", 2, {"trip": 300e-6}),
        Run("filter", "many", 2, {"trip": 360e-6}),
        Run("filter", "many", 3, {"trip": 1.0}, failure="lost"),
        Run("filter", "none", 3, {"trip": 200e-6}),
        Run("proxy", "none", 1, {"trip": 9.0}),
    ]


def test_ratio_is_within_rounds() -> None:
    assert figures.ratio({1: 110, 2: 360, 3: 5}, {1: 100, 2: 300}) == pytest.approx(1.15)


@pytest.mark.parametrize("base", [{}, {2: 1.0}, {1: 0.0}])
def test_without_a_round_in_common_there_is_no_ratio(base: dict[int, float]) -> None:
    assert figures.ratio({1: 2.0}, base) is None


@pytest.mark.parametrize(
    ("values", "unit", "told"),
    [
        ([41.26e-6, 40e-6, 52e-6], "s", ("41.3 µs", "40-52")),
        ([0.161, 0.1589, 1.2], "s", ("161 ms", "159-1200")),
        ([2.0], "s", ("2 s", "2-2")),
        ([9.311e9, 8.2e9, 10e9], "bit/s", ("9.31 Gbit/s", "8.2-10")),
        ([512e6], "bit/s", ("512 Mbit/s", "512-512")),
        ([5152.6, 4563.4], "/s", ("4858 /s", "4563-5153")),
    ],
)
def test_median_and_range_have_one_unit(values: list[float], unit: str, told: tuple[str, str]) -> None:
    assert figures.summary(values, unit) == told


def test_table_leaves_failures_and_other_sections_out() -> None:
    assert figures.lines(SECTION, runs()) == [
        ["round trip", "no table", "200 µs", "100-300", "1.00", "3"],
        ["round trip", "20 VMs", "235 µs", "110-360", "1.15", "2, 1 failed"],
    ]


def test_rows_without_a_good_run_stay_in_the_table() -> None:
    failed, missed = figures.lines(SECTION, [Run("filter", "none", 1, failure="lost")])
    assert failed == ["round trip", "no table", "failed", "", "", "0, 1 failed"]
    assert missed == ["round trip", "20 VMs", "not reached", "", "", "0"]


def test_without_its_base_a_row_has_no_ratio() -> None:
    (_, line) = figures.lines(SECTION, [Run("filter", "many", 1, {"trip": 1e-3})])
    assert line == ["round trip", "20 VMs", "1 ms", "1-1", "-", "1"]


def test_lines_fit_the_header() -> None:
    assert figures.header(SECTION) == ["What", "With", "Median", "Range", "To no table", "Runs"]
    assert {len(line) for line in figures.lines(SECTION, runs())} == {len(figures.header(SECTION))}


def test_failures_are_told_with_row_and_round() -> None:
    assert figures.failures([SECTION], runs()) == ["failed: packet filter: 20 VMs, round 3: lost"]


def test_objects_of_the_own_tables_are_counted() -> None:
    listing = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "bridge", "name": "vmw"}},
            {"chain": {"table": "vmw", "name": "forward"}},
            {"rule": {"table": "vmw", "chain": "forward"}},
            {"rule": {"table": "vmw", "chain": "forward"}},
            {"set": {"table": "vmw", "name": "near4", "elem": ["10.0.0.0", "10.0.0.1"]}},
            {"set": {"table": "vmw", "name": "near6"}},
            {"map": {"table": "vmw", "name": "guards", "elem": [["a", "b"]]}},
            {"rule": {"table": "nat", "chain": "postrouting"}},
        ]
    }
    counted = figures.count_objects(filtering.own_tables(listing))
    assert counted == {"chain": 1, "rule": 2, "set": 2, "map": 1, "element": 3}


def test_iperf_is_read() -> None:
    assert streams.read_iperf(json.dumps({"end": {"sum_received": {"bits_per_second": 9.5e9}}})) == 9.5e9


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"error": "unable to connect"}', "unable to connect"),
        ("", "nothing"),
        ("Segmentation fault", "Segmentation"),
        ('{"end": {}}', "nothing"),
    ],
)
def test_iperf_that_failed_is_told(text: str, told: str) -> None:
    with pytest.raises(BenchError, match=f"iperf3 failed: .*{told}"):
        streams.read_iperf(text)
