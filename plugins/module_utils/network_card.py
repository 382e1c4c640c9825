# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The MAC address of a new VM's network card."""

from __future__ import annotations

import hashlib
import os
import re
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.instance import all_instances

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

MACHINE_ID = Path("/etc/machine-id")

CARDS = 16
"""How many addresses are used again and again; more only while more VMs are there at once."""

_IN_DOMAIN = re.compile(r"<mac address=[\"']([0-9a-f:]{17})[\"']")


def mac_address(name: str, taken: AbstractSet[str]) -> str:
    """Choose the MAC address of a VM's network card.

    A VM made anew under its name gets the one that it had, unless another has it by now, so what programs remember of
    ``NAME.local`` stays true. And all of this user's VMs on this host share a few: a DHCP server, which remembers each for a day,
    does not run out of addresses, and need not try first whether one is free, which takes dnsmasq three seconds.

    Args:
        name: The VM's name.
        taken: The addresses that are not free.
    """
    try:
        machine = MACHINE_ID.read_text().strip()
    except OSError:
        machine = ""
    first = hashlib.sha256(name.encode()).digest()[0]
    for number in chain(((first + step) % CARDS for step in range(CARDS)), count(CARDS)):
        tail = hashlib.sha256(f"vmw:{machine}:{os.getuid()}:{number}".encode()).digest()[:3]
        # The prefix of QEMU's and libvirt's own addresses.
        address = "52:54:00:" + tail.hex(":")
        if address not in taken:
            break
    return address


def taken_addresses(state: State) -> set[str]:
    """Return the addresses of all VMs of this user, also of those whose record cannot be read."""
    taken = {instance.mac for instance in all_instances(state)}
    for path in state.instances.glob("*/domain.xml"):
        taken.update(_IN_DOMAIN.findall(path.read_text(errors="replace")))
    return taken
