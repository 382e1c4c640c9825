"""Whole transactions for nft, as text. They are applied as one, or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmw_filter import bridge_rules, host_rules
from vmw_filter.addresses import RESERVED4, RESERVED6
from vmw_filter.policy import Mode, Policy

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Iterable, Sequence

    from vmw_filter.network import Address, Facts, Prefix

TABLE = "vmw"
FAMILIES = (bridge_rules, host_rules)

EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}

CLOSED = (
    "add table bridge vmw\ndelete table bridge vmw\nadd table bridge vmw\n"
    "add chain bridge vmw prerouting { type filter hook prerouting priority -300; policy accept; }\n"
    'add rule bridge vmw prerouting iifname "vmw-*" drop\n'
)
"""What holds where the rules cannot be loaded: no VM reaches anything."""


@dataclass(frozen=True)
class Lease:
    """An IPv4 address that a DHCP server gave to a VM.

    Attributes:
        tap: The VM's network card.
        address: The address.
        seconds: How much longer the kernel remembers it: the more, the newer.
    """

    tap: str
    address: ipaddress.IPv4Address
    seconds: int


def version() -> str:
    """Return what changes when the rules do, and with them what the kernel's tables must be made of."""
    samples = [Policy("a", "vmw-00000000", "52:54:00:00:00:00", "br0", mode, 1024) for mode in Mode]
    text = "\n".join([*_base(), *(line for sample in samples for line in (*_add_vm(sample), *_remove_vm(sample.key)))])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def version_chain() -> str:
    """Return the name of an empty chain that tells the version of a table."""
    return f"version_{version()}"


def replace_all(policies: Sequence[Policy], facts: Facts, leases: Iterable[Lease]) -> str:
    """Return what makes both tables anew.

    Args:
        policies: Of all VMs.
        facts: What the rules follow of the network.
        leases: The leases that go over into the new table.
    """
    lines: list[str] = []
    for family in FAMILIES:
        # The first for where there is none, which could not be deleted.
        lines += [f"{verb} table {family.FAMILY} {TABLE}" for verb in ("add", "delete", "add")]
        lines.append(f"add chain {family.FAMILY} {TABLE} {version_chain()}")
    lines += _base()
    taps = {policy.tap for policy in policies}
    for lease in newest(leases):
        if lease.tap in taps:
            lines.append(_element(lease))
    for policy in policies:
        lines += _add_vm(policy)
    return _text([*lines, *_members(policies), *_follow(facts)])


def update_all(policies: Sequence[Policy], facts: Facts, gone: Iterable[str]) -> str:
    """Return what brings tables of this version up to date; what their sets hold stays.

    Args:
        policies: Of all VMs.
        facts: What the rules follow of the network.
        gone: Keys of VMs that are in the tables and have no policy.
    """
    lines = [line for policy in policies for line in _add_vm(policy)]
    # First the chains that the maps lead to, last what no map leads to any more.
    return _text([*lines, *_members(policies), *(line for key in gone for line in _remove_vm(key)), *_follow(facts)])


def update_one(policies: Sequence[Policy], changed: Policy | None, facts: Facts, gone: Iterable[str]) -> str:
    """Return what changes one VM in tables of this version, and touches no other.

    Args:
        policies: Of all VMs, the changed one included.
        changed: The VM's policy, or None where it only goes.
        facts: What the rules follow of the network.
        gone: Keys that are the VM's no longer.
    """
    lines = _add_vm(changed) if changed else []
    return _text([*lines, *_members(policies), *(line for key in gone for line in _remove_vm(key)), *_follow(facts)])


def follow(facts: Facts, stale: Iterable[Lease]) -> str:
    """Return what brings tables up to date with the network.

    Args:
        facts: What the rules follow of it.
        stale: Leases that hold no longer.
    """
    return _text(_follow(facts)) + forget(stale)


def forget(leases: Iterable[Lease]) -> str:
    """Return what takes addresses from VMs."""
    return _text(f"delete element bridge {TABLE} {bridge_rules.LEASES} {{ {_pair(lease)} }}" for lease in leases)


def stale(leases: Iterable[Lease], policies: Iterable[Policy]) -> list[Lease]:
    """Return the leases that hold no longer: newer ones have replaced them, or no VM has the card."""
    known = list(leases)
    latest = newest(known)
    taps = {policy.tap for policy in policies}
    return [lease for lease in known if lease not in latest or lease.tap not in taps]


def newest(leases: Iterable[Lease]) -> list[Lease]:
    """Return of each VM's leases the newest: nobody may keep an address that the server gives to another.

    Two of the same second both stay; the next renewal decides.
    """
    known = list(leases)
    latest: dict[str, int] = {}
    for lease in known:
        latest[lease.tap] = max(lease.seconds, latest.get(lease.tap, 0))
    return [lease for lease in known if lease.seconds == latest[lease.tap]]


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _base() -> list[str]:
    """Return what is there without any VM."""
    lines: list[str] = []
    for family in FAMILIES:
        at = f"{family.FAMILY} {TABLE}"
        lines += [
            f"add set {at} reserved4 {{ type ipv4_addr; flags interval; elements = {{ {', '.join(RESERVED4)} }}; }}",
            f"add set {at} reserved6 {{ type ipv6_addr; flags interval; elements = {{ {', '.join(RESERVED6)} }}; }}",
            f"add set {at} near4 {{ type ipv4_addr; flags interval; }}",
            f"add set {at} near6 {{ type ipv6_addr; flags interval; }}",
            f"add set {at} not_abroad4 {{ type ipv4_addr; flags interval; }}",
            f"add set {at} not_abroad6 {{ type ipv6_addr; flags interval; }}",
            f"add set {at} resolvers4 {{ type ipv4_addr; }}",
            f"add set {at} resolvers6 {{ type ipv6_addr; }}",
            *family.base_sets(),
        ]
        selector = "ifname" if family is bridge_rules else "ether_addr"
        lines += [f"add map {at} {name} {{ type {selector} : verdict; }}" for name in family.MAPS]
        lines += [f"add chain {at} {chain}" for chain in family.BASE_RULES if chain not in family.HOOKS]
        lines += [
            f"add chain {at} {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}"
            for chain, (hook, priority) in family.HOOKS.items()
        ]
        lines += [f"add rule {at} {chain} {rule}" for chain, rules in family.BASE_RULES.items() for rule in rules]
    return lines


def _add_vm(policy: Policy) -> list[str]:
    """Return what makes the chains of a VM, or puts new rules into them; its sets are made where there are none."""
    lines: list[str] = []
    for family in FAMILIES:
        at = f"{family.FAMILY} {TABLE}"
        lines += [f"add set {at} {name} {{ {kind} }}" for name, kind in family.vm_sets(policy.key).items()]
        for chain in family.CHAINS:
            lines += [f"{verb} chain {at} {chain}_{policy.key}" for verb in ("add", "flush")]
        lines += [
            f"add rule {at} {chain}_{policy.key} {rule}" for chain, rules in family.vm_rules(policy).items() for rule in rules
        ]
    return lines


def _remove_vm(key: str) -> list[str]:
    """Return what removes the chains and sets of a VM that no map names any longer, whether they are there or not."""
    lines: list[str] = []
    for family in FAMILIES:
        at = f"{family.FAMILY} {TABLE}"
        for chain in family.CHAINS:
            lines += [f"{verb} chain {at} {chain}_{key}" for verb in ("add", "flush")]
        lines += [f"delete chain {at} {chain}_{key}" for chain in reversed(family.CHAINS)]
        for name, kind in family.vm_sets(key).items():
            lines += [f"add set {at} {name} {{ {kind} }}", f"delete set {at} {name}"]
    return lines


def _members(policies: Sequence[Policy]) -> list[str]:
    """Return what names the VMs in the maps and sets that lead to their chains."""
    lines: list[str] = []
    for family in FAMILIES:
        for name, verdict in family.MAPS.items():
            members = [f"{policy.tap if family is bridge_rules else policy.mac} : {verdict}_{policy.key}" for policy in policies]
            lines += _fill(f"{family.FAMILY} {TABLE} {name}", members, "map")
    lines += _fill(f"bridge {TABLE} {bridge_rules.MACS}", [policy.mac for policy in policies])
    lines += _fill(f"inet {TABLE} bridges", sorted({policy.bridge for policy in policies}))
    ports = {policy.proxy_port for policy in policies if policy.proxy_port}
    return lines + _fill(f"inet {TABLE} proxy_ports", [str(port) for port in sorted(ports)])


def _follow(facts: Facts) -> list[str]:
    """Return what fills the sets that follow the network."""
    lines: list[str] = []
    for family in FAMILIES:
        at = f"{family.FAMILY} {TABLE}"
        for number in (4, 6):
            near = _of(facts.near, number)
            lines += _fill(f"{at} near{number}", near)
            lines += _fill(f"{at} not_abroad{number}", near if facts.known else [EVERYTHING[number]])
            lines += _fill(f"{at} resolvers{number}", _of(facts.resolvers, number))
    return lines + _fill(f"inet {TABLE} bridges4", _of(facts.bridges, 4))


def _of(items: Iterable[Address | Prefix], number: int) -> list[str]:
    return [str(item) for item in items if item.version == number]


def _fill(where: str, members: Sequence[str], kind: str = "set") -> list[str]:
    # Within one transaction nobody sees it empty.
    fill = [f"add element {where} {{ {', '.join(members)} }}"] if members else []
    return [f"flush {kind} {where}", *fill]


def _pair(lease: Lease) -> str:
    return f"{lease.tap} . {int(lease.address):#010x}"


def _element(lease: Lease) -> str:
    timeout = f"timeout {bridge_rules.LEASE_DAYS}d expires {max(lease.seconds, 1)}s"
    return f"add element bridge {TABLE} {bridge_rules.LEASES} {{ {_pair(lease)} {timeout} }}"
