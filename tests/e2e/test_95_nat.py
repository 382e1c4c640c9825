"""The same host with NAT in place of the LAN: the uplink leaves the bridge, and a VM is spawned behind it."""

from __future__ import annotations

import ipaddress
import json

import pytest
from testbed import hostimage, standins
from testbed.person import PASSWORD_FILE, Person, report
from testbed.story import FEATURE_X, SMALL

BOOT_S = 400


@pytest.fixture(scope="module")
def nat(ready: Person) -> Person:
    """Give the user once the bridge has no uplink; no VM may run while it is taken away."""
    for name in ready.domains():
        assert ready.vmw("destroy", name, "--yes").returncode == 0
    done = ready.playbook("host.yml", "-e", "vmw_bridge_uplink=none", cwd="~/vmw", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    return ready


@pytest.fixture(scope="module")
def guest(nat: Person) -> Person:
    """Give the user with a VM behind NAT."""
    done = nat.vmw("spawn", FEATURE_X, *SMALL, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    return nat


def subnet(person: Person) -> ipaddress.IPv4Network:
    """Return the bridge's own network."""
    (entry,) = json.loads(person.root("ip -json -4 address show br0"))[0]["addr_info"]
    return ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)


def test_host_has_its_network_card_back(nat: Person) -> None:
    (route,) = json.loads(nat.root("ip -json route show default"))
    assert (route["gateway"], route["dev"]) == (nat.host.network.gateway, hostimage.NIC)
    assert nat.virsh("net-list", "--name").split() == ["vmw"]
    assert ipaddress.ip_address(nat.host.network.gateway) not in subnet(nat)


def test_guest_is_behind_the_bridge(guest: Person) -> None:
    address = guest.address("feature-x")
    assert ipaddress.ip_address(address) in subnet(guest)
    assert guest.root("getent ahostsv4 feature-x.local").split()[0] == address


def test_guest_reaches_the_outside(guest: Person) -> None:
    done = guest.ssh("feature-x", f"curl -sI {guest.host.url}/{standins.IMAGE_PATH}/SHA512SUMS")
    assert done.stdout.startswith("HTTP/1.1 200"), report(done)


def test_shares_and_login_work(guest: Person) -> None:
    done = guest.vmw("ssh", "feature-x", "--", "cat repo/hello.py && ls .secrets")
    assert done.stdout == 'print("hello")\nsecrets.env\n', report(done)


def test_second_run_changes_nothing(guest: Person) -> None:
    done = guest.playbook("host.yml", "-e", "vmw_bridge_uplink=none", cwd="~/vmw", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    assert "changed=0 " in done.stdout, report(done)
