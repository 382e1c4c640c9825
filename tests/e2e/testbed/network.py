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

PUBLIC_NAME = "public.example"
"""A name, with all below it, that leads to the stand-ins' server by its public address."""

INSIDE_NAME = "inside.example"
"""A name that leads to the LAN's router, as an attacker's would."""

SERVER = "stand-ins.test"
"""Name of the build machine on every LAN, so that settings which name it are the same on each test host."""


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

    @property
    def public(self) -> str:
        """Another address of the build machine, one that to a packet filter is on the public internet."""
        return f"11.213.{self.index}.1"

    def create(self, directory: Path) -> None:
        """Make the namespace and the LAN; dnsmasq keeps its files in `directory`."""
        self.remove(directory)
        steps = (
            ["ip", "netns", "add", self.namespace],
            ["ip", "link", "add", self.link, "type", "veth", "peer", "name", self.nic,
             "netns", self.namespace],
            ["ip", "address", "add", f"{self.gateway}/24", "dev", self.link],
            ["ip", "address", "add", f"{self.public}/32", "dev", self.link],
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
                f"--host-record={SERVER},{self.gateway}",
                f"--local=/{SERVER}/",
                f"--dhcp-range=10.213.{self.index}.50,10.213.{self.index}.250,1h",
                f"--dhcp-leasefile={directory / 'dnsmasq.leases'}",
                f"--pid-file={directory / 'dnsmasq.pid'}",
                f"--log-facility={directory / 'dnsmasq.log'}",
                "--log-dhcp",
                f"--address=/{PUBLIC_NAME}/{self.public}",
                f"--address=/{INSIDE_NAME}/{self.gateway}",
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
