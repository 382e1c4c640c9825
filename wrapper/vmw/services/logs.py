"""Where a VM, its share daemons and its ports wrote down what happened."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import connections, unit_names
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory

from vmw.errors import ExitCode, VmwError
from vmw.services import records
from vmw.services.units import published, units_of

if TYPE_CHECKING:
    from pathlib import Path

    from vmw.settings import Settings


@dataclass(frozen=True)
class Source:
    """One log: what it is, and either the command that shows it or why it cannot be shown."""

    title: str
    argv: list[str]
    obstacle: str = ""
    hint: str = ""
    follows: bool = False


def _console(path: Path, name: str, *, follow: bool) -> Source:
    title = f"console of {name} ({path})"
    if not path.exists():
        return Source(title, [], "there is none yet", f"start the VM with `vmw start {name}`")
    if not os.access(path, os.R_OK):
        return Source(title, [], "it cannot be read", f"look at it with `sudo cat {shlex.quote(str(path))}`")
    return Source(title, ["tail", "-n", "+1", *(["-F"] if follow else []), "--", str(path)], follows=follow)


def _journal(name: str, units: list[str], *, follow: bool) -> Source:
    title = f"journal of {name}'s share daemons and ports"
    if not units:
        return Source(title, [], "it has no units", f"`vmw destroy {name}` and a new `vmw spawn` make them")
    if not shutil.which("journalctl"):
        return Source(title, [], "journalctl is not installed")
    selection = [argument for unit in units for argument in ("--user-unit", unit)]
    more = ["--follow", "--lines", "50"] if follow else []
    return Source(title, ["journalctl", "--quiet", "--no-pager", "--output", "short-iso", *more, *selection], follows=follow)


def sources(settings: Settings, name: str, *, follow: bool) -> list[Source]:
    """Return the logs of a VM; passt's journal among them, where that is its network.

    Raises:
        VmwError: There is nothing of a VM with this name.
    """
    directory = settings.state_dir / "instances" / name
    if not name or "/" in name or name.startswith(".") or not directory.is_dir():
        raise records.unknown(settings.state_dir, name)
    networks = [connections(name)] if (unit_directory() / unit_names(name)[0]).exists() else []
    units = [*units_of(name, "service"), *networks, *(each.unit for each in published() if each.name == name)]
    return [_console(directory / "console.log", name, follow=follow), _journal(name, units, follow=follow)]


def nothing_to_show(name: str) -> VmwError:
    """Return the error for a VM without any log."""
    return VmwError(f"there are no logs of {name}", f"start the VM with `vmw start {name}`", ExitCode.FAILED)
