"""Show logs by the programs that are made for it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from vmw.display import console

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from vmw.services.logs import Source


def show(sources: Sequence[Source]) -> bool:
    """Show logs one after the other, or all at once when they are followed.

    Returns:
        Whether there was any log to show.
    """
    running: list[subprocess.Popen[bytes]] = []
    with _ended_in_order(running) as endings:
        try:
            for source in sources:
                if source.obstacle:
                    console.warn(f"{source.title}: {source.obstacle}", source.hint)
                    continue
                console.say(console.heading(source.title))
                process = subprocess.Popen(source.argv, stdin=subprocess.DEVNULL)
                running.append(process)
                if endings:
                    # The signal came while it was being started.
                    break
                if not source.follows:
                    process.wait()
            for process in [] if endings else running:
                process.wait()
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    if endings:
        sys.exit(128 + endings[0])
    return bool(running)


@contextlib.contextmanager
def _ended_in_order(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Let kill(1) end what this program started, and only then the program.

    Args:
        running: What was started so far. Raising in the handler could lose the one that is being started.

    Yields:
        The signals that came.
    """
    endings: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        endings.append(number)
        for process in running:
            process.terminate()

    # What is ignored stays so: under nohup(1), the user wants it to outlive the terminal.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield endings
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
