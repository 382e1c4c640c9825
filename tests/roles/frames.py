"""Frames as a hostile guest would write them, byte by byte."""

from __future__ import annotations

import socket
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
LLDP = "01:80:c2:00:00:0e"
"""A group that a bridge hands to the port itself, past its own hooks."""

ARP, IPV4, IPV6, VLAN, QINQ = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(source: str, destination: str, kind: int, payload: bytes) -> bytes:
    return octets(destination) + octets(source) + struct.pack("!H", kind) + payload


def tagged(frame: bytes, tag: int = 5, kind: int = VLAN) -> bytes:
    """Put a VLAN's tag into a frame."""
    return frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]


def arp(operation: int, mac: str, sender: str, target: str) -> bytes:
    fixed = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return fixed + octets(mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    """Write a packet; `fragment` has the flags and the offset."""
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7, fragment, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(source: str, destination: str, following: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
    return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload


def udp(source: int, destination: int, payload: bytes) -> bytes:
    """Write a datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def tcp(source: int, destination: int, flags: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", source, destination, 1, 1, 5 << 4, flags, 1024, 0, 0) + payload


def icmpv6(kind: int, body: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, 0) + body


def dhcp(operation: int, mac: str, kind: int, address: str = "0.0.0.0") -> bytes:  # noqa: S104 - no address, not all
    """Write a message of DHCP: operation 1 asks, 2 answers; kind 5 acknowledges."""
    fixed = struct.pack("!BBBBIHH", operation, 1, 6, 0, 0x1234, 0, 0x8000)
    addresses = bytes(4) + socket.inet_aton(address) + bytes(8)
    return fixed + addresses + octets(mac).ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63" + bytes([53, 1, kind, 255])
