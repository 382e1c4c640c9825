"""Roles kvm, mdns, bridge with NAT, packet_filter, and secrets, on a fresh Debian."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from testbed import hostimage, machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.hostimage import NicManager
    from testbed.roles import Play, RoleHost

ROLES = ("kvm", "mdns", "bridge", "packet_filter", "secrets")
HOME = f"/home/{hostimage.USER}"
STATE = f"{HOME}/.config/vmw"
ASK = (
    'import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect("/run/vmw-filter.sock");'
    ' s.sendall(sys.argv[1].encode() + b"\\n"); print(s.makefile().readline())'
)


@pytest.fixture(scope="module")
def fresh(new_host: Callable[[NicManager], RoleHost]) -> RoleHost:
    return new_host("networkd")


@pytest.fixture(scope="module")
def foreseen(fresh: RoleHost) -> tuple[Play, list[str], list[str]]:
    """Ask what would change on the fresh host, and give its state before and after."""
    before = fresh.container.snapshot()
    play = fresh.play(*ROLES, check=True, vmw_bridge_uplink="none")
    return play, before, fresh.container.snapshot()


@pytest.fixture(scope="module")
def play(fresh: RoleHost, foreseen: tuple[Play, list[str], list[str]]) -> Play:
    """Set up the host."""
    play = fresh.play(*ROLES, vmw_bridge_uplink="none")
    assert play.exit_code == 0, play.output[-6000:]
    return play


@pytest.fixture(scope="module")
def host(fresh: RoleHost, play: Play) -> RoleHost:
    return fresh


def test_check_mode_foresees_changes_on_a_fresh_host(foreseen: tuple[Play, list[str], list[str]]) -> None:
    play, _, _ = foreseen
    assert play.exit_code == 0, play.output[-6000:]
    assert {"Keep packet filters from cutting off the VMs", "Install the units"} <= set(play.changed)
    assert '"libvirt-daemon-system"' in play.output


def test_check_mode_changes_nothing(foreseen: tuple[Play, list[str], list[str]]) -> None:
    _, before, after = foreseen
    assert after == before


def test_second_run_changes_nothing(host: RoleHost) -> None:
    play = host.play(*ROLES, vmw_bridge_uplink="none")
    assert play.exit_code == 0, play.output[-6000:]
    assert play.changed == []
    assert play.stats["changed"] == 0


def test_check_mode_foresees_nothing_afterwards(host: RoleHost) -> None:
    play = host.play(*ROLES, check=True, vmw_bridge_uplink="none")
    assert play.exit_code == 0, play.output[-6000:]
    assert play.changed == []


def test_emulation_is_said_out_loud(play: Play) -> None:
    result = play.tasks["Load the KVM modules"]
    if machine.has_kvm():
        assert result["virt_type"] == "kvm"
        assert not result.get("warnings")
        return
    assert result["virt_type"] == "qemu"
    assert "neither vmx nor svm" in result["warnings"][0]


def test_user_reaches_libvirt_without_root(host: RoleHost) -> None:
    assert "QEMU" in host.run("virsh --connect qemu:///system version --daemon", user=hostimage.USER)


@pytest.mark.parametrize("unit", ["libvirtd.socket", "avahi-daemon.service"])
def test_daemon_runs_and_starts_at_boot(host: RoleHost, unit: str) -> None:
    assert host.run(f"systemctl is-active {unit}; systemctl is-enabled {unit}").split() == ["active", "enabled"]


@pytest.mark.parametrize("program", ["virtiofsd", "bwrap", "xorriso", "qemu-img", "setfacl", "qemu-system-x86_64", "dnsmasq"])
def test_program_is_there(host: RoleHost, program: str) -> None:
    assert host.run(f"PATH=$PATH:/usr/sbin:/usr/libexec command -v {program}").endswith(program)


def test_systems_python_has_libvirt_and_lxml(host: RoleHost) -> None:
    host.run("/usr/bin/python3 -c 'import libvirt, lxml.etree'")


def test_qemu_may_reach_the_users_sockets_and_others_may_not(host: RoleHost) -> None:
    directory = f"/run/vmw/{hostimage.USER}"
    assert host.run(f"stat --format='%a %U %G' {directory}") == f"2750 {hostimage.USER} libvirt-qemu"
    host.run(f"touch {directory}/socket; setpriv --reuid=libvirt-qemu --regid=kvm --init-groups ls {directory}/socket")
    assert host.container.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups ls {directory}", check=False).returncode
    host.run(f"rm {directory}/socket")


def test_apparmor_rules_are_where_libvirts_own_include_them(host: RoleHost) -> None:
    rules = host.run("cat /etc/apparmor.d/abstractions/libvirt-qemu.d/vmw")
    assert "  /run/vmw/*/* rw," in rules.splitlines()
    assert '"@{HOME}/.config/vmw/images/**" rk,' in rules
    assert "libvirt-qemu.d" in host.run("cat /etc/apparmor.d/abstractions/libvirt-qemu")


def test_names_of_vms_are_asked_for_before_dns(host: RoleHost) -> None:
    assert "mdns4_minimal [NOTFOUND=return] dns" in host.run("grep ^hosts: /etc/nsswitch.conf")
    assert host.run("getent hosts testhost.local")


def test_nat_network_serves_the_bridge(host: RoleHost) -> None:
    assert host.run("virsh net-info vmw | grep -E 'Active|Persistent|Autostart' | grep -c yes") == "3"
    assert host.address("br0").endswith(".1/24")
    assert host.run("cat /sys/class/net/br0/bridge/stp_state") == "0"


def test_machine_on_the_nat_network_gets_an_address_and_reaches_the_lan(host: RoleHost) -> None:
    host.run(
        "ip netns add guest && ip link add tap0 type veth peer name eth0 netns guest && ip link set tap0 master br0 up"
        " && ip -n guest link set eth0 up && apt-get -qq install --no-install-recommends udhcpc"
    )
    try:
        said = host.run("ip netns exec guest udhcpc -n -q -i eth0 -s /bin/true 2>&1")
        prefix = host.address("br0").rsplit(".", 1)[0]
        lease = re.search(rf"lease of ({prefix}\.\d+)", said)
        assert lease, said
        host.run(f"ip -n guest address add {lease[1]}/24 dev eth0 && ip -n guest route add default via {prefix}.1")
        assert " 0% packet loss" in host.run(f"ip netns exec guest ping -c 1 -W 5 {host.container.network.gateway}")
    finally:
        host.run("ip link delete tap0; ip netns delete guest")


def test_bridged_frames_are_not_filtered(host: RoleHost) -> None:
    settings = host.run("cat /proc/sys/net/bridge/bridge-nf-call-arptables /proc/sys/net/bridge/bridge-nf-call-ip*tables")
    assert settings.split() == ["0", "0", "0"]


def test_vms_get_through_dockers_filter(host: RoleHost) -> None:
    chain = "iptables --numeric --verbose --list DOCKER-USER"
    # What Docker leaves behind, and what it starts with.
    host.run("iptables -N DOCKER-USER && iptables -I FORWARD -j DOCKER-USER && iptables -A FORWARD -j DROP")
    try:
        assert "br0" not in host.run(chain)
        docker = "systemctl show --property=ExecStartPost --value docker.service"
        host.run("printf '[Service]\\nExecStart=sleep 1d\\n' > /run/systemd/system/docker.service && systemctl daemon-reload")
        assert "docker-forward" in host.run(docker)
        host.run("systemctl start docker.service")
        rules = host.run(chain)
        assert rules.count("br0") == 2
        host.run("systemctl restart docker.service")
        assert host.run(chain).count("br0") == 2
    finally:
        host.run("systemctl stop docker.service; rm /run/systemd/system/docker.service; systemctl daemon-reload")
        host.run("iptables -F FORWARD; iptables -F DOCKER-USER; iptables -X DOCKER-USER")


def test_packet_filter_is_ready_and_starts_before_the_vms(host: RoleHost) -> None:
    units = "vmw-filter.service vmw-filter.socket vmw-filter-refresh.timer"
    assert host.run(f"systemctl is-active {units}; systemctl is-enabled {units}").split() == ["active"] * 3 + ["enabled"] * 3
    assert host.run("stat --format='%a %U %G' /run/vmw-filter.sock") == "666 root root"
    assert host.run("find /usr/local/lib/vmw ! -user root -o -perm /022 ! -type l") == ""
    assert "vmw-filter.service" in host.run("systemctl show --property=After --value libvirtd.service").split()
    assert host.run("systemctl --failed --quiet --no-legend list-units 'vmw-*'") == ""


def test_packet_filter_does_what_the_user_asks(host: RoleHost) -> None:
    policy = {
        "name": "a",
        "tap": "vmw-0000000a",
        "mac": "52:54:00:00:00:0a",
        "bridge": "br0",
        "mode": "internet",
        "proxy_port": 0,
    }
    assert ask_filter(host, verb="set", **policy) == {"ok": True, "changed": True}
    assert ask_filter(host, verb="set", **policy) == {"ok": True, "changed": False}
    assert ask_filter(host, verb="status") == {"ok": True, "version": 1, "loaded": True, "policies": [policy], "ufw": []}
    assert ask_filter(host, verb="refused", name="a") == {"ok": True, "refused": []}
    assert ask_filter(host, verb="set", **{**policy, "tap": "eth0"})["ok"] is False
    assert "guard_0000000a" in host.run("nft list table bridge vmw")
    question = json.dumps({"schema": 1, "verb": "status"})
    stranger = host.run(f"setpriv --reuid=nobody --regid=nogroup --clear-groups python3 -c '{ASK}' '{question}'")
    assert json.loads(stranger)["error"] == "you are not in the group libvirt"


@pytest.mark.parametrize("verb", ["restart", "reload", "stop"])
def test_packet_filter_outlives_the_hosts_own_firewall(host: RoleHost, verb: str) -> None:
    host.run("systemctl start nftables.service")
    host.run("nft add table inet marker")
    host.run(f"systemctl {verb} nftables.service")
    tables = host.run("nft list tables").splitlines()
    assert "table inet marker" not in tables
    assert {"table bridge vmw", "table inet vmw"} <= set(tables)
    assert "guard_0000000a" in host.run("nft list table bridge vmw")


def test_packet_filter_forgets_a_vm(host: RoleHost) -> None:
    assert ask_filter(host, verb="remove", name="a") == {"ok": True, "changed": True}
    assert ask_filter(host, verb="status")["policies"] == []
    assert "guard_0000000a" not in host.run("nft list table bridge vmw")
    host.run("systemctl start vmw-filter-refresh.service")


def ask_filter(host: RoleHost, **fields: object) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(host.run(f"python3 -c '{ASK}' '{json.dumps(fields)}'", user=hostimage.USER))
    return reply


def test_secrets_are_the_users_alone(host: RoleHost) -> None:
    places = f"{STATE}/secrets {STATE}/secrets/default {STATE}/secrets/default/secrets.env"
    assert host.run(f"stat --format=%a {places}").split() == ["700", "700", "600"]
    assert host.run(f"readlink {STATE}/secrets.env") == "secrets/secrets.env"
    assert host.run(f"readlink {STATE}/secrets/secrets.env") == "default/secrets.env"
    lines = host.run(f"cat {STATE}/secrets.env", user=hostimage.USER).splitlines()
    assert [line for line in lines if not line.startswith("# ")] == [
        "ANTHROPIC_API_KEY=",
        "#PERPLEXITY_API_KEY=",
        "#OPENAI_API_KEY=",
    ]


def test_existing_secrets_are_not_touched(host: RoleHost) -> None:
    host.run(f"echo 'ANTHROPIC_API_KEY=mine' > {STATE}/secrets/secrets.env; chmod 640 {STATE}/secrets/secrets.env")
    play = host.play("secrets")
    assert play.changed == []
    assert host.run(f"cat {STATE}/secrets.env; stat --format=%a {STATE}/secrets/default/secrets.env").split() == [
        "ANTHROPIC_API_KEY=mine",
        "640",
    ]


def test_secrets_file_in_the_links_place_stays(host: RoleHost) -> None:
    host.run(f"rm {STATE}/secrets.env && echo mine > {STATE}/secrets.env && chown dev: {STATE}/secrets.env", user="root")
    play = host.play("secrets")
    assert play.exit_code == 0, play.output[-3000:]
    assert play.changed == []
    assert f"mv {STATE}/secrets.env" in play.tasks["Say that a secrets.env of the user's own is not shared"]["msg"].replace(
        "~", HOME
    )
    assert host.run(f"cat {STATE}/secrets.env") == "mine"
    host.run(f"mv {STATE}/secrets.env {STATE}/secrets/default/secrets.env", user=hostimage.USER)
    assert host.play("secrets").changed == ["Link it to where the user looks for it"]


def test_secrets_of_before_profiles_become_the_default_ones(host: RoleHost) -> None:
    before = (
        f"cd {STATE} && rm secrets/secrets.env && mv secrets new && mv new/default secrets && rmdir new"
        " && echo ANTHROPIC_API_KEY=old > secrets/secrets.env"
    )
    host.run(before, user=hostimage.USER)
    foreseen = host.play("secrets", check=True)
    assert foreseen.changed == ["Make the file for the API keys"]
    assert host.run(f"ls {STATE}/secrets") == "secrets.env"
    assert host.play("secrets").changed == ["Make the file for the API keys"]
    for path in ("secrets.env", "secrets/secrets.env", "secrets/default/secrets.env"):
        assert host.run(f"cat {STATE}/{path}", user=hostimage.USER) == "ANTHROPIC_API_KEY=old"
    assert host.play("secrets").changed == []


def test_another_profile_is_made_beside_the_default_one(host: RoleHost) -> None:
    for _ in range(2):
        play = host.play("secrets", secrets_profile="work")
        assert play.exit_code == 0, play.output[-3000:]
    assert play.changed == []
    assert host.run(f"stat --format=%a {STATE}/secrets/work {STATE}/secrets/work/secrets.env").split() == ["700", "600"]
    assert host.run(f"cat {STATE}/secrets.env") == "ANTHROPIC_API_KEY=old"


def test_everything_is_there_after_a_reboot(host: RoleHost) -> None:
    host.reboot()
    assert host.run(f"stat --format='%a %U %G' /run/vmw/{hostimage.USER}") == f"2750 {hostimage.USER} libvirt-qemu"
    assert host.run(f"systemctl is-active user@{hostimage.UID}.service") == "active"
    host.run("virsh list")
    assert host.run("virsh net-info vmw | grep Active").endswith("yes")
    assert {"table bridge vmw", "table inet vmw"} <= set(host.run("nft list tables").splitlines())
    assert ask_filter(host, verb="status")["loaded"] is True
    assert host.play(*ROLES, vmw_bridge_uplink="none").changed == []


@pytest.mark.parametrize(
    ("system", "version", "reason"),
    [("Debian", "12", "has no Rust virtiofsd"), ("Ubuntu", "22.04", "has no Rust virtiofsd")],
)
def test_old_release_is_refused_with_the_reason(host: RoleHost, system: str, version: str, reason: str) -> None:
    host.run("cp --no-dereference /etc/os-release /etc/os-release.kept; cp /etc/debian_version /etc/debian_version.kept")
    try:
        host.run(
            f'printf \'NAME="{system}"\\nID={system.lower()}\\nVERSION_ID="{version}"\\n\' > /etc/os-release.new;'
            f"mv /etc/os-release.new /etc/os-release; echo {version} > /etc/debian_version"
        )
        play = host.play("kvm")
    finally:
        host.run("mv /etc/os-release.kept /etc/os-release; mv /etc/debian_version.kept /etc/debian_version")
    assert play.exit_code != 0
    assert reason in play.failure
    assert f"{system} {version}" in play.failure


def test_root_is_refused(host: RoleHost) -> None:
    play = host.play("kvm", ansible_become=True)
    assert play.exit_code != 0
    assert "ordinary user" in play.failure
