# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decide whether a guest runs under KVM or under QEMU's software emulation."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

KVM_DEVICE = Path("/dev/kvm")
CPU_INFO = Path("/proc/cpuinfo")


def cpu_virtualisation(cpu_info: str) -> str:
    """Return the CPU's virtualisation extension, ``vmx`` or ``svm``, or an empty string.

    Args:
        cpu_info: The text of ``/proc/cpuinfo``.
    """
    found = re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpu_info, re.MULTILINE)
    return found.group(1) if found else ""


def kvm_obstacle() -> str:
    """Say why KVM cannot run a guest here; an empty string when it can.

    A ``/dev/kvm`` that opens is not enough: nested and para-virtual hosts offer one without vmx or svm that hangs a stock kernel.
    """
    if not cpu_virtualisation(CPU_INFO.read_text()):
        return "the CPU shows neither vmx nor svm (is virtualisation switched off in the firmware?)"
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # QEMU's user is in group kvm even where the calling user is not.
        return "" if error.errno in {errno.EACCES, errno.EPERM} else f"/dev/kvm does not open: {error.strerror}"
    return ""


def virt_type(setting: str) -> str:
    """Resolve the ``vmw_virt_type`` setting to libvirt's domain type.

    Args:
        setting: ``auto``, ``kvm`` or ``qemu``.

    Returns:
        ``kvm`` or ``qemu``.

    Raises:
        VmwError: KVM was asked for and cannot be had.
    """
    obstacle = kvm_obstacle() if setting in {"auto", "kvm"} else ""
    if setting == "kvm" and obstacle:
        message = f"KVM was asked for, but {obstacle}"
        raise VmwError(message, "set vmw_virt_type to `auto` or `qemu`, or see `vmw doctor`", "host_not_ready")
    return "qemu" if obstacle or setting == "qemu" else "kvm"
