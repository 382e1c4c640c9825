# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Bring what guests see whose keys stay on the host up to date with each edit of their profile's ``secrets.env``.

A VM's copy is made when vmw starts it. From then on the user edits the profile, and a login right after sees it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmw_proxy import key_proxy, records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

EVENTS = "create,close_write,moved_to,moved_from,delete,delete_self,move_self,attrib"
"""Editors replace a file by its name, copy over it, or move it away first: see inotifywait(1)."""

log = logging.getLogger("vmw_keys")


def proxied(state: Path) -> list[records.Vm]:
    """Return the VMs whose keys stay on the host, but those that are being made or removed."""
    directories = [path.parent for path in sorted((state / "instances").glob("*/guest-secrets"))]
    found = [records.read_vm(directory) for directory in directories if not (directory / "leaving").exists()]
    return [each[1] for each in found if each and each[1].proxied]


def profile_file(state: Path, vm: records.Vm) -> Path:
    """Return the file that a VM's copy is made from."""
    return state / "secrets" / vm.profile / key_proxy.GUEST_FILE


def places(state: Path) -> dict[str, int]:
    """Return the directories in which something may change, each with its inode, as another may come in its place.

    All profiles are among them, those without a VM too: nothing is seen here of a VM that comes later.

    Args:
        state: vmw's directory on the host. Links of the user's own may lead elsewhere from there.
    """
    files = [profile / key_proxy.GUEST_FILE for profile in (state / "secrets").glob("*") if profile.is_dir()]
    wanted = {
        state,
        state / "proxy",
        state / "secrets",
        # Unlike Path.resolve, this takes links that lead nowhere but to themselves.
        *(path for file in files for path in (file.parent, Path(os.path.realpath(file)).parent)),
    }
    return {str(path): path.stat().st_ino for path in sorted({each.resolve() for each in wanted}) if path.is_dir()}


def refresh(state: Path) -> None:
    """Bring the copies of all VMs up to date."""
    for vm in proxied(state):
        try:
            key_proxy.refresh(state, vm.name, profile_file(state, vm))
        except OSError as error:
            log.warning("%s sees its old secrets.env: %s: %s", vm.name, error.filename, error.strerror)
        except key_proxy.NoProxyError as error:
            log.warning("%s sees its old secrets.env: %s", vm.name, error)


@contextlib.contextmanager
def watching(directories: Iterable[str]) -> Iterator[Iterator[str]]:
    """Give a line for each change in some directories, and before these one that tells that they are watched."""
    argv = ["inotifywait", "--monitor", "--event", EVENTS, "--format", "%f", "--", *directories]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        try:
            yield iter(process.stdout or ())
        finally:
            process.terminate()


def follow(state: Path) -> None:
    """Go on until inotifywait ends: there is nothing to watch, or the system has no watch left.

    Args:
        state: vmw's directory on the host.
    """
    ended = False
    while not ended:
        watched = places(state)
        ended = True
        with watching(watched) as changes:
            for _ in changes:
                refresh(state)
                if places(state) != watched:
                    # A profile or a VM has come or gone.
                    ended = False
                    break


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="vmw-keys", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIRECTORY", help="vmw's directory on the host")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    follow(options.state_dir)
    log.error("inotifywait has ended")
    return 1


if __name__ == "__main__":
    sys.exit(main())
