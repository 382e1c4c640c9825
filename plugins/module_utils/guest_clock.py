# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell a guest that was suspended what it missed."""

from __future__ import annotations

import time
from typing import Any, Callable

from ansible_collections.vmw.worktree.plugins.module_utils.guest_agent import (
    CLOCK_TOLERANCE,
    clock_offset,
    renew_lease,
    set_clock,
)
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import is_running

AGENT_SECONDS = 60.0
"""How long to wait for the guest's agent."""

POLL_SECONDS = 0.1

# libvirt-python has no type information of its own, hence Any for a domain.


def wait_for_agent(domain: Any, timeout: float) -> float | None:  # noqa: ANN401
    """Return the offset of the guest's clock as soon as its agent tells it.

    Args:
        domain: The domain.
        timeout: How long to wait, in seconds.

    Returns:
        Seconds, or ``None`` when the agent did not answer or the domain went off.
    """
    deadline = time.monotonic() + timeout
    while is_running(domain):
        offset = clock_offset(domain)
        if offset is not None or time.monotonic() >= deadline:
            return offset
        time.sleep(POLL_SECONDS)
    return None


def wake(name: str, domain: Any, mac: str, warn: Callable[[str], None]) -> None:  # noqa: ANN401
    """Give a guest that goes on from saved memory the time, and have it ask for its address again: the lease may have run out.

    Nothing fails when its agent does not answer: the wait for the guest tells why.

    Args:
        name: The VM.
        domain: Its domain.
        mac: The MAC address of its interface.
        warn: Tells the user what was not done.
    """
    offset = wait_for_agent(domain, AGENT_SECONDS)
    if offset is None:
        warn(f"the clock of {name} was not set, as its guest agent does not answer")
        return
    if abs(offset) > CLOCK_TOLERANCE and not set_clock(domain):
        warn(f"the clock of {name} could not be set and is {abs(offset):.0f} s off")
    renew_lease(domain, mac)
