"""What a VM does with API keys that stay on the host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmw.services import records

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles

    from vmw.settings import Settings

SCHEMA = 1

INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What the proxy counts of requests, apart as their prices are."""


@dataclass(frozen=True)
class Day:
    """What one VM did on a day with one API.

    Args:
        day: ISO 8601, in UTC.
        api: The API's name.
        requests: How many requests got a key.
        input_tokens: What the replies say that the requests took, from a cache or into it too.
        output_tokens: What they say that they took themselves.
    """

    day: str
    api: str
    requests: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Account:
    """How a VM comes to keys, its limits, and what it did.

    Args:
        name: The VM.
        mode: `file` or `proxy`.
        profile: Its secrets profile.
        revoked: Whether its requests get no key any more.
        daily_requests: How many requests a day it may make, or 0.
        daily_tokens: How many tokens a day they may take, or 0.
        days: What it did, the last day last.
    """

    name: str
    mode: str
    profile: str
    revoked: bool
    daily_requests: int
    daily_tokens: int
    days: list[Day]


def account(settings: Settings, name: str) -> Account:
    """Return a VM's account.

    Raises:
        VmwError: There is no such VM.
    """
    instance, files = records.find(settings.state_dir, name)
    keys = instance.keys
    return Account(name, keys.mode, instance.secrets_profile, keys.revoked, keys.daily_requests, keys.daily_tokens, _days(files))


def _days(files: InstanceFiles) -> list[Day]:
    """Read what the proxy has counted; a file that is missing or cannot be read tells nothing."""
    try:
        counted: dict[str, dict[str, dict[str, Any]]] = json.loads(files.usage.read_text())["days"]
        return [
            Day(day, api, int(row["requests"]), sum(int(row.get(name, 0)) for name in INPUT), int(row.get("output_tokens", 0)))
            for day, apis in sorted(counted.items())
            for api, row in sorted(apis.items())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
