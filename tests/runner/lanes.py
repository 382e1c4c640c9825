"""Programs that run side by side: what they print comes out line by line, and an interruption ends them all."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

KILL_SECONDS = 180
"""How long an interrupted program may take to remove its machines before it is killed."""
SLOW_SECONDS = 60
"""After this time a line that is not complete is shown as it is, so that one sees which test is at work."""
REST_SECONDS = 5
"""How long the last output of a program that has ended is waited for; what it left running may hold the pipe."""
TOO_LONG = 124
INTERRUPTED = 130

_began = time.monotonic()
_output = threading.Lock()
_lane = threading.local()


def say(text: str) -> None:
    """Print lines at once, and whole; in a lane, each with the minutes since the start and what the lane is at."""
    label = getattr(_lane, "label", "")
    if label:
        minutes, seconds = divmod(int(time.monotonic() - _began), 60)
        text = "\n".join(f"{minutes:>2}:{seconds:02} {label:<7} | {line}".rstrip() for line in text.split("\n"))
    with _output:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Have what this thread says carry a label; without one, programs get our own streams."""
    _lane.label = label
    try:
        yield
    finally:
        _lane.label = ""


class Programs:
    """The programs that run at the moment, in all lanes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ending = False

    def run(
        self, argv: Sequence[str], seconds: float, *, cwd: Path, env: Mapping[str, str], descriptors: Collection[int] = ()
    ) -> int:
        """Run a program; one that takes too long is interrupted, then killed.

        Args:
            argv: The program and its arguments.
            seconds: How long it may take.
            cwd: Where it runs.
            env: Its environment.
            descriptors: Files that it inherits.

        Returns:
            Its exit code.
        """
        label = getattr(_lane, "label", "")
        with self._lock:
            if self._ending:
                return INTERRUPTED
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if label else None,
                stderr=subprocess.STDOUT if label else None,
                cwd=cwd,
                env=env,
                pass_fds=descriptors,
                start_new_session=True,
            )
            self._running.add(process)
        relay = threading.Thread(target=_relay, args=(process, label), daemon=True)
        relay.start()
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            say(f"took longer than {seconds / 60:.0f} minutes; interrupting it")
            _end([process])
            status = TOO_LONG
        except KeyboardInterrupt:
            _end([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)
        relay.join(REST_SECONDS)
        return status

    def end(self) -> None:
        """Interrupt whatever runs, and start nothing any more."""
        with self._lock:
            self._ending = True
            running = list(self._running)
        _end(running)


def _end(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Interrupt programs with all that they started, so that they clean up, and kill what is left."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
        deadline = time.monotonic() + KILL_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))


def _relay(process: subprocess.Popen[bytes], label: str) -> None:
    """Say what a program prints, until it closes its output."""
    if process.stdout is None:
        return
    with labelled(label), process.stdout as stream:
        begun, was_shown = b"", False
        while True:
            if not select.select([stream], [], [], SLOW_SECONDS)[0]:
                if begun and not was_shown:
                    say(f"{begun.decode(errors='replace')}...")
                    was_shown = True
                continue
            data = os.read(stream.fileno(), 65536)
            *lines, begun = (begun + data).split(b"\n")
            for line in lines:
                say(line.decode(errors="replace"))
            was_shown = was_shown and not lines
            if not data:
                if begun:
                    say(begun.decode(errors="replace"))
                return


def side_by_side(lanes: Sequence[Callable[[], None]], programs: Programs) -> None:
    """Run lanes at the same time; a failure in one does not stop the others, and an interruption ends all."""
    with ThreadPoolExecutor(len(lanes)) as pool:
        futures = [pool.submit(lane) for lane in lanes]
        try:
            for future in futures:
                future.exception()
        except KeyboardInterrupt:
            programs.end()
            raise
    for future in futures:
        future.result()
