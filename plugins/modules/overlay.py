#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM's disk, an overlay over a golden image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay
short_description: Make the disk of a VM as a linked clone
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Creates the copy-on-write disk of a recorded VM over the disk of its golden-image generation, and lets QEMU's user open it.
  - An existing disk is never replaced.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The result is one binary file.
"""

EXAMPLES = r"""
- name: Make the disk
  vmw.worktree.overlay:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
path:
  description: The disk's path.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, grant, open_way, qemu_peer


def make(module: AnsibleModule) -> dict[str, Any]:
    """Create the disk where it is missing, and open the way to it."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "path": str(files.disk)}
    instance = files.load()
    backing_file = files.state.images / instance.generation / "disk.qcow2"
    if module.check_mode:
        return {"changed": not files.disk.exists(), "path": str(files.disk)}
    if not backing_file.is_file():
        message = f"the golden image {instance.generation}, which {instance.name} is a clone of, is gone"
        raise VmwError(message, f"its disk is lost: `vmw destroy {instance.name}` and spawn it anew")
    # Two spawns of one worktree at once must not replace each other's disk.
    with files.state.lock(files.lock_name):
        changed = not files.disk.exists()
        if changed:
            partial = files.disk.with_suffix(".partial")
            # The generation's own file, never the link: a clone's backing file must not change under it.
            command(
                "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(backing_file), str(partial),
                f"{instance.disk_gib}G",
            )  # fmt: skip
            partial.chmod(0o600)
            partial.replace(files.disk)
    peer = qemu_peer(instance.libvirt_uri)
    if peer:
        changed |= open_way(files.disk, peer)
        changed |= open_way(backing_file, peer)
        changed |= grant(files.disk, peer, "rw-")
    return {"changed": changed, "path": str(files.disk)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, make)


if __name__ == "__main__":
    main()
