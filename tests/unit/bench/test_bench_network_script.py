"""The network benchmark's script: its arguments, its rounds and its report."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from networking.figures import Measure, Section
from spawning.machine import BenchError

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "bench" / "network"
SECTION = Section("proxy", "key proxy", {"direct": "no proxy", "proxy": "the proxy"}, {"small": Measure("small request", "s")})


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Load the script, whose name has no ending."""
    before = sys.dont_write_bytecode
    spec = spec_from_loader("bench_network", SourceFileLoader("bench_network", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Its dataclasses look themselves up.
    sys.modules["bench_network"] = module
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def result_of(script: ModuleType) -> Any:  # noqa: ANN401 - a class of a module that has no name
    about = {"cpus": 2, "cpu": "x", "memory_mib": 1, "system": "Debian", "kernel": "6", "load": 0.5}
    return script.Result(about, {"rounds": 2})


@pytest.mark.parametrize("words", [["--only", "vms"], ["--rounds", "0"], ["--rounds", "few"], ["--seconds", "0"]])
def test_wrong_arguments(script: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["network", *words])
    with pytest.raises(SystemExit) as error:
        script.parse_arguments()
    assert error.value.code == 2


def test_arguments(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["network", "--only", "proxy"])
    arguments = script.parse_arguments()
    assert (arguments.only, arguments.rounds, arguments.seconds, arguments.json) == ("proxy", 7, 0.5, None)


def test_rows_take_turns_and_the_first_round_is_not_counted(script: ModuleType) -> None:
    taken: list[str] = []

    def take(row: str) -> dict[str, float]:
        taken.append(row)
        return {"small": float(len(taken))}

    result = result_of(script)
    script.compare(SECTION, 2, take, result)
    assert taken == ["direct", "proxy", "proxy", "direct", "direct", "proxy"]
    assert [(run.row, run.round, run.values["small"]) for run in result.runs] == [
        ("proxy", 1, 3.0),
        ("direct", 1, 4.0),
        ("direct", 2, 5.0),
        ("proxy", 2, 6.0),
    ]


def test_failure_ends_one_run_alone(script: ModuleType) -> None:
    def take(row: str) -> dict[str, float]:
        if row == "proxy":
            message = "refused"
            raise BenchError(message)
        return {"small": 1e-3}

    result = result_of(script)
    script.compare(SECTION, 1, take, result)
    assert {run.row: run.failure for run in result.runs} == {"direct": "", "proxy": "refused"}
    told = script.report(result)
    assert "failed: key proxy: the proxy, round 1: refused" in told
    assert "| small request | no proxy  | 1 ms   | 1-1   | 1.00        | 1           |" in told


def test_interrupted_run_is_kept_as_a_failure(script: ModuleType) -> None:
    def take(row: str) -> dict[str, float]:
        raise KeyboardInterrupt

    result = result_of(script)
    with pytest.raises(KeyboardInterrupt):
        script.measure(SECTION, "direct", 1, take, result)
    assert [run.failure for run in result.runs] == ["interrupted"]


def test_report_tells_tables_and_skips(script: ModuleType) -> None:
    result = result_of(script)
    result.machine |= {"nft": "nftables v1.0.6", "streams": "own sockets"}
    result.sizes = {"many": {"chain": 150, "rule": 1893}}
    result.skipped = {"proxy": "not installed: openssl"}
    result.complaints = ["filter: no such device"]
    told = script.report(result)
    assert "nftables v1.0.6, streams by own sockets, load 0.5 at the start" in told
    assert "tables, 20 VMs, `internet`: 150 chains, 1893 rules" in told
    assert "skipped: proxy: not installed: openssl" in told
    assert "complaint: filter: no such device" in told
    assert result.as_dict()["schema"] == 1


@pytest.mark.parametrize(
    ("user", "missing", "told"),
    [(0, (), ""), (1000, (), "network namespaces take root"), (0, ("nft",), "not installed: nft")],
)
def test_filter_takes_root_and_programs(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, user: int, missing: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(script.os, "geteuid", lambda: user)
    monkeypatch.setattr(script.shutil, "which", lambda name: None if name in missing else name)
    assert script.obstacle("filter") == told


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_was_made_is_removed(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool) -> None:
    made: list[Path] = []

    def measure(directory: Path, arguments: object, result: object, stack: object) -> None:
        made.append(directory)
        (directory / "key.pem").touch()
        if interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["network", "--only", "proxy"])
    monkeypatch.setattr(script, "measure_proxy", measure)
    monkeypatch.setattr(script, "obstacle", lambda _part: "")
    monkeypatch.setattr(script, "SIGNALS", ())
    result = script.measure_all(script.parse_arguments())
    assert result.complaints == (["interrupted"] if interrupted else [])
    assert [directory.exists() for directory in made] == [False]
