"""The kernel's side: nft's transactions and listings, and what `ip` says of the network."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmw_filter import FilterError
from vmw_filter.bridge_rules import LEASES
from vmw_filter.destinations import LOG_SECONDS
from vmw_filter.network import Network, parse_links, parse_resolvers, parse_routes
from vmw_filter.ruleset import FAMILIES, TABLE, Lease, version_chain

PROGRAM_SECONDS = 30
RESOLVER_FILES: tuple[Path, ...] = (
    # What systemd-resolved and NetworkManager ask themselves; resolv.conf may name only their own server on the loopback.
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
    Path("/etc/resolv.conf"),
)
_OWN_CHAIN = re.compile(r"[a-z]+_([0-9a-f]{8})")
_PROTOCOLS = {"ipv6-icmp": "icmpv6", "1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6"}


@dataclass(frozen=True)
class Tables:
    """What the kernel has of ours.

    Attributes:
        loaded: Whether both tables are there, of this version.
        keys: The VMs that they have chains of.
    """

    loaded: bool
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Refusal:
    """What a VM wanted and did not get.

    Attributes:
        seconds: How long ago it last tried.
        address: The destination.
        protocol: The protocol's name, or its number.
        port: The destination's port, or 0.
        count: How many packets.
    """

    seconds: int
    address: str
    protocol: str
    port: int
    count: int


def apply(text: str) -> None:
    """Carry out a transaction, as a whole or not at all.

    Raises:
        FilterError: The kernel or nft did not take it.
    """
    _run(["nft", "-f", "-"], stdin=text)


def tables() -> Tables:
    """Look at the tables that are there."""
    chains = [item["chain"] for item in _list("chains") or () if "chain" in item]
    own = {(chain["family"], chain["name"]) for chain in chains if chain["table"] == TABLE}
    found = (_OWN_CHAIN.fullmatch(name) for _, name in own)
    complete = all((family.FAMILY, version_chain()) in own for family in FAMILIES)
    return Tables(complete, frozenset(match[1] for match in found if match))


def leases() -> list[Lease] | None:
    """Return the leases that the kernel remembers, or None where it has no such set."""
    listing = _list("set", "bridge", TABLE, LEASES)
    return None if listing is None else parse_leases(listing)


def refusals(key: str) -> list[Refusal]:
    """Return what a VM wanted and did not get, the newest last."""
    names = ("refused4", "refused6", "others4", "others6")
    found: dict[tuple[str, str, int], Refusal] = {}
    for family in FAMILIES:
        for name in names:
            for item in parse_refusals(_list("set", family.FAMILY, TABLE, f"{name}_{key}") or []):
                same = found.get((item.address, item.protocol, item.port))
                if same:
                    merged = Refusal(min(item.seconds, same.seconds), *_key(item), item.count + same.count)
                    found[_key(item)] = merged
                else:
                    found[_key(item)] = item
    return sorted(found.values(), key=lambda item: -item.seconds)


def network() -> Network:
    """Look at the host's network.

    Raises:
        FilterError: `ip` does not say.
    """
    links = parse_links(_json(["ip", "-json", "-details", "address", "show"]))
    routes = [parse_routes(_json(["ip", "-json", f"-{number}", "route", "show"]), number) for number in (4, 6)]
    texts = [path.read_text(errors="replace") for path in RESOLVER_FILES if path.is_file()]
    return Network(links, (*routes[0], *routes[1]), parse_resolvers(texts))


def parse_leases(listing: list[dict[str, Any]]) -> list[Lease]:
    """Read nft's listing of the set of leases."""
    found = []
    for element in _elements(listing):
        tap, address = element["val"]["concat"]
        number = address if isinstance(address, int) else int(address, 0)
        found.append(Lease(tap, ipaddress.IPv4Address(number), int(element.get("expires", 0))))
    return found


def parse_refusals(listing: list[dict[str, Any]]) -> list[Refusal]:
    """Read nft's listing of a set of what was refused."""
    found = []
    for element in _elements(listing):
        address, protocol, *port = element["val"]["concat"]
        left = int(element.get("expires", LOG_SECONDS))
        count = int(element.get("counter", {}).get("packets", 0))
        protocol = _PROTOCOLS.get(str(protocol), str(protocol))
        found.append(Refusal(max(LOG_SECONDS - left, 0), str(address), protocol, int(port[0]) if port else 0, count))
    return found


def _key(item: Refusal) -> tuple[str, str, int]:
    return item.address, item.protocol, item.port


def _elements(listing: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item["elem"] for entry in listing if "set" in entry for item in entry["set"].get("elem", ()) if "elem" in item]


def _list(*words: str) -> list[dict[str, Any]] | None:
    """Return a listing of nft, or None where there is no such thing."""
    # Numbers instead of names, which /etc/services and /etc/protocols give.
    argv = ["nft", "--json", "--numeric", "list", *words]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(argv, str(error)) from error
    if done.returncode:
        return None
    found: list[dict[str, Any]] = json.loads(done.stdout)["nftables"]
    return found


def _json(argv: list[str]) -> list[dict[str, Any]]:
    text = _run(argv)
    found: list[dict[str, Any]] = json.loads(text) if text.strip() else []
    # Old releases print an empty object for what they leave out.
    return [item for item in found if item]


def _run(argv: list[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, errors="replace", timeout=PROGRAM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(argv, str(error)) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise _failed(argv, said[0])
    return done.stdout


def _failed(argv: list[str], said: str) -> FilterError:
    return FilterError(f"{argv[0]}: {said[:300]}", "run `vmw host`; `journalctl --unit 'vmw-filter*'` has the rest")
