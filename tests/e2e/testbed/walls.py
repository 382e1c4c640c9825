"""Other programs' packet filters on a test host: ufw, firewalld and Docker's, installed and set to work."""

from __future__ import annotations

import json
import re
import socket
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Person

BRIDGED = "net.bridge.bridge-nf-call-iptables"
FORGET_NAMES = "systemctl restart avahi-daemon.service"
"""The host remembers for two minutes what it was told by mDNS."""
SWITCHES = ("net.ipv4.ip_forward", BRIDGED)


@dataclass(frozen=True)
class Wall:
    """Another program's packet filter.

    Args:
        name: What it is called.
        begin: Shell command, run as root, after which it filters.
        anew: What has it write its rules anew.
        end: What has it filter no more.
        guards_host: Whether it keeps neighbours from the host's own services, as no policy of ours does.
    """

    name: str
    begin: str
    anew: str
    end: str
    guards_host: bool = True


FIREWALLD = Wall(
    "firewalld",
    "systemctl start firewalld.service",
    "firewall-cmd --reload && firewall-cmd --complete-reload",
    "systemctl stop firewalld.service",
)
UFW = Wall("ufw", "ufw --force enable", "ufw reload", "ufw --force disable")
DOCKER = Wall(
    "docker",
    # It drops what it does not know only where it has switched forwarding on itself, and libvirt may have done so before.
    "sysctl -qw net.ipv4.ip_forward=0 && systemctl start docker.service",
    "systemctl reset-failed docker.service; systemctl restart docker.service",
    "systemctl stop docker.service docker.socket containerd.service",
    guards_host=False,
)
WALLS = (FIREWALLD, UFW, DOCKER)
"""The set-up of the host comes with the first; ufw, which is off then, is to be let through as well."""

PACKAGES = "firewalld ufw docker.io"
FILES = "/etc/firewalld /etc/ufw /etc/docker /var/lib/docker"


SAVE = "iptables-save > /run/e2e-rules.4; ip6tables-save > /run/e2e-rules.6"
RESTORE = "iptables-restore < /run/e2e-rules.4; ip6tables-restore < /run/e2e-rules.6"
"""libvirt's rules for NAT, which stand in tables that the filters write to as well."""


@dataclass(frozen=True)
class Walled:
    """The user of a host on which another packet filter is at work."""

    person: Person
    wall: Wall


def lines(person: Person, command: str) -> set[str]:
    """Return the lines that a command of root's prints."""
    return set(person.root(command).splitlines())


def packages(person: Person) -> set[str]:
    """Return the names of what is installed."""
    selections = [line.split() for line in lines(person, "dpkg --get-selections")]
    return {name for name, wanted in selections if wanted == "install"}


def neighbour_reaches(address: str, port: int, link: str = "") -> bool:
    """Tell whether a neighbour on the LAN, which the build machine is, gets an answer, be it that nobody is there.

    Args:
        address: Of whom it connects to.
        port: The TCP port.
        link: The neighbour's network card, on which it looks for the address without any route to it.
    """
    with closing(socket.socket()) as stream:
        stream.settimeout(3)
        if link:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        try:
            stream.connect((address, port))
        except TimeoutError:
            return False
        except OSError as error:
            return "refused" in str(error)
        return True


def proxy_port(person: Person) -> int:
    """Return the port at which the user's proxy listens for VMs."""
    (unit,) = re.findall(
        r":(\d+)$", person.sh("grep ^ListenStream= ~/.config/systemd/user/vmw-proxy.socket").stdout, re.MULTILINE
    )
    return int(unit)


def findings(person: Person) -> dict[str, dict[str, str]]:
    """Return what `vmw doctor` finds, by check."""
    done = person.vmw("doctor", "--json")
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


@contextmanager
def rules_taken_away(person: Person) -> Iterator[None]:
    """Take away afterwards what filters leave in the kernel when they end."""
    tables = lines(person, "nft list tables")
    switches = person.root(f"sysctl {' '.join(SWITCHES)}").splitlines()
    shared = "table ip filter" in tables
    if shared:
        person.root(SAVE)
    try:
        yield
    finally:
        person.root("; ".join([wall.end for wall in WALLS] + ["ip link delete docker0"]), check=False)
        for table in lines(person, "nft list tables") - tables:
            person.root(f"nft delete {table}")
        if shared:
            person.root(RESTORE)
        person.root("; ".join(f"sysctl -qw '{line.replace(' = ', '=')}'" for line in switches))


@contextmanager
def installed(person: Person) -> Iterator[None]:
    """Have all of the filters installed and none at work; remove them afterwards."""
    known = packages(person)
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install"
    try:
        # Their packages start them.
        with rules_taken_away(person):
            person.root('mkdir -p /etc/docker && echo \'{"storage-driver": "vfs"}\' > /etc/docker/daemon.json')
            person.root(f"apt-get -q update && {apt} {PACKAGES}", timeout=300)
        yield
    finally:
        new = packages(person) - known
        if new:
            person.root(f"DEBIAN_FRONTEND=noninteractive apt-get -qy purge {' '.join(new)}", timeout=300)
        person.root(f"rm -rf {FILES}")


BOX = "172.17.0.9"
MAKE_BOX = """
ip netns add box
ip link add box0 type veth peer name eth0 netns box
ip link set box0 master docker0 up
ip -n box link set lo up
ip -n box address add {address}/16 dev eth0
ip -n box link set eth0 up
ip -n box route add default via 172.17.0.1
systemd-run --quiet --collect --unit=e2e-box ip netns exec box python3 -m http.server {port}
"""
"""To Docker's rules a container: these depend on its bridge and its addresses alone."""


@contextmanager
def container_at_docker(person: Person, port: int) -> Iterator[None]:
    """Have something at Docker's bridge that has a web server."""
    person.root(MAKE_BOX.format(address=BOX, port=port))
    try:
        yield
    finally:
        person.root("systemctl stop e2e-box.service; ip netns delete box", check=False)
