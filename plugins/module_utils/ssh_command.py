# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How ssh is called for a VM: with the host key that was made for it, whatever its address."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def config_path(path: Path) -> str:
    """Write a path so that ssh takes it as one file and expands no token in it (ssh_config(5), UserKnownHostsFile)."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def pinned(name: str, known_hosts: Path, port: int = 0) -> list[str]:
    """Return the options by which ssh takes no other machine for the VM.

    Args:
        name: The VM's name, under which its host key is pinned.
        known_hosts: The file with the pinned key.
        port: The port at which the host reaches the VM's SSH server, or 0 for the usual one.
    """
    settings = (f"HostKeyAlias={name}", f"UserKnownHostsFile={config_path(known_hosts)}", "StrictHostKeyChecking=yes")
    return options((*settings, f"Port={port}") if port else settings)


LENT_NOTHING = (
    "BatchMode=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    # Nor the host's tickets, which ssh would offer to whoever answers.
    "GSSAPIAuthentication=no",
    "PermitLocalCommand=no",
    # A connection that is shared with a login may have the agent forwarded.
    "ControlPath=none",
)
"""Settings of a connection that asks nothing, and lends the guest neither agent nor display: ssh_config(5)."""

PORT_SETTINGS = (
    *LENT_NOTHING,
    "PreferredAuthentications=publickey",
    # The key that is pinned stays the only one.
    "UpdateHostKeys=no",
    "ExitOnForwardFailure=yes",
    "LogLevel=ERROR",
    # A guest that falls silent loses the connection after half a minute, and a new one is made.
    "ConnectTimeout=5",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)

IDENTITY_SETTINGS = ("identitiesonly", "identityagent", "identityfile", "certificatefile", "pkcs11provider")
"""What of the user's own configuration a connection for ports obeys, in the words of `ssh -G`."""


def options(settings: Iterable[str]) -> list[str]:
    """Return settings as ssh's arguments."""
    return [word for setting in settings for word in ("-o", setting)]


def identities(shown: str) -> list[str]:
    """Return by which keys and agent the user's own configuration logs in, as settings.

    Args:
        shown: What `ssh -G` says for the VM; of its default keys it names those as well that are not there.
    """
    found = []
    for line in shown.splitlines():
        key, _, value = line.partition(" ")
        is_file = key in {"identityfile", "certificatefile"}
        if key not in IDENTITY_SETTINGS or (is_file and not ("%" in value or "$" in value or Path(value).expanduser().exists())):
            continue
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        found.append(f'{key}="{escaped}"' if is_file else f"{key}={value}")
    return found


def port_options(name: str, user: str, known_hosts: Path, login: Iterable[str], port: int = 0) -> list[str]:
    """Return ssh's options for a connection that carries ports, apart from the user's configuration, which may forward more.

    Args:
        name: The VM's name, under which its host key is pinned.
        user: The user in the guest.
        known_hosts: The file with the pinned key.
        login: The settings by which it logs in, see `identities`.
        port: See `pinned`.
    """
    return ["-F", "none", *options((*PORT_SETTINGS, *login)), *pinned(name, known_hosts, port), "-l", user]


def git_ssh_command(name: str, user: str, known_hosts: Path, port: int = 0) -> str:
    """Return GIT_SSH_COMMAND for git on the host: it asks nothing, and lends the guest neither agent, port nor display.

    Args:
        name: The VM's name, under which its host key is pinned.
        user: The user in the guest.
        known_hosts: The file with the pinned key.
        port: See `pinned`.
    """
    settings = (
        *LENT_NOTHING,
        "ClearAllForwardings=yes",
        # A guest that falls silent ends the transfer after a minute.
        "ConnectTimeout=15",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    )
    return shlex.join(["ssh", *options(settings), *pinned(name, known_hosts, port), "-l", user])
