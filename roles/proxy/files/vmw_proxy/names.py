# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Host names: how a guest may write one, and which a list allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import idna

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST = 253
"""Characters of the longest name: RFC 1035 has 255 octets on the wire."""

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# A name whose last label is a number is an IPv4 address in one of its spellings: WHATWG's URL standard, "ends in a number".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
ANY = "*."


class NotANameError(ValueError):
    """What a guest asked for is no host name: an address in any spelling, or nonsense."""


def canonical(text: str) -> str:
    """Return a host name in the one form in which names are compared: ASCII, small letters, no dot at the end.

    Args:
        text: The name as it was asked for.

    Raises:
        NotANameError: It is an address in any spelling, a single label, or no name at all.
    """
    try:
        ascii_form = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode()
    except UnicodeError as error:
        message = "is no host name"
        raise NotANameError(message) from error
    name = ascii_form.removesuffix(".")
    labels = name.split(".")
    if "[" in name or ":" in name or _NUMBER.fullmatch(labels[-1]):
        message = "is an address and no name"
        raise NotANameError(message)
    if len(name) > LONGEST or len(labels) == 1 or not all(map(_LABEL.fullmatch, labels)):
        message = "is no full host name"
        raise NotANameError(message)
    return name


@dataclass(frozen=True)
class Names:
    """A list of allowed names.

    Attributes:
        exact: Names as such.
        suffixes: Names of which all subdomains are meant, and not the name itself.
        unusable: Entries that are neither, as they were written.
    """

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    unusable: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Names:
        """Read names and ``*.suffix`` patterns; an entry that is neither allows nothing and spoils none of the others."""
        exact: set[str] = set()
        suffixes: set[str] = set()
        unusable: list[str] = []
        for entry in entries:
            try:
                if entry.startswith(ANY):
                    suffixes.add(canonical(entry.removeprefix(ANY)))
                else:
                    exact.add(canonical(entry))
            except NotANameError:
                unusable.append(entry)
        return cls(frozenset(exact), frozenset(suffixes), tuple(unusable))

    def allow(self, name: str) -> bool:
        """Tell whether a name, in its canonical form, is one of these."""
        labels = name.split(".")
        return name in self.exact or any(".".join(labels[start:]) in self.suffixes for start in range(1, len(labels)))
