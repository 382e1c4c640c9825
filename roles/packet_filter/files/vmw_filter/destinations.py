"""Where a VM may send to, the same for bridges and for the host's forwarding, and how what is refused is remembered."""

from __future__ import annotations

ABROAD4 = "ip daddr != @reserved4 ip daddr != @not_abroad4"
ABROAD6 = "ip6 daddr != @reserved6 ip6 daddr != @not_abroad6"
"""On the internet, and not beside the host; nothing while it is not known what is beside the host."""

LOG_SIZE = 1024
LOG_SECONDS = 86400

TO_LINK = [
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } ip6 daddr { fe80::/10, ff02::/16 } accept",
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 daddr @near6 accept",
    "icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 daddr ff02::/16 accept",
    "ip protocol igmp ip daddr 224.0.0.0/24 accept",
    "udp sport 68 udp dport 67 ip daddr 255.255.255.255 accept",
    "udp sport 68 udp dport 67 ip daddr @near4 accept",
    "udp sport 546 udp dport 547 ip6 daddr ff02::1:2 accept",
    # What every system says to its link of itself, such as mDNS, would only fill the log.
    "ip daddr { 224.0.0.0/24, 255.255.255.255 } drop",
    "ip6 daddr ff02::/16 drop",
]
"""What a VM needs of its link to have an address and to reach the router; none of it leaves the link."""

_ICMP = "icmp type { echo-request, echo-reply, destination-unreachable, time-exceeded, parameter-problem }"
_ICMP6 = "icmpv6 type { echo-request, echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"


def internet() -> list[str]:
    """Return the rules that accept the internet."""
    return [
        f"{ABROAD4} meta l4proto {{ tcp, udp }} accept",
        f"{ABROAD6} meta l4proto {{ tcp, udp }} accept",
        f"{ABROAD4} {_ICMP} accept",
        f"{ABROAD6} {_ICMP6} accept",
    ]


def resolvers() -> list[str]:
    """Return the rules that accept questions to the network's name servers."""
    return [
        "meta l4proto { tcp, udp } th dport 53 ip daddr @resolvers4 accept",
        "meta l4proto { tcp, udp } th dport 53 ip6 daddr @resolvers6 accept",
    ]


def log_sets(key: str) -> dict[str, str]:
    """Return what declares the sets of what was refused, by name."""
    kind = f"flags dynamic,timeout; timeout {LOG_SECONDS}s; size {LOG_SIZE}; counter;"
    return {
        f"refused4_{key}": f"typeof ip daddr . meta l4proto . th dport; {kind}",
        f"refused6_{key}": f"typeof ip6 daddr . meta l4proto . th dport; {kind}",
        # What has no ports.
        f"others4_{key}": f"typeof ip daddr . meta l4proto; {kind}",
        f"others6_{key}": f"typeof ip6 daddr . meta l4proto; {kind}",
    }


def refuse(key: str) -> list[str]:
    """Return the rules that remember what a VM wanted, and drop it; a full set changes nothing about the drop."""
    ports = "meta l4proto { tcp, udp }"
    return [
        f"{ports} update @refused4_{key} {{ ip daddr . meta l4proto . th dport counter }} drop",
        f"{ports} update @refused6_{key} {{ ip6 daddr . meta l4proto . th dport counter }} drop",
        f"update @others4_{key} {{ ip daddr . meta l4proto counter }} drop",
        f"update @others6_{key} {{ ip6 daddr . meta l4proto counter }} drop",
        "drop",
    ]
