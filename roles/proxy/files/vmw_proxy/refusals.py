# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What VMs were refused, for their user to read: a bounded list, one entry for each host and port."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmw_proxy import notes

if TYPE_CHECKING:
    from pathlib import Path

    from vmw_proxy.records import Vm

FILE = "refused.json"
SCHEMA = 1

MOST = 256
"""Entries that are kept; the oldest go first."""

LONGEST = 253
"""Characters of a host that are kept: the longest name there is."""


@dataclass(frozen=True)
class Refusal:
    """Something that was refused.

    Attributes:
        time: When it last was, UTC.
        host: The host as the guest asked for it, without characters that could do harm on a terminal.
        port: The port; 0 where it was none.
        reason: Why.
        count: How often it was.
    """

    time: str
    host: str
    port: int
    reason: str
    count: int = 1


def now() -> str:
    """Return the time as it is noted."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain(host: str) -> str:
    """Return a host as a guest wrote it, fit for a terminal."""
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in host[:LONGEST])


def add(entries: list[Refusal], new: Refusal) -> list[Refusal]:
    """Return a list with one more refusal, newest last."""
    before = [entry for entry in entries if (entry.host, entry.port) == (new.host, new.port)]
    count = sum(entry.count for entry in before) + new.count
    merged = Refusal(new.time, new.host, new.port, new.reason, count)
    return [*(entry for entry in entries if entry not in before), merged][-MOST:]


def parse(data: dict[str, Any]) -> list[Refusal]:
    """Return what a file of refusals says, without entries that are none."""
    found = []
    listed = data.get("refused", [])
    for entry in listed if isinstance(listed, list) else []:
        try:
            fields = (
                str(entry["time"]),
                plain(str(entry["host"])),
                int(entry["port"]),
                str(entry["reason"]),
                int(entry["count"]),
            )
        except (KeyError, TypeError, ValueError):
            continue
        found.append(Refusal(*fields))
    return found[-MOST:]


class Refusals:
    """The refusals of all VMs.

    Args:
        files: Writes them.
    """

    def __init__(self, files: notes.Notes) -> None:
        """Begin with what the files say, each when it is first wanted."""
        self._files = files
        self._lists: dict[tuple[Path, str], list[Refusal]] = {}

    def note(self, vm: Vm, host: str, port: int, reason: str) -> None:
        """Note that a VM was refused something."""
        path, key = vm.directory / FILE, (vm.directory, vm.uuid)
        if key not in self._lists:
            # A VM of before, with the same name, is gone.
            self._lists = {each: value for each, value in self._lists.items() if each[0] != vm.directory}
            self._lists[key] = parse(notes.read(path))
        self._lists[key] = add(self._lists[key], Refusal(now(), plain(host), port, reason))
        self._files.put(path, lambda: {"schema": SCHEMA, "refused": [asdict(entry) for entry in self._lists.get(key, [])]})
