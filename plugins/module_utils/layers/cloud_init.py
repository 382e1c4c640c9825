# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a VM's NoCloud seed."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.instance import RENDERED, GitShare, Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import GuestShare, shares_of
from ansible_collections.vmw.worktree.plugins.module_utils.state import (
    command,
    grant,
    open_way,
    qemu_peer,
    read_exactly,
    write_file,
)

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Module

BASE = """\
# Written by vmw.
[safe]
\tdirectory = *
"""
"""git-config(1): the files of a share belong to the guest's user, or to whoever made them on the host."""

PROTECTED = """\
# The repository's own configuration is the host's, and not the guest's to change.
[gc]
\tauto = 0
\tworktreePruneExpire = never
[maintenance]
\tauto = false
[branch]
\tautoSetupMerge = false
[push]
\tdefault = current
"""
"""Keeps git from cleaning up by itself, and from writing where the guest may not: git-config(1)."""


def git_config(git: GitShare) -> str:
    """Return the guest's /etc/gitconfig: the host user's name, and nothing that would write what is protected."""
    lines = [f"\t{key} = {quoted(value)}\n" for key, value in (("name", git.user_name), ("email", git.user_email)) if value]
    return BASE + (PROTECTED if git.mode == "protected" else "") + ("[user]\n" + "".join(lines) if lines else "")


def quoted(value: str) -> str:
    """Quote a value for git's configuration: git-config(1), "Syntax"."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def mounts(shares: list[GuestShare]) -> list[list[str]]:
    """Return the lines of fstab(5) that mount the shares."""
    return [
        # mount(8) makes the directory: nobody else knows it in a guest that runs already.
        [share.spec.tag, fstab_path(share.mountpoint), "virtiofs", f"{share.options},x-mount.mkdir", "0", "0"]
        for share in shares
    ]


def fstab_path(path: str) -> str:
    """Escape a path for fstab(5)."""
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("#", "\\043")


def rendered(user_data: dict[str, Any], meta_data: dict[str, str]) -> str:
    """Return the same identity as shell assignments, for the guest's own program, which reads them in no time.

    Args:
        user_data: The whole user data.
        meta_data: The whole meta data.
    """
    user = user_data["users"][0]
    keys = user_data["ssh_keys"]
    values = {
        "id": meta_data["instance-id"],
        "machine": meta_data["instance-id"].replace("-", ""),
        "host": user_data["hostname"],
        "fqdn": user_data["fqdn"],
        "private": keys["ed25519_private"],
        "public": keys["ed25519_public"].rstrip("\n"),
        "account": user["name"],
        "uid": str(user["uid"]),
        "authorized": "\n".join(user["ssh_authorized_keys"]),
        "mounts": "\n".join("\t".join(line) for line in user_data["mounts"]),
    }
    files = [shlex.quote(word) for file in user_data["write_files"] for word in (file["path"], file["content"])]
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + f"set -- {' '.join(files)}\n"


def identity(instance: Instance) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user data and the network configuration of a VM. Packages and everything slow are in the golden image."""
    user_data = {
        "hostname": instance.name,
        "fqdn": f"{instance.name}.local",
        "prefer_fqdn_over_hostname": False,
        "manage_etc_hosts": True,
        "ssh_pwauth": False,
        "disable_root": True,
        "ssh_deletekeys": False,
        "users": [
            {
                "name": instance.guest_user,
                # The host user's uid, so that files in the share belong to the right person on both sides.
                "uid": instance.uid,
                "shell": "/bin/bash",
                "groups": ["adm", "sudo"],
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": instance.authorized_keys,
            }
        ],
    }
    # The lease follows the address of the card, not the machine-id.
    card = {"match": {"macaddress": instance.mac}, "dhcp4": True, "dhcp-identifier": "mac"}
    return user_data, {"version": 2, "ethernets": {"lan": card}}


def sources(files: InstanceFiles) -> dict[str, str]:
    """Return the seed's files by name. JSON is YAML, as cloud-init reads it, without YAML's surprises."""
    instance = files.load()
    user_data, network_config = identity(instance)
    keys = {
        "ed25519_private": files.host_key.read_text(),
        "ed25519_public": files.host_key.with_suffix(".pub").read_text(),
    }
    whole = {
        **user_data,
        "ssh_keys": keys,
        "write_files": [{"path": "/etc/gitconfig", "content": git_config(instance.git)}],
        "mounts": mounts(shares_of(instance, files)),
    }
    meta_data = {"instance-id": instance.uuid, "local-hostname": instance.name}
    return {
        "user-data": "#cloud-config\n" + json.dumps(whole, indent=2) + "\n",
        "meta-data": json.dumps(meta_data, indent=2) + "\n",
        "network-config": json.dumps(network_config, indent=2) + "\n",
        RENDERED: rendered(whole, meta_data),
    }


def write(files: InstanceFiles) -> dict[str, Any]:
    """Write the sources, and the image when they changed."""
    contents = sources(files)
    files.seed_sources.mkdir(mode=0o700, exist_ok=True)
    for name, content in contents.items():
        write_file(files.seed_sources / name, content, 0o600)
    # An earlier run may have been interrupted after the sources.
    newest = max((files.seed_sources / name).stat().st_mtime_ns for name in contents)
    changed = not files.seed.is_file() or files.seed.stat().st_mtime_ns < newest
    if changed:
        partial = files.seed.with_suffix(".partial")
        command(
            "xorriso", "-as", "mkisofs", "-quiet", "-o", str(partial), "-volid", "cidata", "-joliet", "-rational-rock",
            str(files.seed_sources),
        )  # fmt: skip
        partial.chmod(0o600)
        partial.replace(files.seed)
    peer = qemu_peer(files.load().libvirt_uri)
    if peer:
        changed |= open_way(files.seed, peer)
        changed |= grant(files.seed, peer, "r--")
    return {"changed": changed, "path": str(files.seed)}


def is_stale(files: InstanceFiles) -> bool:
    """Tell whether there is no seed, or one of other contents."""
    if not files.seed.is_file() or not files.exists():
        return True
    contents = sources(files)
    places = ((files.seed_sources / name, content) for name, content in contents.items())
    return any(not path.is_file() or read_exactly(path) != content for path, content in places)


def make(module: Module) -> dict[str, Any]:
    """Make the seed, or say what would be made."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode:
        return {"changed": is_stale(files), "path": str(files.seed)}
    with files.state.lock(files.lock_name):
        return write(files)
