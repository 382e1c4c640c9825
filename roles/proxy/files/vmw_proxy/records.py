# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Who asks: the VM whose network card a connection comes from, and what its record says it may do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmw_proxy.names import Names

if TYPE_CHECKING:
    from collections.abc import Iterator

ARP = Path("/proc/net/arp")
COLUMNS = 6
COMPLETE = 0x2
"""Flag of an entry that is known: ATF_COM of linux/if_arp.h."""

LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
"""The form of a VM's and of a profile's name, which therefore lead out of no directory."""

MODES = frozenset({"internet", "allowlist", "open", "offline"})


@dataclass(frozen=True)
class Vm:
    """What the proxy wants to know of a VM.

    Attributes:
        directory: Its directory on the host.
        uuid: Tells it from others that had its name.
        mode: Of its network: ``internet``, ``allowlist``, ``open`` or ``offline``.
        allow: The names allowed for it beside the ready list.
        proxied: Whether its keys stay on the host.
        revoked: Whether they are withdrawn from it.
        daily_requests: How many requests with them it may make a day; 0 is no limit.
        daily_tokens: How many tokens these may take; 0 is no limit.
        profile: The secrets profile that they are in.
    """

    directory: Path
    uuid: str
    mode: str
    allow: Names
    proxied: bool
    revoked: bool
    daily_requests: int
    daily_tokens: int
    profile: str

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.directory.name


def hardware_address(table: str, address: str, bridge: str) -> str | None:
    """Return the MAC address at which the host reaches an IPv4 address on a bridge.

    Args:
        table: The text of /proc/net/arp, see proc_net_arp of proc(5).
        address: The peer's address.
        bridge: The bridge's name; what is reached by other ways is no VM.
    """
    for row in map(str.split, table.splitlines()[1:]):
        if len(row) >= COLUMNS and row[0] == address and row[-1] == bridge and int(row[2], 16) & COMPLETE:
            return row[3].lower()
    return None


def read_vm(directory: Path) -> tuple[str, Vm] | None:
    """Read a VM's record; return its MAC address with it, or nothing where it cannot be read."""
    try:
        data = json.loads((directory / "instance.json").read_text())
        if data["name"] != directory.name:
            return None
        return str(data["mac"]).lower(), _vm(directory, data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _vm(directory: Path, data: dict[str, Any]) -> Vm:
    egress, keys = data.get("egress") or {}, data.get("keys") or {}
    mode, profile = str(egress.get("mode", "internet")), str(data.get("secrets_profile", "default"))
    return Vm(
        directory=directory,
        uuid=str(data["uuid"]),
        # A word that this release does not know gives nothing away.
        mode=mode if mode in MODES else "offline",
        allow=Names.of(str(entry) for entry in egress.get("allow", [])),
        proxied=keys.get("mode") == "proxy" and LABEL.fullmatch(profile) is not None,
        revoked=bool(keys.get("revoked", False)),
        daily_requests=int(keys.get("daily_requests", 0)),
        daily_tokens=int(keys.get("daily_tokens", 0)),
        profile=profile,
    )


class Records:
    """The VMs' records, looked at for each question, as the user changes them while VMs run; read anew when they are others.

    Args:
        instances: The directory with one directory for each VM.
        arp: The host's table of neighbours.
    """

    def __init__(self, instances: Path, arp: Path = ARP) -> None:
        """Keep where they are."""
        self.instances = instances
        self.arp = arp
        self._known: dict[Path, tuple[tuple[int, int, int], tuple[str, Vm] | None]] = {}

    def _all(self) -> Iterator[tuple[str, Vm]]:
        records = [path for path in sorted(self.instances.glob("*/instance.json")) if LABEL.fullmatch(path.parent.name)]
        self._known = {path: self._known[path] for path in records if path in self._known}
        for record in records:
            found = self._read(record.parent)
            if found:
                yield found

    def _read(self, directory: Path) -> tuple[str, Vm] | None:
        """Return a VM as its record tells it now, or nothing where there is none or the VM is being removed."""
        record = directory / "instance.json"
        try:
            status = record.stat()
        except OSError:
            return None
        if (directory / "leaving").exists():
            return None
        # A record is replaced, never changed in place.
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(record)
        if known is None or known[0] != stamp:
            known = self._known[record] = (stamp, read_vm(directory))
        return known[1]

    def who(self, address: str, bridge: str) -> Vm | None:
        """Return the VM that a connection comes from, or nothing: then it is nobody's, or it is not certain whose.

        Args:
            address: The peer's address.
            bridge: The bridge on which VMs are.
        """
        try:
            mac = hardware_address(self.arp.read_text(), address, bridge)
        except (OSError, ValueError):
            return None
        found = [vm for each, vm in self._all() if each == mac]
        return found[0] if len(found) == 1 else None

    def again(self, vm: Vm) -> Vm | None:
        """Return what the record of a VM says now, or nothing where there is none any more."""
        found = self._read(vm.directory)
        return found[1] if found and found[1].uuid == vm.uuid else None
