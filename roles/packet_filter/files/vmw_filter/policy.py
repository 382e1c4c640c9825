"""What a VM may reach: the policy, and the strict reading of one that somebody else wrote."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from vmw_filter import INTERFACE, FilterError

MAX_REQUEST = 4096
"""Longest request in bytes."""

LOWEST_PROXY_PORT = 1024
HIGHEST_PORT = 65535

# Each is matched as a whole; what passes can be written into nft's language as it is.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_TAP = re.compile(r"vmw-[0-9a-f]{8}", re.ASCII)
_MAC = re.compile(r"[0-9a-f][02468ace](?::[0-9a-f]{2}){5}", re.ASCII)
_BRIDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_NOBODYS_MAC = "00:00:00:00:00:00"


class Mode(StrEnum):
    """How much of the network a VM may reach."""

    INTERNET = "internet"
    ALLOWLIST = "allowlist"
    OPEN = "open"
    OFFLINE = "offline"


@dataclass(frozen=True)
class Policy:
    """What one VM may reach.

    Attributes:
        name: The VM.
        tap: Its network card's interface on the host.
        mac: Its network card's address.
        bridge: The bridge that the tap is a port of.
        mode: How much of the network it may reach.
        proxy_port: The host's port that it may reach on the bridge's address, or 0.
    """

    name: str
    tap: str
    mac: str
    bridge: str
    mode: Mode
    proxy_port: int = 0

    @property
    def key(self) -> str:
        """What the names of the VM's own chains and sets end with."""
        return self.tap.removeprefix("vmw-")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    Attributes:
        verb: `set`, `remove`, `refused` or `status`.
        name: The VM, or nothing for `status`.
        policy: The policy of `set`.
    """

    verb: str
    name: str = ""
    policy: Policy | None = None


_FIELDS = {
    "set": {"name", "tap", "mac", "bridge", "mode", "proxy_port"},
    "remove": {"name"},
    "refused": {"name"},
    "status": set(),
}


def parse_request(line: bytes) -> Request:
    """Read a request.

    Raises:
        FilterError: It is none.
    """
    fields = _object(line, "the request")
    schema = fields.pop("schema", INTERFACE)
    if type(schema) is not int or schema != INTERFACE:
        message = f"the request has a schema that is not {INTERFACE}"
        raise FilterError(message, "run `vmw host`, so that both sides are of one version")
    verb = fields.pop("verb", None)
    if not isinstance(verb, str) or verb not in _FIELDS:
        message = "the request has no verb that is known"
        raise FilterError(message, f"there are {', '.join(_FIELDS)}")
    _exact(fields, _FIELDS[verb], "the request")
    if verb == "set":
        policy = _policy(fields)
        return Request(verb, policy.name, policy)
    return Request(verb, _text(fields, "name", _NAME) if "name" in _FIELDS[verb] else "")


def parse_policy(text: bytes) -> Policy:
    """Read a stored policy.

    Raises:
        FilterError: It is none.
    """
    fields = _object(text, "the policy")
    _exact(fields, _FIELDS["set"], "the policy")
    return _policy(fields)


def is_name(text: str) -> bool:
    """Tell whether a text can name a VM."""
    return _NAME.fullmatch(text) is not None


def refuse_conflict(policy: Policy, owner: int, others: dict[tuple[int, str], Policy]) -> None:
    """Refuse a policy whose tap or address is another VM's.

    Args:
        policy: What is asked for.
        owner: User id of who asks.
        others: All policies by user id and name.

    Raises:
        FilterError: It is another VM's.
    """
    for (uid, name), other in others.items():
        if (uid, name) == (owner, policy.name):
            continue
        whose = f"the VM {name}" if uid == owner else "a VM of another user"
        hint = f"if {name} is gone, run `vmw destroy {name}`" if uid == owner else "destroy this VM and make it anew"
        if other.tap == policy.tap:
            message = f"the network card {policy.tap} is that of {whose}"
            raise FilterError(message, hint)
        if other.mac == policy.mac:
            message = f"the address {policy.mac} is that of {whose}"
            raise FilterError(message, hint)


def _object(text: bytes, what: str) -> dict[str, Any]:
    try:
        if len(text) > MAX_REQUEST:
            raise ValueError  # noqa: TRY301 - one way to say it
        found = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        message = f"{what} is no JSON object on one line of at most {MAX_REQUEST} ASCII bytes"
        raise FilterError(message)
    return found


def _exact(fields: dict[str, Any], wanted: set[str], what: str) -> None:
    wrong = sorted(wanted ^ fields.keys())
    if wrong:
        message = f"{what} has a field too many or too few: {wrong[0][:40]!r}"
        raise FilterError(message)


def _policy(fields: dict[str, Any]) -> Policy:
    mac = _text(fields, "mac", _MAC)
    if mac == _NOBODYS_MAC:
        message = f"the request's mac is {mac}"
        raise FilterError(message)
    mode = fields["mode"]
    if not isinstance(mode, str) or mode not in set(Mode):
        message = "the request's mode is not known"
        raise FilterError(message, f"there are {', '.join(Mode)}")
    port = fields["proxy_port"]
    # A truth value is an int to Python.
    if type(port) is not int or not (port == 0 or LOWEST_PROXY_PORT <= port <= HIGHEST_PORT):
        message = f"the request's proxy_port is neither 0 nor a number from {LOWEST_PROXY_PORT} to {HIGHEST_PORT}"
        raise FilterError(message)
    return Policy(
        name=_text(fields, "name", _NAME),
        tap=_text(fields, "tap", _TAP),
        mac=mac,
        bridge=_text(fields, "bridge", _BRIDGE),
        mode=Mode(mode),
        proxy_port=port,
    )


def _text(fields: dict[str, Any], field: str, form: re.Pattern[str]) -> str:
    value = fields[field]
    if not isinstance(value, str) or form.fullmatch(value) is None:
        message = f"the request's {field} has not the form of one"
        raise FilterError(message)
    return value
