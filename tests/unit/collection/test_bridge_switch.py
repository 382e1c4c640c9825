from __future__ import annotations

import shlex
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import bridge_switch as switch

if TYPE_CHECKING:
    from pathlib import Path

MAC = "52:54:00:00:00:01"
NETWORK = """\
# comment
[Match]
Name=en*

[Link]
MTUBytes=9000
RequiredForOnline=routable

[Network]
Address=10.0.0.5/24
Address=10.0.0.6/24
Gateway=10.0.0.1
; other comment
DNS=10.0.0.1 \\
 10.0.0.2

[Route]
Destination=10.9.0.0/16
Gateway=10.0.0.9

[Route]
Destination=10.8.0.0/16
Gateway=10.0.0.8
"""


def sections_of(text: str) -> list[str]:
    return [name for name, _ in switch.parse_unit(text)]


def test_unit_is_read_in_order_with_repeated_sections_and_keys() -> None:
    sections = switch.parse_unit(NETWORK)
    assert [name for name, _ in sections] == ["Match", "Link", "Network", "Route", "Route"]
    assert sections[2][1][:2] == (("Address", "10.0.0.5/24"), ("Address", "10.0.0.6/24"))
    assert dict(sections[2][1])["DNS"].split() == ["10.0.0.1", "10.0.0.2"]
    assert dict(sections[4][1]) == {"Destination": "10.8.0.0/16", "Gateway": "10.0.0.8"}


def test_unit_survives_being_written_and_read() -> None:
    sections = switch.parse_unit(NETWORK)
    assert switch.parse_unit(switch.render_unit(sections, "comment")) == sections


@pytest.mark.parametrize("text", ["", "# nothing\n", "Key=before any section\n", "[Network]\nno value\n"])
def test_unit_without_settings(text: str) -> None:
    assert not any(values for _, values in switch.parse_unit(text))


@pytest.mark.parametrize(("line", "key"), [("VLAN=v5", "VLAN"), ("Bond=b", "Bond"), ("Bridge=x", "Bridge"), ("DHCP=yes", "")])
def test_nic_that_is_tied_to_another_interface(line: str, key: str) -> None:
    assert switch.stacked(switch.parse_unit(f"[Match]\nName=e\n[Network]\n{line}\n")) == key


def test_networkd_bridge_takes_over_mac_and_settings() -> None:
    files = switch.networkd_files("br0", "enp1s0", MAC, switch.parse_unit(NETWORK))
    device, network, uplink = (switch.parse_unit(files[name]) for name in switch.unit_names("br0"))
    assert dict(device[0][1]) == {"Name": "br0", "Kind": "bridge", "MACAddress": MAC, "MTUBytes": "9000"}
    assert dict(device[1][1])["STP"] == "no"
    assert network[0] == ("Match", (("Name", "br0"),))
    assert network[1] == ("Link", (("RequiredForOnline", "routable"),))
    assert network[2:] == switch.parse_unit(NETWORK)[2:]
    assert uplink == (
        ("Match", (("Name", "enp1s0"),)),
        ("Link", (("RequiredForOnline", "no"), ("MTUBytes", "9000"))),
        ("Network", (("Bridge", "br0"),)),
    )


def test_networkd_files_win_over_netplans_and_the_users() -> None:
    names = [*switch.unit_names("br0"), "10-netplan-enp1s0.network", "10-wired.network"]
    assert names == sorted(names, key=lambda name: name[:2])


def test_networkd_lease_is_asked_for_with_the_same_identifier() -> None:
    client_id = "ff1a3d793f00020000ab11045e78584ddcd7cd"
    files = switch.networkd_files("br0", "enp1s0", MAC, switch.parse_unit("[Network]\nDHCP=yes\n"), client_id)
    assert switch.parse_unit(files["05-vmw-br0.network"])[-1] == ("DHCPv4", (("IAID", str(0x1A3D793F)),))


@pytest.mark.parametrize("client_id", ["", "01525400000001"])
def test_networkd_identifier_made_from_the_mac_needs_no_help(client_id: str) -> None:
    files = switch.networkd_files("br0", "enp1s0", MAC, switch.parse_unit("[Network]\nDHCP=yes\n"), client_id)
    assert "DHCPv4" not in sections_of(files["05-vmw-br0.network"])


def test_networkd_is_switched_at_run_time_and_undone_in_both_places() -> None:
    forward = switch.networkd_script("br0", "/run/work", switch.RUNTIME_UNITS)
    assert forward.endswith("networkctl reload\n")
    assert "/etc" not in forward
    removed = shlex.split(switch.networkd_undo("br0").splitlines()[0])[2:]
    assert Counter(path.rpartition("/")[2] for path in removed) == dict.fromkeys(switch.unit_names("br0"), 2)
    assert {path.split("/")[1] for path in removed} == {"etc", "run"}
    assert switch.networkd_undo("br0").endswith("networkctl reload\n")


PROFILE = {
    "connection.id": "Wired connection 1",
    "connection.type": "802-3-ethernet",
    "connection.zone": "home",
    "connection.interface-name": "enp1s0",
    "802-3-ethernet.mtu": "9000",
    "ipv4.method": "manual",
    "ipv4.addresses": "10.0.0.5/24, 10.0.0.6/24",
    "ipv4.gateway": "10.0.0.1",
    "ipv4.dns": "10.0.0.1,10.0.0.2",
    "ipv4.routes": "{ ip = 10.9.0.0/16, nh = 10.0.0.9 }",
    "ipv4.route-metric": "-1",
    "ipv6.method": "auto",
    "ipv6.token": "",
}


def settings_of(command: list[str]) -> dict[str, str]:
    start = command.index("connection.uuid")
    return dict(zip(command[start::2], command[start + 1 :: 2], strict=True))


def test_network_manager_output_is_read_with_colons_in_values() -> None:
    assert switch.parse_nm("ipv6.addresses:2001:db8::5/64\nGENERAL.HWADDR:52:54:00:00:00:01\nIP4.GATEWAY:\n\nnothing\n") == {
        "ipv6.addresses": "2001:db8::5/64",
        "GENERAL.HWADDR": "52:54:00:00:00:01",
        "IP4.GATEWAY": "",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [({}, ""), ({"connection.type": "pppoe"}, "of the type pppoe"), ({"802-1x.eap": "peap"}, "802.1X")],
)
def test_network_manager_profile_that_cannot_move(change: dict[str, str], reason: str) -> None:
    found = switch.nm_unfit({**PROFILE, **change})
    assert reason in found
    assert bool(found) == bool(reason)


def test_network_manager_bridge_takes_over_mac_and_settings() -> None:
    add_bridge, add_port, up = switch.nm_commands("br0", "enp1s0", MAC, PROFILE, 100)
    assert add_bridge[:5] == ["nmcli", "connection", "add", "save", "no"]
    assert add_bridge[add_bridge.index("con-name") + 1] == "br0"
    settings = settings_of(add_bridge)
    assert settings["bridge.mac-address"] == MAC
    assert settings["bridge.stp"] == "no"
    for key in ("ipv4.method", "ipv4.addresses", "ipv4.gateway", "ipv4.dns", "ipv4.routes", "ipv6.method", "connection.zone"):
        assert settings[key] == PROFILE[key]
    assert settings["ipv4.route-metric"] == "100"
    assert "ipv6.token" not in settings
    assert "connection.interface-name" not in settings
    assert add_port[add_port.index("con-name") + 1] == "br0-slave-enp1s0"
    assert add_port[add_port.index("master") + 1] == "br0"
    assert settings_of(add_port)["802-3-ethernet.mtu"] == "9000"
    assert settings_of(add_port)["connection.uuid"] in up


def test_network_manager_metric_of_the_users_own_is_kept() -> None:
    command = switch.nm_commands("br0", "enp1s0", MAC, {**PROFILE, "ipv4.route-metric": "50"}, 100)[0]
    assert settings_of(command)["ipv4.route-metric"] == "50"


def test_network_manager_method_comes_before_what_depends_on_it() -> None:
    command = switch.nm_commands("br0", "enp1s0", MAC, PROFILE, 0)[0]
    assert command.index("ipv4.addresses") < command.index("ipv4.gateway")


def test_network_manager_profiles_are_told_apart_from_others_of_the_same_name() -> None:
    assert switch.nm_uuid("br0") == switch.nm_uuid("br0")
    assert len({switch.nm_uuid(name) for name in ("br0", "br1", "br0-slave-enp1s0", "br0-slave-enp2s0")}) == 4


def test_network_manager_undo_activates_the_nics_own_and_removes_both() -> None:
    lines = [shlex.split(line) for line in switch.nm_undo("br0", "enp1s0", "own-uuid").splitlines()]
    assert lines[0][-8:] == ["--wait", "0", "connection", "up", "uuid", "own-uuid", "ifname", "enp1s0"]
    assert [line[-1] for line in lines[1:]] == [switch.nm_uuid("br0-slave-enp1s0"), switch.nm_uuid("br0")]


@pytest.mark.parametrize(("active", "activations"), [("own-uuid", 0), (switch.nm_uuid("br0-slave-enp1s0"), 1), ("", 1)])
def test_network_manager_undo_does_not_cut_a_nic_that_never_moved(tmp_path: Path, active: str, activations: int) -> None:
    log = run_script(tmp_path, switch.nm_undo("br0", "enp1s0", "own-uuid"), nmcli=f"echo {active}")
    assert sum("connection up" in line for line in log) == activations


@pytest.mark.parametrize(
    ("state", "at_work"),
    [
        ("100 (connected)", False),
        ("70 (connecting (getting IP configuration))", True),
        ("30 (disconnected)", False),
        ("10 (unmanaged)", False),
        ("110 (deactivating)", False),
    ],
)
def test_device_that_network_manager_still_sets_up(state: str, at_work: bool) -> None:  # noqa: FBT001
    assert switch.nm_at_work(state) is at_work


def test_network_manager_saves_both() -> None:
    assert [command[4] for command in switch.nm_save("br0", "enp1s0")] == [
        switch.nm_uuid("br0"),
        switch.nm_uuid("br0-slave-enp1s0"),
    ]


def test_network_manager_leaves_the_bridge_before_deleting_it() -> None:
    leave = switch.nm_leave("br0", "enp1s0", "own-uuid")
    assert "delete" not in leave.forward
    assert "--temporary" in leave.forward
    assert "up uuid own-uuid ifname enp1s0\n" in leave.forward
    assert switch.nm_uuid("br0-slave-enp1s0") in leave.backward.splitlines()[-1]
    assert leave.save == []
    assert all("delete" in command for command in leave.finish)


def candidate(timestamp: int, uuid: str, device: str = "", **properties: str) -> tuple[int, str, dict[str, str]]:
    names = {"name": "connection.interface-name", "mac": "802-3-ethernet.mac-address"}
    return timestamp, device, {"connection.uuid": uuid, **{names[key]: value for key, value in properties.items()}}


@pytest.mark.parametrize(
    ("profiles", "uuid"),
    [
        ([], ""),
        ([candidate(1, "old"), candidate(2, "new")], "new"),
        ([candidate(1, "bound", name="enp1s0"), candidate(2, "any")], "bound"),
        ([candidate(1, "bound", mac=MAC.upper()), candidate(2, "any")], "bound"),
        ([candidate(1, "any"), candidate(2, "other", name="enp2s0"), candidate(3, "third", mac="52:54:00:00:00:09")], "any"),
        ([candidate(1, "any"), candidate(2, "in-use", "enp2s0")], "any"),
        ([candidate(2, "own", "enp1s0"), candidate(1, "any")], "own"),
        ([candidate(1, switch.nm_uuid("br0-slave-enp1s0"), "enp1s0", name="enp1s0")], ""),
    ],
)
def test_network_manager_profile_that_the_nic_goes_back_to(profiles: list[tuple[int, str, dict[str, str]]], uuid: str) -> None:
    assert switch.nm_own_profile(profiles, "br0", "enp1s0", MAC) == uuid


def test_words_of_a_script_are_quoted() -> None:
    script = switch.nm_script("br0", "enp1s0", MAC, {**PROFILE, "connection.zone": "a b; reboot"}, 0)
    assert "a b; reboot" in shlex.split(script.splitlines()[0])


# --- the rollback --------------------------------------------------------------------------------------------------

FAKES = ("ip", "nmcli", "sleep", "systemctl", "virsh")
MOVE = switch.Switch("enp1s0", "br0", forward="nmcli forward\n", backward="nmcli undo\n", again="nmcli again")


def run_script(directory: Path, script: str, **fakes: str) -> list[str]:
    """Run a script with programs in place of the real ones that write down what they are asked, and answer as they are told."""
    log = directory / "log"
    log.touch()
    for name in FAKES:
        program = directory / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{fakes.get(name, "")}\n')
        program.chmod(0o755)
    subprocess.run(["/bin/sh", "-c", script], env={"PATH": f"{directory}:/usr/bin:/bin"}, check=True, timeout=60)
    return log.read_text().splitlines()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / switch.ARMED).touch()
    return directory


def test_rollback_stops_what_is_late_before_it_undoes(tmp_path: Path, work: Path) -> None:
    log = run_script(tmp_path, switch.rollback_script(MOVE, str(work), ["10.0.0.1"]), ip="echo default via 10.0.0.1")
    stop, undo = log[:2]
    assert shlex.split(stop)[2:] == [f"{switch.ROLLBACK_UNIT}.timer", f"{switch.FORWARD_UNIT}.service"]
    assert undo == "nmcli undo"
    assert not any("again" in line for line in log)
    assert not work.exists()


def test_rollback_of_a_confirmed_switch_undoes_nothing(tmp_path: Path, work: Path) -> None:
    (work / switch.ARMED).unlink()
    log = run_script(tmp_path, switch.rollback_script(MOVE, str(work), ["10.0.0.1"]))
    assert [line.split()[0] for line in log] == ["systemctl"]


def test_rollback_starts_the_manager_anew_until_the_route_is_there(tmp_path: Path, work: Path) -> None:
    there = f'[ "$(grep -c again {tmp_path}/log)" -lt 3 ] || echo default via 10.0.0.1'
    log = run_script(tmp_path, switch.rollback_script(MOVE, str(work), ["10.0.0.1"]), ip=there)
    assert log.count("nmcli again") == 3
    assert log.count(f"sleep {switch.LOOK_SECONDS}") == 3 * switch.LOOKS_PER_ATTEMPT + 1


def test_rollback_does_not_wait_for_ever(tmp_path: Path, work: Path) -> None:
    script = switch.rollback_script(switch.leaving_nat(MOVE, "vmw", "qemu:///system"), str(work), ["10.0.0.1"])
    log = run_script(tmp_path, script)
    assert log.count(f"sleep {switch.LOOK_SECONDS}") == switch.LOOKS
    assert log[-1].endswith("net-start vmw")


@pytest.mark.parametrize(
    ("gateways", "families"), [([], []), (["fe80::1"], ["-6"]), (["10.0.0.1", "10.0.0.2", "fe80::1"], ["-4", "-6"])]
)
def test_rollback_waits_for_the_families_that_had_a_route(
    tmp_path: Path, work: Path, gateways: list[str], families: list[str]
) -> None:
    log = run_script(tmp_path, switch.rollback_script(MOVE, str(work), gateways), ip="echo default")
    assert [line.split()[1] for line in log if line.startswith("ip ")] == families


def test_nat_network_is_stopped_for_the_switch_and_started_when_it_is_taken_back(tmp_path: Path, work: Path) -> None:
    move = switch.leaving_nat(MOVE, "vmw", "qemu:///system")
    forward = run_script(tmp_path, move.forward)
    assert forward == ["virsh --connect qemu:///system net-destroy vmw", "nmcli forward"]
    log = run_script(tmp_path, switch.rollback_script(move, str(work), ["10.0.0.1"]), ip="echo default")
    assert log[-1] == "virsh --connect qemu:///system net-start vmw"
    assert not any("undefine" in line for line in log)
