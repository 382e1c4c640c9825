"""Requests that are as they should be, for tests that change one thing."""

from __future__ import annotations

import json
from typing import Any

from vmw_filter.policy import Mode, Policy

WANTED: dict[str, Any] = {
    "schema": 1,
    "verb": "set",
    "name": "feature-x",
    "tap": "vmw-1a2b3c4d",
    "mac": "52:54:00:aa:bb:cc",
    "bridge": "br0",
    "mode": "internet",
    "proxy_port": 47100,
}


def line(**changes: object) -> bytes:
    """Return a request with some fields changed; one that is None is left out."""
    return json.dumps({key: value for key, value in {**WANTED, **changes}.items() if value is not None}).encode()


def policy(number: int = 1, mode: Mode = Mode.INTERNET, port: int = 0) -> Policy:
    return Policy(f"vm{number}", f"vmw-0000000{number}", f"52:54:00:00:00:0{number}", "br0", mode, port)
