"""The packet filter between a VM and the internet, all of them network namespaces: see `filter_bed`."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2] / "roles"))

from filter_bed import INTERNET, Bed
from spawning.machine import BenchError
from vmw_filter.policy import Mode, Policy
from vmw_filter.ruleset import TABLE, Lease

from networking import figures, servers, streams
from networking.figures import Measure, Section

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping

MANY = 20
LEASE_SECONDS = 3600
INTERPRETER = "/usr/bin/python3"
"""What the filter runs with."""

REQUEST_SECONDS = 60
MEASURES = {
    "out": Measure("stream from the VM", "bit/s"),
    "in": Measure("stream to the VM", "bit/s"),
    "trip": Measure("round trip of 64 bytes", "s"),
}
RULES: dict[str, tuple[int, str, str]] = {
    "none": (0, "", "no table"),
    "internet": (1, "internet", "1 VM, `internet`"),
    "open": (1, "open", "1 VM, `open`"),
    "many": (MANY, "internet", f"{MANY} VMs, `internet`"),
}
"""By name: how many VMs have rules, of which mode, and the title."""

TITLES = {row: title for row, (_, _, title) in RULES.items()}
CHANGES = {"one": (1, "1 VM"), "many": (MANY, f"{MANY} VMs")}


class Filter:
    """A host with its VMs, in one of the two modes of its bridge.

    Args:
        directory: For the filter's files.
        nat: Whether the bridge is a network of the host's own, instead of the LAN.
        seconds: How long a stream lasts.
    """

    def __init__(self, directory: Path, *, nat: bool, seconds: float) -> None:
        self.bed = Bed(directory, nat=nat, vms=MANY)
        self.seconds = seconds
        self.ports: dict[str, int] = {}
        name, mode = ("nat", "NAT") if nat else ("lan", "LAN")
        self.packets = Section(f"filter-{name}", f"packet filter, {mode} mode", TITLES, MEASURES)
        rows = {row: title for row, (_, title) in CHANGES.items()}
        request = {"request": Measure("change of a VM's policy", "s")}
        self.changes = Section(f"change-{name}", f"policy change, {mode} mode", rows, request)

    def make(self, stack: contextlib.ExitStack) -> None:
        """Make everything; the stack takes it away."""
        # First, as what is half made is to be removed, too.
        stack.callback(self.bed.remove)
        self.bed.make()
        with self.bed.inside("router"), streams.on_processor(streams.processors()[-1]):
            self.ports = stack.enter_context(servers.serving([sys.executable, "-B", servers.PROGRAMS / "peer.py", INTERNET]))
            if streams.tool() == "iperf3":
                stack.enter_context(streams.iperf_server())
        self._check()

    def _check(self) -> None:
        """Make sure that the rules are in the way of what is measured.

        Raises:
            BenchError: They are not, or nothing gets through at all.
        """
        for mode, wanted in (("open", True), ("offline", False)):
            self.give(1, mode)
            if self.bed.connects(self.bed.vms[0].name, INTERNET, self.ports["stream"], wanted=wanted) != wanted:
                message = f"a VM that is {mode} {'does not reach' if wanted else 'reaches'} the other end"
                raise BenchError(message)

    def give(self, count: int, mode: str) -> None:
        """Have rules for the first VMs, and leases of theirs, and for no others; no table where there are none."""
        bed, owner = self.bed, os.geteuid()
        bed.flush()
        for number, vm in enumerate(bed.vms):
            if number < count:
                bed.store.save(owner, Policy(vm.name, vm.tap, vm.mac, "br0", Mode(mode)))
            else:
                bed.store.forget(owner, vm.name)
        if count:
            leases = [Lease(vm.tap, ipaddress.IPv4Address(vm.address), LEASE_SECONDS) for vm in bed.vms[:count]]
            bed.store.save_leases(leases, time.time())
            bed.load()

    def take_packets(self, row: str) -> dict[str, float]:
        """Measure what passes with the rules of a row."""
        count, mode, _ = RULES[row]
        self.give(count, mode)
        with streams.on_processor(streams.processors()[0]):
            with self._socket(socket.SOCK_DGRAM, "datagram") as datagrams:
                trip = streams.exchange(datagrams)
            return {"out": self._stream(backwards=False), "in": self._stream(backwards=True), "trip": trip}

    def take_change(self, row: str) -> dict[str, float]:
        """Measure a request that gives a VM another mode, from the start of the program that answers it to the reply."""
        self.give(CHANGES[row][0], "internet")
        vm = self.bed.vms[0]
        request = {"schema": 1, "verb": "set", "name": vm.name, "tap": vm.tap, "mac": vm.mac, "bridge": "br0", "mode": "open"}
        files = [servers.PROGRAMS / "ask_filter.py", self.bed.store.state, self.bed.store.runtime, self.bed.resolvers]
        argv = [INTERPRETER, "-IB", *map(str, files)]
        own, other = socket.socketpair()
        with own, other, self.bed.inside("host"):
            began = time.perf_counter()
            process = subprocess.Popen(argv, stdin=other.fileno(), stderr=subprocess.PIPE, text=True)
            try:
                own.settimeout(REQUEST_SECONDS)
                own.sendall(json.dumps({**request, "proxy_port": 0}).encode() + b"\n")
                other.close()
                reply = own.recv(65536)
                took = time.perf_counter() - began
                _, complaint = process.communicate(timeout=REQUEST_SECONDS)
            finally:
                process.kill()
                process.wait()
        if not (reply and json.loads(reply).get("changed")):
            message = f"the packet filter did not change the policy: {complaint[-500:]}{reply.decode()}"
            raise BenchError(message)
        return {"request": took}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return what the tables are made of, for the rows that have some."""
        found = {}
        for row, (count, mode, _) in RULES.items():
            if count:
                self.give(count, mode)
                found[row] = figures.count_objects(
                    own_tables(json.loads(self.bed.run("host", "nft", "--json", "list", "ruleset")))
                )
        return found

    def _stream(self, *, backwards: bool) -> float:
        if streams.tool() == "iperf3":
            with self.bed.inside(self.bed.vms[0].name):
                return streams.iperf(INTERNET, self.seconds, backwards=backwards)
        with self._socket(socket.SOCK_STREAM, "stream") as connection:
            return (streams.receive if backwards else streams.send)(connection, self.seconds)

    def _socket(self, kind: int, port: str) -> socket.socket:
        """Connect from the first VM to the peer in the internet."""
        with self.bed.inside(self.bed.vms[0].name):
            found = socket.socket(socket.AF_INET, kind)
        found.settimeout(streams.PATIENCE_S)
        found.connect((INTERNET, self.ports[port]))
        return found


def own_tables(listing: Mapping[str, Any]) -> dict[str, Any]:
    """Return a listing of nft's without what is in others' tables."""
    entries = [entry for entry in listing["nftables"] if any(content.get("table") == TABLE for content in entry.values())]
    return {"nftables": entries}
