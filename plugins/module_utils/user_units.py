# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The calling user's own systemd units, and the service manager that runs them."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.state import command


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
