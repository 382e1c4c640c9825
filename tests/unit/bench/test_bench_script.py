"""The spawn benchmark's script: its arguments, its report, and what it makes in a home of its own."""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from spawning import modes
from spawning.machine import PROGRAMS, BenchError, Ended
from spawning.rows import Bench, Row, Vmw

if TYPE_CHECKING:
    from types import ModuleType

    from spawning.figures import Run

SCRIPT = Path(__file__).parents[2] / "bench" / "spawn"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Load the script, whose name has no ending."""
    spec = spec_from_loader("bench_spawn", SourceFileLoader("bench_spawn", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Its dataclasses look themselves up.
    sys.modules["bench_spawn"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "vmw-bench-0123ab", 4096, 4, 20, 600, tmp_path / "venv")


class Good(Row):
    name = "limit"
    title = "good"
    removed = 0

    def take(self, measured: Run) -> None:
        measured.seconds = 2.0

    def remove(self) -> None:
        self.removed += 1


class Bad(Good):
    name = "stock"
    title = "bad"

    def take(self, measured: Run) -> None:
        assert measured.seconds is None
        message = "no address answered"
        raise BenchError(message)


class Missing(Good):
    name = "testcloud"
    title = "missing"

    def obstacle(self) -> str:
        return "not installed"


def result_of(script: ModuleType) -> Any:  # noqa: ANN401 - a class of a module that has no name
    about = {"cpus": 2, "cpu": "x", "memory_mib": 1, "system": "Debian", "kernel": "6", "libvirt": "11", "qemu": "10"}
    return script.Result({**about, "accelerator": "qemu", "load": 0.5, "running_vms": ["feature-x"]}, {})


@pytest.mark.parametrize("words", [["--tools", "nothing"], ["--from", "a.json"], ["--plot", "a.svg"], ["--parallel", "two"]])
def test_wrong_arguments(script: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["spawn", *words])
    with pytest.raises(SystemExit) as error:
        script.parse_arguments()
    assert error.value.code == 2


def test_lists_in_arguments(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["spawn", "--tools", "limit,stock", "--parallel", "1,2,4,8"])
    arguments = script.parse_arguments()
    assert arguments.tools == ["limit", "stock"]
    assert arguments.parallel == [1, 2, 4, 8]


def test_comparison_counts_failures_and_removes_after_them(script: ModuleType, bench: Bench) -> None:
    result = result_of(script)
    rows = [kind(bench, None) for kind in (Good, Bad, Missing)]  # type: ignore[arg-type]
    script.compare(script.prepare(rows, result), 2, result)
    assert [(run.row, run.round, run.seconds, run.failure) for run in result.runs] == [
        ("limit", 1, 2.0, ""),
        ("stock", 1, None, "no address answered"),
        ("stock", 2, None, "no address answered"),
        ("limit", 2, 2.0, ""),
    ]
    assert [row.removed for row in rows] == [2, 2, 0]
    assert result.skipped == {"testcloud": "not installed"}


def test_interrupted_run_is_kept_as_a_failure(script: ModuleType, bench: Bench) -> None:
    class Interrupted(Good):
        def take(self, measured: Run) -> None:
            assert measured.seconds is None
            raise KeyboardInterrupt

    result = result_of(script)
    with pytest.raises(KeyboardInterrupt):
        script.compare([Interrupted(bench, None)], 1, result)  # type: ignore[arg-type]
    assert [run.failure for run in result.runs] == ["interrupted"]


def test_row_that_cannot_be_prepared_is_skipped_with_the_reason(script: ModuleType, bench: Bench) -> None:
    class Unready(Good):
        def prepare(self) -> None:
            message = "no space left"
            raise BenchError(message)

    result = result_of(script)
    assert script.prepare([Unready(bench, None)], result) == []  # type: ignore[arg-type]
    assert result.skipped == {"limit": "could not be prepared: no space left"}


def test_report_tells_skips_failures_and_other_vms(script: ModuleType, bench: Bench) -> None:
    result = result_of(script)
    rows = [kind(bench, None) for kind in (Good, Bad, Missing)]  # type: ignore[arg-type]
    script.compare(script.prepare(rows, result), 1, result)
    result.parallel = [
        {
            "kind": "vmw-cold",
            "count": 2,
            "seconds": 90.0,
            "failures": ["lost"],
            "qemu_memory": {"rss_kib": 2048},
            "host_memory_kib": 1024,
            "disk_bytes": [1 << 20, 3 << 20],
        }
    ]
    told = script.report(result)
    assert "other VMs ran: feature-x" in told
    assert "skipped: missing: not installed" in told
    assert "failed: bad, round 1: no address answered" in told
    assert "failed: 2 at once, vmw-cold: lost" in told
    (line,) = [line for line in told.splitlines() if line.startswith("| 2, vmw-cold")]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "2, vmw-cold", "90.0 s", "-", "2 MiB", "1 MiB", "2 MiB", "1 of 2",
    ]  # fmt: skip


def test_scratch_home_has_the_settings_and_another_state_directory(bench: Bench) -> None:
    home, state = modes.scratch_home(bench, "list", 'vmw_state_dir: "~/elsewhere"\nvmw_bridge: br7\n')
    text = (home / ".config/vmw/config.yml").read_text()
    assert text == f'vmw_bridge: br7\nvmw_state_dir: "{state}"\n'


def test_copied_records_share_no_identity() -> None:
    made = modes.copies({"name": "x", "uuid": "u", "mac": "m", "worktree": "/w"}, "vmw-bench-0123ab", 300)
    for key in ("name", "uuid", "mac"):
        assert len({record[key] for record in made}) == 300
    assert {record["worktree"] for record in made} == {"/w"}


def test_names_fit_dns_labels_and_are_ours(bench: Bench) -> None:
    assert bench.name("vmw-cold") == "vmw-bench-0123ab-vmw-cold"
    assert bench.mac("stock").startswith("52:54:00:")
    assert bench.mac("stock") != bench.mac("virt-install")


@pytest.mark.parametrize(
    ("options", "start", "refused"),
    [((), "warm", False), ((), "cold", True), (("--cold",), "cold", False), (("--cold",), "warm", True), ((), None, False)],
)
def test_a_vm_that_was_started_in_another_way_is_not_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], start: str | None, *, refused: bool
) -> None:
    instance = {"name": "x"} if start is None else {"name": "x", "start": start}
    ended = Ended(0, json.dumps({"instance": instance}), "the reason", 1.0, 1)
    monkeypatch.setattr(PROGRAMS, "run", lambda *_words, **_options: ended)
    with pytest.raises(BenchError, match=f"started {start}.*the reason") if refused else contextlib.nullcontext():
        assert Vmw(bench, options).spawn("x") == (ended, instance)
