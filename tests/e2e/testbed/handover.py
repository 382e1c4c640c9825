"""A golden image that one test host has baked and others take, as each bake takes minutes."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import hostimage, machine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from testbed.container import Container

STATE = Path("home", hostimage.USER, ".config/vmw")
SHELF = Path("var/lib/vmw-testbed")
"""Where a host keeps the image for others, out of the reach of its tests; both are below the host's root."""
LINK = "golden-image.qcow2"


_taken: dict[int, Path] = {}
"""Where the image of a pipe is for the next host that takes it: the first one has put it aside for them."""


def _put_aside(host: Container) -> Path:
    """Put aside a host's golden image as it is now, and return where it is."""
    state, shelf = (f"/{place}" for place in (STATE, SHELF))
    # Links are enough: what is in a generation is replaced, never changed.
    host.run(f"mkdir {shelf} && cd {state} && cp -al --parents {LINK} $(dirname $(readlink {LINK})) {shelf}")
    return host.root / SHELF


def give(host: Container, descriptors: Iterable[int]) -> None:
    """Put aside the golden image as it is now, and write to pipes where it is."""
    place = os.fsencode(_put_aside(host))
    for descriptor in descriptors:
        # Who would take it may have ended.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, place)
        os.close(descriptor)


def take(host: Container, descriptor: int) -> bool:
    """Wait until a pipe says where a golden image is, and put it into a fresh host.

    Returns:
        Whether there is one: who should have given it may have ended without.
    """
    if descriptor in _taken:
        shelf = _taken[descriptor]
    else:
        shelf = Path(os.fsdecode(os.read(descriptor, select.PIPE_BUF)))
        os.close(descriptor)
    if not (shelf / LINK).is_symlink():
        _taken[descriptor] = shelf
        return False
    machine.run(["cp", "-a", "--sparse=always", shelf / LINK, shelf / "images", host.root / STATE])
    if descriptor not in _taken:
        # The giver may be gone before the next one takes it.
        _taken[descriptor] = _put_aside(host)
    return True
