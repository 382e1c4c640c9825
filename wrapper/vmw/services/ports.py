"""The ports of VMs that are published on this machine's loopback."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import parse, to_publish
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK

from vmw.errors import ExitCode, VmwError
from vmw.services import records, virsh
from vmw.services.units import published

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.port_units import Published

    from vmw.settings import Settings

SCHEMA = 1

QUERY_SECONDS = 5.0

STATES = {"active": "open", "activating": "connecting", "inactive": "closed", "failed": "closed", "deactivating": "closed"}
"""What systemd's states mean for whoever connects; while its VM is off, a port is closed."""


@dataclass(frozen=True)
class PortRow:
    """One published port.

    Args:
        name: The VM.
        guest_port: The port in the guest.
        host_port: The port on the host.
        address: Where the host listens; at `::1` too, where there is one.
        state: `open`, `connecting`, `closed`, or `unknown` where systemd does not answer.
    """

    name: str
    guest_port: int
    host_port: int
    address: str
    state: str


def check(spec: str, *, remove: bool) -> None:
    """See that a port is one, before Ansible is started for it.

    Raises:
        VmwError: It is not, or takes root to publish.
    """
    try:
        if remove:
            parse(spec)
        else:
            to_publish(spec)
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error


def list_ports(settings: Settings, name: str | None) -> list[PortRow]:
    """Return the published ports.

    Args:
        settings: The user's settings.
        name: The one VM whose ports are wanted; all by default.

    Raises:
        VmwError: There is nothing of a VM with this name.
    """
    found = [each for each in published() if name in {None, each.name}]
    if name is not None and not found and records.recorded(settings.state_dir, name) is None:
        raise records.unknown(settings.state_dir, name)
    states = _states(found)
    return [PortRow(each.name, each.port.guest, each.port.host, LOOPBACK, states.get(each.unit, "unknown")) for each in found]


def _states(ports: list[Published]) -> dict[str, str]:
    """Return the states by unit, asked for with one process; nothing where systemd does not answer."""
    if not ports:
        return {}
    units = [each.unit for each in ports]
    try:
        done = subprocess.run(
            ["systemctl", "--user", "show", "--property=Id,ActiveState", *units],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=QUERY_SECONDS,
            env=virsh.environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    states = {}
    for block in done.stdout.split("\n\n"):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        states[values.get("Id", "")] = STATES.get(values.get("ActiveState", ""), "unknown")
    return states
