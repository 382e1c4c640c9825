"""Send frames that a guest must not, each with a word by which it is known, and two that it may. Runs in the guest, as root."""

from __future__ import annotations

import socket
import struct
import sys

CONTROL = b"CONTROL"
FORGED = (b"MAC-SPOOF", b"ARP-SPOOF", b"ARP-LIES", b"IP-SPOOF", b"ROGUE-DHCP", b"VLAN-TAG", b"LLDP", b"ROGUE-RA")
WORDS = (CONTROL, *FORGED)

ARP, IPV4, IPV6, VLAN, LLDP = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88CC
"""Kinds of frames: linux/if_ether.h."""

UDP, ICMPV6 = 17, 58
EVERYONE = b"\xff" * 6
ALL_NODES = b"\x33\x33\0\0\0\1"
SOMEBODY = bytes.fromhex("525400facade")
FAR_AWAY = "11.0.0.1"
TIMES = 3


def check_sum(data: bytes) -> int:
    """Return the Internet checksum of RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def arp(sender_mac: bytes, sender: str, target: str) -> bytes:
    """Return a question by ARP."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
    return head + sender_mac + socket.inet_aton(sender) + b"\0" * 6 + socket.inet_aton(target)


def udp4(source: str, to: str, ports: tuple[int, int], word: bytes) -> bytes:
    """Return a UDP packet, which may go without a checksum of its own."""
    payload = struct.pack("!HHHH", *ports, 8 + len(word), 0) + word
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, UDP, 0) + addresses
    return head[:10] + struct.pack("!H", check_sum(head)) + head[12:] + payload


def router_advertisement(word: bytes) -> bytes:
    """Return what a router tells all nodes, RFC 4861, section 4.2."""
    source, to = (socket.inet_pton(socket.AF_INET6, address) for address in ("fe80::1", "ff02::1"))
    told = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + word
    pseudo = source + to + struct.pack("!II", len(told), ICMPV6)
    told = told[:2] + struct.pack("!H", check_sum(pseudo + told)) + told[4:]
    return struct.pack("!IHBB", 6 << 28, len(told), ICMPV6, 255) + source + to + told


def frames(mac: bytes, mine: str, router: str) -> list[bytes]:
    """Return all frames, those that are allowed first."""

    def frame(kind: int, payload: bytes, word: bytes = b"", source: bytes = mac, to: bytes = EVERYONE) -> bytes:
        return to + source + struct.pack("!H", kind) + (payload + word).ljust(46, b"\0")

    mac_spoof, arp_spoof, arp_lies, ip_spoof, dhcp, vlan, lldp, advertisement = FORGED
    return [
        frame(ARP, arp(mac, mine, router), CONTROL),
        frame(IPV4, udp4(mine, FAR_AWAY, (4000, 4000), CONTROL)),
        frame(ARP, arp(SOMEBODY, mine, router), mac_spoof, SOMEBODY),
        frame(ARP, arp(mac, router, mine), arp_spoof),
        frame(ARP, arp(SOMEBODY, mine, router), arp_lies),
        frame(IPV4, udp4(router, FAR_AWAY, (4000, 4000), ip_spoof)),
        frame(IPV4, udp4(mine, "255.255.255.255", (67, 68), dhcp)),
        frame(VLAN, struct.pack("!HH", 1, ARP) + arp(mac, mine, router), vlan),
        frame(LLDP, b"", lldp),
        frame(IPV6, router_advertisement(advertisement), to=ALL_NODES),
    ]


def main() -> None:
    """Send them by the card that the command line names, after the guest's own address and the router's."""
    card, mine, router = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((card, 0))
        for frame in frames(raw.getsockname()[4], mine, router):
            for _ in range(TIMES):
                raw.send(frame)


if __name__ == "__main__":
    main()
