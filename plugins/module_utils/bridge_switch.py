# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Word the move of a NIC's settings onto a bridge, and back, for systemd-networkd and for NetworkManager."""

from __future__ import annotations

import shlex
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FORWARD_UNIT = "vmw-bridge-forward"
ROLLBACK_UNIT = "vmw-bridge-rollback"
ARMED = "armed"
"""Name of the file that an unconfirmed switch has: removing it confirms the switch or claims the rollback, whichever is first."""
LOOK_SECONDS = 2
LOOKS = 300
LOOKS_PER_ATTEMPT = 10
"""NetworkManager asks for a lease after 2, 4, 9, 17, 33 and 65 seconds, networkd likewise; a new attempt starts from 0."""
RUNTIME_UNITS = "/run/systemd/network"
PERSISTENT_UNITS = "/etc/systemd/network"
PRIORITY = "999"
"""Highest autoconnect priority of NetworkManager: the bridge's port wins over the NIC's own profile, which stays as it is."""

NM_CLONED = (
    "connection.zone",
    "connection.stable-id",
    "connection.metered",
    "connection.mdns",
    "connection.llmnr",
    *(
        f"{family}.{name}"
        for family in ("ipv4", "ipv6")
        for name in (
            "method",
            "addresses",
            "gateway",
            "routes",
            "routing-rules",
            "route-metric",
            "route-table",
            "ignore-auto-routes",
            "never-default",
            "dns",
            "dns-search",
            "dns-options",
            "dns-priority",
            "ignore-auto-dns",
            "may-fail",
            "dhcp-hostname",
            "dhcp-send-hostname",
            "dhcp-timeout",
            "dhcp-iaid",
        )
    ),
    "ipv4.dhcp-client-id",
    "ipv6.dhcp-duid",
    "ipv6.addr-gen-mode",
    "ipv6.ip6-privacy",
    "ipv6.token",
)
"""Settings of NetworkManager's profile that make the host's place on the LAN and so move from the NIC to the bridge."""

NETWORKD_STACKED = ("Bridge", "Bond", "VLAN", "VRF", "MACVLAN", "MACVTAP", "IPVLAN", "IPVTAP", "VXLAN", "Tunnel", "MACsec")
"""Keys of networkd's [Network] section that put something above or below the NIC."""

NETWORKD_ONLINE = ("RequiredForOnline", "RequiredFamilyForOnline")
"""Keys of networkd's [Link] section that say whether the boot waits for an interface."""


Section = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Switch:
    """A move of the host's place on the LAN from one interface to another.

    Attributes:
        source: The interface that has it.
        target: The interface that gets it.
        forward: Shell commands of the move.
        backward: Shell commands that take it back.
        again: A shell command that has the source's manager start anew.
        restore: Shell commands for what the source's place need not wait for.
        save: Commands that make the move last; the rollback undoes them as well.
        finish: Commands after the confirmation, which a later run could repeat.
        files: What the shell commands need, by name, in the work directory.
    """

    source: str
    target: str
    forward: str
    backward: str
    again: str
    restore: str = ""
    save: list[list[str]] = field(default_factory=list)
    finish: list[list[str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def rollback_script(switch: Switch, work: str, gateways: Iterable[str]) -> str:
    """Return the shell script that takes a switch back unless it was confirmed, and sees to it that the host is on its LAN again.

    Args:
        switch: The move.
        work: The work directory, which goes away at the end.
        gateways: The next hops of the default routes that the source had.
    """
    # A forward script that is late must not undo the rollback.
    stop = ["systemctl", "stop", f"{ROLLBACK_UNIT}.timer", f"{FORWARD_UNIT}.service"]
    claim = shlex.join(["rm", f"{work}/{ARMED}"]) + " || exit 0\n"
    wait = _wait_script(switch.source, gateways, switch.again)
    return _script(stop) + claim + switch.backward + wait + switch.restore + _script(["rm", "-rf", work])


def _wait_script(device: str, gateways: Iterable[str], again: str) -> str:
    """Return shell commands that wait for an interface's default routes and have its manager start anew every 20 seconds."""
    families = sorted({"-6" if ":" in gateway else "-4" for gateway in gateways})
    if not families:
        return ""
    there = " && ".join(f"ip {family} route show default dev {shlex.quote(device)} | grep -q ." for family in families)
    return f"""looks=0
until sleep {LOOK_SECONDS}; {there}; do
  looks=$((looks + 1))
  [ "$looks" -lt {LOOKS} ] || break
  [ $((looks % {LOOKS_PER_ATTEMPT})) -ne 0 ] || {again}
done
"""


def leaving_nat(switch: Switch, network: str, uri: str) -> Switch:
    """Return a switch that first stops libvirt's NAT network, which has the bridge's name, and whose rollback starts it again."""
    virsh = ["virsh", "--connect", uri]
    return replace(
        switch,
        forward=_script([*virsh, "net-destroy", network]) + switch.forward,
        restore=_script([*virsh, "net-start", network]),
    )


def parse_unit(text: str) -> tuple[Section, ...]:
    """Read a networkd file into its sections, in order; sections with the same name stay apart."""
    sections: list[tuple[str, list[tuple[str, str]]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            sections.append((stripped[1:-1], []))
        elif stripped and stripped[0] not in "#;" and "=" in stripped and sections:
            key, value = stripped.split("=", 1)
            sections[-1][1].append((key.strip(), value.strip()))
    return tuple((name, tuple(values)) for name, values in sections)


def render_unit(sections: tuple[Section, ...], comment: str) -> str:
    """Word a networkd file."""
    blocks = ["\n".join((f"[{name}]", *(f"{key}={value}" for key, value in values))) for name, values in sections]
    return f"# {comment}\n" + "\n\n".join(blocks) + "\n"


def stacked(sections: tuple[Section, ...]) -> str:
    """Return the first key that ties the NIC to another interface, or nothing."""
    return next((key for name, values in sections if name == "Network" for key, _ in values if key in NETWORKD_STACKED), "")


def unit_names(bridge: str) -> tuple[str, str, str]:
    """Return the names of our networkd files: the device, its network, its uplink. They sort before netplan's 10-netplan-*."""
    return f"05-vmw-{bridge}.netdev", f"05-vmw-{bridge}.network", f"05-vmw-{bridge}-uplink.network"


def networkd_files(bridge: str, nic: str, mac: str, sections: tuple[Section, ...], client_id: str = "") -> dict[str, str]:
    """Word the networkd files that put a NIC into a bridge and its settings onto the bridge.

    netplan's NICs get the same: its lists can be added to from another file but not emptied, and its files are the user's.

    Args:
        bridge: The bridge's name.
        nic: The uplink.
        mac: The MAC address of both, so that DHCP servers know the host again.
        sections: What networkd applies to the NIC now.
        client_id: The DHCP client identifier of the NIC's lease, in hexadecimal.
    """
    device, network, uplink = unit_names(bridge)
    link = [setting for name, settings in sections if name == "Link" for setting in settings]
    mtu = tuple(setting for setting in link if setting[0] == "MTUBytes")
    online = tuple(setting for setting in link if setting[0] in NETWORKD_ONLINE)
    kept = [("Link", online)] if online else []
    kept += [section for section in sections if section[0] not in ("Match", "Link")]
    # RFC 4361: type 255, then four bytes that networkd derives from the interface's name, so they have to be said.
    if client_id.startswith("ff"):
        iaid = ("IAID", str(int(client_id[2:10], 16)))
        kept.append(("DHCPv4", (iaid,)))
    return {
        device: render_unit(
            (
                ("NetDev", (("Name", bridge), ("Kind", "bridge"), ("MACAddress", mac), *mtu)),
                ("Bridge", (("STP", "no"), ("ForwardDelaySec", "0"))),
            ),
            "Managed by vmw.",
        ),
        network: render_unit((("Match", (("Name", bridge),)), *kept), f"Managed by vmw: what {nic} had."),
        # It is the bridge for which the boot waits, or does not.
        uplink: render_unit(
            (
                ("Match", (("Name", nic),)),
                ("Link", (("RequiredForOnline", "no"), *mtu)),
                ("Network", (("Bridge", bridge),)),
            ),
            "Managed by vmw.",
        ),
    }


def networkd_script(bridge: str, source: str, target: str) -> str:
    """Return the shell commands that put a NIC into the bridge.

    Args:
        bridge: The bridge's name.
        source: Directory that holds the files.
        target: Directory from which networkd reads them.
    """
    files = [f"{source}/{name}" for name in unit_names(bridge)]
    return _script(["mkdir", "-p", target], ["cp", *files, target], ["networkctl", "reload"])


def networkd_undo(bridge: str) -> str:
    """Return the shell commands that take the NIC out again and give it its own settings back."""
    files = [f"{directory}/{name}" for directory in (RUNTIME_UNITS, PERSISTENT_UNITS) for name in unit_names(bridge)]
    # The reload reconfigures the NIC if its file has changed, so one that never moved keeps its lease.
    return _script(["rm", "-f", *files], ["ip", "link", "delete", bridge], ["networkctl", "reload"])


def networkd_again(device: str) -> str:
    """Return the shell command that has networkd set an interface up anew."""
    return shlex.join(["networkctl", "reconfigure", device])


def networkd_save(bridge: str) -> list[list[str]]:
    """Return the commands that make networkd's files last."""
    moved = [f"{RUNTIME_UNITS}/{name}" for name in unit_names(bridge)]
    return [["mkdir", "-p", PERSISTENT_UNITS], ["mv", *moved, PERSISTENT_UNITS], ["networkctl", "reload"]]


def _script(*commands: list[str]) -> str:
    """Word commands as a shell script that goes on after a failure: a half-way rollback is worse."""
    return "".join(shlex.join(command) + "\n" for command in commands)


def nm_names(bridge: str, nic: str) -> tuple[str, str]:
    """Return the names of our NetworkManager profiles, the bridge's and its port's."""
    return bridge, f"{bridge}-slave-{nic}"


def nm_uuid(name: str) -> str:
    """Return the UUID of a profile of ours; it tells ours from others with the same name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"https://vmw.dev/networkmanager/{name}"))


def parse_nm(text: str) -> dict[str, str]:
    """Read ``nmcli --terse --escape no`` output of one thing: property, colon, value."""
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def nm_at_work(state: str) -> bool:
    """Tell whether NetworkManager still sets a device up: from ``40 (connecting (prepare))``, but not ``100 (connected)``."""
    return 40 <= int(state.split(maxsplit=1)[0]) < 100  # noqa: PLR2004 - NetworkManager's own numbers


def nm_unfit(profile: dict[str, str]) -> str:
    """Tell why the settings of a NetworkManager profile cannot move to a bridge, or nothing when they can."""
    if profile.get("connection.type") != "802-3-ethernet":
        return f"is of the type {profile.get('connection.type', 'unknown')}"
    return "needs an 802.1X login" if profile.get("802-1x.eap") else ""


def nm_commands(bridge: str, nic: str, mac: str, profile: dict[str, str], metric: int) -> list[list[str]]:
    """Return the commands that make the profiles, in memory only, and put the NIC into the bridge.

    Args:
        bridge: The bridge's name.
        nic: The uplink.
        mac: The MAC address of both.
        profile: Properties of the profile that the NIC has now.
        metric: Metric of its default route. NetworkManager's own default is higher for a bridge than for a NIC.
    """
    bridge_name, port_name = nm_names(bridge, nic)
    settings = {key: profile[key] for key in NM_CLONED if profile.get(key)}
    if metric and settings.get("ipv4.route-metric") == "-1":
        settings["ipv4.route-metric"] = str(metric)
    cloned = [word for setting in settings.items() for word in setting]
    mtu = profile.get("802-3-ethernet.mtu", "auto")
    return [
        [
            *("nmcli", "connection", "add", "save", "no", "type", "bridge", "con-name", bridge_name, "ifname", bridge),
            *("connection.uuid", nm_uuid(bridge_name), "connection.autoconnect", "yes"),
            *("bridge.stp", "no", "bridge.mac-address", mac, *cloned),
        ],
        [
            *("nmcli", "connection", "add", "save", "no", "type", "ethernet", "con-name", port_name, "ifname", nic),
            *("master", bridge, "slave-type", "bridge"),
            *("connection.uuid", nm_uuid(port_name), "connection.autoconnect", "yes"),
            *("connection.autoconnect-priority", PRIORITY, "802-3-ethernet.mtu", mtu),
        ],
        ["nmcli", "--wait", "30", "connection", "up", "uuid", nm_uuid(port_name), "ifname", nic],
    ]


def nm_script(bridge: str, nic: str, mac: str, profile: dict[str, str], metric: int) -> str:
    """Return ``nm_commands`` as a shell script."""
    return _script(*nm_commands(bridge, nic, mac, profile, metric))


def nm_again(nic: str, profile_uuid: str) -> str:
    """Return the shell command that has NetworkManager activate a profile on a NIC, and does not wait for it."""
    return shlex.join(["nmcli", "--wait", "0", "connection", "up", "uuid", profile_uuid, "ifname", nic])


def _nm_onto(nic: str, profile_uuid: str) -> str:
    """Return shell commands that activate a profile unless the NIC has it: to activate it twice would cost the lease."""
    active = shlex.join(["nmcli", "--get-values", "GENERAL.CON-UUID", "device", "show", nic])
    return f'[ "$({active})" = {shlex.quote(profile_uuid)} ] || {nm_again(nic, profile_uuid)}\n'


def nm_undo(bridge: str, nic: str, profile_uuid: str) -> str:
    """Return the shell commands that take the NIC out again and activate its own profile."""
    # Deleted first, the port would make way for the same profile, and activating it then would cut its DHCP short.
    return _nm_onto(nic, profile_uuid) + _script(
        *(["nmcli", "connection", "delete", "uuid", nm_uuid(name)] for name in reversed(nm_names(bridge, nic)))
    )


def nm_leave(bridge: str, nic: str, profile_uuid: str) -> Switch:
    """Return how a NIC leaves the bridge for a profile of its own."""
    bridge_uuid, port_uuid = (nm_uuid(name) for name in nm_names(bridge, nic))
    own = (bridge_uuid, port_uuid)
    modify = ["nmcli", "connection", "modify"]
    again = nm_again(nic, port_uuid)
    return Switch(
        bridge,
        nic,
        forward=_script(*([*modify, "--temporary", "uuid", each, "connection.autoconnect", "no"] for each in own))
        + _nm_onto(nic, profile_uuid)
        + _script(["nmcli", "connection", "down", "uuid", bridge_uuid]),
        backward=_script(*([*modify, "uuid", each, "connection.autoconnect", "yes"] for each in own)) + f"{again}\n",
        again=again,
        finish=[["nmcli", "connection", "delete", "uuid", each] for each in (port_uuid, bridge_uuid)],
    )


def nm_own_profile(profiles: Iterable[tuple[int, str, dict[str, str]]], bridge: str, nic: str, mac: str) -> str:
    """Return the UUID of the profile that a NIC can go back to, or nothing: one bound to it before one for any, the latest first.

    Args:
        profiles: When each wired one was last active, the device where it is active, and its properties.
        bridge: The bridge, whose profiles are out of the question.
        nic: The NIC.
        mac: Its MAC address.
    """
    ours = {nm_uuid(name) for name in nm_names(bridge, nic)}
    found = []
    for timestamp, device, profile in profiles:
        name = profile.get("connection.interface-name", "")
        bound = profile.get("802-3-ethernet.mac-address", "").lower()
        fits = name in {"", nic} and bound in {"", mac.lower()} and device in {"", nic}
        if fits and profile["connection.uuid"] not in ours:
            found.append((bool(name or bound), timestamp, profile["connection.uuid"]))
    return max(found)[2] if found else ""


def nm_save(bridge: str, nic: str) -> list[list[str]]:
    """Return the commands that write the profiles to disk."""
    return [
        ["nmcli", "connection", "modify", "uuid", nm_uuid(name), "connection.autoconnect", "yes"]
        for name in nm_names(bridge, nic)
    ]
