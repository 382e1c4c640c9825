"""NAT beside other programs' packet filters: what a VM needs gets through each, and what its policy refuses does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_66_network import reached
from testbed import hostimage, walls
from testbed.network import PUBLIC_NAME
from testbed.person import HOME, PASSWORD_FILE, Person, report
from testbed.story import CLONE_NAME as NAME
from testbed.walls import DOCKER, FIREWALLD, UFW, WALLS, Walled, findings, neighbour_reaches

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 8097
HOST_S = 600
BOOT_S = 400
PAGE = "/debian-12/SHA512SUMS"
DISCOVER = """
import fcntl, os, socket, struct, sys
card = next(name for name in os.listdir('/sys/class/net') if name != 'lo')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for option in (socket.SO_REUSEADDR, socket.SO_BROADCAST):
    s.setsockopt(socket.SOL_SOCKET, option, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, card.encode())
s.settimeout(5)
s.bind(('0.0.0.0', 68))
mac = fcntl.ioctl(s, 0x8927, struct.pack('256s', card.encode()))[18:24]
number = os.urandom(4)
head = bytes((1, 1, 6, 0)) + number + bytes((0, 0, 0x80, 0)) + bytes(16) + mac + bytes(10 + 192)
s.sendto(head + bytes.fromhex('63825363350101ff'), ('255.255.255.255', 67))
sys.exit(s.recv(1024)[4:8] != number)
"""
"""Asks for an offer of the DHCP server, to be broadcast (RFC 2131), beside the guest's own client."""

NEEDED = {"DHCP", "a name", "the internet", "the proxy"}
PEER = "tap-peer"


def gets(person: Person) -> set[str]:
    """Return what a guest gets of what it needs; it is asked at its address, which takes no name."""
    tries = {
        "DHCP": "sudo python3 dhcp.py",
        "a name": f"timeout 10 getent ahostsv4 {PUBLIC_NAME}",
        "the internet": f"curl -s --noproxy '*' --max-time 5 {person.host.public_url}{PAGE}",
        "the proxy": f"curl -s --noproxy '*' --max-time 5 http://{address(person, 'br0')}:{walls.proxy_port(person)}/",
    }
    script = " ".join(f"({command} >/dev/null 2>&1 && echo {what}) &" for what, command in tries.items())
    done = person.vmw("ssh", NAME, "--", f"{script} wait")
    assert done.returncode == 0, report(done)
    return set(done.stdout.splitlines())


def policy(person: Person, mode: str) -> None:
    done = person.vmw("net", NAME, mode)
    assert done.returncode == 0, report(done)


def address(person: Person, device: str) -> str:
    return person.root(f"ip -4 -o address show dev {device} scope global").split()[3].partition("/")[0]


def near(person: Person) -> dict[str, str]:
    """Return what the VM must not reach, by what it is."""
    return {
        "the neighbour": f"http://{person.host.network.gateway}{PAGE}",
        "the host": f"http://{address(person, 'br0')}:{PORT}/",
        "the host on the LAN": f"http://{address(person, hostimage.NIC)}:{PORT}/",
        "another VM": f"http://{address(person, 'br0').rpartition('.')[0]}.253:{PORT}/",
    }


def check(person: Person) -> None:
    """See that the VM gets what it needs and, by the name that it tells by mDNS, that the policy `internet` holds."""
    assert gets(person) == NEEDED
    person.root(walls.FORGET_NAMES)
    assert reached(person, near(person), name=NAME) == set()


def forget_libvirts(person: Person) -> None:
    """Take away what libvirt's backend iptables has put before the rules of others, and its backend nftables does not."""
    person.root("iptables-save | sed -n 's/^-A \\(.* -j LIBVIRT_\\(INP\\|FW.\\)\\)$/iptables -D \\1/p' | sh -e")


MAKE_PEER = f"""
ip netns add peer
ip link add {PEER} type veth peer name eth0 netns peer
ip link set {PEER} master br0 up
ip -n peer address add {{address}}/24 dev eth0
ip -n peer link set eth0 up
systemd-run --quiet --collect --unit=e2e-peer ip netns exec peer python3 -m http.server {PORT}
systemd-run --quiet --collect --unit=e2e-web python3 -m http.server {PORT} --bind ::
"""


@pytest.fixture(scope="module")
def installed(nat_guest: Person) -> Iterator[Person]:
    """Give the user with a VM, something else at its bridge, and all of the filters installed and none at work."""
    nat_guest.root(MAKE_PEER.format(address=f"{address(nat_guest, 'br0').rpartition('.')[0]}.253"))
    done = nat_guest.ssh(NAME, f"cat >dhcp.py <<'END'\n{DISCOVER}\nEND")
    assert done.returncode == 0, report(done)
    with walls.installed(nat_guest):
        assert gets(nat_guest) == NEEDED
        policy(nat_guest, "open")
        assert reached(nat_guest, near(nat_guest), name=NAME) == set(near(nat_guest))
        policy(nat_guest, "internet")
        yield nat_guest
    nat_guest.vmw("net", NAME, "internet")
    nat_guest.root("systemctl stop e2e-peer.service e2e-web.service; ip netns delete peer", check=False)


@pytest.fixture(scope="module", params=WALLS, ids=lambda wall: wall.name)
def walled(request: pytest.FixtureRequest, installed: Person) -> Iterator[Walled]:
    """Give the user with one of the filters at work, which came after the set-up of the host."""
    with walls.rules_taken_away(installed):
        assert neighbour_reaches(address(installed, hostimage.NIC), PORT)
        installed.root(request.param.begin)
        yield Walled(installed, request.param)


def set_up(person: Person) -> None:
    done = person.playbook("host.yml", "-e", "vmw_bridge_uplink=none", cwd="~/vmw", env=PASSWORD_FILE, timeout=HOST_S)
    assert done.returncode == 0, report(done)


def make_the_network_anew(person: Person) -> None:
    """Have the set-up make the network where a filter is at work already, and the VM boot there."""
    person.virsh("destroy", NAME)
    person.root(f"ip link set {PEER} nomaster")
    person.virsh("net-destroy", "vmw")
    person.virsh("net-undefine", "vmw")
    set_up(person)
    person.root(f"ip link set {PEER} master br0")
    done = person.vmw("start", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)


def check_doctor(person: Person, status: str) -> None:
    now = findings(person)
    assert now["other firewalls"]["status"] == status, now
    assert now["other firewalls"]["fix"] == ("" if status == "ok" else f"{HOME}/vmw/vmw host"), now
    assert {now[name]["status"] for name in ("packet filter", "bridge filter", "proxy")} == {"ok"}, now


def test_what_comes_later_is_let_through(walled: Walled) -> None:
    LATER[walled.wall.name](walled.person)
    check(walled.person)
    check_doctor(walled.person, "ok")
    assert neighbour_reaches(address(walled.person, hostimage.NIC), PORT) is not walled.wall.guards_host


def firewalld_came_later(person: Person) -> None:
    # libvirt has the bridge in a zone of its own, which has DHCP, DNS and the way out.
    assert gets(person) == NEEDED - {"the proxy"}
    person.root(walls.FORGET_NAMES)
    assert not person.lookup(NAME)
    check_doctor(person, "warn")
    port = walls.proxy_port(person)
    # As a set-up with an uplink leaves it.
    person.root(f"firewall-cmd -q --add-port={port}/tcp && firewall-cmd -q --permanent --add-port={port}/tcp")
    link = person.host.network.link
    assert neighbour_reaches(address(person, "br0"), port, link)
    make_the_network_anew(person)
    assert not neighbour_reaches(address(person, "br0"), port, link)


def ufw_came_later(person: Person) -> None:
    # The set-up has told it already, as it was installed.
    person.root("ufw --force reset && ufw --force enable")
    forget_libvirts(person)
    assert gets(person) == set()
    check_doctor(person, "warn")
    set_up(person)


def docker_came_later(person: Person) -> None:
    assert person.root("iptables -S FORWARD").startswith("-P FORWARD DROP\n")
    forget_libvirts(person)
    check(person)
    person.root("iptables -F DOCKER-USER")
    assert gets(person) == NEEDED - {"the internet"}
    person.root(DOCKER.anew)


LATER = {FIREWALLD.name: firewalld_came_later, UFW.name: ufw_came_later, DOCKER.name: docker_came_later}


def test_policies_change_at_once(walled: Walled) -> None:
    person = walled.person
    policy(person, "offline")
    assert gets(person) == {"DHCP"}
    policy(person, "allowlist")
    assert gets(person) == {"DHCP", "the proxy"}
    policy(person, "open")
    # What the host's own services say is the other's business then.
    hosts = {"the host", "the host on the LAN"} if walled.wall.guards_host else set()
    assert reached(person, near(person), name=NAME) >= set(near(person)) - hosts
    policy(person, "internet")


def test_it_lasts_when_the_other_writes_its_rules_anew_and_when_it_ends(walled: Walled) -> None:
    person = walled.person
    person.root(walled.wall.anew)
    check(person)
    person.root(walled.wall.end)
    check(person)
