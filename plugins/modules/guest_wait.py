#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Wait until a VM has come as far as is asked."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_wait
short_description: Wait for one phase of a VM's life
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Waits until the guest has an address, answers on SSH with its own host key, has its shares mounted, or is off.
  - Fails as soon as the wait is in vain, with the phase, the likely cause and the log.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Does not wait.
  diff_mode:
    support: none
    description: Only looks.
options:
  phase:
    description: What to wait for.
    type: str
    choices: [address, ssh, shares, "off"]
    required: true
  address:
    description: The guest's address, as an earlier wait returned it, to be returned again with O(phase=shares).
    type: str
  mountpoints:
    description: The directories in the guest that must be mounted. Needed with O(phase=shares).
    type: list
    elements: str
  timeout:
    description: How long to wait, in seconds.
    type: int
    default: 180
"""

EXAMPLES = r"""
- name: Wait for the guest's address
  vmw.worktree.guest_wait:
    state_dir: ~/.config/vmw
    name: project
    phase: address
"""

RETURN = r"""
address:
  description: The guest's address.
  returned: success
  type: str
instance:
  description: The instance record, with RV(address) and the domain's state.
  returned: success
  type: dict
"""

import json
import socket
import subprocess
import time
from enum import Enum
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.console import read_console, trouble
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    guest_address,
    is_out_of_space,
    is_running,
)

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    libvirt = libvirt_qemu = None

POLL_SECONDS = 0.1
AGENT_TIMEOUT_SECONDS = 5
SSH_PORT = 22

# libvirt-python has no type information of its own, hence Any for a domain.


class Answer(Enum):
    """What an address says on SSH's port."""

    NOTHING = "nothing"
    OTHER = "another machine's host key"
    OWN = "the VM's host key"


def ssh_answer(address: str, host_key: str) -> Answer:
    """Tell whether the SSH server at ``address`` shows the host key that was made for this VM.

    Args:
        address: The guest's address.
        host_key: The public key: its type and its base64 text.
    """
    try:
        with socket.create_connection((address, SSH_PORT), timeout=1) as connection:
            connection.settimeout(5)
            if not connection.recv(4).startswith(b"SSH-"):
                return Answer.NOTHING
    except OSError:
        return Answer.NOTHING
    scan = subprocess.run(["ssh-keyscan", "-t", "ed25519", "-T", "10", address], capture_output=True, text=True, check=False)
    shown = [" ".join(line.split()[1:3]) for line in scan.stdout.splitlines() if not line.startswith("#")]
    if not shown:
        return Answer.NOTHING
    return Answer.OWN if host_key in shown else Answer.OTHER


def ssh_address(address: str, host_key: str) -> str:
    """Return an address when the VM's own SSH server answers there, or an empty string while none does.

    Args:
        address: The guest's address, as it says.
        host_key: The public key: its type and its base64 text.

    Raises:
        VmwError: Another machine answers.
    """
    answer = ssh_answer(address, host_key) if address else Answer.NOTHING
    if answer is Answer.OTHER:
        message = f"the SSH server at {address} does not show the host key of this VM"
        raise VmwError(message, "another machine may have taken the address; see the console log")
    return address if answer is Answer.OWN else ""


def agent_status(domain: Any, *argv: str) -> int | None:  # noqa: ANN401
    """Run a command in the guest through its agent.

    Returns:
        The exit status, or ``None`` while the agent does not answer.
    """
    try:
        order = {"execute": "guest-exec", "arguments": {"path": argv[0], "arg": list(argv[1:])}}
        reply = libvirt_qemu.qemuAgentCommand(domain, json.dumps(order), AGENT_TIMEOUT_SECONDS, 0)
        query = json.dumps({"execute": "guest-exec-status", "arguments": {"pid": json.loads(reply)["return"]["pid"]}})
        for _ in range(int(AGENT_TIMEOUT_SECONDS / POLL_SECONDS)):
            status = json.loads(libvirt_qemu.qemuAgentCommand(domain, query, AGENT_TIMEOUT_SECONDS, 0))["return"]
            if status["exited"]:
                return int(status.get("exitcode", -1))
            time.sleep(POLL_SECONDS)
    except libvirt.libvirtError:
        pass
    return None


def shares_mounted(domain: Any, mountpoints: list[str]) -> bool:  # noqa: ANN401
    """Tell whether the shares are mounted and logins are open."""
    script = 'test ! -e /run/nologin && for place in "$@"; do mountpoint -q "$place" || exit 1; done'
    return agent_status(domain, "/bin/sh", "-c", script, "sh", *mountpoints) == 0


CAUSES = {
    "address": "the guest did not boot, or got no DHCP lease on the bridge",
    "ssh": "the guest's SSH server did not start, or a firewall on the host stands between",
    "shares": "cloud-init did not finish, or virtiofsd ended (`vmw logs` shows its journal)",
    "off": "the guest does not shut down; `vmw stop --force` switches it off",
}


def wait(files: InstanceFiles, phase: str, timeout: int, find: Callable[[], Any], done: Callable[[Any], str]) -> str:
    """Poll until a phase is reached.

    Args:
        files: The VM's files.
        phase: The phase's name, for messages.
        timeout: In seconds.
        find: Returns the domain or ``None``.
        done: Looks at the domain and returns what was waited for, or an empty string.

    Raises:
        VmwError: It was not reached.
    """
    deadline = time.monotonic() + timeout
    log = str(files.console)
    while True:
        domain = find()
        if phase != "off" and not is_running(domain):
            message = f"{files.name} went off while vmw waited for its {phase}"
            raise VmwError(message, "the console log may tell why; `vmw start` tries again", log=log)
        if phase != "off" and is_out_of_space(domain):
            message = f"{files.name} was paused while vmw waited for its {phase}, as QEMU does when the host's disk is full"
            raise VmwError(message, f"make room on the host, then `virsh resume {files.name}`", log=log)
        found = done(domain)
        if found:
            return found
        cause = trouble(read_console(files.console)) if phase != "off" else ""
        if cause:
            message = f"{files.name} cannot reach the phase {phase!r}: {cause}"
            hint = f"the console log tells more; `vmw stop {files.name} --force` and `vmw start {files.name}` try again"
            raise VmwError(message, hint, log=log)
        if time.monotonic() >= deadline:
            message = f"{files.name} did not reach the phase {phase!r} in {timeout} s"
            raise VmwError(message, CAUSES[phase], log=log)
        time.sleep(POLL_SECONDS)


def wait_for_phase(module: AnsibleModule) -> dict[str, Any]:
    """Wait for what the module's parameters ask."""
    files = files_of(module.params["state_dir"], module.params["name"])
    phase = module.params["phase"]
    if module.check_mode:
        return {"changed": False, "address": ""}
    instance = files.load()
    connection = connect(instance.libvirt_uri)

    def find() -> Any:  # noqa: ANN401
        return find_own_domain(connection, files.name, str(files.record))

    def done(domain: Any) -> str:  # noqa: ANN401
        if phase == "address":
            return guest_address(domain, instance.mac)
        if phase == "ssh":
            host_key = " ".join(files.host_key.with_suffix(".pub").read_text().split()[:2])
            # Looked up anew: it may have changed since the phase before.
            return ssh_address(guest_address(domain, instance.mac), host_key)
        if phase == "shares":
            return "yes" if shares_mounted(domain, module.params["mountpoints"]) else ""
        return "" if is_running(domain) else "yes"

    found = wait(files, phase, module.params["timeout"], find, done)
    address = found if phase in {"address", "ssh"} else module.params["address"] or ""
    state = "shut off" if phase == "off" else "running"
    return {"changed": False, "address": address, "instance": {**instance.as_dict(), "address": address, "state": state}}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "phase": {"type": "str", "choices": ["address", "ssh", "shares", "off"], "required": True},
            "address": {"type": "str"},
            "mountpoints": {"type": "list", "elements": "str"},
            "timeout": {"type": "int", "default": 180},
        },
        required_if=[("phase", "shares", ["mountpoints"])],
        supports_check_mode=True,
    )
    run(module, wait_for_phase)


if __name__ == "__main__":
    main()
