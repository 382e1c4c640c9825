"""Show logs by the programs that are made for it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from vmw.display import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmw.services.logs import Source


def show(sources: Sequence[Source]) -> bool:
    """Show logs one after the other, or all at once when they are followed.

    Returns:
        Whether there was any log to show.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for source in sources:
            if source.obstacle:
                console.warn(f"{source.title}: {source.obstacle}", source.hint)
                continue
            console.say(console.heading(source.title))
            process = subprocess.Popen(source.argv, stdin=subprocess.DEVNULL)
            running.append(process)
            if not source.follows:
                process.wait()
        for process in running:
            process.wait()
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return bool(running)
