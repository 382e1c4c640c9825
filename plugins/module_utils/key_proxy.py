# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Keys that stay on the host: which there are, how ``secrets.env`` is read, and what a guest sees in its place.

Nothing of the collection is imported here: the role ``proxy`` installs this file with the user's proxy, which reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANTHROPIC = "anthropic"
OPENAI = "openai"

BEARER = "Bearer "

BASE_URLS = {ANTHROPIC: ("ANTHROPIC_BASE_URL", "/anthropic"), OPENAI: ("OPENAI_BASE_URL", "/openai/v1")}
"""For each API, the variable that leads its clients to another address, and the path: OpenAI's clients add no version."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What a header takes, without blanks: a key that has one is a mistake in the file.
_USABLE = re.compile(r"[\x21-\x7e]+")


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
    """Read ``secrets.env`` as pam_env reads it in a guest: see `_parse_env_file` of Linux-PAM.

    A line is ``KEY=value``, perhaps after ``export``; ``#`` cuts off the rest of it, and quotes around the value are dropped.
    Everything else stays as it is. Lines of another form are passed over.
    """
    found: dict[str, str] = {}
    for row in text.splitlines():
        line = row.partition("#")[0].strip()
        line = line.removeprefix("export ").lstrip()
        name, equals, value = line.partition("=")
        if equals and _NAME.fullmatch(name):
            found[name] = _unquoted(value)
    return found


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


def guest_secrets(text: str, name: str, host: str, port: int) -> tuple[str, list[str]]:
    """Return the ``secrets.env`` that a guest sees whose keys stay on the host, and the names of what it does not see.

    Args:
        text: The profile's ``secrets.env``.
        name: The VM's name.
        host: The address at which the guest reaches the user's proxy.
        port: The port there.

    Returns:
        The text, with a placeholder for each key that the profile has and the proxy can put into a request, and where to send
        it; and, in the order of the file, the variables that are set there and stay on the host without a placeholder.
    """
    secrets = parse(text)
    place = f"[{host}]" if ":" in host else host
    lines = [
        "# The keys themselves stay on the host: its proxy puts them into this VM's requests.",
        "# Here are placeholders for them, and the addresses to which requests go.",
    ]
    served: set[str] = set()
    for api, (variable, path) in BASE_URLS.items():
        usable = [key for key, _ in keys_of(secrets, api)]
        served.update(key.variable for key in usable)
        lines += [f"{key.variable}={placeholder(name)}" for key in usable]
        lines += [f"{variable}=http://{place}:{port}{path}"] if usable else []
    return "\n".join(lines) + "\n", [variable for variable, value in secrets.items() if value and variable not in served]
