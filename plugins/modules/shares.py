#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Serve a VM's shares by virtiofsd."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shares
short_description: Serve directories of the host to a VM
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes one systemd user socket and service per share, and has the sockets listen now and after every boot.
  - QEMU's connection starts a fresh virtiofsd as the calling user, in a mount namespace that shows it just its share.
  - With O(state=absent) stops and removes every unit of the VM.
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The units are readable with C(systemctl --user cat).
options:
  state:
    description: Whether the shares are served.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: The VM's name.
    type: str
    required: true
  runtime_dir:
    description: Directory of the sockets, whose group is QEMU's; by default the calling user's own below C(/run/vmw).
    type: str
    default: ""
  shares:
    description: The shares.
    type: list
    elements: dict
    required: true
    suboptions:
      tag:
        description: The name by which the guest mounts it.
        type: str
        required: true
      path:
        description: The directory on the host. Needed with O(state=present).
        type: str
        default: ""
      read_only:
        description: Whether the guest, root included, may only read.
        type: bool
        default: false
"""

EXAMPLES = r"""
- name: Share a worktree
  vmw.worktree.shares:
    name: project
    runtime_dir: /run/vmw/me
    shares:
      - tag: vmw:repo
        path: /home/me/Code/project
"""

RETURN = r"""
sockets:
  description: The sockets' paths by tag.
  returned: when O(state=present)
  type: dict
"""

import os
import pwd
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import (
    Daemon,
    ShareSpec,
    command_line,
    find_virtiofsd,
    service_unit,
    socket_path,
    socket_unit,
    unit_name,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, write_file

WANTS = "sockets.target.wants"
"""Directory of the links by which the user's service manager starts enabled sockets."""


def unit_directory() -> Path:
    """Return the directory of the user's own units."""
    return Path("~/.config/systemd/user").expanduser()


def runtime_directory(module: AnsibleModule) -> str:
    """Return the directory of the sockets."""
    return module.params["runtime_dir"] or f"/run/vmw/{pwd.getpwuid(os.getuid()).pw_name}"


def systemctl(*argv: str) -> str:
    """Talk to the user's service manager, which lingers and so runs without a login."""
    os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return command("systemctl", "--user", *argv, hint="is lingering on? `vmw doctor` tells")


def loaded_units(units: list[str]) -> list[str]:
    """Return which of some units systemd holds; one whose file is gone runs on."""
    if not Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "systemd/private").exists():
        # Without lingering and login there is no service manager, and so no unit.
        return []
    listing = systemctl("list-units", "--all", "--plain", "--no-legend", *units)
    rows = [line.split() for line in listing.splitlines()]
    return [row[0] for row in rows if row[1:3] != ["not-found", "inactive"]]


def spec_of(share: dict[str, Any], name: str) -> ShareSpec:
    """Return a share as its daemon serves it.

    Args:
        share: The module's parameters of one share.
        name: The VM.

    Raises:
        VmwError: The directory is gone, or a link stands in its way.
    """
    path = Path(share["path"]).expanduser()
    try:
        real = path.resolve(strict=True)
        missing = not real.is_dir()
    except (OSError, RuntimeError):
        missing = True
    if missing:
        message = f"the directory {path}, which {name} shares, is gone"
        raise VmwError(message, f"bring it back, or remove the VM with `vmw destroy {name}`")
    if real != path and not share["read_only"]:
        # A guest may have put it there, to be shown what the link leads to.
        message = f"{path}, which {name} shares, leads to {real} now"
        raise VmwError(message, f"put the directory itself back there, or remove the VM with `vmw destroy {name}`", "conflict")
    return ShareSpec(share["tag"], str(real), share["read_only"])


def write_units(name: str, runtime_dir: str, shares: list[ShareSpec], *, check_mode: bool) -> bool:
    """Write the units' files and return whether any changed."""
    binary = find_virtiofsd()
    daemon = Daemon.probed(binary, command(binary, "--help"))
    texts = {}
    for share in shares:
        argv = command_line(daemon, share, os.getuid(), os.getgid())
        texts[f"{unit_name(name, share)}.socket"] = socket_unit(name, share, runtime_dir)
        texts[f"{unit_name(name, share)}.service"] = service_unit(name, share, argv)
    directory = unit_directory()
    if check_mode:
        return any(not (directory / unit).is_file() or (directory / unit).read_text() != texts[unit] for unit in texts)
    directory.mkdir(parents=True, exist_ok=True)
    changed = False
    for unit, text in texts.items():
        changed |= write_file(directory / unit, text)
    return changed


def present(module: AnsibleModule) -> dict[str, Any]:
    """Write the units and have the sockets listen."""
    name = module.params["name"]
    runtime_dir = runtime_directory(module)
    shares = [spec_of(share, name) for share in module.params["shares"]]
    sockets = {share.tag: socket_path(runtime_dir, name, share) for share in shares}
    if module.check_mode and not Path(runtime_dir).is_dir():
        return {"changed": True, "sockets": sockets}
    if not os.access(runtime_dir, os.W_OK):
        message = f"{runtime_dir} is missing or not yours"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")
    changed = write_units(name, runtime_dir, shares, check_mode=module.check_mode)
    if module.check_mode:
        return {"changed": changed, "sockets": sockets}
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
    return {"changed": changed, "sockets": sockets}


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Stop and remove this VM's units, by exact name; a half that was removed already does not keep the other."""
    name = module.params["name"]
    shares = [ShareSpec(share["tag"], "", read_only=False) for share in module.params["shares"]]
    sockets = [f"{unit_name(name, share)}.socket" for share in shares]
    units = [*sockets, *(f"{unit_name(name, share)}.service" for share in shares)]
    directory = unit_directory()
    places = [
        *(directory / unit for unit in units),
        *(directory / WANTS / unit for unit in sockets),
        *(Path(socket_path(runtime_directory(module), name, share)) for share in shares),
    ]
    loaded = loaded_units(units)
    left = [path for path in places if path.exists() or path.is_symlink()]
    if not module.check_mode:
        if loaded:
            systemctl("stop", *loaded)
        for path in left:
            # The end of a socket unit has removed its socket.
            path.unlink(missing_ok=True)
        if left:
            systemctl("daemon-reload")
    return {"changed": bool(loaded or left)}


def main() -> None:
    """Run the module."""
    share = {
        "tag": {"type": "str", "required": True},
        "path": {"type": "str", "default": ""},
        "read_only": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str", "required": True},
            "runtime_dir": {"type": "str", "default": ""},
            "shares": {"type": "list", "elements": "dict", "options": share, "required": True},
        },
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
