# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Serve a VM's shares by virtiofsd."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.bridge_address import bridge_address
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import prepare
from ansible_collections.vmw.worktree.plugins.module_utils.instance import PROXY, Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import SECRETS, TAGS, shares_of
from ansible_collections.vmw.worktree.plugins.module_utils.key_proxy import refresh
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import find_profile, find_proxy, settle
from ansible_collections.vmw.worktree.plugins.module_utils.session import socket_directory
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import (
    Daemon,
    ShareSpec,
    command_line,
    find_virtiofsd,
    mirror_name,
    mirror_unit,
    service_unit,
    socket_path,
    socket_unit,
    unit_name,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State, command, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import loaded_units, remove_units, systemctl, unit_directory

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Module

WANTS = "sockets.target.wants"
"""Directory of the links by which the user's service manager starts enabled sockets."""


def runtime_directory(module: Module, instance: Instance) -> str:
    """Return the directory of a VM's sockets."""
    if module.params["runtime_dir"]:
        return str(module.params["runtime_dir"])
    return socket_directory() if instance.is_session else system_directory()


def system_directory() -> str:
    """Return the directory in which QEMU's own user reaches sockets."""
    return f"/run/vmw/{pwd.getpwuid(os.getuid()).pw_name}"


def spec_of(share: ShareSpec, name: str) -> ShareSpec:
    """Return a share as its daemon serves it.

    Args:
        share: The share as the record tells.
        name: The VM.

    Raises:
        VmwError: A directory or file of it is gone, or a link stands in its way.
    """
    for path in (share.path, *(bind.source for bind in share.binds)):
        try:
            real = Path(path).resolve(strict=True)
        except PermissionError as error:
            message = f"{path}, which {name} shares, may not be entered"
            raise VmwError(message, f"`chmod u+rwx` on what is closed there, or `vmw destroy {name}`") from error
        except (OSError, RuntimeError) as error:
            message = f"{path}, which {name} shares, is gone"
            raise VmwError(message, f"bring it back, or remove the VM with `vmw destroy {name}`") from error
        if str(real) != path and share.tag != SECRETS:
            # A guest may have put it there, to be shown what the link leads to.
            message = f"{path}, which {name} shares, leads to {real} now"
            raise VmwError(message, f"put the original back there, or remove the VM with `vmw destroy {name}`", "conflict")
    real = Path(share.path).resolve()
    if not real.is_dir():
        message = f"the directory {share.path}, which {name} shares, is gone"
        raise VmwError(message, f"bring it back, or remove the VM with `vmw destroy {name}`")
    return replace(share, path=str(real))


def write_units(name: str, runtime_dir: str, shares: list[ShareSpec], *, check_mode: bool) -> bool:
    """Write the units' files and return whether any changed."""
    binary = find_virtiofsd()
    daemon = Daemon.probed(binary, command(binary, "--help"))
    texts = {}
    for share in shares:
        # The user's own group, also in a shell that `sg libvirt` has started with another one.
        argv = command_line(daemon, share, os.getuid(), pwd.getpwuid(os.getuid()).pw_gid)
        texts[f"{unit_name(name, share)}.socket"] = socket_unit(name, share, runtime_dir)
        texts[f"{unit_name(name, share)}.service"] = service_unit(name, share, argv)
        if share.mirrors:
            texts[mirror_name(name)] = mirror_unit(name, share)
    directory = unit_directory()
    if check_mode:
        return any(not (directory / unit).is_file() or (directory / unit).read_text() != texts[unit] for unit in texts)
    directory.mkdir(parents=True, exist_ok=True)
    changed = False
    for unit, text in texts.items():
        changed |= write_file(directory / unit, text)
    return changed


def hide_keys(module: Module, instance: Instance, files: InstanceFiles) -> None:
    """Write what the guest sees in place of its profile's keys, and tell what there is of it that the proxy does not do.

    Raises:
        VmwError: There is no such profile, or no proxy.
    """
    name = instance.name
    place = find_proxy(files.state)
    shown = refresh(files.state.root, name, find_profile(files.state, instance.secrets_profile))
    with contextlib.suppress(VmwError):
        # The network may have given the host another one, and only set-up has the proxy listen there.
        address = bridge_address(instance.bridge)
        if place.rpartition(":")[0].strip("[]") != address:
            module.warn(f"{name} reaches no API by the proxy: {instance.bridge} has the address {address} by now; run `vmw host`")
    if shown.readable:
        module.warn(f"{name} reads {', '.join(shown.readable)} itself: the proxy has no API for that")
    if shown.unusable:
        module.warn(f"{name} does not get {', '.join(shown.unusable)}: a key has no blanks and only letters of ASCII")
    if shown.withheld:
        module.warn(f"{name} does not get {', '.join(shown.withheld)}: the value of a key that stays on the host stands in it")
    if shown.no_address:
        module.warn(f"the proxy refuses what {name} asks for: {', '.join(shown.no_address)} is no http:// or https:// address")


def provide_directory(directory: str, instance: Instance) -> None:
    """See that there is a directory for the sockets; the user's own is made anew after each boot.

    Raises:
        VmwError: There is none, or it is somebody else's.
    """
    if instance.is_session:
        with contextlib.suppress(OSError):
            Path(directory).mkdir(mode=0o700, exist_ok=True)
    if not os.access(directory, os.W_OK):
        message = f"{directory} is missing or not yours"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")


def present(module: Module) -> dict[str, Any]:
    """Write the units and have the sockets listen."""
    files = files_of(module.params["state_dir"], module.params["name"])
    name = files.name
    if module.check_mode and not files.exists():
        return {"changed": True, "sockets": {}, "mountpoints": []}
    instance = files.load()
    runtime_dir = runtime_directory(module, instance)
    # What is vmw's own may stand behind a link of the user's own.
    guest_shares = shares_of(instance, InstanceFiles(State(files.state.root.resolve()), name))
    sockets = {share.spec.tag: socket_path(runtime_dir, name, share.spec) for share in guest_shares}
    result = {"sockets": sockets, "mountpoints": [share.mountpoint for share in guest_shares]}
    if module.check_mode and not Path(runtime_dir).is_dir():
        return {"changed": True, **result}
    provide_directory(runtime_dir, instance)
    dot_git = Path(instance.worktree, ".git")
    if instance.git.kind == "none" and os.path.lexists(dot_git):
        module.warn(f"{name} can write {dot_git}, and so decides what git runs there on this machine; spawned anew, it cannot")
    if not module.check_mode:
        settle(files.state)
        prepare(instance, files)
        if instance.keys.mode == PROXY:
            hide_keys(module, instance, files)
    shares = [share.spec if module.check_mode else spec_of(share.spec, name) for share in guest_shares]
    changed = write_units(name, runtime_dir, shares, check_mode=module.check_mode)
    if module.check_mode:
        return {"changed": changed, **result}
    listening = [f"{unit_name(name, share)}.socket" for share in shares]
    units = [unit for socket in listening for unit in (socket, socket.replace(".socket", ".service"))]
    # An earlier run may have been interrupted between the files and the reload.
    if "NeedDaemonReload=yes" in systemctl("show", "--property=NeedDaemonReload", *units):
        systemctl("daemon-reload")
        changed = True
    active = systemctl("show", "--property=ActiveState", *listening).split()
    if changed or active != ["ActiveState=active"] * len(listening) or not all(map(os.path.exists, sockets.values())):
        systemctl("enable", "--now", *listening)
        changed = True
    return {"changed": changed, **result}


def absent(module: Module) -> dict[str, Any]:
    """Stop and remove this VM's units, by exact name; a half that was removed already does not keep the other."""
    name = files_of(module.params["state_dir"], module.params["name"]).name
    shares = [ShareSpec(tag, "", read_only=False) for tag in TAGS]
    sockets = [f"{unit_name(name, share)}.socket" for share in shares]
    units = [*sockets, *(f"{unit_name(name, share)}.service" for share in shares), mirror_name(name)]
    directory = unit_directory()
    # A lost record does not tell where they were.
    runtime_dirs = [module.params["runtime_dir"]] if module.params["runtime_dir"] else [system_directory(), socket_directory()]
    places = [
        *(directory / unit for unit in units),
        *(directory / WANTS / unit for unit in sockets),
        *(Path(socket_path(place, name, share)) for place in runtime_dirs for share in shares),
    ]
    loaded = loaded_units(units)
    left = [path for path in places if path.exists() or path.is_symlink()]
    if not module.check_mode:
        remove_units(loaded, left)
    return {"changed": bool(loaded or left)}
