#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Describe a VM to libvirt, or make libvirt forget it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_definition
short_description: Write the domain XML of a VM, or remove its domain
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes the domain XML of a recorded VM, for C(community.libvirt.virt) to define.
  - With O(state=absent) forces the domain off and undefines it. A domain that does not carry this VM's mark is never touched.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows the XML before and after.
options:
  state:
    description: Whether there is a definition.
    type: str
    choices: [present, absent]
    default: present
  sockets:
    description: The sockets of the VM's shares by tag. Needed with O(state=present).
    type: dict
  libvirt_uri:
    description: Where libvirt listens. Used with O(state=absent), when there is no record that tells.
    type: str
    default: qemu:///system
"""

EXAMPLES = r"""
- name: Write the domain XML
  vmw.worktree.domain_definition:
    state_dir: ~/.config/vmw
    name: project
    sockets:
      vmw:repo: /run/vmw/me/project-repo.sock
"""

RETURN = r"""
xml:
  description: The domain XML.
  returned: when O(state=present)
  type: str
path:
  description: The file that holds it.
  returned: when O(state=present)
  type: str
"""

import json
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Boot,
    HostSide,
    Share,
    Storage,
    domain_xml,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import qemu_peer, write_file

try:
    import libvirt
except ImportError:
    libvirt = None


def boot_of(files: InstanceFiles, instance: Instance) -> Boot:
    """Return what the VM's generation boots.

    Raises:
        VmwError: The generation is gone or damaged.
    """
    directory = files.state.images / instance.generation
    try:
        cmdline = json.loads((directory / "manifest.json").read_text())["cmdline"]
    except (OSError, ValueError, KeyError) as error:
        message = f"the golden image {instance.generation} is damaged: {error}"
        raise VmwError(message, "build a new one with `vmw image build`") from error
    return Boot(str(directory / "kernel"), str(directory / "initrd"), cmdline, str(directory / "disk.qcow2"))


def qemu_label(instance: Instance) -> str:
    """Return the ids under which QEMU runs, or an empty string where libvirt has no say in them."""
    peer = qemu_peer(instance.libvirt_uri)
    if not peer:
        return ""
    entry = pwd.getpwnam(peer)
    return f"+{entry.pw_uid}:+{entry.pw_gid}"


def start_console_log(files: InstanceFiles) -> None:
    """Begin an empty console log that belongs to the user; one that virtlogd made would be root's."""
    files.console.unlink(missing_ok=True)
    files.console.touch(mode=0o600)


def present(module: AnsibleModule) -> dict[str, Any]:
    """Write the XML."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "xml": "", "path": str(files.domain)}
    instance = files.load()
    host = HostSide(
        record=str(files.record),
        boot=boot_of(files, instance),
        storage=Storage(str(files.disk), str(files.seed), str(files.console)),
        shares=[Share(tag, socket) for tag, socket in module.params["sockets"].items()],
        label=qemu_label(instance),
    )
    xml = domain_xml(instance, host)
    before = files.domain.read_text() if files.domain.is_file() else ""
    if not module.check_mode:
        domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
        if not is_running(domain):
            start_console_log(files)
        write_file(files.domain, xml, 0o600)
    return {
        "changed": before != xml,
        "xml": xml,
        "path": str(files.domain),
        "diff": {"before": before, "after": xml, "before_header": str(files.domain), "after_header": str(files.domain)},
    }


def libvirt_of(files: InstanceFiles, fallback: str) -> str:
    """Return the libvirt at which a VM was made, whatever the settings say today.

    Args:
        files: The VM's files.
        fallback: For a VM whose record is gone or broken.
    """
    try:
        return files.read().libvirt_uri
    except VmwError:
        return fallback


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Force the domain off and undefine it."""
    files = files_of(module.params["state_dir"], module.params["name"])
    connection = connect(libvirt_of(files, module.params["libvirt_uri"]))
    try:
        domain = find_own_domain(connection, files.name, str(files.record))
    except VmwError as error:
        if files.directory.is_dir():
            # What is left of ours goes all the same.
            module.warn(error.message)
            return {"changed": False}
        # Another name, the way out of a spawn, is none here.
        raise VmwError(error.message, "vmw leaves it alone; `virsh` removes it if it is yours", error.code) from error
    if domain is not None and not module.check_mode:
        if is_running(domain):
            domain.destroy()
        if domain.isPersistent():
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )
    return {"changed": domain is not None}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "sockets": {"type": "dict"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        },
        required_if=[("state", "present", ["sockets"])],
        supports_check_mode=True,
    )
    run(module, absent if module.params["state"] == "absent" else present)


if __name__ == "__main__":
    main()
