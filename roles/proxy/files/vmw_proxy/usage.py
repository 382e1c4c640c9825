# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What VMs used of the APIs, by VM and day: requests, and the tokens that the answers tell of."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

from vmw_proxy import notes

if TYPE_CHECKING:
    from pathlib import Path

    from vmw_proxy.records import Vm

FILE = "usage.json"
SCHEMA = 1

DAYS = 62
"""Days that are kept."""

LARGEST_BODY = 4 << 20
"""Bytes of the longest answer in one piece whose usage is read."""

LARGEST_EVENT = 1 << 20
"""Bytes of the longest line in a stream whose usage is read."""

MOST_KEPT = 64 << 20
"""Bytes of all answers together that are kept until their usage can be read: a part of what the proxy's unit may have."""

NAMES = {
    "input_tokens": "input_tokens",
    "prompt_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "completion_tokens": "output_tokens",
    "cache_creation_input_tokens": "cache_creation_input_tokens",
    "cache_read_input_tokens": "cache_read_input_tokens",
}
"""How APIs name a number of tokens, and how it is noted: Anthropic's Messages, OpenAI's Responses and Chat Completions."""

TOKENS = tuple(dict.fromkeys(NAMES.values()))


def tokens_in(message: object) -> dict[str, int]:
    """Return the numbers of tokens in an answer of an API, or in one event of a stream; they stand at its top or one below."""
    if not isinstance(message, dict):
        return {}
    found: dict[str, int] = {}
    for place in (message, message.get("message"), message.get("response")):
        usage = place.get("usage") if isinstance(place, dict) else None
        for name, value in usage.items() if isinstance(usage, dict) else ():
            if name in NAMES and isinstance(value, int) and value > 0:
                found[NAMES[name]] = max(value, found.get(NAMES[name], 0))
    return found


class Budget:
    """Bytes that all meters share, so that not even many answers at once take more.

    Args:
        most: How many there are.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        """Begin with all of them."""
        self.left = most

    def take(self, count: int) -> bool:
        """Take some; return whether there were so many."""
        if count > self.left:
            return False
        self.left -= count
        return True

    def give_back(self, count: int) -> None:
        """Have them again."""
        self.left += count


class Meter:
    """Reads the usage out of an answer while it passes.

    Attributes:
        tokens: What was told until now.
        missed: Whether a part that was too long may have told more since.
        read_whole: Whether the answer was an object in one piece.

    Args:
        content_type: Of the answer: a stream of events, or JSON in one piece. In others there is none.
        budget: What may be kept of all answers. What is beyond it is passed over as what is too long.
    """

    def __init__(self, content_type: str, budget: Budget | None = None) -> None:
        """Begin with nothing."""
        self._budget = budget or Budget()
        kind = content_type.partition(";")[0].strip().lower()
        self._stream = kind == "text/event-stream"
        self._reads = self._stream or kind == "application/json"
        self._buffer = bytearray()
        self._too_long = False
        self.missed = False
        self.read_whole = False
        self.tokens: dict[str, int] = {}

    def feed(self, data: bytes) -> None:
        """Take in a part of the answer."""
        if not self._reads:
            return
        if not self._stream:
            self._keep(data, LARGEST_BODY)
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._keep(line, LARGEST_EVENT)
            self._line()
        self._keep(rest, LARGEST_EVENT)

    def end(self) -> None:
        """Take in that this was all of it."""
        if self._stream:
            self._line()
        elif self._reads and not self._too_long:
            self._count(bytes(self._buffer))
        self._clear()

    def _keep(self, data: bytes, most: int) -> None:
        if self._too_long:
            return
        if len(self._buffer) + len(data) > most or not self._budget.take(len(data)):
            self._too_long = self.missed = True
            self._clear()
        else:
            self._buffer += data

    def _clear(self) -> None:
        self._budget.give_back(len(self._buffer))
        # Emptied, it would keep its memory.
        self._buffer = bytearray()

    def _line(self) -> None:
        if not self._too_long and self._buffer.startswith(b"data:") and b'"usage"' in self._buffer:
            self._count(bytes(self._buffer).removeprefix(b"data:"))
        self._clear()
        self._too_long = False

    def _count(self, text: bytes) -> None:
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        found = tokens_in(message)
        self.read_whole = not self._stream and isinstance(message, dict)
        self.missed = self.missed and not found
        # Each event of a stream tells the sum until then.
        self.tokens = {name: max(found.get(name, 0), self.tokens.get(name, 0)) for name in {*found, *self.tokens}}


def total(day: dict[str, dict[str, int]]) -> dict[str, int]:
    """Return the requests and the tokens of one day over all APIs."""
    counts = list(day.values())
    return {
        "requests": sum(each.get("requests", 0) for each in counts),
        "tokens": sum(each.get(name, 0) for each in counts for name in TOKENS),
    }


def parse(data: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the days of a file of usage, without what is none."""
    days = data.get("days", {})
    found: dict[str, dict[str, dict[str, int]]] = {}
    for day, apis in days.items() if isinstance(days, dict) else ():
        for api, counts in apis.items() if isinstance(apis, dict) else ():
            numbers = counts.items() if isinstance(counts, dict) else ()
            kept = {str(name): value for name, value in numbers if isinstance(value, int) and value >= 0}
            found.setdefault(str(day), {})[str(api)] = kept
    return found


def today() -> str:
    """Return the day that counts, UTC."""
    return dt.datetime.now(dt.UTC).date().isoformat()


class Usage:
    """The usage of all VMs.

    Args:
        files: Writes it.
    """

    def __init__(self, files: notes.Notes) -> None:
        """Begin with what the files say, each when it is first wanted."""
        self._files = files
        self.budget = Budget()
        self._days: dict[tuple[Path, str], dict[str, dict[str, dict[str, int]]]] = {}

    def _of(self, vm: Vm) -> dict[str, dict[str, dict[str, int]]]:
        key = (vm.directory, vm.uuid)
        if key not in self._days:
            # A VM of before, with the same name, is gone.
            self._days = {each: value for each, value in self._days.items() if each[0] != vm.directory}
            self._days[key] = parse(notes.read(vm.directory / FILE))
        return self._days[key]

    def exceeded(self, vm: Vm) -> str | None:
        """Return which of a VM's limits is reached today, in words, or nothing."""
        used = total(self._of(vm).get(today(), {}))
        if 0 < vm.daily_requests <= used["requests"]:
            return f"this VM has made its {vm.daily_requests} requests of today"
        if 0 < vm.daily_tokens <= used["tokens"]:
            return f"this VM has used its {vm.daily_tokens} tokens of today"
        return None

    def add(self, vm: Vm, api: str, counts: dict[str, int]) -> None:
        """Add to what a VM used today.

        Args:
            vm: The VM.
            api: The API.
            counts: ``requests``, and numbers of tokens.
        """
        days = self._of(vm)
        noted = days.setdefault(today(), {}).setdefault(api, {})
        for name, value in counts.items():
            noted[name] = noted.get(name, 0) + value
        for day in sorted(days)[:-DAYS]:
            del days[day]
        self._files.put(vm.directory / FILE, lambda: {"schema": SCHEMA, "days": days})
