"""The processes below this one: Ansible's workers leave its session, so killing a process group does not reach them."""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import signal

PR_SET_CHILD_SUBREAPER = 36
"""Source: prctl(2), linux/prctl.h."""


STARTER = "VMW_STARTED_BY"
"""Set for a process that was started anew with another group: the id of the one that the user knows."""


class Starter:
    """The process that the user started: sg(1) waits in its place, and hands no signal on to the one that does the work."""

    def __init__(self) -> None:
        """Look up the process; without `STARTER` it is this one."""
        self._descriptor: int | None = None
        self._gone = False
        try:
            self._descriptor = os.pidfd_open(int(os.environ.get(STARTER, os.getpid())))
        except ProcessLookupError:
            self._gone = True
        except OSError:
            # A kernel without pidfd_open(2): nobody looks, as nobody did before.
            return

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        if self._descriptor is not None and not self._gone:
            self._gone = bool(select.select([self._descriptor], [], [], 0)[0])
        return self._gone


def program_start() -> float | None:
    """Return when the process that the user started began, or None when /proc does not say.

    It is that of the launcher, as execve(2) leaves it alone.

    Returns:
        Seconds of CLOCK_BOOTTIME, rounded down to a clock tick.
    """
    own = _start(os.getpid())
    starter = os.environ.get(STARTER, "")
    first = _start(int(starter)) if starter.isdecimal() else None
    # A later one has got the number of a starter that is gone.
    return first if first and own and first < own else own


def _start(pid: int) -> float | None:
    """Return when a process began, in seconds of CLOCK_BOOTTIME: field 22 of proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        ticks = int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
    seconds = ticks / os.sysconf("SC_CLK_TCK")
    # Not every /proc of a sandbox counts on this clock.
    return seconds if 0 < seconds <= time.clock_gettime(time.CLOCK_BOOTTIME) else None


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none gets out of sight."""
    import ctypes  # noqa: PLC0415 - takes 5 ms, and only an interrupted run needs it

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parents() -> dict[int, int]:
    """Return the parent of every process that is not a zombie."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The command name is in brackets and may itself hold blanks, brackets and bytes that are no text.
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state != b"Z":
                parents[int(entry.name)] = int(parent)
    return parents


def descendants() -> list[int]:
    """Return the ids of all processes below this one, nearest first."""
    parents = _parents()
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found.extend(sorted(level))
    return found


def children() -> list[int]:
    """Return the ids of this process's own children."""
    me = os.getpid()
    return [pid for pid, parent in _parents().items() if parent == me]


def mine(pids: list[int]) -> list[int]:
    """Return those of the processes that this user may signal: not the ones that sudo made root's."""
    allowed = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            allowed.append(pid)
    return allowed


def send(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes, passing over those that have ended or are root's."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
