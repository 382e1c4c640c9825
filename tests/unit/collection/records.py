"""Records of VMs for tests of what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import read_layout
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import choose
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare, Instance, InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

if TYPE_CHECKING:
    from pathlib import Path


def record(worktree: str = "/w", git: GitShare | None = None) -> Instance:
    """Return the record of a VM of a worktree."""
    return Instance(
        schema=1,
        name="one",
        uuid="1b671a64-40d5-491e-99b0-da01ff1f3341",
        mac="52:54:00:00:00:01",
        worktree=worktree,
        created="2026-11-24T09:30:12+00:00",
        memory_mib=4096,
        vcpus=4,
        disk_gib=20,
        bridge="br0",
        guest_user="claude",
        uid=1000,
        authorized_keys=["ssh-ed25519 AAAA dev@host"],
        generation="20261124-093012-5f0c1a9e",
        virt_type="kvm",
        libvirt_uri="qemu:///system",
        git=git or GitShare(),
    )


def session_record(ssh_port: int) -> Instance:
    """Return the record of a VM of the user's own libvirt."""
    return replace(record(), libvirt_uri="qemu:///session", ssh_port=ssh_port, egress=Egress("open"))


def recorded(worktree: Path, root: Path, mode: str) -> tuple[Instance, InstanceFiles]:
    """Return the record of a VM of a real worktree, and its files in a state directory below ``root``."""
    files = InstanceFiles(State(root / "vmw"), "one")
    instance = record(str(worktree), choose(worktree, read_layout(worktree), mode, "claude", files.state))
    files.save(instance)
    return instance, files
