"""The network policies beside the packet filters of other programs: ufw, firewalld and Docker's, each really at work."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from test_66_network import DONE, TIMED_OUT, curl, policy, reached
from testbed import walls
from testbed.network import PUBLIC_NAME
from testbed.person import HOME, PASSWORD_FILE, Person, report
from testbed.walls import BOX, BRIDGED, DOCKER, FIREWALLD, UFW, WALLS, Walled, findings, neighbour_reaches

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 8098
HOST_S = 600


def host_address(person: Person) -> str:
    return person.root("ip -4 -o address show dev br0").split()[3].partition("/")[0]


def proxied(person: Person) -> bool:
    """Tell whether the guest reaches an allowed name by the proxy."""
    command = f"curl -s -o /dev/null --max-time 10 http://{PUBLIC_NAME}/debian-12/SHA512SUMS"
    return person.vmw("ssh", "feature-x", "--", "bash", "-lc", f"'{command}'").returncode == DONE


@pytest.fixture(scope="module")
def served(feature_x: Person) -> Iterator[Person]:
    """Give the user with the first VM running, which may reach a name by the proxy, and a web server on the host."""
    unit = "systemd-run --quiet --collect --unit=e2e-wall --property=WorkingDirectory=/srv"
    feature_x.root(f"{unit} python3 -m http.server {PORT} --bind ::")
    assert feature_x.vmw("net", "allow", "feature-x", PUBLIC_NAME).returncode == 0
    yield feature_x
    feature_x.root("systemctl stop e2e-wall.service", check=False)
    feature_x.vmw("net", "forbid", "feature-x", PUBLIC_NAME)
    policy(feature_x, "internet")


@pytest.fixture(scope="module")
def installed(served: Person) -> Iterator[Person]:
    """Give the user with all of the filters installed and none at work; remove them afterwards."""
    with walls.installed(served):
        yield served


@pytest.fixture(scope="module", params=WALLS, ids=lambda wall: wall.name)
def walled(request: pytest.FixtureRequest, installed: Person) -> Iterator[Walled]:
    """Give the user with one of the filters at work."""
    with walls.rules_taken_away(installed):
        assert neighbour_reaches(host_address(installed), PORT)
        installed.root(request.param.begin)
        yield Walled(installed, request.param)


def near(walled: Walled) -> dict[str, str]:
    """Return what the VM must not reach, by what it is."""
    return {
        "the neighbour": f"http://{walled.person.host.network.gateway}/debian-12/SHA512SUMS",
        "the host": f"http://{host_address(walled.person)}:{PORT}/",
    }


def check_internet(walled: Walled) -> None:
    """See that the policy `internet` holds, in both directions, and lets through what it should."""
    person = walled.person
    far = {
        "an address": f"{person.host.public_url}/debian-12/SHA512SUMS",
        "a name": f"http://{PUBLIC_NAME}/debian-12/SHA512SUMS",
    }
    # By plain ssh, and so by the mDNS name.
    assert reached(person, {**far, **near(walled)}) == set(far)
    assert not neighbour_reaches(person.address("feature-x"), 22)


@pytest.fixture
def box(walled: Walled) -> Iterator[Person]:
    """Give the user with something at Docker's bridge that has a web server, and a route to it at the LAN's router."""
    person = walled.person
    if walled.wall is not DOCKER:
        yield person
        return
    route = [f"{BOX}/32", "via", host_address(person)]
    subprocess.run(["ip", "route", "replace", *route], check=True)
    with walls.container_at_docker(person, PORT):
        yield person
    subprocess.run(["ip", "route", "delete", *route], check=True)


def test_it_is_at_work(walled: Walled, box: Person) -> None:
    if walled.wall.guards_host:
        assert not neighbour_reaches(host_address(box), PORT)
        return
    assert box.root("iptables -S FORWARD").startswith("-P FORWARD DROP\n")
    # What Docker keeps closed stays closed: to everybody on the LAN, which the bridge's other ports are.
    out = f"ip netns exec box curl -s --max-time 5 {box.host.public_url}/debian-12/SHA512SUMS"
    assert "qcow2" in box.root(out)
    assert not neighbour_reaches(BOX, PORT)
    box.root("iptables -I DOCKER-USER -i br0 -j ACCEPT")
    assert neighbour_reaches(BOX, PORT)
    box.root(walled.wall.anew)
    assert not neighbour_reaches(BOX, PORT)
    # And where bridged frames do come by, Docker lets the VMs' pass because we say so.
    public = f"{box.host.public_url}/debian-12/SHA512SUMS"
    box.root(f"sysctl -qw {BRIDGED}=1 && iptables -F DOCKER-USER")
    try:
        assert curl(box, public).returncode == TIMED_OUT
        box.root(walled.wall.anew)
        assert curl(box, public).returncode == DONE
        assert findings(box)["bridge filter"]["status"] == "warn"
    finally:
        box.root(f"sysctl -qw {BRIDGED}=0")


LEFT_BY_NAT = """
ufw allow in on br0 to any port 53
ufw allow in on br0 to any port 67 proto udp comment vmw
ufw route allow in on br0 comment vmw
firewall-cmd --zone=libvirt --add-port={port}/tcp
firewall-cmd --permanent --zone=libvirt --add-port={port}/tcp
"""
"""What a set-up without an uplink leaves, but for the first, which has not its comment."""


def test_the_set_up_lets_vms_through_to_the_proxy(walled: Walled) -> None:
    person = walled.person
    policy(person, "allowlist")
    if walled.wall is FIREWALLD:
        assert not proxied(person)
        person.root(walls.FORGET_NAMES)
        assert not person.lookup("feature-x")
        found = findings(person)["other firewalls"]
        assert (found["status"], found["fix"]) == ("warn", f"{HOME}/vmw/vmw host"), found
        assert "firewalld" in found["message"]
        person.root(LEFT_BY_NAT.format(port=walls.proxy_port(person)))
        done = person.vmw("host", env=PASSWORD_FILE, timeout=HOST_S)
        assert done.returncode == 0, report(done)
        # Neighbours are on the bridge now, and would be routed; what somebody else wanted for them stays.
        rules = person.root("ufw show added")
        assert "route" not in rules
        assert "ufw allow in on br0 to any port 53\n" in rules
        assert person.root("firewall-cmd --permanent --zone=libvirt --list-ports") == "\n"
        person.root("ufw delete allow in on br0 to any port 53")
    assert proxied(person)
    now = findings(person)
    assert {now[name]["status"] for name in ("other firewalls", "packet filter", "bridge filter", "proxy")} == {"ok"}, now
    policy(person, "internet")


def test_policies_change_at_once(walled: Walled) -> None:
    person = walled.person
    policy(person, "offline")
    assert curl(person, f"{person.host.public_url}/debian-12/SHA512SUMS").returncode == TIMED_OUT
    policy(person, "open")
    # What the host's own services say is the other's business then.
    assert "the neighbour" in reached(person, near(walled))
    assert neighbour_reaches(person.address("feature-x"), 22)
    policy(person, "internet")
    check_internet(walled)


def test_the_policy_holds_when_the_other_writes_its_rules_anew_and_when_it_ends(walled: Walled) -> None:
    person = walled.person
    person.root(walled.wall.anew)
    check_internet(walled)
    assert findings(person)["packet filter"]["status"] == "ok"
    if walled.wall is UFW:
        # Without the rule of the set-up: that is what it is for.
        policy(person, "allowlist")
        assert proxied(person)
        person.root("ufw --force reset && ufw --force enable")
        assert not proxied(person)
        policy(person, "internet")
    person.root(walled.wall.end)
    check_internet(walled)
