# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The calling user's own systemd units, and the service manager that runs them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import command

if TYPE_CHECKING:
    from collections.abc import Iterable


def unit_directory() -> Path:
    """Return the directory of the user's own units."""
    return Path("~/.config/systemd/user").expanduser()


def manager_runs() -> bool:
    """Tell whether the service manager runs: without lingering and login there is none, and so no unit."""
    return Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "systemd/private").exists()


def systemctl(*argv: str) -> str:
    """Talk to the user's service manager, which lingers and so runs without a login."""
    os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return command("systemctl", "--user", *argv, hint="is lingering on? `vmw doctor` tells")


def loaded_units(units: list[str]) -> list[str]:
    """Return which of some units systemd holds; one whose file is gone runs on."""
    if not manager_runs():
        return []
    listing = systemctl("list-units", "--all", "--plain", "--no-legend", *units)
    rows = [line.split() for line in listing.splitlines()]
    return [row[0] for row in rows if row[1:3] != ["not-found", "inactive"]]


def remove_units(loaded: list[str], left: Iterable[Path]) -> None:
    """Stop units and remove their files.

    Args:
        loaded: Those that systemd holds.
        left: The files, and the links to them; one may go with its unit.
    """
    left = list(left)
    if loaded:
        systemctl("stop", *loaded)
    for path in left:
        path.unlink(missing_ok=True)
    if left:
        systemctl("daemon-reload")
    if loaded:
        # One that failed in the end stays in the list without its file. A pattern, unlike a name, may fit nothing, and one that
        # leaves the list by itself at this moment is no failure either.
        with contextlib.suppress(VmwError):
            systemctl("reset-failed", *(f"{unit[:-1]}[{unit[-1]}]" for unit in loaded))
