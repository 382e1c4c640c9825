# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How ssh is called for a VM: with the host key that was made for it, whatever its address."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def config_path(path: Path) -> str:
    """Write a path so that ssh takes it as one file and expands no token in it (ssh_config(5), UserKnownHostsFile)."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def pinned(name: str, known_hosts: Path) -> list[str]:
    """Return the options by which ssh takes no other machine for the VM.

    Args:
        name: The VM's name, under which its host key is pinned.
        known_hosts: The file with the pinned key.
    """
    settings = (f"HostKeyAlias={name}", f"UserKnownHostsFile={config_path(known_hosts)}", "StrictHostKeyChecking=yes")
    return [word for setting in settings for word in ("-o", setting)]


def git_ssh_command(name: str, user: str, known_hosts: Path) -> str:
    """Return GIT_SSH_COMMAND for git on the host: it asks nothing, and lends the guest neither agent, port nor display.

    Args:
        name: The VM's name, under which its host key is pinned.
        user: The user in the guest.
        known_hosts: The file with the pinned key.
    """
    settings = (
        "BatchMode=yes",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        # Nor the host's tickets, which ssh would offer to whoever answers.
        "GSSAPIAuthentication=no",
        "PermitLocalCommand=no",
        # A connection that is shared with a login may have the agent forwarded.
        "ControlPath=none",
        # A guest that falls silent ends the transfer after a minute.
        "ConnectTimeout=15",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    )
    own = [word for setting in settings for word in ("-o", setting)]
    return shlex.join(["ssh", *own, *pinned(name, known_hosts), "-l", user])
