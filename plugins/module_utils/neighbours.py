# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The host's table of who was reached at which IPv4 address: proc_net_arp of proc(5)."""

from __future__ import annotations

from pathlib import Path

TABLE = Path("/proc/net/arp")
COMPLETE = "0x2"
"""Flags of an entry that is known: ATF_COM of linux/if_arp.h."""


def neighbours() -> dict[str, str]:
    """Return the MAC addresses, in small letters, by IPv4 address; empty where the table cannot be read."""
    try:
        rows = [line.split() for line in TABLE.read_text().splitlines()[1:]]
    except OSError:
        return {}
    return {row[0]: row[3].lower() for row in rows if len(row) > 3 and row[2] == COMPLETE}  # noqa: PLR2004 - up to the MAC
