"""Data that several of the wrapper's tests read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
STREAMS = Path(__file__).parent / "streams"


def stream(name: str) -> list[dict[str, Any]]:
    """Return a recorded stream of events."""
    events: list[dict[str, Any]] = json.loads((STREAMS / f"{name}.json").read_text())
    return events
