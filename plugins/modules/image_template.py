#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Boot a VM of a golden image and save it with its memory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_template
short_description: Save a started VM of which others are forked
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Boots a VM of the current golden image without a network card, shares, host keys and user's keys, waits until its system
    is up, and saves it with its memory. VMs of the same size are forked of it, on the same host with the same QEMU.
  - A template belongs to its generation, which has one. One that could not be loaded is made anew.
attributes:
  check_mode:
    support: full
    description: Says whether it would save one.
  diff_mode:
    support: none
    description: The result is two binary files.
options:
  state_dir:
    description: vmw's directory on the host.
    type: path
    required: true
  libvirt_uri:
    description: The connection to libvirt.
    type: str
    required: true
  virt_type:
    description: The accelerator.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  memory_mib:
    description: Memory of the VMs that are forked of it, in MiB.
    type: int
    required: true
  vcpus:
    description: Virtual CPUs of the VMs that are forked of it.
    type: int
    required: true
  timeout:
    description: How long its system may take to come up, in seconds.
    type: int
    default: 900
"""

EXAMPLES = r"""
- name: Save a template
  vmw.worktree.image_template:
    state_dir: /home/me/.config/vmw
    libvirt_uri: qemu:///system
    memory_mib: 4096
    vcpus: 4
"""

RETURN = r"""
template:
  description: Name of the template; empty where none can be saved.
  returned: success, outside check mode
  type: str
memory_bytes:
  description: What its memory takes on the disk.
  returned: success, outside check mode
  type: int
"""

import contextlib
import pwd
import shutil
import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.accelerator import virt_type
from ansible_collections.vmw.worktree.plugins.module_utils.console import read_console, trouble
from ansible_collections.vmw.worktree.plugins.module_utils.disks import copy_file, create_overlay
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Boot,
    Fork,
    Machine,
    marked_record,
    template_xml,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.image import (
    LOCK,
    CallerWatch,
    InterruptedByUserError,
    Manifest,
    acting_as,
    current_generation,
)
from ansible_collections.vmw.worktree.plugins.module_utils.image_builder import INIT
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect, is_running, xml_of
from ansible_collections.vmw.worktree.plugins.module_utils.save_image import head_of
from ansible_collections.vmw.worktree.plugins.module_utils.state import (
    State,
    grant,
    open_way,
    qemu_label,
    qemu_peer,
    write_json,
)
from ansible_collections.vmw.worktree.plugins.module_utils.template import (
    DIRECTORY,
    DOMAIN_PREFIX,
    SCHEMA,
    Template,
    hold,
    parts,
    template_for,
    versions_of,
)

SAID_LENGTH = 200
"""Characters of the guest's complaint that are shown."""

try:
    import libvirt
except ImportError:
    # `connect` says so in words.
    libvirt = None

POLL_SECONDS = 0.5

OLDEST_LIBVIRT = 11_002_000
OLDEST_QEMU = 9_000_000
"""What first saves memory as a sparse file: https://libvirt.org/news.html, v11.2.0; https://wiki.qemu.org/ChangeLog/9.0."""

READY = ("/bin/sh", "-c", "systemctl is-system-running --wait; true")
"""Ends when the template's system has come up, degraded or not."""

SETTLE = ("/bin/sh", "-c", "/usr/lib/vmw/identity --template || exit; sync; fstrim /; sync; true")
"""Brings into memory what the forks need at once, and leaves out of the disk what nobody needs. The program of an older golden
image does not know that mode."""


def domain_prefix(owner: int) -> str:
    """Return how the names of the domains of a user's templates begin."""
    return f"{DOMAIN_PREFIX}{pwd.getpwuid(owner).pw_name}-"


def prepare(template: Template, manifest: Manifest, machine: Machine, peer: str) -> str:
    """Make the template's disk, and return its domain's XML."""
    directory = template.build_directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700)
    files = parts(directory)
    backing = template.generation / "disk.qcow2"
    create_overlay(files.disk, backing, manifest.virtual_size >> 30)
    files.console.touch(mode=0o600)
    if peer:
        open_way(files.disk, peer)
        open_way(backing, peer)
        grant(files.disk, peer, "rw-")
    itself = Fork(
        name=domain_prefix(directory.stat().st_uid) + template.key,
        uuid=str(uuid.uuid4()),
        record=str(files.manifest),
        disk=str(files.disk),
        console=str(files.console),
    )
    return template_xml(machine, itself, Boot.of(template.generation, manifest.cmdline), qemu_label(peer))


def await_system(domain: Any, console: Path, timeout: int, caller: CallerWatch) -> None:  # noqa: ANN401
    """Wait until the template's system is up.

    Raises:
        VmwError: It does not come up.
    """
    deadline = time.monotonic() + timeout
    pid = None
    while True:
        caller.check()
        cause = trouble(read_console(console))
        if cause or not is_running(domain) or time.monotonic() > deadline:
            message = f"the template did not start: {cause or 'it went off, or took too long'}"
            raise VmwError(message, "VMs start cold without it; the console log may tell more")
        # The agent does not answer before the system is nearly up.
        with contextlib.suppress(libvirt.libvirtError):
            pid = guest_agent.start(domain, *READY) if pid is None else pid
            if guest_agent.ended(domain, pid):
                return
        time.sleep(POLL_SECONDS)


def settle(domain: Any, timeout: int) -> None:  # noqa: ANN401
    """Have the template's system ready to be saved.

    Raises:
        VmwError: It is of an image whose forks could not be completed, or fails.
    """
    settled = guest_agent.call(domain, *SETTLE, timeout=timeout)
    if settled.status:
        said = printable(settled.output.strip()[-SAID_LENGTH:])
        message = f"the golden image is too old for that (`vmw image build` makes a new one), or its system failed: {said}"
        raise VmwError(message)


def save(domain: Any, files: Any, owner: int, peer: str) -> None:  # noqa: ANN401
    """Save the template and take its memory over into a file of the user's own."""
    with acting_as(owner):
        files.saved.touch(mode=0o600)
        if peer:
            # libvirt makes the file root's; the entry is what lets its owner read it then.
            grant(files.saved, pwd.getpwuid(owner).pw_name, "r--")
    # Where each page has its place in the file, the others are never touched when it is loaded. In the older format they are all
    # looked at, and then each fork takes up the whole of its memory on the host.
    domain.saveParams(
        {libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: str(files.saved), libvirt.VIR_DOMAIN_SAVE_PARAM_IMAGE_FORMAT: "sparse"}, 0
    )
    with acting_as(owner):
        copy_file(files.memory, files.saved)
        files.saved.unlink()
        files.head.write_bytes(head_of(files.memory))
        files.head.chmod(0o400)


def make(template: Template, manifest: Manifest, machine: Machine, connection: Any, timeout: int) -> None:  # noqa: ANN401
    """Make a template, complete or not at all."""
    owner = template.generation.stat().st_uid
    caller = CallerWatch()
    with acting_as(owner):
        peer = qemu_peer(connection.getURI())
        xml = prepare(template, manifest, machine, peer)
        files = parts(template.build_directory)
    domain = connection.createXML(xml)
    try:
        await_system(domain, files.console, timeout, caller)
        settle(domain, timeout)
        save(domain, files, owner, peer)
    finally:
        # Saved, it is gone.
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
    with acting_as(owner):
        files.console.unlink()
        files.disk.chmod(0o400)
        qemu, library = versions_of(connection)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        what = {"schema": SCHEMA, "created": created, "machine": asdict(machine), "qemu": qemu, "libvirt": library}
        write_json(files.manifest, what, 0o600)
        with contextlib.ExitStack() as stack:
            # A fork that is loaded from the one before is loaded to its end.
            with contextlib.suppress(OSError):
                stack.enter_context(hold(parts(template.directory), wait=True))
            shutil.rmtree(template.directory, ignore_errors=True)
            template.build_directory.rename(template.directory)


def remove_leftovers(connection: Any, images: Path, prefix: str) -> None:  # noqa: ANN401
    """End the domains of templates whose making was interrupted, of any size and generation, if they are ours.

    Args:
        connection: The connection to libvirt.
        images: Our directory of generations, one of which such a domain's mark names.
        prefix: See `domain_prefix`.
    """
    for domain in connection.listAllDomains():
        if not domain.name().startswith(prefix):
            continue
        if images in Path(marked_record(xml_of(domain))).parents:
            # It may just have ended by itself.
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()


def others(template: Template) -> list[Path]:
    """Return the other templates of a generation, of which no VM of the size in the settings is forked, and half-made ones."""
    return [path for path in sorted((template.generation / DIRECTORY).iterdir()) if path.is_dir() and path != template.directory]


def obstacle(manifest: Manifest, connection: Any) -> str:  # noqa: ANN401
    """Say why no template of a golden image can be saved here; an empty string when it can."""
    if INIT not in manifest.cmdline:
        return "the golden image is older than that; `vmw image build` makes a new one"
    qemu, library = versions_of(connection)
    if library < OLDEST_LIBVIRT or qemu < OLDEST_QEMU:
        return "that takes libvirt 11.2 and QEMU 9.0 or later"
    return ""


def is_there(uri: str) -> bool:
    """Tell whether libvirt answers, of which a host that is not set up has nothing."""
    try:
        connect(uri)
    except VmwError as error:
        if error.code != "host_not_ready":
            raise
        return False
    return True


def provide(module: AnsibleModule) -> dict[str, Any]:
    """Make the template unless there is one."""
    state = State(Path(module.params["state_dir"]))
    manifest = current_generation(state)
    if module.check_mode and (manifest is None or not is_there(module.params["libvirt_uri"])):
        # The image would have been built, and libvirt installed, by now.
        return {"changed": True}
    if manifest is None:
        message = "there is no golden image yet"
        raise VmwError(message, "build it with `vmw image build`", "host_not_ready")
    machine = Machine(virt_type(module.params["virt_type"]), module.params["memory_mib"], module.params["vcpus"])
    connection = connect(module.params["libvirt_uri"])
    template = template_for(state, manifest.generation, machine, connection)
    cause = obstacle(manifest, connection)
    if cause:
        module.warn(f"VMs start cold, as no started VM can be saved for them: {cause}")
        return {"changed": False, "template": "", "memory_bytes": 0}
    if module.check_mode:
        return {"changed": not template.exists() or template.is_refused()}
    owner = state.root.stat().st_uid
    with contextlib.ExitStack() as stack:
        with acting_as(owner):
            stack.enter_context(state.lock(LOCK))
        # Nobody makes one at the moment.
        remove_leftovers(connection, state.images, domain_prefix(owner))
        changed = not template.exists() or template.is_refused()
        if changed:
            try:
                make(template, manifest, machine, connection, module.params["timeout"])
            except InterruptedByUserError:
                raise
            except (VmwError, libvirt.libvirtError, OSError, ValueError, KeyError, TypeError) as error:
                # A host without a template is a whole one; its VMs take longer to start.
                module.warn(f"VMs start cold, as no started VM could be saved for them: {error}")
                return {"changed": False, "template": "", "memory_bytes": 0}
            finally:
                with acting_as(owner):
                    shutil.rmtree(template.build_directory, ignore_errors=True)
            with acting_as(owner):
                for directory in others(template):
                    shutil.rmtree(directory)
    size = parts(template.directory).memory.stat().st_blocks * 512
    return {"changed": changed, "template": template.key, "memory_bytes": size}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "required": True},
            "libvirt_uri": {"type": "str", "required": True},
            "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
            "memory_mib": {"type": "int", "required": True},
            "vcpus": {"type": "int", "required": True},
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    run(module, provide)


if __name__ == "__main__":
    main()
