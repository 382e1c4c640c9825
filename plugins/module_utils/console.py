# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The log of what a guest prints on its serial console: begin it, read it, and see when the guest is stuck."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 65536
"""How much of a console log is looked at: a whole boot prints about 60 kB."""

_TROUBLES = (
    (r"Kernel panic - not syncing: (.*)", "the guest's kernel panicked"),
    (r"You are in emergency mode|Emergency Shell", "the guest is in its emergency shell"),
    (r"^vmw-identity: (failed to .*)", "the guest did not take its identity"),
    (r"\(initramfs\)", "the guest did not find its root file system"),
)


def begin_console(path: Path) -> None:
    """Begin an empty console log that belongs to the user; one that virtlogd made would be root's."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)


def read_console(path: Path) -> str:
    """Return the end of a console log; an empty string while there is none."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL_BYTES))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""


def trouble(text: str) -> str:
    """Say why a guest will never get further, or return an empty string."""
    for pattern, meaning in _TROUBLES:
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            return f"{meaning}: {found.group(1).strip()}" if found.groups() else meaning
    return ""
