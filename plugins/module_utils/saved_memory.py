# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What it takes to save the memory of a VM with shares, and what a failure to do so means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Daemon

NEEDED = "QEMU 8.2, virtiofsd 1.11 and a libvirt of that time or later are needed; `vmw doctor` tells what is here"
"""Source: the release notes of QEMU 8.2 and virtiofsd 1.11; libvirt refuses it by itself where it does not know how."""

SYSTEM_DIRECTORY = Path("/var/lib/libvirt/qemu/save")
SESSION_DIRECTORY = Path("~/.config/libvirt/qemu/save")
"""Where libvirt keeps the memory of its domains: virDomainManagedSave, for the system and for a user."""

SPARE_BYTES = 256 << 20
"""Room that stays free beside a VM's memory; a full ``/var`` harms more than the VM."""

_TOO_OLD = re.compile(r"migration with .*virtiofs|non-migratable|does not support migration|cannot migrate domain")
"""How libvirt words that it, QEMU or virtiofsd cannot do it: qemu_migration.c, and QEMU's own words in it."""


def check_daemon(daemon: Daemon) -> None:
    """See that the shares' daemon can hand over what it knows of a guest's files.

    Args:
        daemon: The installed virtiofsd. A daemon that serves a VM since an upgrade may still be older; QEMU then says so.

    Raises:
        VmwError: It is too old.
    """
    if "migration-mode" not in daemon.options:
        message = f"{daemon.binary} is too old to suspend a VM: it cannot save which files the guest has open"
        raise VmwError(message, NEEDED, "host_not_ready")


def save_directory(libvirt_uri: str) -> Path:
    """Return the directory in which libvirt keeps saved memory."""
    return SESSION_DIRECTORY.expanduser() if is_session(libvirt_uri) else SYSTEM_DIRECTORY


def free_bytes(directory: Path) -> int:
    """Return the room in a directory, or in the nearest above it that can be looked at, as libvirt's own is closed to users."""
    for place in (directory, *directory.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_bavail * status.f_frsize
    return 0


def check_room(name: str, needed: int, directory: Path) -> None:
    """See that a VM's memory fits on the host's disk.

    Args:
        name: The VM.
        needed: The most that its memory takes, in bytes.
        directory: Where libvirt keeps it.

    Raises:
        VmwError: It does not, with `SPARE_BYTES` to spare.
    """
    free = free_bytes(directory)
    if free < needed + SPARE_BYTES:
        message = (
            f"saving the memory of {name} may take {needed >> 20} MiB, "
            f"and only {free >> 20} MiB are free on the file system of {directory}"
        )
        raise VmwError(message, f"make room there, or shut it down with `vmw stop {name}`; it runs on")


def failure(name: str, reason: str, state: str) -> VmwError:
    """Return the error for a save that libvirt refused or gave up.

    Args:
        name: The VM.
        reason: libvirt's words.
        state: What the VM does now: ``running``, ``paused`` or ``off``.
    """
    if _TOO_OLD.search(reason):
        return VmwError(f"this host cannot save the memory of {name}, which runs on: {reason}", NEEDED, "host_not_ready")
    now, hint = {
        "running": ("runs on", "`vmw logs` and libvirt's log in /var/log/libvirt/qemu may tell more; is the disk full?"),
        "paused": ("is paused", f"`virsh resume {name}` lets it run on"),
        "off": ("is off", f"`vmw start {name}` starts it anew"),
    }[state]
    return VmwError(f"the memory of {name} could not be saved, and the VM {now}: {reason}", hint)
