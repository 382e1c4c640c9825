# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM's disk, an overlay over a golden image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.disks import backing_file, create_overlay, open_to_qemu
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.fork import begin, find_template
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Module


def create(files: InstanceFiles, instance: Instance, *, warm: bool) -> str:
    """Make the disk: of a template, whose memory is loaded meanwhile, or an empty overlay.

    Returns:
        Why it is no fork of the template that there is.
    """
    template, reason = find_template(files, instance, connect(instance.libvirt_uri)) if warm else (None, "")
    if template:
        try:
            begin(files, instance, template)
        except (VmwError, OSError) as error:
            # A new golden image may just have replaced it.
            reason = getattr(error, "message", str(error))
        else:
            return ""
    # Of a fork that was begun and has no disk.
    files.fork.unlink(missing_ok=True)
    create_overlay(files.disk, backing_file(files, instance), instance.disk_gib)
    return reason


def make(module: Module) -> dict[str, Any]:
    """Create the disk where it is missing, and open the way to it."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "path": str(files.disk)}
    instance = files.load()
    if module.check_mode:
        return {"changed": not files.disk.exists(), "path": str(files.disk)}
    backing_file(files, instance)
    # Two spawns of one worktree at once must not replace each other's disk.
    with files.start_lock():
        # Says so when somebody has begun to remove it meanwhile.
        instance = files.load()
        changed = not files.disk.exists()
        if changed:
            reason = create(files, instance, warm=module.params["warm"])
            if reason:
                module.warn(f"{files.name} could not be forked of the template, and is started cold: {reason}")
        changed |= open_to_qemu(files, instance)
    return {"changed": changed, "path": str(files.disk)}
