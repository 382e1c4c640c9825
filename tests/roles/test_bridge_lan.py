"""Role bridge with a wired NIC as the uplink, played over the very NIC, with each of the managers that a NIC can have."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testbed import hostimage
from testbed.network import end

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.hostimage import NicManager
    from testbed.roles import Play, RoleHost

NIC = hostimage.NIC
ROLLBACK_S = 16
LONG_ROLLBACK_S = 50
LEASE_S = 60

RESOLVE_THE_MIRROR = (
    "getent hosts $(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null"
    " | grep -oE 'https?://[^/ ]+' | head -n 1 | cut -d/ -f3)"
)
"""Asks DNS for the host of the machine's own package mirror, whatever that is."""

DEAF_BRIDGE = (
    "add table bridge deaf; add chain bridge deaf ears { type filter hook prerouting priority 0; };"
    f" add rule bridge deaf ears iifname {NIC} drop"
)
"""Drops what comes in through the NIC for as long as it is a port of a bridge."""

LIBVIRT_URI = "network:///system"
VIRSH = f"virsh --connect {LIBVIRT_URI}"
NAT_ADDRESS = "192.168.150.1/24"
# Not every kernel that a test machine has can do what libvirt's NAT rules ask for.
NAT_NETWORK = (
    '<network><name>vmw</name><forward mode="open"/><bridge name="br0"/>'
    '<ip address="192.168.150.1" netmask="255.255.255.0"/></network>'
)


# What a person with a fixed address would write, with a second address and a route of their own.
STATIC = {
    "networkd": """
        printf '[Match]\\nName={nic}\\n[Network]\\nAddress={address}\\nAddress={second}\\nGateway={gateway}\\nDNS={gateway}\\n' \
            > /etc/systemd/network/10-wired.network
        printf '%s\\n' '[Route]' 'Destination=10.99.0.0/16' 'Gateway={gateway}' >> /etc/systemd/network/10-wired.network
        networkctl reload && networkctl reconfigure {nic}
    """,
    "networkmanager": """
        nmcli connection modify 'Wired connection 1' ipv4.method manual ipv4.addresses {address},{second} \
            ipv4.gateway {gateway} ipv4.dns {gateway} ipv4.routes '10.99.0.0/16 {gateway}'
        nmcli connection up 'Wired connection 1'
    """,
    "netplan": """
        printf '%s\\n' 'network:' '  version: 2' '  ethernets:' '    {nic}:' '      addresses: [{address}, {second}]' \
            '      nameservers: {{addresses: [{gateway}]}}' \
            '      routes: [{{to: default, via: {gateway}}}, {{to: 10.99.0.0/16, via: {gateway}}}]' > /etc/netplan/01-wired.yaml
        netplan generate && networkctl reload && networkctl reconfigure {nic}
    """,
}


@dataclass(frozen=True)
class Place:
    """Where a host is on its LAN, as the kernel and the resolver say."""

    address: str
    gateway: str
    metric: int
    nameservers: str


def place(host: RoleHost, device: str) -> Place:
    routes: list[dict[str, Any]] = json.loads(host.outside("ip", "-json", "route", "show", "default", "dev", device))
    listing = "cat /run/systemd/resolve/resolv.conf 2>/dev/null || cat /etc/resolv.conf"
    nameservers = host.run(f"({listing}) | grep ^nameserver")
    route = routes[0] if routes else {}
    return Place(host.address(device), route.get("gateway", ""), route.get("metric", 0), nameservers)


def wait_for_address(host: RoleHost, device: str, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while not host.address(device) and time.monotonic() < deadline:
        time.sleep(0.3)
    return host.address(device)


def has_bridge(host: RoleHost) -> bool:
    return '"br0"' in host.outside("ip", "-json", "link", "show")


def traces(host: RoleHost) -> str:
    """Return what of ours the managers have, and what waits to take something back."""
    return host.run(
        "ls /etc/systemd/network /run/systemd/network /etc/NetworkManager/system-connections /run/vmw-bridge 2>/dev/null"
        " | grep -E 'vmw|br0|forward'; systemctl list-units --all --plain --no-legend 'vmw-bridge*'",
        check=False,
    )


@pytest.fixture(scope="module", params=hostimage.NIC_MANAGERS)
def host(request: pytest.FixtureRequest, new_host: Callable[[NicManager], RoleHost]) -> RoleHost:
    return new_host(request.param)


def has_moved(host: RoleHost) -> bool:
    """Tell whether the NIC is a port of the bridge, as the host's own sysfs has it."""
    master = Path(f"/proc/{host.container.leader}/root/sys/class/net/{NIC}/master")
    return master.is_symlink() and master.readlink().name == "br0"


def module_at_work(host: RoleHost) -> int:
    """Return the process id of the module at work on the host, not of the sudo and shell around it, or 0."""
    namespace = Path(f"/proc/{host.container.leader}/ns/pid").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *words = (process / "cmdline").read_bytes().split(b"\0")
            is_module = b"python" in program and any(b"AnsiballZ_bridge.py" in word for word in words)
            if is_module and (process / "ns/pid").readlink() == namespace:
                return int(process.name)
    return 0


def play_interrupted(host: RoleHost, moment: Callable[[RoleHost], bool], number: signal.Signals, seconds: int) -> Play:
    """Play the role, and signal the module once the moment has come."""
    done = threading.Event()

    def interrupt() -> None:
        # Found beforehand, for a switch takes less than a second.
        while not (module := module_at_work(host)):
            time.sleep(0.02)
        while not moment(host):
            time.sleep(0.005)
        os.kill(module, number)
        done.set()

    threading.Thread(target=interrupt, daemon=True).start()
    play = host.play("bridge", vmw_bridge_uplink="auto", bridge_rollback_seconds=seconds)
    assert done.wait(1), play.output[-3000:]
    return play


def wait_until_taken_back(host: RoleHost, seconds: float) -> None:
    """Wait until nothing of the switch is left."""
    deadline = time.monotonic() + seconds
    while (has_bridge(host) or traces(host)) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert not has_bridge(host)
    assert traces(host) == ""


class Outage:
    """The LAN's router goes away at the moment when the NIC has moved."""

    def __init__(self, host: RoleHost) -> None:
        self.host = host
        self.network = host.container.network
        self.pid = int((host.container.directory / "dnsmasq.pid").read_text())
        self.command = Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[:-1]
        # With fixed addresses the switch can be over before the router has gone; the bridge hears nothing from it in any case.
        self.host.outside("nft", DEAF_BRIDGE)
        self.seen = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)
        self.thread.start()

    def _wait(self) -> None:
        while not has_moved(self.host):
            time.sleep(0.02)
        end(self.pid)
        self._ip("address", "flush")
        self.seen.set()

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words, "dev", self.network.link], check=True)

    def finish(self) -> None:
        """Bring the router back."""
        self.host.outside("nft", "delete table bridge deaf")
        self._ip("address", "add", f"{self.network.gateway}/24")
        subprocess.run(self.command, check=True)


def test_router_that_goes_away_during_the_switch_leaves_the_host_as_it_was(host: RoleHost) -> None:
    before = place(host, NIC)
    outage = Outage(host)
    play = host.play("bridge", vmw_bridge_uplink="auto", bridge_rollback_seconds=ROLLBACK_S)
    assert outage.seen.wait(1), play.output[-3000:]
    # Ansible is cut off; what brings the host back is on the host.
    assert play.exit_code != 0
    deadline = time.monotonic() + 3 * ROLLBACK_S
    while has_bridge(host) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert not has_bridge(host)
    # The managers ask ever more seldom by now.
    time.sleep(2 * ROLLBACK_S)
    outage.finish()
    assert wait_for_address(host, NIC, LEASE_S) == before.address
    wait_until_taken_back(host, LEASE_S)
    assert place(host, NIC) == before


def test_module_that_is_killed_after_the_move_leaves_the_host_as_it_was(host: RoleHost) -> None:
    before = place(host, NIC)
    play = play_interrupted(host, has_moved, signal.SIGKILL, ROLLBACK_S)
    assert play.exit_code != 0
    assert has_bridge(host)
    wait_until_taken_back(host, 3 * ROLLBACK_S)
    assert place(host, NIC) == before


def test_module_that_is_asked_to_end_takes_the_switch_back_at_once(host: RoleHost) -> None:
    before = place(host, NIC)
    play = play_interrupted(host, has_moved, signal.SIGTERM, LONG_ROLLBACK_S)
    assert play.exit_code != 0
    wait_until_taken_back(host, LONG_ROLLBACK_S / 2)
    assert place(host, NIC) == before


def test_next_run_takes_back_what_a_killed_one_has_left_and_goes_on(host: RoleHost) -> None:
    before = place(host, NIC)
    # NetworkManager's bridge is there before the NIC moves.
    play = play_interrupted(host, has_bridge, signal.SIGKILL, LONG_ROLLBACK_S)
    assert play.exit_code != 0
    deadline = time.monotonic() + LEASE_S
    while not (host.address() or host.address("br0")) and time.monotonic() < deadline:
        time.sleep(0.3)
    foreseen = host.play("bridge", check=True, vmw_bridge_uplink="none")
    assert "was interrupted and is not taken back yet" in foreseen.failure
    again = host.play("bridge", vmw_bridge_uplink="none")
    assert again.exit_code == 0, again.output[-3000:]
    assert not has_bridge(host)
    assert traces(host) == ""
    assert place(host, NIC) == before


def test_check_mode_foresees_the_switch_and_does_nothing(host: RoleHost) -> None:
    play = host.play("bridge", check=True, vmw_bridge_uplink="auto")
    assert play.exit_code == 0, play.output[-3000:]
    result = play.tasks["Give the bridge its uplink"]
    assert result["changed"]
    assert result["diff"] == {"before": "no br0\n", "after": f"br0 with the uplink {NIC}\n"}
    assert not has_bridge(host)


def test_switch_keeps_address_route_and_name_servers(host: RoleHost) -> None:
    before = place(host, NIC)
    mac = host.run(f"cat /sys/class/net/{NIC}/address")
    play = host.play("bridge", vmw_bridge_uplink="auto")
    assert play.exit_code == 0, play.output[-3000:]
    result = play.tasks["Give the bridge its uplink"]
    assert (result["changed"], result["mode"], result["nic"]) == (True, "lan", NIC)
    assert place(host, "br0") == before
    assert host.address() == ""
    assert host.run("cat /sys/class/net/br0/address") == mac
    assert host.run("cat /sys/class/net/br0/bridge/stp_state") == "0"
    assert host.run(f"basename $(readlink /sys/class/net/{NIC}/master)") == "br0"
    assert host.run(RESOLVE_THE_MIRROR)
    assert "vmw-bridge" not in traces(host)


def test_network_managers_profiles_have_the_promised_names(host: RoleHost) -> None:
    if host.container.manager != "networkmanager":
        pytest.skip("NetworkManager does not run this NIC")
    profiles = host.run("nmcli --terse --fields NAME,DEVICE connection show").splitlines()
    assert {"br0:br0", f"br0-slave-{NIC}:{NIC}", "Wired connection 1:"} <= set(profiles)


def test_second_run_changes_nothing(host: RoleHost) -> None:
    for uplink in ("auto", NIC):
        play = host.play("bridge", vmw_bridge_uplink=uplink)
        assert play.exit_code == 0, play.output[-3000:]
        assert play.changed == []


def test_machine_on_the_bridge_is_on_the_lan(host: RoleHost) -> None:
    host.run(
        "ip netns add guest && ip link add tap0 type veth peer name eth0 netns guest && ip link set tap0 master br0 up"
        " && ip -n guest link set eth0 up"
    )
    try:
        gateway = host.container.network.gateway
        address = gateway.rsplit(".", 1)[0] + ".40/24"
        host.run(f"ip -n guest address add {address} dev eth0")
        assert " 0% packet loss" in host.run(f"ip netns exec guest ping -c 1 -W 5 {gateway}")
        refused = host.play("bridge", vmw_bridge_uplink="none")
        assert "VMs run on br0 (tap0)" in refused.failure
    finally:
        host.run("ip link delete tap0; ip netns delete guest")


def test_other_uplink_is_refused(host: RoleHost) -> None:
    assert f"already has the uplink {NIC}" in host.play("bridge", vmw_bridge_uplink="enp9s0").failure


def test_bridge_is_there_after_a_reboot(host: RoleHost) -> None:
    before = place(host, "br0")
    host.reboot()
    assert wait_for_address(host, "br0", LEASE_S) == before.address
    assert place(host, "br0") == before
    assert host.play("bridge", vmw_bridge_uplink="auto").changed == []


def test_nic_gets_its_own_settings_back(host: RoleHost) -> None:
    before = place(host, "br0")
    play = host.play("bridge", vmw_bridge_uplink="none")
    assert play.exit_code == 0, play.output[-3000:]
    assert place(host, NIC) == before
    assert not has_bridge(host)
    assert traces(host) == ""
    assert host.run(RESOLVE_THE_MIRROR)


def test_bridge_of_somebody_else_is_used_as_it_is(host: RoleHost) -> None:
    host.run("ip link add br0 type bridge")
    try:
        play = host.play("bridge", vmw_bridge_uplink=NIC)
        assert play.exit_code == 0, play.output[-3000:]
        assert play.changed == []
        result = play.tasks["Give the bridge its uplink"]
        assert result["mode"] == "existing"
        assert f"without {NIC}" in result["warnings"][0]
    finally:
        host.run("ip link delete br0")


def test_nic_that_nobody_runs_is_refused_by_name_and_passed_over_by_auto(host: RoleHost) -> None:
    host.run("ip link add spare type veth peer name other")
    try:
        assert "is not connected by" in host.play("bridge", vmw_bridge_uplink="spare").failure
    finally:
        host.run("ip link delete spare")


def test_nic_that_carries_another_interface_is_refused(host: RoleHost) -> None:
    host.run(f"ip link add link {NIC} name stacked type macvlan")
    try:
        assert f"{NIC} carries stacked" in host.play("bridge", vmw_bridge_uplink=NIC).failure
        assert not has_bridge(host)
    finally:
        host.run("ip link delete stacked")


def test_fixed_addresses_and_routes_are_kept_both_ways(host: RoleHost) -> None:
    gateway = host.container.network.gateway
    prefix = gateway.rpartition(".")[0]
    values = {"nic": NIC, "address": f"{prefix}.30/24", "second": f"{prefix}.31/24", "gateway": gateway}
    host.run("set -e;" + STATIC[host.container.manager].format(**values))
    before = place(host, NIC)
    assert before.address == values["address"]
    for uplink, device in ((NIC, "br0"), ("none", NIC)):
        play = host.play("bridge", vmw_bridge_uplink=uplink)
        assert play.exit_code == 0, play.output[-3000:]
        assert place(host, device) == before
        assert values["second"] in host.outside("ip", "-4", "address", "show", "dev", device)
        assert f"via {gateway} dev {device}" in host.outside("ip", "route", "show", "10.99.0.0/16")


def test_nat_network_ends_only_with_a_switch_that_works(host: RoleHost) -> None:
    host.run("apt-get -qq install --no-install-recommends libvirt-clients libvirt-daemon libvirt-daemon-driver-network")
    host.run(f"echo '{NAT_NETWORK}' > /root/vmw.xml && {VIRSH} net-define /root/vmw.xml && {VIRSH} net-start vmw")
    before = place(host, NIC)
    outage = Outage(host)
    settings: dict[str, Any] = {"vmw_libvirt_uri": LIBVIRT_URI, "vmw_bridge_uplink": NIC, "bridge_rollback_seconds": ROLLBACK_S}
    play = host.play("bridge", **settings)
    assert outage.seen.wait(1), play.output[-3000:]
    assert play.exit_code != 0
    outage.finish()
    assert wait_for_address(host, NIC, LEASE_S) == before.address
    deadline = time.monotonic() + LEASE_S
    while traces(host) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert host.run(f"{VIRSH} net-list --name") == "vmw"
    assert host.address("br0") == NAT_ADDRESS
    assert place(host, NIC) == before
    play = host.play("bridge", **settings)
    assert play.exit_code == 0, play.output[-3000:]
    assert place(host, "br0") == before
    assert host.run(f"{VIRSH} net-list --all --name") == ""
