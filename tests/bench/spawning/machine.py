"""The machine that is measured on: programs, ssh, addresses, QEMU's memory."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

POLL_SECONDS = 0.05
PROBE_SECONDS = 0.2
"""How long an address may take to say hello on SSH's port; a bridge is quick, and others wait their turn meanwhile."""
SSH_SECONDS = 10
END_SECONDS = 60
SSH_PORT = 22
OUTPUT_CHARACTERS = 4000
BLOCK_BYTES = 512
"""Unit of `st_blocks`, see stat(2)."""


class BenchError(Exception):
    """Something could not be done; the message says what and why."""


@dataclass(frozen=True)
class Ended:
    """A program that came to its end.

    Attributes:
        code: Its exit status.
        output: What it printed on its standard output.
        complaint: What it printed on its standard error.
        cpu_seconds: CPU time of it and of all that it started and waited for, as getrusage(2) counts it.
        peak_kib: The largest resident memory of one process of these.
    """

    code: int
    output: str
    complaint: str
    cpu_seconds: float
    peak_kib: int

    def checked(self, what: str) -> Ended:
        """Return the program's end when it was a good one.

        Raises:
            BenchError: It failed.
        """
        if self.code:
            message = f"{what} failed with exit status {self.code}: {(self.output + self.complaint)[-OUTPUT_CHARACTERS:].strip()}"
            raise BenchError(message)
        return self


class Programs:
    """The programs that run, so that all can be ended when the bench is interrupted."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, argv: Sequence[str | Path], *, seconds: float = 600, env: Mapping[str, str] | None = None) -> Ended:
        """Run a program to its end.

        Args:
            argv: The program and its arguments.
            seconds: How long it may take; then it is interrupted, and killed.
            env: Variables on top of the bench's own.

        Raises:
            BenchError: It is not installed.
        """
        with (
            tempfile.TemporaryFile("w+", errors="replace") as output,
            tempfile.TemporaryFile("w+", errors="replace") as complaint,
        ):
            try:
                # A session of its own: Ctrl-C reaches the bench alone, which then ends what runs in an order of its own.
                process = subprocess.Popen(
                    [str(word) for word in argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=complaint,
                    env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                message = f"{argv[0]} is not installed"
                raise BenchError(message) from error
            with self._lock:
                self._running.add(process)
            timer = threading.Timer(seconds, self._end, [process])
            began = time.monotonic()
            timer.start()
            try:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            finally:
                timer.cancel()
            with self._lock:
                self._running.discard(process)
            output.seek(0)
            complaint.seek(0)
            late = f"\nended by the bench after {seconds:.0f} s" if time.monotonic() - began >= seconds else ""
            return Ended(
                process.returncode, output.read(), complaint.read() + late, usage.ru_utime + usage.ru_stime, int(usage.ru_maxrss)
            )

    def end_all(self) -> None:
        """Interrupt everything that runs, and wait for it."""
        with self._lock:
            running = list(self._running)
            self._running.clear()
        for process in running:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            deadline = time.monotonic() + END_SECONDS
            while time.monotonic() < deadline:
                if _has_ended(process.pid):
                    return
                time.sleep(POLL_SECONDS)


def _has_ended(pid: int) -> bool:
    """Tell whether a program of ours is gone, or waits only for its status to be taken."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


PROGRAMS = Programs()


def run(*argv: str | Path, seconds: float = 600, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed, and return what it printed.

    Raises:
        BenchError: It failed.
    """
    return PROGRAMS.run(argv, seconds=seconds, env=env).checked(" ".join(str(word) for word in argv[:3])).output


# --- ssh -----------------------------------------------------------------------------------------------------------

SSH_OPTIONS = (
    "-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}", "-o", "ControlPath=none", "-o", "ForwardAgent=no",
    "-o", "LogLevel=ERROR",
)  # fmt: skip
STRANGER = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes")
"""Options for a guest whose host key nobody pinned."""


@dataclass(frozen=True)
class Login:
    """How to log in to a guest.

    Attributes:
        user: The user there.
        options: Options of ssh, besides those of every login here.
    """

    user: str
    options: tuple[str, ...]

    def run(self, address: str, *command: str) -> Ended:
        """Run a command in the guest."""
        return PROGRAMS.run(["ssh", *SSH_OPTIONS, *self.options, "-l", self.user, address, *command], seconds=END_SECONDS)


def says_ssh(address: str) -> bool:
    """Tell whether something at an address says hello as an SSH server does."""
    try:
        with socket.create_connection((address, SSH_PORT), timeout=PROBE_SECONDS) as connection:
            connection.settimeout(PROBE_SECONDS * 5)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_for_ssh(addresses: Callable[[], Iterable[str]], login: Login, seconds: float) -> str:
    """Wait until `ssh ... true` succeeds at one of the addresses, and return that one.

    Args:
        addresses: Tells where the guest may be reached, at each look.
        login: How to log in.
        seconds: How long to wait.

    Raises:
        BenchError: It did not come so far.
    """
    deadline = time.monotonic() + seconds
    complaint = "no address answered on port 22"
    while time.monotonic() < deadline:
        for address in addresses():
            if not says_ssh(address):
                continue
            ended = login.run(address, "true")
            if not ended.code:
                return address
            complaint = f"{address}: {ended.complaint.strip()}"
        time.sleep(POLL_SECONDS)
    message = f"ssh did not answer in {seconds:.0f} s: {complaint}"
    raise BenchError(message)


# --- addresses -----------------------------------------------------------------------------------------------------


def link_local(mac: str, bridge: str) -> str:
    """Return the IPv6 address that a guest gives itself on a bridge: RFC 4291, appendix A.

    Args:
        mac: The MAC address of the guest's card.
        bridge: The host's bridge, which the address needs as its zone.
    """
    octets = [int(octet, 16) for octet in mac.split(":")]
    identifier = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    groups = [f"{int.from_bytes(identifier[place : place + 2]):x}" for place in range(0, 8, 2)]
    return f"fe80::{':'.join(groups)}%{bridge}"


def has_link_local(bridge: str, text: str | None = None) -> bool:
    """Tell whether a bridge of the host speaks IPv6.

    Args:
        bridge: Its name.
        text: The content of `/proc/net/if_inet6`, when not that of this machine.
    """
    if text is None:
        try:
            text = Path("/proc/net/if_inet6").read_text()
        except OSError:
            return False
    return any(line.startswith("fe80") and line.split()[-1] == bridge for line in text.splitlines())


def neighbours(mac: str, text: str | None = None) -> list[str]:
    """Return the IPv4 addresses that the host's neighbour table has for a MAC address.

    Args:
        mac: The MAC address.
        text: The content of `/proc/net/arp`, when not that of this machine.
    """
    text = Path("/proc/net/arp").read_text() if text is None else text
    fields = [line.split() for line in text.splitlines()[1:]]
    return [line[0] for line in fields if len(line) > 3 and line[3] == mac and line[2] == "0x2"]


def addresses_of(mac: str, bridge: str) -> list[str]:
    """Return where a guest whose MAC address is known may be reached, whoever gave it its address."""
    own = [link_local(mac, bridge)] if has_link_local(bridge) else []
    return [*own, *neighbours(mac)]


# --- QEMU and the host ---------------------------------------------------------------------------------------------


def qemu_process(name: str) -> int | None:
    """Return the process id of a domain's QEMU."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(word.startswith(f"guest={name},".encode()) for word in words):
                return int(path.parent.name)
    return None


def as_root(*argv: str) -> str:
    """Run a program as root where sudo does not ask, or ANSIBLE_BECOME_PASSWORD_FILE answers; else return nothing."""
    password = os.environ.get("ANSIBLE_BECOME_PASSWORD_FILE")
    how = ["-S", "-k", "-p", ""] if password else ["-n"]
    try:
        with Path(password or os.devnull).open() as answer:
            done = subprocess.run(["sudo", *how, "--", *argv], stdin=answer, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def memory_of(pids: Sequence[int]) -> dict[str, int]:
    """Return the memory of processes together, in KiB.

    Returns:
        `pss_kib`, in which what several share counts once in all, where root can be asked for it; and `rss_kib`, in which it
        counts for each.
    """
    kinds = {"pss_kib": ("Pss:", "smaps_rollup"), "rss_kib": ("VmRSS:", "status")}
    totals = {}
    for kind, (key, file) in kinds.items():
        paths = [f"/proc/{pid}/{file}" for pid in pids]
        text = as_root("cat", *paths) if file == "smaps_rollup" else "".join(Path(path).read_text() for path in paths)
        found = [int(line.split()[1]) for line in text.splitlines() if line.startswith(key)]
        if found and len(found) == len(pids):
            totals[kind] = sum(found)
    return totals


def available_kib() -> int:
    """Return how much memory the host could still give, as `/proc/meminfo` says."""
    found = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def used_bytes(directory: Path) -> int:
    """Return what the files of a directory really take on the disk."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += status.st_blocks * BLOCK_BYTES
    return total


def remove_pools(uri: str, directory: Path) -> None:
    """Undefine libvirt's storage pools below a directory: virt-install makes one of every directory that it looks into."""
    for pool in run("virsh", "-q", "-c", uri, "pool-list", "--all", "--name").split():
        found = re.search(r"<path>(.+?)</path>", PROGRAMS.run(["virsh", "-q", "-c", uri, "pool-dumpxml", pool]).output)
        if found and Path(found[1]).is_relative_to(directory):
            for command in ("pool-destroy", "pool-undefine"):
                PROGRAMS.run(["virsh", "-q", "-c", uri, command, pool])


def describe_host() -> dict[str, Any]:
    """Return what any figure depends on."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu[1] if cpu else "",
        "memory_mib": int(memory[1]) // 1024 if memory else 0,
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def describe(uri: str) -> dict[str, Any]:
    """Return what the figures of VMs depend on."""
    version = run("virsh", "-c", uri, "version")
    return {
        **describe_host(),
        "libvirt": next(iter(re.findall(r"Using library: libvirt (\S+)", version)), ""),
        "qemu": next(iter(re.findall(r"Running hypervisor: QEMU (\S+)", version)), ""),
        "running_vms": run("virsh", "-q", "-c", uri, "list", "--name").split(),
    }
