# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Which headers are passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
"""What concerns one connection alone: RFC 9110, section 7.6.1."""

NEVER_SENT = frozenset({"host", "expect", "via", "forwarded"})
"""What is said anew, was answered here, or tells of the network inside."""

GUESTS_OWN = frozenset({"authorization", "x-api-key", "api-key", "cookie", "cookie2", "accept-encoding"})
"""What a request with the host's key has none of: the guest's way of saying who it is, and a coding that hides the usage."""

ACCOUNTS_OWN = frozenset(
    {
        "set-cookie",
        "set-cookie2",
        "alt-svc",
        "anthropic-organization-id",
        "openai-organization",
        "openai-project",
        "www-authenticate",
    }
)
"""What an answer to such a request says about the account, or would bind to it."""


def _named(headers: Iterable[tuple[str, str]]) -> set[str]:
    """Return the headers that a connection's header says concern this connection alone."""
    lists = [value for name, value in headers if name.lower() == "connection"]
    return {word.strip().lower() for value in lists for word in value.split(",")}


def passed_on(headers: Mapping[str, str], without: frozenset[str] = frozenset()) -> CIMultiDict[str]:
    """Return those headers that the other side gets.

    Args:
        headers: What this side sent.
        without: Names, in small letters, of more that stay here.
    """
    items = list(headers.items())
    gone = HOP_BY_HOP | without | _named(items)
    kept = [(name, value) for name, value in items if name.lower() not in gone and not _is_proxys(name.lower())]
    return CIMultiDict(kept)


def _is_proxys(name: str) -> bool:
    return name.startswith(("proxy-", "x-forwarded-"))
