"""Which addresses are nobody's on the internet, and how a MAC address is written in other forms."""

from __future__ import annotations

RESERVED4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    # Relays to 6to4, whose addresses hold any IPv4 address.
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
"""What is not globally reachable: IANA's IPv4 special-purpose address registry, multicast, and the former class E."""

RESERVED6 = (
    # All but 2000::/3, the only global unicast that is given out: so ULA, link-local, multicast, and the translations to IPv4.
    "::/3",
    "4000::/2",
    "8000::/1",
    # Teredo, benchmarks and other protocols' own.
    "2001::/23",
    "2001:db8::/32",
    # 6to4.
    "2002::/16",
    "3fff::/20",
)
"""What is not globally reachable: IANA's IPv6 special-purpose address registry, and what is not given out."""

HOST_PART = "::ffff:ffff:ffff:ffff"
"""Mask of an IPv6 address's interface identifier."""


def hexadecimal(mac: str) -> str:
    """Return a MAC address as a number that nft compares with raw bytes."""
    return "0x" + mac.replace(":", "")


def interface_identifier(mac: str) -> str:
    """Return the interface identifier that a MAC address gives, as 16 hexadecimal digits: modified EUI-64 of RFC 4291."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return (bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]).hex()


def host_part(mac: str) -> str:
    """Return the interface identifier of a MAC address as the end of an IPv6 address."""
    digits = interface_identifier(mac)
    return "::" + ":".join(digits[start : start + 4] for start in range(0, 16, 4))
