# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Where the host itself is on the bridge of its VMs."""

from __future__ import annotations

import json

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import command


def bridge_address(bridge: str) -> str:
    """Return the host's first global IPv4 address on a bridge: ip-address(8).

    Args:
        bridge: The bridge's name.

    Raises:
        VmwError: It has none, or there is no such bridge.
    """
    try:
        told = json.loads(command("ip", "-4", "-json", "address", "show", "dev", bridge, "scope", "global") or "[]")
    except ValueError:
        told = []
    addresses = [each["local"] for link in told for each in link.get("addr_info", []) if "local" in each]
    if not addresses:
        message = f"the host has no address on the bridge {bridge}"
        raise VmwError(message, "`vmw host` sets the bridge up", "host_not_ready")
    return str(addresses[0])
