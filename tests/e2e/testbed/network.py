"""A test host's network: a namespace, its wired NIC, and the LAN at the NIC's other end."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed import machine

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Network:
    """The LAN of one test host, numbered so that several exist side by side.

    The build machine is the LAN's router: it gives out addresses and answers DNS (dnsmasq), and it masquerades what
    leaves for its own network.
    """

    index: int
    nic: str

    @property
    def namespace(self) -> str:
        """Name of the network namespace that the host lives in."""
        return f"vmwtest{self.index}"

    @property
    def link(self) -> str:
        """Name of the NIC's other end, on the build machine."""
        return f"vmwtest{self.index}"

    @property
    def gateway(self) -> str:
        """Address of the build machine on this LAN."""
        return f"10.213.{self.index}.1"

    def create(self, directory: Path) -> None:
        """Make the namespace and the LAN; dnsmasq keeps its files in `directory`."""
        self.remove(directory)
        steps = (
            ["ip", "netns", "add", self.namespace],
            ["ip", "link", "add", self.link, "type", "veth", "peer", "name", self.nic,
             "netns", self.namespace],
            ["ip", "address", "add", f"{self.gateway}/24", "dev", self.link],
            ["ip", "link", "set", self.link, "up"],
            ["ip", "-n", self.namespace, "link", "set", "lo", "up"],
            ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"],
        )  # fmt: skip
        for step in steps:
            machine.run(step)
        rules = (
            f"table ip {self.link} {{\nchain postrouting {{\ntype nat hook postrouting priority srcnat\n"
            f'ip saddr 10.213.{self.index}.0/24 oifname != "{self.link}" masquerade\n}}\n}}\n'
        )
        machine.run(["nft", "-f", "-"], stdin=rules)
        machine.run(
            [
                "dnsmasq",
                "--conf-file=/dev/null",
                "--user=root",
                f"--interface={self.link}",
                "--except-interface=lo",
                "--bind-interfaces",
                "--dhcp-authoritative",
                f"--dhcp-range=10.213.{self.index}.50,10.213.{self.index}.250,1h",
                f"--dhcp-leasefile={directory / 'dnsmasq.leases'}",
                f"--pid-file={directory / 'dnsmasq.pid'}",
                f"--log-facility={directory / 'dnsmasq.log'}",
                "--log-dhcp",
            ]
        )

    def remove(self, directory: Path) -> None:
        """Remove what `create` made; what is not there is no error."""
        pid = directory / "dnsmasq.pid"
        if pid.exists():
            end(int(pid.read_text()))
            # dnsmasq removes it too when it ends.
            pid.unlink(missing_ok=True)
        machine.run(["ip", "link", "delete", self.link], check=False)
        machine.run(["ip", "netns", "delete", self.namespace], check=False)
        machine.run(["nft", "delete", "table", "ip", self.link], check=False)


def end(pid: int) -> None:
    """Ask a process that this package started to end; one that is gone is no error."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def start(argv: list[str], log: Path, directory: Path) -> int:
    """Start a process that outlives this one; return its id."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=directory,
        )
    return process.pid
