from __future__ import annotations

import shlex
from collections import Counter

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import bridge_switch as switch

MAC = "52:54:00:00:00:01"
NETWORK = """\
# comment
[Match]
Name=en*

[Link]
MTUBytes=9000

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
    assert dict(device[0][1]) == {"Name": "br0", "Kind": "bridge", "MACAddress": MAC}
    assert dict(device[1][1])["STP"] == "no"
    assert network[0] == ("Match", (("Name", "br0"),))
    assert network[1:] == switch.parse_unit(NETWORK)[2:]
    assert uplink == (("Match", (("Name", "enp1s0"),)), ("Network", (("Bridge", "br0"),)))


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
    removed = shlex.split(switch.networkd_undo("br0", "enp1s0").splitlines()[0])[2:]
    assert Counter(path.rpartition("/")[2] for path in removed) == dict.fromkeys(switch.unit_names("br0"), 2)
    assert {path.split("/")[1] for path in removed} == {"etc", "run"}
    assert switch.networkd_undo("br0", "enp1s0").endswith("networkctl reconfigure enp1s0\n")


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


def test_network_manager_undo_removes_both_and_activates_the_nics_own() -> None:
    lines = [shlex.split(line) for line in switch.nm_undo("br0", "enp1s0", "own-uuid").splitlines()]
    assert [line[-1] for line in lines[:2]] == [switch.nm_uuid("br0-slave-enp1s0"), switch.nm_uuid("br0")]
    assert lines[2][lines[2].index("uuid") + 1] == "own-uuid"


def test_network_manager_saves_both() -> None:
    assert [command[4] for command in switch.nm_save("br0", "enp1s0")] == [
        switch.nm_uuid("br0"),
        switch.nm_uuid("br0-slave-enp1s0"),
    ]


def test_network_manager_leaves_the_bridge_before_deleting_it() -> None:
    forward, backward, save = switch.nm_leave("br0", "enp1s0", "own-uuid")
    assert "delete" not in forward
    assert "--temporary" in forward
    assert forward.endswith("uuid own-uuid ifname enp1s0\n")
    assert switch.nm_uuid("br0-slave-enp1s0") in backward.splitlines()[-1]
    assert all("delete" in command for command in save)


def test_words_of_a_script_are_quoted() -> None:
    script = switch.nm_script("br0", "enp1s0", MAC, {**PROFILE, "connection.zone": "a b; reboot"}, 0)
    assert "a b; reboot" in shlex.split(script.splitlines()[0])
