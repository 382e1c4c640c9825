# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a search of a tree found, bounded in memory however much there is."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable

KEPT = 10_000
KEPT_LENGTH = 4 << 20
"""How many things of one kind are remembered, and how long their paths may be together."""


@dataclass
class Items:
    """What was found: by kind and path the parts that are compared, and a word for people. Bounded in each kind."""

    kinds: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    _lengths: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, path: str, state: str | dict[str, str], note: str = "") -> None:
        """Remember one thing.

        Args:
            kind: One of `tree_kinds.KINDS`.
            path: The raw path.
            state: What is compared, by part where there are several.
            note: What a person should know of it.
        """
        shown = printable(path)
        known = self.kinds.setdefault(kind, {})
        if shown not in known:
            self.totals[kind] = self.totals.get(kind, 0) + 1
            length = self._lengths.get(kind, 0) + len(shown) + len(note)
            if len(known) >= KEPT or length > KEPT_LENGTH:
                return
            self._lengths[kind] = length
        known[shown] = {"state": {"": state} if isinstance(state, str) else state, "note": note}


@dataclass
class Sum:
    """A digest over the files of a directory that is compared as a whole.

    It has their times of change, which a guest cannot set: the host's kernel does.
    """

    digests: list[bytes] = field(default_factory=list)

    def add(self, path: str, status: os.stat_result) -> None:
        """Take in an entry; a directory's own times change with its entries, which are taken in themselves."""
        directory = stat.S_ISDIR(status.st_mode)
        values = (status.st_mode,) if directory else (status.st_mode, status.st_size, status.st_ctime_ns)
        text = os.fsencode(path) + repr(values).encode()
        self.digests.append(hashlib.sha256(text).digest())

    def digest(self) -> str:
        """Return the digest, whatever order the entries came in."""
        return f"sha256:{hashlib.sha256(b''.join(sorted(self.digests))).hexdigest()}"
