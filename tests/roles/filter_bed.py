"""A host with VMs and the LAN around it, of network namespaces, and the packet filter in the host's."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/packet_filter/files"))

import frames
from vmw_filter import control, kernel
from vmw_filter.policy import Mode, Policy, parse_request
from vmw_filter.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REFUSED_S = 0.15
"""How long something that must not arrive may take to arrive."""
ARRIVES_S = 5.0
"""How long something that must arrive may take."""
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
USER = 1000

PREFIX4, PREFIX6 = "192.168.77", "2a05:d000:77"
ROUTER, NEIGHBOUR, HOST = f"{PREFIX4}.1", f"{PREFIX4}.20", f"{PREFIX4}.10"
ROUTER6, NEIGHBOUR6, HOST6 = f"{PREFIX6}::1", f"{PREFIX6}::20", f"{PREFIX6}::10"
INTERNET, INTERNET6 = "8.8.8.8", "2a00:1450:4001::8888"
CONTAINERS, PUBLIC = "172.17.0.1", "9.9.9.10"
NAT_PREFIX = "192.168.150"
FIRST_LEASE = 100

_libc = ctypes.CDLL(None, use_errno=True)


class VM:
    """A guest: a namespace whose network card's other end is a tap of the host.

    Attributes:
        name: Of the VM.
        tap: The host's end.
        mac: The address of its card.
        address: What the network's DHCP server gives it.
    """

    def __init__(self, bed: Bed, number: int) -> None:
        self.bed = bed
        self.name = f"vm{number}"
        self.tap = f"vmw-{number:08x}"
        self.mac = f"52:54:00:00:00:{number:02x}"
        self.link_local = f"fe80::5054:ff:fe00:{number:x}"
        self.address = f"{bed.prefix}.{FIRST_LEASE + number}"
        self.address6 = f"{PREFIX6}:0:5054:ff:fe00:{number:x}"

    def send(self, kind: int, payload: bytes, *, source: str = "", destination: str = frames.BROADCAST) -> None:
        """Send a frame of any content."""
        self.send_raw(frames.ethernet(source or self.mac, destination, kind, payload))

    def send_raw(self, frame: bytes) -> None:
        with self.bed.inside(self.name), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(frame)


class Bed:
    """The namespaces of one host and what is around it.

    Args:
        directory: For the filter's files.
        nat: Whether the bridge is a network of the host's own, instead of the LAN.
        vms: How many VMs there are.
    """

    def __init__(self, directory: Path, *, nat: bool, vms: int = 2) -> None:
        self.nat = nat
        self.prefix = NAT_PREFIX if nat else PREFIX4
        self.gateway = f"{self.prefix}.1"
        self.host_address = self.gateway if nat else HOST
        self.store = Store(directory / "state", directory / "run")
        self.resolvers = directory / "resolv.conf"
        self.resolvers.write_text(f"nameserver {ROUTER}\n")
        self._label = f"vmwf{os.getpid()}{'n' if nat else 'l'}"
        self._made: list[str] = []
        self.vms = [VM(self, number) for number in range(1, vms + 1)]

    # --- making it ---

    def make(self) -> None:
        for name in ("host", "lan", "router", "neighbour", *(vm.name for vm in self.vms)):
            self.add(name)
        self.ip("lan", "link add sw0 type bridge", "link set sw0 up")
        self.cable("router", "eth0", "lan", "router", "sw0")
        self.cable("neighbour", "eth0", "lan", "neighbour", "sw0")
        for name, four, six in (("router", ROUTER, ROUTER6), ("neighbour", NEIGHBOUR, NEIGHBOUR6)):
            self.ip(name, f"address add {four}/24 dev eth0", f"address add {six}/64 dev eth0 nodad")
        self.ip("router", f"address add {INTERNET}/32 dev lo", f"address add {INTERNET6}/128 dev lo nodad")
        self.ip("router", f"route add {NAT_PREFIX}.0/24 via {HOST}")
        self.ip("neighbour", f"route add {NAT_PREFIX}.0/24 via {HOST}")
        self._make_host()
        for vm in self.vms:
            self.cable(vm.name, "eth0", "host", vm.tap, "br0", vm.mac)
            self.ip(vm.name, f"address add {vm.address}/24 dev eth0", f"route add default via {self.gateway}")
            if not self.nat:
                self.ip(vm.name, f"address add {vm.address6}/64 dev eth0 nodad", f"route add default via {ROUTER6}")

    def _make_host(self) -> None:
        settings = "net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv6.conf.all.accept_dad=0"
        self.run("host", "sysctl", "-q", "-w", *settings.split())
        for name in ("host", "lan"):
            self.bridge_netfilter(name, on=False)
        self.ip("host", "link add br0 type bridge", "link set br0 up", "link add docker0 type bridge", "link set docker0 up")
        self.ip("host", f"address add {CONTAINERS}/16 dev docker0", f"address add {PUBLIC}/32 dev lo")
        lan = "eth0" if self.nat else "br0"
        self.cable("host", "eth0", "lan", "host", "sw0")
        if self.nat:
            self.ip("host", f"address add {self.gateway}/24 dev br0")
            masquerade = "type nat hook postrouting priority srcnat; oifname eth0 masquerade"
            self.nft(f"table ip nat {{ chain postrouting {{ {masquerade}; }}; }}")
        else:
            self.ip("host", "link set eth0 master br0")
        self.ip("host", f"address add {HOST}/24 dev {lan}", f"address add {HOST6}/64 dev {lan} nodad")
        self.ip("host", f"route add default via {ROUTER}", f"-6 route add default via {ROUTER6}")

    def add(self, name: str) -> None:
        self._made.append(name)
        _run("ip", "netns", "add", self.namespace(name))
        self.ip(name, "link set lo up")

    def cable(self, name: str, device: str, other: str, port: str, bridge: str, mac: str = "") -> None:
        peer = ("peer", "name", port, "netns", self.namespace(other))
        address = ("address", mac) if mac else ()
        _run("ip", "-n", self.namespace(name), "link", "add", device, *address, "type", "veth", *peer)
        self.ip(other, f"link set {port} master {bridge} up")
        self.ip(name, f"link set {device} up")

    def remove(self, *names: str) -> None:
        for name in names or tuple(self._made):
            self._made.remove(name)
            subprocess.run(["ip", "netns", "delete", self.namespace(name)], check=False)

    # --- running things in it ---

    def namespace(self, name: str) -> str:
        return f"{self._label}-{name}"

    def run(self, name: str, *argv: str, stdin: str = "") -> str:
        return _run("ip", "netns", "exec", self.namespace(name), *argv, stdin=stdin)

    def ip(self, name: str, *commands: str) -> None:
        for command in commands:
            _run("ip", "-n", self.namespace(name), *command.split())

    def nft(self, text: str) -> None:
        self.run("host", "nft", "-f", "-", stdin=text)

    def bridge_netfilter(self, name: str = "host", *, on: bool) -> None:
        """Have bridged packets go through the filters of IP, or not."""
        words = [f"net.bridge.bridge-nf-call-{tables}={int(on)}" for tables in ("iptables", "ip6tables", "arptables")]
        self.run(name, "sysctl", "-q", "-w", *words)

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Have this thread, and the sockets and programs that it makes, in a namespace."""
        with Path("/proc/thread-self/ns/net").open() as own, Path("/run/netns", self.namespace(name)).open() as other:
            _enter(other.fileno())
            try:
                yield
            finally:
                _enter(own.fileno())

    # --- the filter ---

    @contextlib.contextmanager
    def filtering(self) -> Iterator[None]:
        """Be where the filter runs, with the host's own name servers."""
        with self.inside("host"), mock.patch.object(kernel, "RESOLVER_FILES", (self.resolvers,)):
            yield

    def load(self) -> None:
        with self.filtering():
            control.load(self.store)

    def refresh(self) -> None:
        with self.filtering():
            control.refresh(self.store)

    def flush(self) -> None:
        """Take all rules away, as a restart of nftables.service does, but for the NAT that the bed needs."""
        self.nft("flush ruleset" if not self.nat else "add table bridge vmw; delete table bridge vmw; add table inet vmw; "
                 "delete table inet vmw")  # fmt: skip

    def ask(self, owner: int = USER, /, **fields: object) -> dict[str, Any]:
        with self.filtering():
            return control.answer(self.store, parse_request(json.dumps(fields).encode()), owner)

    def fresh(self, mode: str = "internet") -> None:
        """Give the VMs this mode and what a DHCP server says, and forget what was before."""
        self.flush()
        (self.store.state / "leases.json").unlink(missing_ok=True)
        for vm in self.vms:
            self.store.save(USER, Policy(vm.name, vm.tap, vm.mac, "br0", Mode(mode)))
        self.load()
        for vm in self.vms:
            self.lease(vm)

    def set_mode(self, vm: VM, mode: str, proxy_port: int = 0) -> dict[str, Any]:
        return self.ask(verb="set", name=vm.name, tap=vm.tap, mac=vm.mac, bridge="br0", mode=mode, proxy_port=proxy_port)

    def leases(self) -> set[tuple[str, str]]:
        with self.inside("host"):
            return {(lease.tap, str(lease.address)) for lease in kernel.leases() or ()}

    def lease(self, vm: VM, address: str = "", kind: int = 5, mac: str = "") -> None:
        """Have the network's DHCP server answer a VM."""
        message = frames.dhcp(2, mac or vm.mac, kind, address or vm.address)
        name, device = ("host", "br0") if self.nat else ("router", "eth0")
        packet = frames.ipv4(self.gateway, "255.255.255.255", 17, frames.udp(67, 68, message))
        with self.inside(name), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((device, 0))
            raw.send(frames.ethernet("02:00:00:00:00:01", frames.BROADCAST, frames.IPV4, packet))

    def refused(self, vm: VM) -> set[tuple[str, str, int]]:
        found = self.ask(verb="refused", name=vm.name)["refused"]
        return {(item["address"], item["protocol"], item["port"]) for item in found}

    # --- looking at what passes ---

    def arrives(self, name: str, device: str, send: Callable[[], None], marker: bytes, *, wanted: bool) -> bool:
        """Tell whether a frame that holds the marker comes in at an interface.

        Args:
            name: The namespace.
            device: Its interface.
            send: Sends the frame.
            marker: A part of it that nothing else has.
            wanted: Whether it should, and so how long to wait.
        """
        with self.inside(name):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        with raw:
            raw.bind((device, ETH_P_ALL))
            send()
            deadline = time.monotonic() + (ARRIVES_S if wanted else REFUSED_S)
            while (left := deadline - time.monotonic()) > 0:
                if select.select([raw], [], [], left)[0]:
                    frame, (_, _, direction, *_) = raw.recvfrom(2048)
                    if marker in frame and direction != socket.PACKET_OUTGOING:
                        return True
        return False

    @contextlib.contextmanager
    def listening(self, name: str, address: str, port: int, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
        with self.inside(name):
            server = socket.socket(_family(address), kind)
        with server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            if kind == socket.SOCK_STREAM:
                server.listen(8)
            yield server

    def connects(self, name: str, address: str, port: int, *, wanted: bool, where: str = "", scope: str = "eth0") -> bool:
        """Tell whether a TCP connection is made to a server, which `where` has while this is asked."""
        with contextlib.ExitStack() as stack:
            if where:
                stack.enter_context(self.listening(where, "::" if ":" in address else "0.0.0.0", port))  # noqa: S104
            with self.inside(name):
                client = stack.enter_context(socket.socket(_family(address)))
                index = socket.if_nametoindex(scope) if address.startswith("fe80:") else 0
            client.settimeout(ARRIVES_S if wanted else REFUSED_S)
            try:
                client.connect((address, port, 0, index) if ":" in address else (address, port))
            except OSError:
                return False
            return True

    def exchanges(self, name: str, address: str, port: int, *, wanted: bool, where: str) -> bool:
        """Tell whether a datagram gets to a server and the answer back."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(self.listening(where, address, port, socket.SOCK_DGRAM))
            with self.inside(name):
                client = stack.enter_context(socket.socket(_family(address), socket.SOCK_DGRAM))
            for one in (server, client):
                one.settimeout(ARRIVES_S if wanted else REFUSED_S)
            client.sendto(b"question", (address, port))
            try:
                _, peer = server.recvfrom(64)
                server.sendto(b"answer", peer)
                return client.recv(64) == b"answer"
            except TimeoutError:
                return False


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout
