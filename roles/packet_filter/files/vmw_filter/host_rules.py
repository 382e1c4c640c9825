"""The rules of what reaches the host's own IP, to it or through it, as text for nft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmw_filter.bridge_rules import ROUTED
from vmw_filter.destinations import TO_LINK, internet, log_sets, refuse, resolvers
from vmw_filter.policy import Mode

if TYPE_CHECKING:
    from vmw_filter.policy import Policy

FAMILY = "inet"
MAPS = {"inputs": "goto input", "forwards": "goto forward"}
"""Which chain of a VM's own a packet from its address goes to, by map. The bridge has seen to it that the address is true."""

BASE_RULES = {
    # Frames to addresses such as LLDP's are the port's own, and pass by the bridge.
    "input": ['iifname "vmw-*" drop', "ether saddr vmap @inputs", "iifname @bridges tcp dport @proxy_ports drop"],
    "forward": ['iifname "vmw-*" drop', f"oifname @bridges meta priority set {ROUTED}", "ether saddr vmap @forwards"],
}

HOOKS = {"input": ("input", -10), "forward": ("forward", -10)}

CHAINS = ("input", "forward")
"""The chains that each VM has, without its key."""

_MDNS = "udp sport 5353 udp dport 5353"


def base_sets() -> list[str]:
    """Return the sets that the VMs share."""
    return [
        "add set inet vmw bridges { type ifname; }",
        "add set inet vmw proxy_ports { type inet_service; }",
        "add set inet vmw bridges4 { type ipv4_addr; }",
    ]


def vm_sets(key: str) -> dict[str, str]:
    """Return what declares the sets of one VM, by name."""
    return log_sets(key)


def vm_rules(policy: Policy) -> dict[str, list[str]]:
    """Return the rules of one VM, by chain."""
    if policy.mode is Mode.OPEN:
        return {"input": ["accept"], "forward": ["accept"]}
    # Bridged frames come here as well where br_netfilter hands them on, so the link's own are let through once more.
    forward = [*internet(), *resolvers()] if policy.mode is Mode.INTERNET else []
    return {"input": [*_input(policy), *refuse(policy.key)], "forward": [*forward, *TO_LINK, *refuse(policy.key)]}


def _input(policy: Policy) -> list[str]:
    rules = [
        # Only what answers the host: a connection of the VM's own ends when its policy no longer allows it.
        "ct state established ct direction reply accept",
        "ct state related meta l4proto { icmp, ipv6-icmp } accept",
        "udp sport 68 udp dport 67 accept",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept",
        "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } accept",
        f"{_MDNS} ip daddr 224.0.0.251 accept",
        f"{_MDNS} ip daddr @bridges4 accept",
        f"{_MDNS} ip6 daddr {{ ff02::fb, fe80::/10 }} accept",
    ]
    if policy.proxy_port and policy.mode is not Mode.OFFLINE:
        rules.append(f"tcp dport {policy.proxy_port} ip daddr @bridges4 accept")
    if policy.mode is Mode.INTERNET:
        rules += resolvers()
    return [*rules, "ip daddr { 224.0.0.0/24, 255.255.255.255 } drop", "ip6 daddr ff02::/16 drop"]
