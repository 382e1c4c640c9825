"""The packet filter of the VMs' network cards: what leaves a tap, and what arrives at one."""

from __future__ import annotations

INTERFACE = 1
"""Version of the requests and replies."""


class FilterError(Exception):
    """An expected failure.

    Args:
        message: What happened, one sentence without a full stop.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the parts apart, as the reply has them apart."""
        super().__init__(message)
        self.message = message
        self.hint = hint
