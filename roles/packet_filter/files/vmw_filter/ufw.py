"""What ufw lets through for VMs, which only root may read."""

from __future__ import annotations

import re
from pathlib import Path

RULES = Path("/etc/ufw/user.rules")
_OPENING = re.compile(
    r"^### tuple ### (?:(?P<route>route:allow) any any|allow (?P<protocol>\w+) (?P<port>\d+)) \S+ \S+ \S+ in_(?P<device>\S+)"
    r"(?: comment=\w+)?$",
    re.MULTILINE | re.ASCII,
)


def openings() -> list[str]:
    """Return what is let in on one network device, as in ``br0 udp 67`` or ``br0 route``, also while ufw is off."""
    try:
        text = RULES.read_text(errors="replace")
    except OSError:
        return []
    return sorted(
        f"{found['device']} route" if found["route"] else f"{found['device']} {found['protocol']} {found['port']}"
        for found in _OPENING.finditer(text)
    )
