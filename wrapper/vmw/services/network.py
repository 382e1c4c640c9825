"""What a VM may reach in the network, and what it was refused."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import packet_filter
from ansible_collections.vmw.worktree.plugins.module_utils.egress import check_host
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.session import check_lists, check_policy

from vmw.errors import ExitCode, VmwError
from vmw.services import records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

    from vmw.settings import Settings

SCHEMA = 1

FOLLOW_SECONDS = 1.0
"""How often the log is looked at while it is followed: the filter is asked with a process each time."""

MAXIMUM_NAME = 253
"""Longest DNS name (RFC 1035, section 2.3.4)."""


@dataclass(frozen=True)
class Refused:
    """What a VM was refused, all attempts at one place together.

    Args:
        time: The last attempt, ISO 8601 in UTC.
        address: The destination's address; None where the proxy refused a name.
        host: The destination's name, where it is known.
        protocol: `tcp`, `udp`, `icmp` and the like.
        port: The destination's port, or None where the protocol has none.
        count: How many packets or requests were refused.
    """

    time: str
    address: str | None
    host: str | None
    protocol: str
    port: int | None
    count: int


def check_hosts(hosts: Sequence[str]) -> list[str]:
    """Return the hosts' names as they are compared, before Ansible is started for them.

    Raises:
        VmwError: One of them is no name.
    """
    try:
        return [check_host(host) for host in hosts]
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error


def check_change(instance: Instance, mode: str = "", hosts: Sequence[str] = ()) -> None:
    """Refuse what nobody would enforce, before Ansible is started for it.

    Raises:
        VmwError: The VM runs under the user's own libvirt.
    """
    if instance.is_session:
        try:
            check_policy(mode)
            check_lists(list(hosts))
        except CollectionError as error:
            raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error


def refused(settings: Settings, name: str) -> list[Refused]:
    """Return what a VM was refused, the newest last.

    Raises:
        VmwError: There is no such VM, none is kept for it, or the packet filter does not answer.
    """
    instance, files = records.find(settings.state_dir, name)
    if instance.is_session:
        message = f"{name} runs under qemu:///session, where nothing is refused and nobody keeps a log"
        raise VmwError(message, "use qemu:///system (vmw_libvirt_uri) for VMs that are to reach less", ExitCode.USAGE)
    try:
        told = packet_filter.ask("refused", name=name)["refused"]
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error
    return sorted([*_by_filter(told), *_by_proxy(files)], key=lambda each: each.time)


def _by_filter(told: list[dict[str, object]]) -> Iterator[Refused]:
    for each in told:
        port = each.get("port")
        yield Refused(
            time=str(each["time"]),
            address=str(each["address"]),
            host=None,
            protocol=str(each["protocol"]),
            port=int(str(port)) if port else None,
            count=int(str(each.get("count", 1))),
        )


def _by_proxy(files: InstanceFiles) -> Iterator[Refused]:
    """Read what the proxy wrote down; a file that cannot be read tells nothing."""
    try:
        rows = json.loads(files.refused.read_text())["refused"]
        for row in rows:
            host = printable(str(row["host"]))[:MAXIMUM_NAME]
            yield Refused(str(row["time"]), None, host, "tcp", int(row["port"]), int(row["count"]))
    except (OSError, ValueError, KeyError, TypeError):
        return


def follow(settings: Settings, name: str) -> Iterator[Refused]:
    """Return what a VM was refused and, as it happens, is refused; see `refused` for what is raised."""
    seen: dict[tuple[object, ...], tuple[str, int]] = {}
    while True:
        for each in refused(settings, name):
            place = (each.address, each.host, each.protocol, each.port)
            if seen.get(place, ("", -1))[1] != each.count:
                seen[place] = (each.time, each.count)
                yield each
        time.sleep(FOLLOW_SECONDS)
