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


def give(host: Container, descriptors: Iterable[int]) -> None:
    """Put aside the golden image as it is now, and write to pipes where it is."""
    state, shelf = (f"/{place}" for place in (STATE, SHELF))
    # Links are enough: what is in a generation is replaced, never changed.
    host.run(f"mkdir {shelf} && cd {state} && cp -al --parents {LINK} $(dirname $(readlink {LINK})) {shelf}")
    for descriptor in descriptors:
        # Who would take it may have ended.
        with contextlib.suppress(BrokenPipeError):
            os.write(descriptor, os.fsencode(host.root / SHELF))
        os.close(descriptor)


def take(host: Container, descriptor: int) -> bool:
    """Wait until a pipe says where a golden image is, and put it into a fresh host.

    Returns:
        Whether there is one: who should have given it may have ended without.
    """
    shelf = Path(os.fsdecode(os.read(descriptor, select.PIPE_BUF)))
    os.close(descriptor)
    if not (shelf / LINK).is_symlink():
        return False
    machine.run(["cp", "-a", "--sparse=always", shelf / LINK, shelf / "images", host.root / STATE])
    return True
