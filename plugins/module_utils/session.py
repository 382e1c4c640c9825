# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""VMs of a user's own libvirt, `qemu:///session`: what goes without root and what does not, and where such a VM is reached.

Their network is passt's, a process of the user's: no bridge, no address of their own, and nothing between them and what the user
reaches. So the host reaches them at a port of its loopback, and there is one network policy.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

LOOPBACK = "127.0.0.1"
"""Where the host reaches such a VM."""

FIRST_SSH_PORT = 22000
SSH_PORTS = 2000
"""Below the ports from which Linux takes those of outgoing connections: ip_local_port_range of ip-sysctl."""

OPEN = "open"
FILE = "file"
"""The network policy, and the way to API keys, that such a VM can have."""

_WHY = "a VM of qemu:///session has no card that a packet filter of the host could know"
_HINT = "leave it out, or use qemu:///system (vmw_libvirt_uri) for it"


def is_session(libvirt_uri: str) -> bool:
    """Tell whether VMs run under the calling user's own libvirt.

    Args:
        libvirt_uri: The connection by which they run.
    """
    return libvirt_uri.endswith("/session")


def runtime_directory() -> str:
    """Return the directory that only the user can enter and that is empty after a boot, as systemd names it: pam_systemd(8)."""
    return os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")


def socket_directory() -> str:
    """Return the directory of the sockets by which QEMU, here the user's own process, reaches shares and network."""
    return f"{runtime_directory()}/vmw"


def check_policy(mode: str) -> None:
    """Refuse a network policy that nobody would enforce.

    Args:
        mode: The policy; empty where none is asked for.

    Raises:
        VmwError: It is another one than `OPEN`.
    """
    if mode and mode != OPEN:
        message = f"the network policy '{mode}' does not go with qemu:///session, only {OPEN!r} does: {_WHY}"
        raise VmwError(message, _HINT, "usage")


def check_lists(hosts: list[str]) -> None:
    """Refuse a list of hosts, which would mean nothing.

    Raises:
        VmwError: There is one.
    """
    if hosts:
        message = f"a VM of qemu:///session has no list of hosts, as its network policy is {OPEN!r}: {_WHY}"
        raise VmwError(message, "use qemu:///system (vmw_libvirt_uri) for it", "usage")


def check_keys(mode: str) -> None:
    """Refuse keys that stay on the host: its proxy knows VMs by their cards on the bridge.

    Args:
        mode: How the VM is to come to API keys; empty where nothing is asked for.

    Raises:
        VmwError: It is another way than `FILE`.
    """
    if mode and mode != FILE:
        message = f"keys by '{mode}' do not go with qemu:///session, only by {FILE!r}: the host's proxy knows a VM by its card"
        raise VmwError(message, _HINT, "usage")


def choose_ssh_port(name: str, taken: AbstractSet[int], is_free: Callable[[int], bool]) -> int:
    """Choose the port of the host's loopback at which a VM is reached by SSH.

    A VM made anew under its name mostly gets the one that it had.

    Args:
        name: The VM's name.
        taken: Ports that this user's VMs have, running or not.
        is_free: Tells whether nobody else listens at a port.

    Raises:
        VmwError: There is none.
    """
    start = int.from_bytes(hashlib.sha256(f"{os.getuid()}:{name}".encode()).digest()[:4], "big")
    for step in range(SSH_PORTS):
        port = FIRST_SSH_PORT + (start + step) % SSH_PORTS
        if port not in taken and is_free(port):
            return port
    message = f"no port from {FIRST_SSH_PORT} to {FIRST_SSH_PORT + SSH_PORTS - 1} of this host is free for SSH to {name}"
    raise VmwError(message, "`ss -tln` shows who listens there", "conflict")


DAEMONS = ("virtqemud", "libvirtd")
"""libvirt's daemon for QEMU alone, and the one for everything: clients try their sockets in this order."""

DAEMON_UNIT = "vmw-libvirt"

DAEMON_SECONDS = 120
"""How long the daemon runs on when nobody needs it, as libvirt's own clients start it."""


def daemon_socket(daemon: str) -> str:
    """Return the name of the socket at which clients look for a daemon: libvirt's remote_sockets.c."""
    return "libvirt-sock" if daemon == "libvirtd" else f"{daemon}-sock"


def daemon_socket_unit(daemon: str) -> str:
    """Return the unit that starts the user's libvirt when somebody connects.

    Args:
        daemon: The daemon's name.
    """
    return f"""\
[Unit]
Description=vmw: socket of the libvirt of this user

[Socket]
ListenStream=%t/libvirt/{daemon_socket(daemon)}
# By this name the daemon knows the socket.
FileDescriptorName={daemon}.socket
SocketMode=0600
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def daemon_service_unit(path: str) -> str:
    """Return the unit of the user's libvirt.

    A client would start it as its own child, and so the VMs in a login's control group, with which they may end.

    Args:
        path: The daemon's program.
    """
    return f"""\
[Unit]
Description=vmw: the libvirt of this user

[Service]
Type=notify
ExecStart={path} --timeout {DAEMON_SECONDS}
# The VMs go on without it.
KillMode=process
"""
