"""One log per playbook run, with Ansible's whole output."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from pathlib import Path

KEEP = 20
"""How many logs are kept."""


def open_log(directory: Path, verb: str) -> tuple[Path, TextIO]:
    """Open the log of a new run and remove the oldest ones.

    Args:
        directory: Where logs are; made when it is missing.
        verb: What is run; part of the name.

    Returns:
        The path, and the file open for writing, readable by the user alone.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    number = 0
    while True:
        path = directory / (f"{stamp}-{verb}.log" if not number else f"{stamp}-{verb}-{number}.log")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            number += 1
            continue
        break
    with contextlib.suppress(FileNotFoundError):
        others = sorted((each for each in directory.glob("*.log") if each != path), key=lambda each: each.stat().st_mtime_ns)
        for old in others[: -(KEEP - 1)]:
            old.unlink()
    return path, os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
