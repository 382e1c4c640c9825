"""Statistics, order, tables and the plot's input of the spawn benchmark."""

from __future__ import annotations

from collections import Counter

from spawning import figures
from spawning.figures import Run, Strip, Summary

TITLES = {"vmw-cold": "`vmw spawn`", "limit": "the limit", "stock": "the cloud image"}


def runs() -> list[Run]:
    return [
        Run("vmw-cold", 1, 30.0, cpu_seconds=4.0, peak_kib=51_200),
        Run("limit", 1, 20.0),
        Run("stock", 1, failure="no address answered"),
        Run("vmw-cold", 2, 34.0, cpu_seconds=6.0, peak_kib=61_440),
        Run("limit", 2, 24.0),
        Run("stock", 2, 88.0),
        Run("vmw-cold", 3, 99.0, failure="a share is not mounted"),
        Run("limit", 3, 22.0),
    ]


def test_every_round_has_every_row_once() -> None:
    for number in range(10):
        assert sorted(figures.order(list(TITLES), number)) == sorted(TITLES)


def test_each_row_is_first_equally_often() -> None:
    first = Counter(figures.order(list(TITLES), number)[0] for number in range(9))
    assert set(first.values()) == {3}


def test_order_of_nothing_is_nothing() -> None:
    assert figures.order([], 3) == []


def test_median_and_range_leave_failures_out() -> None:
    assert figures.summarise(runs(), "vmw-cold") == Summary(median=32.0, low=30.0, high=34.0, runs=2, failed=1)


def test_row_without_a_good_run_has_no_statistics() -> None:
    assert figures.summarise([Run("stock", 1, failure="down")], "stock") is None


def test_failure_with_a_time_is_counted_as_a_failure() -> None:
    assert figures.count_failed(runs(), "vmw-cold") == 1


def test_table_has_ratios_use_and_failures() -> None:
    cold, limit, stock = figures.rows(TITLES, runs(), {})
    assert cold == ["`vmw spawn`", "32.0 s", "30.0-34.0", "1.45", "5.0 s", "60 MiB", "2, 1 failed"]
    assert limit == ["the limit", "22.0 s", "20.0-24.0", "1.00", "", "", "3"]
    assert stock == ["the cloud image", "88.0 s", "88.0-88.0", "4.00", "", "", "1, 1 failed"]


def test_skipped_and_failed_rows_stay_in_the_table() -> None:
    lines = figures.rows(TITLES, [Run("vmw-cold", 1, failure="down")], {"stock": "not installed", "limit": "none"})
    assert [line[1] for line in lines] == ["failed", "skipped", "skipped"]
    assert lines[0][-1] == "0, 1 failed"


def test_row_that_an_interrupt_left_out_has_not_failed() -> None:
    (line,) = figures.rows({"stock": "the cloud image"}, [], {})
    assert (line[1], line[-1]) == ("not reached", "0")


def test_without_the_limit_there_are_no_ratios() -> None:
    assert figures.rows({"vmw-cold": "vmw"}, runs()[:1], {})[0][3] == "-"


def test_all_lines_fit_the_header() -> None:
    lines = figures.rows(TITLES, runs(), {"stock": "not installed"})
    assert {len(line) for line in lines} == {len(figures.HEADER)}


def test_table_is_aligned_markdown() -> None:
    drawn = figures.table(["What", "Median"], [["vmw", "1.0 s"]])
    assert drawn == "| What | Median |\n| ---- | ------ |\n| vmw  | 1.0 s  |"


def test_failures_are_told_with_row_and_round() -> None:
    told = figures.failures(TITLES, runs())
    assert told == [
        "failed: the cloud image, round 1: no address answered",
        "failed: `vmw spawn`, round 3: a share is not mounted",
    ]


def test_run_survives_json() -> None:
    run = Run("limit", 1, 20.0, notes={"address": "10.0.0.2"})
    assert Run(**run.as_dict()) == run


def test_plot_has_single_runs_and_leaves_skipped_rows_out() -> None:
    data = {"titles": TITLES, "skipped": {"limit": "none"}, "runs": [run.as_dict() for run in runs()]}
    assert figures.strips(data) == [
        Strip("`vmw spawn` (1 failed)", [30.0, 34.0], 32.0, own=True),
        Strip("the cloud image (1 failed)", [88.0], 88.0, own=False),
    ]


def test_plot_keeps_a_row_that_only_failed() -> None:
    data = {"titles": {"stock": "the cloud image"}, "skipped": {}, "runs": [Run("stock", 1, failure="down").as_dict()]}
    assert figures.strips(data) == [Strip("the cloud image (1 failed)", [], None, own=False)]
