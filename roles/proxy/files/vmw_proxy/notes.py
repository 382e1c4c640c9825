# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The files in which the proxy notes what it did for a VM: whole or not at all, and not more often than once a second."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 1.0
"""Time between two writings of files, so that a guest cannot keep the host's disk busy."""

LARGEST = 1 << 20
"""Bytes of the largest file that is read back."""

log = logging.getLogger(__name__)


def read(path: Path) -> dict[str, Any]:
    """Return what a file of notes says; nothing where it is not there or broken."""
    try:
        if path.stat().st_size > LARGEST:
            return {}
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def write(path: Path, data: dict[str, Any]) -> None:
    """Write a file anew, for the user alone; where its directory is gone, or is going, with the VM, there is nothing to write."""
    if (path.parent / "leaving").exists():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            json.dump(data, handle, indent=2)
            handle.write("\n")
        partial.replace(path)
    except OSError as error:
        if path.parent.is_dir():
            log.warning("%s cannot be written: %s", path, error.strerror)


class Notes:
    """The files that are to be written."""

    def __init__(self) -> None:
        """Begin with nothing to write."""
        self._waiting: dict[Path, Callable[[], dict[str, Any]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def put(self, path: Path, data: Callable[[], dict[str, Any]]) -> None:
        """Have a file written: at once, or a second after the last time.

        Args:
            path: The file.
            data: Returns what it is to say.
        """
        self._waiting[path] = data
        if self._timer is None:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._again)

    def _again(self) -> None:
        self._timer = None
        if self._waiting:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(SECONDS, self._again)

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, {}
        for path, data in waiting.items():
            write(path, data())
