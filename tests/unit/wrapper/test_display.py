from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from wrapper_support import ROOT

from vmw.display import console, progress
from vmw.errors import VmwError
from vmw.runner.events import NoteIssued, PhaseFailed, PhaseFinished, PhaseStarted, StepStarted, WarningIssued

if TYPE_CHECKING:
    from pathlib import Path


def test_an_error_is_told_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(VmwError("it broke", "run `vmw host`", log="/a.log\n/b.log", detail="one\ntwo"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: it broke\n  | one\n  | two\nhint: run `vmw host`\nlog: /a.log\nlog: /b.log\n"


def test_an_error_without_more(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(VmwError("it broke"))
    assert capsys.readouterr().err == "error: it broke\n"


def test_hints_can_be_copied(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMW_PROGRAM", "./vmw")
    console.error(VmwError("no VM", "`vmw list` shows what there is"))
    assert "hint: `./vmw list` shows" in capsys.readouterr().err


def test_commands_name_the_program_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMW_PROGRAM", "/my checkouts/vmw")
    assert console.command("vmw host") == "'/my checkouts/vmw' host"
    assert console.command("sudo systemctl start vmw") == "sudo systemctl start vmw"
    assert console.copyable("try `vmw list`") == "try `'/my checkouts/vmw' list`"


def test_bytes_that_are_no_text_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(os.fsdecode(b"/caf\xe9"))
    assert capsys.readouterr().err == "/caf\\udce9\n"


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["NAME", "STATE"], [["a", "running"], ["long-name", "-"]])
    assert capsys.readouterr().out == "NAME       STATE\na          running\nlong-name  -\n"


def test_table_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["NAME"], [["a"]], sys.stderr)
    assert capsys.readouterr() == ("", "NAME\na\n")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    console.data_json(1, vms=["größe"])
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "vms": ["größe"]}


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (0, "0s"), (59, "59s"), (60, "1m"), (3600, "1h"), (90000, "1d"), (8640000, "100d")]
)
def test_age(seconds: float, text: str) -> None:
    assert console.age(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 1024**3, "5.0 GiB"), (2 * 1024**4, "2.0 TiB")]
)
def test_size(count: float, text: str) -> None:
    assert console.size(count) == text


def _write(path: Path, **changes: object) -> None:
    values = {"schema": 1, "task": "Download", "done": 1, "total": 4, "unit": "steps", "detail": "Install it", **changes}
    path.write_text(json.dumps(values))


def test_progress_file(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert progress.ProgressFile(path).read("Download") is None
    _write(path)
    assert progress.ProgressFile(path).read("Download") == progress.LongTask("Download", 1.0, 4.0, "steps", "Install it")
    _write(path, schema=2)
    assert progress.ProgressFile(path).read("Download") is None
    path.write_text("{")
    assert progress.ProgressFile(path).read("Download") is None


def test_progress_of_another_run_is_not_shown(tmp_path: Path) -> None:
    _write(tmp_path / "progress.json", task="Bake the golden image")
    shown = progress.ProgressFile(tmp_path / "progress.json")
    assert shown.read("Wait for SSH") is None
    assert shown.read("Bake the golden image") is not None


def test_long_tasks_have_the_names_of_their_tasks_in_the_playbook() -> None:
    tasks = yaml.safe_load((ROOT / "roles/golden_image/tasks/build.yml").read_text())
    names = {task["name"] for task in tasks}
    for module in ("image_download", "image_bake"):
        told = re.search(r'Progress\(state, "([^"]+)"', (ROOT / f"plugins/modules/{module}.py").read_text())
        assert told
        assert told[1] in names


def test_progress_of_a_killed_run_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    _write(path)
    os.utime(path, (1, 1))
    assert progress.ProgressFile(path).read("Download") is None


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_SECONDS", 0)
    path = tmp_path / "progress.json"
    shown = progress.make_progress(tmp_path, show_changes=True)
    shown.update(PhaseStarted("golden image"))
    shown.update(StepStarted("Download"))
    for done in (0, 10, 26, 27, 99):
        _write(path, done=done * 1024, total=100 * 1024, unit="bytes", detail="")
        shown.poll()
    _write(path, done=3, total=9)
    shown.poll()
    shown.poll()
    shown.update(PhaseFinished("golden image", 61.23, 2))
    shown.update(PhaseFinished("secrets", 0.5, 0))
    shown.update(PhaseFailed("bridge"))
    shown.update(WarningIssued("slow"))
    shown.update(NoteIssued("follow it"))
    shown.notice("Interrupted")
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "  Download (0 B of 100.0 KiB)",
        "  Download (26.0 KiB of 100.0 KiB)",
        "  Download (99.0 KiB of 100.0 KiB)",
        "  Download: Install it (3/9)",
        "  done: golden image (61.2 s, 2 changed)",
        "  done: secrets (0.5 s, no change)",
        "  failed: bridge",
        "warning: slow",
        "  follow it",
        "Interrupted",
    ]


LIVE = """
import threading
from pathlib import Path
from vmw.display import progress
from vmw.runner.events import *
progress.READ_SECONDS = 0
shown = progress.make_progress(Path({directory!r}), show_changes=False)
shown.update(PhaseStarted("Make [the] disk"))
shown.poll()
assert threading.active_count() == 1, "ansible-runner forks: no thread may run"
shown.update(PhaseFinished("Make [the] disk", 1.0, 1))
shown.update(PhaseStarted("Bake"))
Path({directory!r}, "progress.json").write_text('{{"schema":1,"task":"Bake","done":1,"total":2,"unit":"steps","detail":"Wash"}}')
shown.poll()
Path({directory!r}, "progress.json").unlink()
shown.poll()
shown.notice("Interrupted")
shown.update(PhaseFailed("Bake"))
shown.close()
"""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_live_lines_on_a_terminal(tmp_path: Path, no_color: str) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "wrapper"), "TERM": "xterm", "NO_COLOR": no_color, "COLUMNS": "80"}
    script = LIVE.format(directory=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=follower, env=environment)
    os.close(follower)
    output = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    os.close(leader)
    text = output.decode()
    assert process.wait() == 0, text
    assert "Make [the] disk (1.0 s)" in text
    assert "Bake: Wash" in text
    assert "1/2" in text
    assert "✗" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor is not given back"
    assert ("\x1b[32m" in text) is not bool(no_color)
