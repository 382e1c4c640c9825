"""Questions to libvirt, asked through virsh: libvirt's Python binding has no wheel for a virtual environment."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.neighbours import neighbours

from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SHUT_OFF = "shut off"

STATES = {
    0: "unknown", 1: "running", 2: "idle", 3: "paused", 4: "in shutdown", 5: SHUT_OFF, 6: "crashed", 7: "pmsuspended",
}  # fmt: skip
"""virDomainState of libvirt-domain.h in the words of `virsh list`."""

SUSPENDED = "suspended"
"""State of ours: shut off, with saved memory from which the next start goes on."""

UNDEFINED = "undefined"
"""State of ours: recorded, and unknown to libvirt."""

ANSWERING = frozenset({"running", "idle", "in shutdown"})
"""States in which a VM can be reached."""

ON = ANSWERING | {"paused", "pmsuspended"}
"""States in which a VM holds memory."""

QUERY_SECONDS = 10.0
AGENT_SECONDS = 1.5
"""How long the guest's agent may take; a guest that hangs must not make `vmw ssh` hang."""

SAVED = "list --all --with-managed-save --name"
"""Question for the names of the domains whose memory is saved."""

NO_DOMAIN = "failed to get domain"
"""What virsh says of a name that libvirt does not know."""


def environment() -> dict[str, str]:
    """Return an environment in which programs speak plain English, for their output is read.

    A shell from `su` or `sudo` lacks the variable by which `systemctl --user` finds the user's systemd.
    """
    return {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}


@dataclass(frozen=True)
class Virsh:
    """virsh at one libvirt."""

    uri: str

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a query.

        Raises:
            VmwError: virsh is not installed.
        """
        try:
            return subprocess.Popen(
                ["virsh", "-q", "-c", self.uri, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment(),
            )
        except FileNotFoundError as error:
            message = "virsh is not installed"
            raise VmwError(message, "run `vmw host` to set up this machine", ExitCode.HOST_NOT_READY) from error

    def start_addresses(self, names: Iterable[str], source: str) -> subprocess.Popen[str]:
        """Start one query for the addresses of several VMs; a domain that cannot tell does not stop the others.

        Args:
            names: The domains.
            source: `lease` or `agent`.
        """
        return self.start("; ".join(f"domifaddr {shlex.quote(name)} --source {source}" for name in names))

    def states(self) -> dict[str, str]:
        """Return the state of every domain, asked for with one process.

        Raises:
            VmwError: libvirt does not answer.
        """
        # The first list is of names alone, and tells nothing of a domain that runs.
        process = self.start(f"{SAVED}; domstats --state --nowait")
        output, complaint = finish(process, QUERY_SECONDS)
        if process.returncode:
            raise no_answer(complaint)
        return parse_states(output)

    def is_saved(self, name: str) -> bool:
        """Tell whether the memory of a domain that is off is saved; no when libvirt does not answer."""
        output, _ = finish(self.start(SAVED), QUERY_SECONDS)
        return name in output.split()

    def definition(self, name: str) -> str:
        """Return a domain's XML, or an empty string where libvirt knows no such domain.

        Raises:
            VmwError: libvirt does not answer.
        """
        process = self.start("dumpxml", "--inactive", "--domain", name)
        output, complaint = finish(process, QUERY_SECONDS)
        if process.returncode and NO_DOMAIN in complaint:
            return ""
        if process.returncode:
            raise no_answer(complaint)
        return output

    def networks(self, *which: str) -> set[str]:
        """Return the names of libvirt's networks that are active, or more of them by an option of `virsh net-list`.

        Raises:
            VmwError: libvirt does not answer.
        """
        process = self.start("net-list", "--name", *which)
        output, complaint = finish(process, QUERY_SECONDS)
        if process.returncode:
            raise no_answer(complaint)
        return set(output.split())


def no_answer(complaint: str) -> VmwError:
    """Return the error for a libvirt that does not answer, with the last line of what virsh said."""
    lines = complaint.strip().splitlines() or ["no reason given"]
    message = f"libvirt does not answer: {lines[-1].removeprefix('error: ')}"
    return VmwError(message, "`vmw doctor` tells what is missing", ExitCode.HOST_NOT_READY)


def finish(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Wait for a query and return what it printed, killing it when it takes too long."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def parse_states(text: str) -> dict[str, str]:
    """Read the names of domains whose memory is saved, and after them the output of `virsh domstats --state`."""
    saved, *blocks = re.split(r"^Domain: ", text, flags=re.MULTILINE)
    names = set(saved.split())
    states = {}
    for block in blocks:
        name = block.splitlines()[0].strip().strip("'")
        number = re.search(r"^\s*state\.state=(\d+)", block, re.MULTILINE)
        state = STATES.get(int(number[1]), "unknown") if number else "unknown"
        states[name] = SUSPENDED if state == SHUT_OFF and name in names else state
    return states


def parse_addresses(text: str) -> dict[str, str]:
    """Read the output of `virsh domifaddr`: the best address for each MAC, IPv4 before IPv6, none that is link-local."""
    found: dict[str, str] = {}
    mac = ""
    for line in text.splitlines():
        match = re.match(r"\s*\S+\s+(\S+)\s+(ipv[46])\s+([0-9a-fA-F:.]+)", line)
        if not match:
            continue
        # Further addresses of an interface repeat neither its name nor its MAC.
        mac = match[1].lower() if match[1] != "-" else mac
        address = match[3]
        if address.startswith(("169.254.", "fe80:", "127.")) or address == "::1":
            continue
        if mac not in found or (":" in found[mac] and match[2] == "ipv4"):
            found[mac] = address
    return found


def reached() -> dict[str, str]:
    """Return the addresses by MAC in the host's neighbour table; libvirt's own `arp` source reads the same."""
    return {mac: address for address, mac in neighbours().items()}


def best_addresses(virsh: Virsh, macs: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses of running VMs that are best to connect to.

    libvirt's leases are the surest, then what the guest's agent says, then the host's neighbour table, which may be old.

    Args:
        virsh: The libvirt to ask.
        macs: The MAC address of each VM's interface by the VM's name.
    """
    leases = virsh.start_addresses(macs, "lease")
    agents = virsh.start_addresses(macs, "agent")
    by_lease = parse_addresses(finish(leases, QUERY_SECONDS)[0])
    if all(mac in by_lease for mac in macs.values()):
        agents.kill()
        agents.communicate()
        return _named(macs, by_lease)
    by_agent = parse_addresses(finish(agents, AGENT_SECONDS)[0])
    return _named(macs, {**reached(), **by_agent, **by_lease})


def quick_addresses(virsh: Virsh, macs: Mapping[str, str], leases: str) -> dict[str, str]:
    """Return the addresses of running VMs that are good to show; a guest is asked only where the host knows nothing.

    Args:
        virsh: The libvirt to ask.
        macs: The MAC address of each running VM's interface by the VM's name.
        leases: What virsh said of libvirt's leases.
    """
    known = {**reached(), **parse_addresses(leases)}
    unknown = {name: mac for name, mac in macs.items() if mac not in known}
    if unknown:
        known = {**parse_addresses(finish(virsh.start_addresses(unknown, "agent"), AGENT_SECONDS)[0]), **known}
    return _named(macs, known)


def _named(macs: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    return {name: known[mac] for name, mac in macs.items() if mac in known}
