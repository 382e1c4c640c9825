from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmw.runner import processes
from vmw.runner.timings import now


def test_descendants_in_sessions_of_their_own() -> None:
    parent = subprocess.Popen(["sh", "-c", "setsid sleep 60 & wait"])
    try:
        deadline = time.monotonic() + 5
        while len(processes.descendants()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        below = processes.descendants()
        assert below[0] == parent.pid
        assert len(below) == 2
        assert processes.children() == [parent.pid]
        assert processes.mine(below) == below
    finally:
        processes.send(processes.descendants(), signal.SIGKILL)
        parent.wait()


def test_a_name_that_is_cut_inside_a_letter() -> None:
    rename = "open('/proc/self/comm', 'wb').write(b'gr\\xc3'); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout
        child.stdout.readline()
        assert child.pid in processes.descendants()
        child.kill()


def test_ended_processes_are_passed_over() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    processes.send([done.pid], signal.SIGTERM)
    assert processes.mine([done.pid]) == []


def test_orphans_are_adopted() -> None:
    script = (
        "import os, subprocess, time\n"
        "from vmw.runner import processes\n"
        "processes.adopt_orphans()\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 60 >/dev/null 2>&1 &'])\n"
        "found = processes.descendants()\n"
        "print(len(found))\n"
        "processes.send(found, 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"


STARTS = (
    "import time; from vmw.runner import processes; print(processes.program_start(), time.clock_gettime(time.CLOCK_BOOTTIME))"
)


def _start_seen_by_a_child(launcher: str = 'exec "$@"') -> tuple[float, float, float]:
    """Return when a child was started, when it says it was, and when it said so."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    before = now()
    argv = ["sh", "-c", launcher, "sh", sys.executable, "-c", STARTS]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    told, then = map(float, done.stdout.split())
    return before, told, then


def test_the_start_is_that_of_the_launcher() -> None:
    before, told, then = _start_seen_by_a_child('sleep 0.2; exec "$@"')
    # Of a clock tick each, which is how exact a start is told.
    assert before - 0.02 <= told <= then - 0.2


def test_the_start_is_that_of_the_process_that_the_user_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processes.STARTER, str(os.getpid()))
    before, told, _ = _start_seen_by_a_child()
    assert told == processes.program_start()
    assert told <= before


def test_a_later_process_with_the_number_of_the_starter_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    own = processes.program_start()
    time.sleep(0.02)
    with subprocess.Popen(["sleep", "60"]) as later:
        monkeypatch.setenv(processes.STARTER, str(later.pid))
        assert processes.program_start() == own
        later.kill()
    for number in (str(later.pid), "nonsense", ""):
        monkeypatch.setenv(processes.STARTER, number)
        assert processes.program_start() == own


@pytest.mark.parametrize("start", [b"0", b"9" * 18, b"x", b""])
def test_a_start_that_proc_does_not_tell(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _path: b"1 (a) b) S " + b"1 " * 18 + start)
    assert processes.program_start() is None
