"""Programs that run while something is measured, each in a process of its own, and that end with the bench."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spawning.machine import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

READY_SECONDS = 30
END_SECONDS = 5
PROGRAMS = Path(__file__).parent / "programs"


@contextlib.contextmanager
def serving(argv: Sequence[str | Path]) -> Iterator[dict[str, Any]]:
    """Run one of our programs, which ends when its standard input does: also where the bench is killed.

    Args:
        argv: The program and its arguments; it says in a line of JSON that it is ready.

    Yields:
        What it said.

    Raises:
        BenchError: It did not come so far.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as complaint:
        # A session of its own: Ctrl-C reaches the bench alone, which then ends it.
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            start_new_session=True,
        )
        try:
            assert process.stdout
            line = _line(process.stdout)
            if not line:
                complaint.seek(0)
                message = f"{' '.join(str(word) for word in argv[:3])} did not start: {complaint.read()[-500:].strip()}"
                raise BenchError(message)
            found: dict[str, Any] = json.loads(line)
            yield found
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program of ours, and wait for it."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            return


def _line(pipe: IO[bytes]) -> bytes:
    """Read a line, as far as it comes in time."""
    deadline = time.monotonic() + READY_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            return pipe.readline()
    return b""
