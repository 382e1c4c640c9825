# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Keys that stay on the host: which there are, how ``secrets.env`` is read, and what a guest sees in its place.

Nothing of the collection is imported here: the role ``proxy`` installs this file with the user's proxy, which reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ANTHROPIC = "anthropic"
OPENAI = "openai"

BEARER = "Bearer "

BASE_URLS = {ANTHROPIC: ("ANTHROPIC_BASE_URL", "/anthropic"), OPENAI: ("OPENAI_BASE_URL", "/openai/v1")}
"""For each API, the variable that leads its clients to another address, and the path: OpenAI's clients add no version."""

GUEST_FILE = "secrets.env"
"""Name of the file in a VM's ``guest-secrets``, as in its profile."""

GUEST_FILE_MODE = 0o600

FOLLOWER = "vmw-keys.service"
"""The user's unit that brings the guests' files up to date with each edit of their profile's; the role ``proxy`` makes it."""

_NAME = re.compile(r"[A-Za-z0-9_]+")
_BLANKS = " \t"
# What a header takes, without blanks: a key that has one is a mistake in the file.
_USABLE = re.compile(r"[\x21-\x7e]+")
# A shorter value may be part of a line by chance.
_TELLING_LENGTH = 8


@dataclass(frozen=True)
class Key:
    """A key that the proxy can put into a request.

    Attributes:
        variable: Its name in ``secrets.env``.
        api: The API that takes it.
        header: The request header that carries it.
        prefix: What stands before it there.
    """

    variable: str
    api: str
    header: str
    prefix: str = ""

    def value(self, secret: str) -> str:
        """Return the header's value."""
        return f"{self.prefix}{secret}"


KEYS = (
    Key("ANTHROPIC_API_KEY", ANTHROPIC, "x-api-key"),
    Key("ANTHROPIC_AUTH_TOKEN", ANTHROPIC, "Authorization", BEARER),
    Key("OPENAI_API_KEY", OPENAI, "Authorization", BEARER),
)
"""The keys that the proxy knows. Of several for one API, a request gets the one of the header that it has."""


def parse(text: str) -> dict[str, str]:
    """Read ``secrets.env`` as pam_env reads it in a guest: see `_parse_env_file` of Linux-PAM 1.5.2.

    A line is ``KEY=value``, perhaps after ``export``; a name alone takes the variable away again. ``#`` cuts off the rest of
    a line, a backslash at its end joins the next one, and quotes around the value are dropped. Everything else stays as it
    is. Lines of another form are passed over.

    Blanks and a carriage return at a value's end are dropped on purpose, though pam_env keeps them: no key has them, and they
    come with a comment behind the value or with another system's editor.
    """
    variables: dict[str, str] = {}
    for name, value, _ in _rows(text):
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    return variables


def _rows(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield what a file sets: name, value (none where the variable is taken away), and the line without its comment."""
    for line in _lines(text):
        name, equals, value = line.lstrip(_BLANKS).removeprefix("export ").partition("=")
        if _NAME.fullmatch(name):
            yield name, _unquoted(value.rstrip(f"{_BLANKS}\r")) if equals else None, line


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a file, each whole and without its comment: see `_assemble_line` of Linux-PAM 1.5.2.

    One that the file's end cuts off is none.
    """
    begun = ""
    for row in text.split("\n"):
        content, comment, _ = row.partition("#")
        if not content.strip(_BLANKS):
            # Such rows are passed over between two that are joined, too.
            continue
        shortened = content.rstrip(_BLANKS)
        if shortened.endswith("\\") and not comment:
            begun += shortened[:-1]
        else:
            yield begun + content
            begun = ""


def _standing(line: str) -> str:
    """Return a line as it can stand in a file: one that a comment kept from joining the next one needs one again."""
    return f"{line}#" if line.rstrip(_BLANKS).endswith("\\") else line


def _unquoted(value: str) -> str:
    if value[:1] in {'"', "'"}:
        value = value[1:]
        return value[:-1] if value[-1:] in {'"', "'"} else value
    return value


def keys_of(secrets: dict[str, str], api: str) -> list[tuple[Key, str]]:
    """Return the keys for an API that a profile has and that a header can carry.

    Args:
        secrets: What ``parse`` returned.
        api: ``anthropic`` or ``openai``.
    """
    return [(key, secrets[key.variable]) for key in KEYS if key.api == api and _USABLE.fullmatch(secrets.get(key.variable, ""))]


def placeholder(name: str) -> str:
    """Return what a guest has in place of a key. It is no secret: the proxy knows a VM by its network card."""
    return f"vmw-{name}"


def own_address(secrets: dict[str, str], api: str) -> str:
    """Return the address that a profile itself names for an API, or an empty string for the setting's.

    Args:
        secrets: What ``parse`` returned.
        api: ``anthropic`` or ``openai``.
    """
    return secrets.get(BASE_URLS[api][0], "")


def is_address(text: str) -> bool:
    """Tell whether requests can be sent below an address: a plain ``http`` or ``https`` URL, without a login in it."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    plain = _USABLE.fullmatch(text) is not None and not set("?#@\\") & set(text)
    return plain and url.scheme in {"http", "https"} and bool(url.hostname) and port != 0


def below_own_address(api: str, path: str) -> str | None:
    """Return the part of a request's path that goes below an address of the profile's own; nothing where it is not below it.

    Such an address is one for the API's clients, with all that their own one has: OpenAI's clients add no version.

    Args:
        api: ``anthropic`` or ``openai``.
        path: Of the request, at the API's maker.
    """
    own = BASE_URLS[api][1].removeprefix(f"/{api}")
    return path.removeprefix(own) if path.startswith(f"{own}/") else None


@dataclass(frozen=True)
class Shown:
    """What a guest sees whose keys stay on the host.

    Attributes:
        text: Its ``secrets.env``.
        readable: The variables with a value that it can read, as the proxy has no API for them.
        unusable: The keys that it gets in no way, as no header can carry them.
        no_address: The variables that name an address to which the proxy can send nothing.
        withheld: The other variables that it does not get, as a key that stays on the host stands in a line of theirs.
    """

    text: str
    readable: tuple[str, ...]
    unusable: tuple[str, ...]
    no_address: tuple[str, ...]
    withheld: tuple[str, ...]


def guest_secrets(text: str, name: str, place: str) -> Shown:
    """Return what a guest sees whose keys stay on the host.

    Args:
        text: The profile's ``secrets.env``.
        name: The VM's name.
        place: Where the guest reaches the user's proxy: an address and a port.
    """
    secrets = parse(text)
    lines = [
        "# The host's proxy puts the keys into this VM's requests: here are placeholders for them, and where requests go.",
        "# For other variables it has no API: they are here as they are.",
    ]
    hidden = {key.variable for key in KEYS}
    unusable = {variable for variable in hidden if secrets.get(variable)}
    no_address = []
    for api, (variable, path) in BASE_URLS.items():
        usable = [key for key, _ in keys_of(secrets, api)]
        unusable -= {key.variable for key in usable}
        if not usable:
            continue
        hidden.add(variable)
        lines += [f"{key.variable}={placeholder(name)}" for key in usable]
        lines += [f"{variable}=http://{place}{path}"]
        address = own_address(secrets, api)
        no_address += [variable] if address and not is_address(address) else []
    passed = [(variable, line) for variable, _, line in _rows(text) if variable not in hidden]
    values = _telling_values(text)
    withheld = tuple(dict.fromkeys(variable for variable, line in passed if any(value in line for value in values)))
    hidden.update(withheld)
    lines += [_standing(line) for variable, line in passed if variable not in hidden]
    return Shown(
        "\n".join(lines) + "\n",
        tuple(variable for variable, value in secrets.items() if value and variable not in hidden),
        tuple(variable for variable in secrets if variable in unusable),
        tuple(no_address),
        withheld,
    )


def _telling_values(text: str) -> set[str]:
    """Return the values of keys, those of before too, that no line for a guest may have in it."""
    variables = {key.variable for key in KEYS}
    return {value for name, value, _ in _rows(text) if name in variables and value and len(value) >= _TELLING_LENGTH}


class NoProxyError(Exception):
    """There is no proxy that a guest could reach; the message says why."""


def proxy_place(root: Path) -> str:
    """Return the address and the port at which guests reach the user's proxy, as the role ``proxy`` wrote them down.

    Args:
        root: vmw's directory on the host.

    Raises:
        NoProxyError: It did not.
    """
    try:
        settings = json.loads((root / "proxy" / "settings.json").read_text())
        host, port = str(settings["address"]), int(settings["port"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = "the proxy that has the keys is not set up"
        raise NoProxyError(message) from error
    if not host:
        message = "the proxy that has the keys has no address on the VMs' bridge"
        raise NoProxyError(message)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refresh(root: Path, name: str, profile: Path) -> Shown:
    """Write what a guest sees whose keys stay on the host; where that is what it sees already, nothing is written.

    Bytes stay as they are in the profile's file, whatever they mean.

    Args:
        root: vmw's directory on the host.
        name: The VM's name; its directory is there.
        profile: The profile's file. Without it the guest has no variables.

    Raises:
        NoProxyError: There is no proxy that it could reach.
        OSError: A file cannot be read or written.
    """
    place = proxy_place(root)
    directory = root / "instances" / name / "guest-secrets"
    locks = root / "locks"
    locks.mkdir(mode=0o700, exist_ok=True)
    with (locks / "guest-secrets").open("w") as lock:
        # Whoever comes later has read later, too.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            data = profile.read_bytes()
        except FileNotFoundError:
            data = b""
        shown = guest_secrets(data.decode(errors="surrogateescape"), name, place)
        directory.mkdir(mode=0o700, exist_ok=True)
        _replace(directory / GUEST_FILE, shown.text.encode(errors="surrogateescape"))
    return shown


def _replace(path: Path, data: bytes) -> None:
    """Have a file with some content, for the user alone; readers see the old or the new one."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == data and path.stat().st_mode & 0o777 == GUEST_FILE_MODE:
            return
    partial = path.with_name(f".{path.name}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, GUEST_FILE_MODE)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
    partial.replace(path)
