# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Disks of VMs: overlays over a generation's disk, made new or copied from a template."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, grant, open_way, qemu_peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles


def backing_file(files: InstanceFiles, instance: Instance) -> Path:
    """Return the disk that a VM's own is an overlay over: the generation's own file, never the link, which changes.

    Raises:
        VmwError: It is gone.
    """
    path = files.state.images / instance.generation / "disk.qcow2"
    if not path.is_file():
        message = f"the golden image {instance.generation}, which {instance.name} is a clone of, is gone"
        raise VmwError(message, f"its disk is lost: `vmw destroy {instance.name}` and spawn it anew")
    return path


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Have a file made under another name, and give it its own when it is complete; what is not complete takes no room."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.chmod(0o600)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def create_overlay(path: Path, backing: Path, gib: int) -> None:
    """Create an empty overlay over another disk, complete or not at all.

    Args:
        path: The overlay.
        backing: The disk below it, a qcow2.
        gib: Virtual size in GiB.
    """
    with _whole(path) as partial:
        command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing), str(partial), f"{gib}G")


def copy_file(path: Path, source: Path) -> None:
    """Copy a file of a template for its owner alone, complete or not at all.

    Holes stay holes, and where the file system can, both share their blocks.
    """
    with _whole(path) as partial:
        command("cp", "--reflink=auto", "--sparse=auto", "--no-preserve=all", "--", str(source), str(partial))


def open_to_qemu(files: InstanceFiles, instance: Instance) -> bool:
    """Let QEMU's user open a VM's disk and what it is an overlay over; return whether that changed anything."""
    peer = qemu_peer(instance.libvirt_uri)
    if not peer:
        return False
    changed = open_way(files.disk, peer)
    changed |= open_way(backing_file(files, instance), peer)
    return changed | grant(files.disk, peer, "rw-")
