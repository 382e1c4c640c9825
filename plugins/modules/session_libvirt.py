#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Have the user's own libvirt run apart from any login."""

from __future__ import annotations

DOCUMENTATION = r"""
module: session_libvirt
short_description: Have the user's own libvirt run apart from any login
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes a systemd user socket at which every client of C(qemu:///session) finds libvirt, and the service that it starts.
  - Without it, the first client would start libvirt as its own child, in the control group of a login, and so the VMs.
  - A libvirt of the user's that runs without a VM is ended for it. One with VMs is left alone, and the module fails.
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The units are readable with C(systemctl --user cat).
options: {}
"""

EXAMPLES = r"""
- name: Have the user's own libvirt run apart from any login
  vmw.worktree.session_libvirt:
"""

RETURN = r"""
daemon:
  description: The daemon's program; empty where none is installed yet, in check mode.
  returned: success
  type: str
  sample: /usr/sbin/libvirtd
"""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import PASST, lacking_options
from ansible_collections.vmw.worktree.plugins.module_utils.session import (
    DAEMON_UNIT,
    DAEMONS,
    daemon_service_unit,
    daemon_socket_unit,
    runtime_directory,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import command, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import systemctl, unit_directory

DIRECTORIES = ("/usr/sbin", "/usr/bin")
END_SECONDS = 20.0
SOCKET = f"{DAEMON_UNIT}.socket"
SERVICE = f"{DAEMON_UNIT}.service"


def find_daemon() -> Path | None:
    """Return the daemon that is installed."""
    places = (Path(directory, name) for name in DAEMONS for directory in DIRECTORIES)
    return next((path for path in places if path.is_file()), None)


def check_passt() -> None:
    """See that the installed passt can be the network of a VM.

    Raises:
        VmwError: It is missing, or too old.
    """
    lacking = lacking_options(command(PASST, "--help"))
    if lacking:
        message = f"{PASST} is too old: it lacks {' and '.join(lacking)}"
        raise VmwError(message, "qemu:///session takes a passt of 2024-11-21 or later, as Debian 13's", "host_not_ready")


def others() -> list[int]:
    """Return the daemons of this user's that some client has started."""
    found = []
    for name in DAEMONS:
        pidfile = Path(runtime_directory(), "libvirt", f"{name}.pid")
        with contextlib.suppress(OSError, ValueError):
            pid = int(pidfile.read_text())
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def end_others() -> None:
    """End them, as they hold what the service needs.

    Raises:
        VmwError: One has VMs, or does not end.
    """
    pids = others()
    if pids and command("virsh", "--quiet", "--connect", "qemu:///session", "list", "--name").strip():
        message = "VMs of your own run under a libvirt (qemu:///session) that some program has started for itself"
        raise VmwError(message, "shut them down, then run `vmw host` again", "conflict")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while others():
        if time.monotonic() > deadline:
            message = f"the libvirt of yours with the process id {pids[0]} does not end"
            raise VmwError(message, f"`kill {pids[0]}`, then run `vmw host` again", "conflict")
        time.sleep(0.1)


def provide(module: AnsibleModule) -> dict[str, Any]:
    """Write the units and have the socket listen."""
    daemon = find_daemon()
    if daemon is None:
        if module.check_mode:
            return {"changed": True, "daemon": ""}
        message = "libvirt's daemon for QEMU is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")
    check_passt()
    directory = unit_directory()
    texts = {directory / SOCKET: daemon_socket_unit(daemon.name), directory / SERVICE: daemon_service_unit(str(daemon))}
    written = any(not path.is_file() or path.read_text() != text for path, text in texts.items())
    if module.check_mode:
        return {"changed": written, "daemon": str(daemon)}
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        write_file(path, text)
    if written or "yes" in systemctl("show", "--property=NeedDaemonReload", SOCKET):
        systemctl("daemon-reload")
    active = "=active" in systemctl("show", "--property=ActiveState", SOCKET)
    if not active:
        end_others()
        systemctl("enable", "--now", "--quiet", SOCKET)
    return {"changed": written or not active, "daemon": str(daemon)}


def main() -> None:
    """Run the module."""
    run(AnsibleModule(argument_spec={}, supports_check_mode=True), provide)


if __name__ == "__main__":
    main()
