"""Access to libvirt's socket for a process that is older than the user's membership in the group."""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmw.runner.processes import STARTER

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = "libvirt"
MARKER = STARTER
"""Set for the process that was started with the group, also so that a failure never becomes an endless loop."""


@dataclass(frozen=True)
class Membership:
    """How the calling user relates to the group.

    Args:
        in_database: The user is a member; new logins will have the group.
        in_process: This process has it.
    """

    in_database: bool
    in_process: bool

    @property
    def stale(self) -> bool:
        """Tell whether a new login would have the group and this process has not."""
        return self.in_database and not self.in_process


def membership() -> Membership:
    """Compare the group database with this process; root needs no group."""
    if os.geteuid() == 0:
        return Membership(in_database=True, in_process=True)
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        return Membership(in_database=False, in_process=False)
    user = pwd.getpwuid(os.getuid())
    in_database = user.pw_name in group.gr_mem or user.pw_gid == group.gr_gid
    in_process = group.gr_gid in {*os.getgroups(), os.getegid()}
    return Membership(in_database=in_database, in_process=in_process)


def sg_argv(command: Sequence[str], primary_group: str) -> list[str]:
    """Return a command that runs ``command`` with the group and keeps the primary group.

    `sg` makes its group the primary one, so files would belong to libvirt's group; a second `sg` puts the first back.
    """
    inner = shlex.join(["exec", *command])
    return ["sg", GROUP, "-c", shlex.join(["exec", "sg", primary_group, "-c", inner])]


def reexec_argv(command: Sequence[str]) -> list[str] | None:
    """Return the command that starts ``command`` with the group, or None when that is not needed or cannot help."""
    if os.environ.get(MARKER) or not membership().stale or not shutil.which("sg"):
        return None
    try:
        primary = grp.getgrgid(os.getgid()).gr_name
    except KeyError:
        # A primary group without a name is one that sg cannot bring back.
        return None
    return sg_argv(command, primary)
