# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""See how far a guest has come: an address, SSH, its shares; and wait for that."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from enum import Enum
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.console import read_console, trouble
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    find_own_domain,
    guest_address,
    is_out_of_space,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.neighbours import neighbours

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

POLL_SECONDS = 0.05
SSH_PORT = 22
"""Where a guest is reached that has an address of its own."""

# libvirt-python has no type information of its own, hence Any for a domain.


class Answer(Enum):
    """What an address says on SSH's port."""

    NOTHING = "nothing"
    OTHER = "another machine's host key"
    OWN = "the VM's host key"


def greets(connection: socket.socket) -> bool:
    """Tell whether who answers at the other end is an SSH server."""
    connection.settimeout(5)
    return connection.recv(4).startswith(b"SSH-")


def ssh_answer(address: str, host_key: str, port: int = SSH_PORT) -> Answer:
    """Tell whether the SSH server at ``address`` shows the host key that was made for this VM.

    Args:
        address: Where the host reaches the guest.
        host_key: The public key: its type and its base64 text.
        port: The server's port there.
    """
    words = ["ssh-keyscan", "-p", str(port), "-t", "ed25519", "-T", "10", address]
    scan = subprocess.run(words, capture_output=True, text=True, check=False)
    shown = [" ".join(line.split()[1:3]) for line in scan.stdout.splitlines() if not line.startswith("#")]
    if not shown:
        return Answer.NOTHING
    return Answer.OWN if host_key in shown else Answer.OTHER


def ssh_address(address: str, host_key: str, instance: Instance) -> str:
    """Return an address when the VM's own SSH server answers there, or an empty string while none does.

    Args:
        address: Where the host reaches the guest, once that says that it has an address.
        host_key: The public key: its type and its base64 text.
        instance: The VM's record.

    Raises:
        VmwError: Another machine answers.
    """
    port = instance.ssh_port or SSH_PORT
    if not address:
        return ""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            if not instance.is_session and neighbours().get(address) == instance.mac:
                # The VM's own card took the connection. A greeting, or a key, takes an emulated guest half a second more.
                return address
            if not greets(connection):
                return ""
    except OSError:
        return ""
    answer = ssh_answer(address, host_key, port)
    if answer is Answer.OTHER:
        message = f"the SSH server at {address} does not show the host key of this VM"
        raise VmwError(message, "another machine may have taken the address; see the console log")
    return address if answer is Answer.OWN else ""


def mounted_places(mounts: str) -> set[str]:
    """Return where something is mounted, of a table as proc_pid_mounts(5) has it: with octal codes for blanks and the like."""
    fields = (line.split() for line in mounts.splitlines())
    return {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), each[1]) for each in fields if len(each) > 1}


def shares_mounted(domain: Any, mountpoints: list[str]) -> bool:  # noqa: ANN401
    """Tell whether the shares are mounted and logins are open: nologin(5)."""
    try:
        mounted = mounted_places(guest_agent.read_file(domain, "/proc/self/mounts") or "")
        return mounted.issuperset(mountpoints) and guest_agent.read_file(domain, "/run/nologin") is None
    except VmwError:
        # The agent does not answer yet.
        return False


CAUSES = {
    "address": "the guest did not boot, or got no DHCP lease on the bridge (of passt, with qemu:///session)",
    "ssh": "the guest's SSH server did not start, or a firewall on the host stands between",
    "shares": "the guest did not mount them, or virtiofsd ended (`vmw logs` shows its journal)",
    "off": "the guest does not shut down; `vmw stop --force` switches it off",
}


def wait(files: InstanceFiles, phase: str, timeout: int, find: Callable[[], Any], done: Callable[[Any], str]) -> str:
    """Poll until a phase is reached.

    Args:
        files: The VM's files.
        phase: The phase's name, for messages.
        timeout: In seconds.
        find: Returns the domain or ``None``.
        done: Looks at the domain and returns what was waited for, or an empty string.

    Raises:
        VmwError: It was not reached.
    """
    deadline = time.monotonic() + timeout
    log = str(files.console)
    while True:
        domain = find()
        if phase != "off" and not is_running(domain):
            message = f"{files.name} went off while vmw waited for its {phase}"
            raise VmwError(message, "the console log may tell why; `vmw start` tries again", log=log)
        if is_running(domain) and is_out_of_space(domain):
            what = "is paused and cannot shut down" if phase == "off" else f"was paused while vmw waited for its {phase}"
            force = f"; or `vmw stop {files.name} --force`" if phase == "off" else ""
            message = f"{files.name} {what}, as QEMU does when the host's disk is full"
            raise VmwError(message, f"make room on the host, then `virsh resume {files.name}`{force}", log=log)
        found = done(domain)
        if found:
            return found
        cause = trouble(read_console(files.console)) if phase != "off" else ""
        if cause:
            message = f"{files.name} cannot reach the phase {phase!r}: {cause}"
            hint = f"the console log tells more; `vmw stop {files.name} --force` and `vmw start {files.name}` try again"
            raise VmwError(message, hint, log=log)
        if time.monotonic() >= deadline:
            message = f"{files.name} did not reach the phase {phase!r} in {timeout} s"
            raise VmwError(message, CAUSES[phase], log=log)
        time.sleep(POLL_SECONDS)


class Guest:
    """One VM's guest, to be waited for.

    Args:
        files: The VM's files.
        instance: Its record.
        connection: The connection to libvirt.
        timeout: How long each phase may take, in seconds.
    """

    def __init__(self, files: InstanceFiles, instance: Instance, connection: Any, timeout: int) -> None:  # noqa: ANN401
        """Remember whom to wait for."""
        self._files = files
        self._instance = instance
        self._connection = connection
        self._timeout = timeout

    def _find(self) -> Any:  # noqa: ANN401
        return find_own_domain(self._connection, self._files.name, str(self._files.record))

    def _wait(self, phase: str, done: Callable[[Any], str]) -> str:
        return wait(self._files, phase, self._timeout, self._find, done)

    def address(self) -> str:
        """Wait for an address and return it; see `wait` for what is raised here and below."""
        with guest_agent.limited_answers(self._find()):
            return self._wait("address", lambda domain: guest_address(domain, self._instance))

    def ssh(self) -> str:
        """Wait until the VM's own SSH server is reached, and return the address at which it is; see `ssh_address`."""
        host_key = " ".join(self._files.host_key.with_suffix(".pub").read_text().split()[:2])
        # The address is looked up anew: it may have changed since the phase before.
        with guest_agent.limited_answers(self._find()):
            return self._wait("ssh", lambda domain: ssh_address(guest_address(domain, self._instance), host_key, self._instance))

    def shares(self, mountpoints: list[str]) -> None:
        """Wait until the shares are mounted and logins are open."""
        self._wait("shares", lambda domain: "yes" if shares_mounted(domain, mountpoints) else "")

    def off(self) -> None:
        """Wait until the VM is off."""
        self._wait("off", lambda domain: "" if is_running(domain) else "yes")
