"""The table of a run's phases."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable

from vmw.display import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmw.runner.resources import Resources
    from vmw.runner.timings import Timing

HEADER = ("PHASE", "SECONDS")


def show(timings: Sequence[Timing], resources: Resources) -> None:
    """Print the phases, what modules reported indented below their role, and the resources, on stderr."""
    rows = []
    for timing in timings:
        rows.append([printable(timing.phase), _cell(timing.seconds)])
        rows.extend([f"  {printable(detail.phase)}", _cell(detail.seconds)] for detail in timing.details)
    console.table(HEADER, rows, sys.stderr)
    console.say(
        f"CPU time and peak memory: wrapper {resources.wrapper_cpu_seconds:.2f} s, {resources.wrapper_peak_mib:.0f} MiB; "
        f"Ansible {resources.ansible_cpu_seconds:.2f} s, {resources.ansible_peak_mib:.0f} MiB"
    )


def _cell(seconds: float) -> str:
    return f"{seconds:.2f}".rjust(len(HEADER[1]))
