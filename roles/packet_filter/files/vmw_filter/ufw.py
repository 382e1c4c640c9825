"""What ufw lets through for VMs, which only root may read."""

from __future__ import annotations

import re
from pathlib import Path

RULES = Path("/etc/ufw/user.rules")
_MARK = b"vmw".hex()
"""The comment of the rules that the set-up of the host adds, as ufw writes comments down."""
_OPENING = re.compile(
    rf"^### tuple ### (?:(?P<route>route:allow) any any|allow (?P<protocol>\w+) (?P<port>\d+)) \S+ \S+ \S+ in_(?P<device>\S+)"
    rf" comment={_MARK}$",
    re.MULTILINE | re.ASCII,
)


def openings() -> list[str]:
    """Return what the set-up's rules let in, as in ``br0 udp 67`` or ``br0 route``, also while ufw is off."""
    try:
        text = RULES.read_text(errors="replace")
    except OSError:
        return []
    return sorted(
        f"{found['device']} route" if found["route"] else f"{found['device']} {found['protocol']} {found['port']}"
        for found in _OPENING.finditer(text)
    )
