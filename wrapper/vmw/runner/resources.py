"""What a playbook run took of the machine: processor time and memory."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Resources:
    """What a run took.

    Args:
        wrapper_cpu_seconds: Processor time of this process since its start.
        wrapper_peak_mib: The most memory that it had at once.
        ansible_cpu_seconds: Processor time of Ansible and of what it ran and waited for, so not of services such as QEMU.
        ansible_peak_mib: The most memory that one process had of all that this one has started so far.
    """

    wrapper_cpu_seconds: float
    wrapper_peak_mib: float
    ansible_cpu_seconds: float
    ansible_peak_mib: float


def children_cpu_seconds() -> float:
    """Return the processor time of all ended processes that this one started."""
    return _cpu_seconds(resource.getrusage(resource.RUSAGE_CHILDREN))


def measure(children_before: float) -> Resources:
    """Return what a run took that has just ended.

    Args:
        children_before: ``children_cpu_seconds`` from before the run.
    """
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return Resources(
        wrapper_cpu_seconds=round(_cpu_seconds(own), 3),
        wrapper_peak_mib=round((_peak_kib() or own.ru_maxrss) / KIB_PER_MIB, 1),
        ansible_cpu_seconds=round(_cpu_seconds(children) - children_before, 3),
        ansible_peak_mib=round(children.ru_maxrss / KIB_PER_MIB, 1),
    )


def _cpu_seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _peak_kib() -> int:
    """Return this program's peak memory in KiB, or 0; getrusage(2) also counts what the process was before execve(2)."""
    try:
        lines = STATUS.read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
    except (OSError, ValueError, IndexError):
        return 0
