from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from vmw.runner import processes


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
