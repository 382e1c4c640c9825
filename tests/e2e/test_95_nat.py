"""The same host with NAT in place of the LAN: the uplink leaves the bridge, and a plain clone's VM is spawned behind it."""

from __future__ import annotations

import ipaddress
import json

from testbed import hostimage, standins
from testbed.person import PASSWORD_FILE, STATE, Person, report
from testbed.story import CLONE
from testbed.story import CLONE_NAME as NAME


def subnet(person: Person) -> ipaddress.IPv4Network:
    """Return the bridge's own network."""
    (entry,) = json.loads(person.root("ip -json -4 address show br0"))[0]["addr_info"]
    return ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)


def test_host_has_its_network_card_back(nat: Person) -> None:
    (route,) = json.loads(nat.root("ip -json route show default"))
    assert (route["gateway"], route["dev"]) == (nat.host.network.gateway, hostimage.NIC)
    assert nat.virsh("net-list", "--name").split() == ["vmw"]
    assert ipaddress.ip_address(nat.host.network.gateway) not in subnet(nat)


def test_guest_is_behind_the_bridge(nat_guest: Person) -> None:
    address = nat_guest.address(NAME)
    assert ipaddress.ip_address(address) in subnet(nat_guest)
    assert nat_guest.lookup(NAME) == address


def test_guest_reaches_the_outside(nat_guest: Person) -> None:
    done = nat_guest.ssh(NAME, f"curl -sI {nat_guest.host.public_url}/{standins.IMAGE_PATH}/SHA512SUMS")
    assert done.stdout.startswith("HTTP/1.1 200"), report(done)


def test_guest_reaches_nothing_near(nat_guest: Person) -> None:
    gateway = nat_guest.host.network.gateway
    (entry,) = json.loads(nat_guest.root("ip -json -4 address show br0"))[0]["addr_info"]
    nat_guest.root("systemd-run --quiet --collect --unit=e2e-web python3 -m http.server 8099 --bind 0.0.0.0")
    look = [f"curl -s -o /dev/null --max-time 5 http://{place}; echo $?" for place in (gateway, f"{entry['local']}:8099")]
    assert nat_guest.ssh(NAME, "; ".join(look)).stdout.split() == ["28", "28"]
    assert nat_guest.vmw("net", NAME, "open").returncode == 0
    assert nat_guest.ssh(NAME, "; ".join(look)).stdout.split() == ["0", "0"]
    assert nat_guest.vmw("net", NAME, "internet").returncode == 0
    nat_guest.root("systemctl stop e2e-web.service")


def test_shares_and_login_work(nat_guest: Person) -> None:
    done = nat_guest.vmw("ssh", NAME, "--", "cat repo/hello.py && ls .secrets")
    assert done.stdout == 'print("hello")\nsecrets.env\n', report(done)


def test_the_proxy_with_the_keys_is_reached_here_too(nat_guest: Person) -> None:
    nat_guest.sh(f"sed -i --follow-symlinks 's/^ANTHROPIC_API_KEY=.*/ANTHROPIC_API_KEY=planted/' {STATE}/secrets.env", check=True)
    # Without a placeholder, so that the proxy itself answers.
    done = nat_guest.ssh(NAME, "echo $ANTHROPIC_API_KEY; curl -s --max-time 10 $ANTHROPIC_BASE_URL/v1/messages")
    nat_guest.sh(f"sed -i --follow-symlinks 's/^ANTHROPIC_API_KEY=.*/ANTHROPIC_API_KEY=/' {STATE}/secrets.env", check=True)
    placeholder, _, answer = done.stdout.partition("\n")
    assert placeholder == f"vmw-{NAME}", report(done)
    assert "vmw-proxy: the request has no placeholder" in answer, report(done)


def test_plain_clone_takes_commits_of_the_guest(nat_guest: Person) -> None:
    commit = "cd repo && touch of-the-guest && git add . && git -c user.name=a -c user.email=a@b commit -qm 'From the guest'"
    done = nat_guest.ssh(NAME, f"{commit} && git rev-parse HEAD")
    assert done.returncode == 0, report(done)
    assert nat_guest.sh(f"git -C {CLONE} log -1 --format='%H %s'").stdout == f"{done.stdout.strip()} From the guest\n"
    assert nat_guest.root(f"find {CLONE} ! -user dev") == ""


def test_second_run_changes_nothing(nat_guest: Person) -> None:
    done = nat_guest.playbook("host.yml", "-e", "vmw_bridge_uplink=none", cwd="~/vmw", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    assert "changed=0 " in done.stdout, report(done)
