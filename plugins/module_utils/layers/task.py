# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a layer needs of the Ansible task that asks for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Protocol


class Module(Protocol):
    """An ``AnsibleModule``, or a `Part` of one."""

    @property
    def params(self) -> dict[str, Any]:
        """Return what was asked for."""

    @property
    def check_mode(self) -> bool:
        """Tell whether nothing may change."""

    def warn(self, warning: str) -> None:
        """Tell the user what is no failure."""


@dataclass(frozen=True)
class Part:
    """A task that asks for several layers, as one of them sees it.

    Attributes:
        params: What is asked of this layer.
        check_mode: Whether nothing may change.
        warn: Tells the user what is no failure.
    """

    params: dict[str, Any]
    check_mode: bool
    warn: Callable[[str], None]


class Clock:
    """Takes the time of phases that follow each other."""

    def __init__(self) -> None:
        """Begin the first one."""
        self.phases: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def note(self, phase: str) -> None:
        """End a phase, and begin the next one."""
        now = time.monotonic()
        self.add(phase, now - self._began)
        self._began = now

    def add(self, phase: str, seconds: float) -> None:
        """Add what was taken elsewhere."""
        self.phases.append({"phase": phase, "seconds": round(seconds, 3)})
