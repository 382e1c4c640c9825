# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Turns at starting: emulated guests that start at once take the CPUs from each other until none of them comes up in time."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import LOCK_POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

WAIT_SECONDS = 600.0
"""After this time a guest starts beside the others: one that never comes up holds nobody back for good."""


def places(virt_type: str) -> int:
    """Return how many guests start at a time, 0 for any number: an emulated one keeps a CPU busy until it is up."""
    return len(os.sched_getaffinity(0)) if virt_type == "qemu" else 0


@contextlib.contextmanager
def turn(state: State, virt_type: str, check: Callable[[], object]) -> Iterator[bool]:
    """Wait until few enough of this user's guests start, and be one of them.

    Args:
        state: Where the user's VMs are.
        virt_type: The guest's.
        check: Called again and again meanwhile; raises when the guest need not start any more.

    Yields:
        Whether there was something to wait for.
    """
    count, waited = places(virt_type), False
    with contextlib.ExitStack() as stack:
        deadline = time.monotonic() + WAIT_SECONDS
        while count and not _take(stack, state, count) and time.monotonic() < deadline:
            waited = True
            check()
            time.sleep(LOCK_POLL_SECONDS)
        yield waited


def _take(stack: contextlib.ExitStack, state: State, count: int) -> bool:
    for number in range(count):
        with contextlib.suppress(VmwError):
            stack.enter_context(state.lock(f"starting-{number}", 0))
            return True
    return False
