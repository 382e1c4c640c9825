"""The rules of the bridges' frames, as text for nft.

They do without connection tracking, which bridges have only where the kernel has nf_conntrack_bridge: inwards TCP is known by its
flags, and UDP by the flows that a VM itself began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmw_filter.addresses import HOST_PART, hexadecimal, host_part, interface_identifier
from vmw_filter.destinations import ABROAD4, ABROAD6, TO_LINK, internet, log_sets, refuse, resolvers
from vmw_filter.policy import Mode

if TYPE_CHECKING:
    from vmw_filter.policy import Policy

FAMILY = "bridge"
MAPS = {
    "guards": "goto guard",
    "notes": "jump note",
    "leavings": "goto leaving",
    "learners": "jump learn",
    "arrivals": "goto arrival",
}
"""Which chain of a VM's own a frame of its tap goes to, by map."""

ROUTED = "766d:7700"
"""The priority of what the host forwards to a bridge: no queue of anybody's has that handle, and it changes no band."""

FLOW_SECONDS = 180
LEASE_DAYS = 365
"""A lease's own time stands in an option that may be anywhere, so the newest counts until there is a newer one."""

LEASES = "leases"
MACS = "macs"

# Each line stands for itself, in order.
BASE_RULES = {
    # Whoever takes a VM's address would be that VM to the host. A card that libvirt named may be the VM's own, from before.
    "prerouting": ['iifname "vmw-*" goto from_vm', f'iifname != "vnet*" ether saddr @{MACS} drop'],
    # No VLAN, no STP, nothing else.
    "from_vm": [
        "ether type != { arp, ip, ip6 } drop",
        "ether type vmap { arp : jump check_arp, ip : jump check_ip, ip6 : jump check_ip6 }",
        "iifname vmap @guards",
        "drop",
    ],
    "check_arp": [
        "arp htype != 1 drop",
        "arp ptype != ip drop",
        "arp hlen != 6 drop",
        "arp plen != 4 drop",
        "arp operation != { request, reply } drop",
    ],
    # No servers, routers or queriers; no source routes and the like, but what IGMP has to make routers look.
    "check_ip": [
        "ip hdrlength != 5 ip protocol != igmp drop",
        "udp sport 67 drop",
        "icmp type { redirect, router-advertisement } drop",
        "ip protocol igmp @th,0,8 0x11 drop",
    ],
    # Extension headers can hide what follows; a fragment of anything but UDP too.
    "check_ip6": [
        "ip6 nexthdr != { tcp, udp, ipv6-icmp, hopopt, ipv6-frag, esp, gre, sctp } drop",
        "ip6 nexthdr hopopt meta l4proto != ipv6-icmp drop",
        "ip6 nexthdr hopopt icmpv6 type != { mld-listener-report, mld-listener-done, mld2-listener-report } drop",
        "ip6 nexthdr != ipv6-frag exthdr frag exists drop",
        "ip6 nexthdr ipv6-frag frag nexthdr != udp drop",
        "udp sport 547 drop",
        "icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query, router-renumbering } drop",
    ],
    "input": ["iifname vmap @notes"],
    "forward": ["iifname vmap @leavings", 'iifname "vmw-*" drop'],
    "arriving": ["oifname vmap @arrivals", 'oifname "vmw-*" drop'],
    # What the host itself sends passes, what it forwards does not.
    "output": [
        "oifname vmap @learners",
        f"meta priority {ROUTED} oifname vmap @arrivals",
        f'meta priority {ROUTED} oifname "vmw-*" drop',
    ],
}

HOOKS = {
    "prerouting": ("prerouting", -300),
    "input": ("input", -10),
    "forward": ("forward", -10),
    # An accept ends a base chain only, so a frame from VM to VM passes both.
    "arriving": ("forward", -9),
    "output": ("output", -10),
}

CHAINS = ("guard", "note", "leaving", "learn", "arrival")
"""The chains that each VM has, without its key."""


def base_sets() -> list[str]:
    """Return the sets that the VMs share."""
    # Raw, for nft takes an address of a DHCP message for a number, and compares it with nothing else.
    kind = f"typeof meta oifname . @nh,96,32; flags dynamic,timeout; timeout {LEASE_DAYS}d; size 65535;"
    return [f"add set bridge vmw {LEASES} {{ {kind} }}", f"add set bridge vmw {MACS} {{ type ether_addr; }}"]


def vm_sets(key: str) -> dict[str, str]:
    """Return what declares the sets of one VM, by name."""
    flow = f"flags dynamic,timeout; timeout {FLOW_SECONDS}s; size 16384;"
    return {
        f"flows4_{key}": f"typeof udp sport . ip daddr . udp dport; {flow}",
        f"flows6_{key}": f"typeof udp sport . ip6 daddr . udp dport; {flow}",
        **log_sets(key),
    }


def vm_rules(policy: Policy) -> dict[str, list[str]]:
    """Return the rules of one VM, by chain."""
    internet_mode = policy.mode is Mode.INTERNET
    return {
        "guard": _guard(policy.mac),
        # What leaves through the host: its forwarding decides, this remembers to whom.
        "note": _remember(policy.key) if internet_mode else [],
        "leaving": _leaving(policy),
        "learn": _learn(policy.mac),
        "arrival": _arrival(policy),
    }


def _guard(mac: str) -> list[str]:
    """Return the rules against a false sender, which hold in every mode."""
    identifier = "0x" + interface_identifier(mac)
    dhcp = f"udp dport 67 ip frag-off & 0x3fff == 0 @th,64,8 1 @th,288,48 {hexadecimal(mac)}"
    return [
        f"ether saddr != {mac} drop",
        f"ether type arp arp operation request arp saddr ether {mac} arp saddr ip 0.0.0.0 accept",
        f"ether type arp arp saddr ether {mac} iifname . @nh,112,32 @{LEASES} accept",
        "ether type arp drop",
        # A message in the name of another would have the lease counted to that one.
        f"ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 {dhcp} accept",
        # Only to servers that are near, and so nobody's on the internet; "reserved" has broadcast in it.
        f"ether type ip iifname . @nh,96,32 @{LEASES} ip daddr @reserved4 {dhcp} accept",
        f"ether type ip iifname . @nh,96,32 @{LEASES} ip daddr @near4 {dhcp} accept",
        "ether type ip udp dport 67 drop",
        f"ether type ip iifname . @nh,96,32 @{LEASES} accept",
        "ether type ip drop",
        f"icmpv6 type nd-neighbor-advert @th,128,64 != {identifier} drop",
        f"ip6 saddr :: icmpv6 type nd-neighbor-solicit @th,128,64 {identifier} accept",
        "ip6 saddr :: icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
        f"ip6 saddr & {HOST_PART} == {host_part(mac)} accept",
        "drop",
    ]


def _learn(mac: str) -> list[str]:
    """Return the rules that take the address out of a DHCP server's acknowledgement to this VM.

    The message's kind is nearly always the first option; where it is, an offer or a refusal teaches nothing.
    """
    answer = f"udp sport 67 udp dport 68 @th,64,8 2 @th,288,48 {hexadecimal(mac)} @th,1984,24 != {{ 0x350102, 0x350106 }}"
    return [
        # A server is on the VM's link: an answer by way of the host, or from the internet, may be an accomplice's.
        f"meta priority {ROUTED} return",
        "ip saddr != @reserved4 ip saddr != @near4 return",
        f"ip frag-off & 0x1fff == 0 {answer} @th,192,32 != 0 update @{LEASES} {{ meta oifname . @th,192,32 }}",
    ]


def _remember(key: str) -> list[str]:
    """Return the rules that let answers in to what goes out by UDP to the internet."""
    return [
        f"meta l4proto udp {ABROAD4} update @flows4_{key} {{ udp sport . ip daddr . udp dport }}",
        f"meta l4proto udp {ABROAD6} update @flows6_{key} {{ udp sport . ip6 daddr . udp dport }}",
    ]


def _leaving(policy: Policy) -> list[str]:
    """Return the rules of what a VM sends to other ports of the bridge."""
    if policy.mode is Mode.OPEN:
        return ["accept"]
    key = policy.key
    # What most packets are comes first: the internet is none of the link.
    rules = []
    if policy.mode is Mode.INTERNET:
        rules = [
            *_remember(key),
            *internet(),
            f"udp dport 53 ip daddr @resolvers4 update @flows4_{key} {{ udp sport . ip daddr . udp dport }}",
            f"udp dport 53 ip6 daddr @resolvers6 update @flows6_{key} {{ udp sport . ip6 daddr . udp dport }}",
            *resolvers(),
        ]
    return [*rules, "ether type arp accept", *TO_LINK, *refuse(key)]


def _arrival(policy: Policy) -> list[str]:
    """Return the rules of what others than the host send to a VM."""
    key = policy.key
    if policy.mode is Mode.OPEN:
        return [f"jump learn_{key}", "accept"]
    rules = [f"udp sport 67 jump learn_{key}"]
    if policy.mode is Mode.INTERNET:
        rules += [
            "tcp flags & (syn | ack) != syn accept",
            f"udp dport . ip saddr . udp sport @flows4_{key} accept",
            f"udp dport . ip6 saddr . udp sport @flows6_{key} accept",
            "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept",
            "icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
            # Without its beginning, which is looked at above, a fragment becomes nothing.
            "ip frag-off & 0x1fff != 0 accept",
            "ip6 nexthdr ipv6-frag frag frag-off != 0 accept",
        ]
    rules += [
        "ether type arp accept",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query } accept",
        "ip protocol igmp accept",
        "udp sport 67 udp dport 68 accept",
        "ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
    ]
    return [*rules, "drop"]
