# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ports of guests that are published on the host's loopback: how they are written, and the systemd user units that carry them.

A port is `ssh -N -L` in a unit that lives as long as the VM's share daemon: no connection costs a handshake, as `ssh -W` for each
would, and while the VM is off nothing listens, where a socket unit for systemd-socket-proxyd would start it in a loop.
"""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import REPO
from ansible_collections.vmw.worktree.plugins.module_utils.naming import is_name
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import ShareSpec, command_words, unit_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

LOOPBACK6 = "::1"

FIRST_UNPRIVILEGED = 1024
"""The first port on which a user may listen: ip_unprivileged_port_start of ip-sysctl, by default."""

LAST = 65535

_SPEC = re.compile(r"([0-9]{1,6})(?::([0-9]{1,6}))?")
_UNIT = re.compile(r"vmw-(.+)-port-([1-9][0-9]{3,4})\.service")
# systemd.unit(5) ignores sections of such a name.
_MARK = re.compile(r"^\[X-vmw\]\nGuestPort=([1-9][0-9]{0,4})$", re.MULTILINE)

CONNECT = (
    "mac=$1; place=$2; shift 2; known=;"
    ' while read -r address _ flags hardware _; do [ "$flags $hardware" != "0x2 $mac" ] || known="$known $address"; done'
    ' < /proc/net/arp; for address in $known "$place"; do ssh "$@" -- "$address" && exit 0; done; exit 1'
)
"""Shell command that connects to a VM: libvirt would know its address too, and may not let the user's service manager in."""


@dataclass(frozen=True, order=True)
class Port:
    """A port of a guest and the host's port at which it is published.

    Attributes:
        host: The port on the host's loopback, by which a published port is found: no two have the same.
        guest: The port in the guest.
    """

    host: int
    guest: int

    def __str__(self) -> str:
        """Return it as users write it."""
        return f"{self.guest}:{self.host}"


@dataclass(frozen=True, order=True)
class Published:
    """A port of one VM, as its unit says."""

    name: str
    port: Port

    @property
    def unit(self) -> str:
        """Name the unit."""
        return port_unit_name(self.name, self.port.host)


def parse(spec: str) -> tuple[int, int | None]:
    """Read ``GUEST`` or ``GUEST:HOST``; the second is ``None`` where it is left out.

    Raises:
        VmwError: It is neither, or a number is no port.
    """
    found = _SPEC.fullmatch(spec)
    if not found:
        message = f"{spec[:40]!r} is no port"
        raise VmwError(message, "write the guest's port and, after a colon, the host's: 3000, or 3000:8080", "usage")
    numbers = [int(each) for each in found.groups() if each is not None]
    for number in numbers:
        if not 1 <= number <= LAST:
            message = f"{number} is no port"
            raise VmwError(message, f"ports go from 1 to {LAST}", "usage")
    return numbers[0], numbers[1] if len(numbers) > 1 else None


def to_publish(spec: str) -> Port:
    """Return the port that ``spec`` asks for, by default with the guest's number on the host.

    Raises:
        VmwError: It is none, or the host's takes root.
    """
    guest, host = parse(spec)
    host = guest if host is None else host
    if host < FIRST_UNPRIVILEGED:
        message = f"port {host} of the host is below {FIRST_UNPRIVILEGED}, where only root may listen"
        raise VmwError(message, f"choose another after a colon, for example `{guest}:{host + 8000}`", "usage")
    return Port(host, guest)


def to_remove(spec: str, published: Sequence[Port]) -> Port | None:
    """Return which of a VM's ports ``spec`` means: a number alone may be the guest's or the host's.

    Args:
        spec: What the user wrote.
        published: The VM's ports.

    Raises:
        VmwError: It is no port, or may mean several.
    """
    guest, host = parse(spec)
    exact = Port(guest if host is None else host, guest)
    if exact in published:
        return exact
    if host is not None:
        return None
    meant = [port for port in published if guest in {port.guest, port.host}]
    if len(meant) > 1:
        message = f"{guest} may mean {' or '.join(map(str, meant))}"
        raise VmwError(message, f"name both ports, for example `{meant[0]}`", "conflict")
    return meant[0] if meant else None


def port_unit_name(name: str, host: int) -> str:
    """Return the name of the unit that publishes at a port of the host; no share's unit is named like it."""
    return f"vmw-{name}-port-{host}.service"


def parse_unit_name(unit: str) -> tuple[str, int] | None:
    """Return the VM and the host's port of a unit's name, or ``None`` for other units."""
    found = _UNIT.fullmatch(unit)
    if not found or not is_name(found[1]) or not FIRST_UNPRIVILEGED <= int(found[2]) <= LAST:
        return None
    return found[1], int(found[2])


def share_unit(name: str) -> str:
    """Return the name of the unit that runs exactly as long as a VM does: its worktree's daemon."""
    return f"{unit_name(name, ShareSpec(REPO, '', read_only=False))}.service"


def published_at(path: Path) -> Published | None:
    """Return what a unit publishes; ``None`` when it is not one that vmw has written."""
    named = parse_unit_name(path.name)
    if named is None or path.is_symlink():
        return None
    try:
        mark = _MARK.search(path.read_text())
    except (OSError, ValueError):
        return None
    return Published(named[0], Port(named[1], int(mark[1]))) if mark else None


def all_published(directory: Path) -> list[Published]:
    """Return everything that is published, by VM and host port.

    Args:
        directory: That of the user's units.
    """
    return sorted(found for found in map(published_at, directory.glob("vmw-*-port-*.service")) if found)


def listen_addresses() -> list[str]:
    """Return the host's loopback addresses; one whose kernel has IPv6 switched off has one only."""
    return [LOOPBACK, LOOPBACK6] if can_bind(LOOPBACK6, 0) else [LOOPBACK]


def can_bind(address: str, port: int) -> bool:
    """Tell whether one could listen at an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As ssh does: connections that have ended are in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        if error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EACCES}:
            return False
        raise
    return True


def forward(port: Port, addresses: Iterable[str]) -> list[str]:
    """Return ssh's arguments that publish a port, at no other addresses than these."""
    places = [f"[{address}]" if ":" in address else address for address in addresses]
    return [word for place in places for word in ("-L", f"{place}:{port.host}:localhost:{port.guest}")]


@dataclass(frozen=True)
class Place:
    """Where a VM is reached.

    Attributes:
        mac: The address of its network card, by which the host's neighbours are searched first; ``-`` for no such search.
        name: A name or an address that leads to it.
    """

    mac: str
    name: str

    @classmethod
    def of(cls, instance: Instance) -> Place:
        """Return where an instance is reached; its options have the port."""
        return cls("-", LOOPBACK) if instance.is_session else cls(instance.mac.lower(), f"{instance.name}.local")


def service_unit(published: Published, place: Place, ssh: Sequence[str], addresses: Sequence[str]) -> str:
    """Return the unit that publishes a port while its VM runs.

    Args:
        published: The port.
        place: Where the VM is reached.
        ssh: The options of ssh that lead to the VM, but for the address.
        addresses: Where the host listens.
    """
    name, port = published.name, published.port
    words = ("-f", "-N", *ssh, *forward(port, addresses))
    return f"""\
[Unit]
Description=vmw: port {port.guest} of {name} at {addresses[0]}:{port.host}
# Runs as long as the VM does: it is started with the share's daemon, and ends with it.
BindsTo={share_unit(name)}
After={share_unit(name)}
CollectMode=inactive-or-failed
StartLimitIntervalSec=0

[Service]
# ssh goes into the background when it listens.
Type=forking
ExecStart={command_words("/bin/sh", "-c", CONNECT, "sh", place.mac, place.name, *words)}
TimeoutStartSec=30
# The guest may be booting, or start anew by itself. The pauses become longer, for a key that it does not take.
Restart=always
RestartSec=1
RestartSteps=10
RestartMaxDelaySec=10
# What ssh exits with when it is told to end.
SuccessExitStatus=255

[Install]
WantedBy={share_unit(name)}

[X-vmw]
GuestPort={port.guest}
"""


def describe(ports: Iterable[Port]) -> str:
    """Return a VM's ports as lines, for a diff."""
    return "".join(f"{LOOPBACK}:{port.host} -> {port.guest}\n" for port in sorted(ports))
