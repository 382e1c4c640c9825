# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The systemd user units of passt, which is the network of a VM of `qemu:///session`.

QEMU's connection to the socket starts a fresh passt, as with shares. It speaks for the guest with sockets of the user's own, and
listens at one port of the host's loopback, which leads to the guest's SSH server.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK, socket_directory
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import command_words
from ansible_collections.vmw.worktree.plugins.module_utils.state import write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import loaded_units, remove_units, systemctl, unit_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

PASST = "/usr/bin/passt"
NEEDED_OPTIONS = ("--vhost-user", "--map-host-loopback")
"""What the first passt that serves QEMU by vhost-user has, of November 2024; Debian 13's is younger."""

RESOLVER = "169.254.1.1"
"""Where the guest asks for names: passt sends that to the host's own name server, which may be one of its loopback."""

SSH_PORT = 22

RENEW_SECONDS = 20.0
SETTLE_SECONDS = 1.0
POLL_SECONDS = 0.1
"""QEMU tries each second to connect again, and the rest takes some hundredths of one."""

WANTS = "sockets.target.wants"


def lacking_options(told: str) -> list[str]:
    """Return which of the options that we need a passt has not.

    Args:
        told: What it says of itself with ``--help``; empty for one that is missing.
    """
    return [option for option in NEEDED_OPTIONS if option not in told]


def unit_names(name: str) -> tuple[str, str]:
    """Return the names of a VM's socket and of the template of its service, of which each connection makes one."""
    return f"vmw-{name}-net.socket", f"vmw-{name}-net@.service"


def connections(name: str) -> str:
    """Return the pattern of the services that connections have made; no other VM's name can have an ``@``."""
    return f"vmw-{name}-net@*.service"


def socket_path(name: str) -> str:
    """Return the path of the socket at which QEMU finds a VM's network."""
    return f"{socket_directory()}/{name}-net.sock"


def command_line(ssh_port: int) -> list[str]:
    """Return the command of passt.

    Args:
        ssh_port: The port of the host's loopback that leads to the guest's SSH server; 0 for none.
    """
    inbound = ["--tcp-ports", f"{LOOPBACK}/{ssh_port}:{SSH_PORT}"] if ssh_port else ["--tcp-ports", "none"]
    return [
        PASST, "--foreground", "--quiet", "--vhost-user", "--fd", "3", *inbound, "--udp-ports", "none",
        # By default the gateway's address would lead to what listens at the host's loopback alone.
        "--map-host-loopback", "none", "--map-guest-addr", "none",
        # Not --dns as well: passt would not read the host's name servers then.
        "--dns-forward", RESOLVER,
    ]  # fmt: skip


def socket_unit(name: str) -> str:
    """Return the unit that listens for QEMU, for as long as the VM exists."""
    return f"""\
[Unit]
Description=vmw: socket of the network of {name}

[Socket]
ListenStream={socket_path(name)}
SocketMode=0600
# passt takes a connection, and no socket that listens.
Accept=yes
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def service_unit(name: str, ssh_port: int) -> str:
    """Return the unit of a passt, which ends with QEMU's connection; QEMU connects again when it died."""
    return f"""\
[Unit]
Description=vmw: network of {name}
CollectMode=inactive-or-failed

[Service]
Type=exec
StandardOutput=journal
StandardError=journal
ExecStart={command_words(*command_line(ssh_port))}
"""


def _texts(name: str, ssh_port: int) -> dict[Path, str]:
    socket, service = unit_names(name)
    directory = unit_directory()
    return {directory / socket: socket_unit(name), directory / service: service_unit(name, ssh_port)}


def present(name: str, ssh_port: int, *, check_mode: bool = False) -> bool:
    """Have a VM's network served from now on, and after each boot of the host; return whether that is new.

    Args:
        name: The VM.
        ssh_port: See `command_line`.
        check_mode: Whether only to look.

    Raises:
        VmwError: The user's service manager does not answer.
    """
    texts = _texts(name, ssh_port)
    written = any(not path.is_file() or path.read_text() != text for path, text in texts.items())
    if check_mode:
        return written
    socket, _ = unit_names(name)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    # An earlier run may have been interrupted between the files and the reload.
    if written or "yes" in systemctl("show", "--property=NeedDaemonReload", socket):
        systemctl("daemon-reload")
    listening = "=active" in systemctl("show", "--property=ActiveState", socket) and Path(socket_path(name)).exists()
    if written or not listening or not (unit_directory() / WANTS / socket).is_symlink():
        systemctl("enable", "--now", "--quiet", socket)
        return True
    return False


def is_connected(name: str) -> bool:
    """Tell whether a passt serves a VM now.

    Raises:
        VmwError: The user's service manager does not answer.
    """
    return bool(loaded_units([connections(name)]))


def renew(name: str) -> None:
    """Put a fresh passt in the place of the one that serves a running VM: its connections end, and QEMU connects anew.

    Raises:
        VmwError: QEMU does not, or the user's service manager does not answer.
    """
    loaded = loaded_units([connections(name)])
    if loaded:
        systemctl("stop", *loaded)
    deadline = time.monotonic() + RENEW_SECONDS
    while not is_connected(name):
        if time.monotonic() > deadline:
            message = f"QEMU does not connect to the network of {name} again"
            raise VmwError(message, f"`vmw logs {name}` has passt's journal")
        time.sleep(POLL_SECONDS)
    # It has been started, and is told of the guest's memory in a moment.
    time.sleep(SETTLE_SECONDS)


def _left(name: str) -> Iterator[Path]:
    socket, service = unit_names(name)
    directory = unit_directory()
    for path in (directory / socket, directory / service, directory / WANTS / socket, Path(socket_path(name))):
        if path.exists() or path.is_symlink():
            yield path


def absent(name: str, *, check_mode: bool = False) -> bool:
    """Serve a VM's network no more, and remove its units, by exact name; return whether there was anything.

    Args:
        name: The VM.
        check_mode: Whether only to look.

    Raises:
        VmwError: The user's service manager does not answer.
    """
    socket, _ = unit_names(name)
    loaded, left = loaded_units([socket, connections(name)]), list(_left(name))
    if not check_mode:
        remove_units(loaded, left)
    return bool(loaded or left)
