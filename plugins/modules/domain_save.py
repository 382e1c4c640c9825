#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Save a VM's memory and switch it off, or give saved memory up."""

from __future__ import annotations

DOCUMENTATION = r"""
module: domain_save
short_description: Save the memory of a VM
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Saves the memory of a running VM in libvirt's managed save image and switches it off.
  - The next start of the VM, by whatever way, goes on from there.
  - A VM that is off stays as it is.
  - When the memory cannot be saved, or not in time, the VM runs on, and the failure says so.
  - Tells how far it is through C(progress.json) in O(state_dir).
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: Memory is not for reading.
options:
  state:
    description:
      - V(present) saves the memory of a VM that runs.
      - V(required) changes nothing, and fails for a VM that is off without saved memory.
      - V(absent) gives saved memory up when O(force) is set, and fails otherwise when there is any.
    type: str
    choices: [present, required, absent]
    default: present
  force:
    description: Whether saved memory may be lost.
    type: bool
    default: false
  timeout:
    description: How long saving may take, in seconds.
    type: int
    default: 900
"""

EXAMPLES = r"""
- name: Suspend a VM
  vmw.worktree.domain_save:
    state_dir: ~/.config/vmw
    name: project

- name: Give up the memory of a suspended VM
  vmw.worktree.domain_save:
    state: absent
    force: true
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
saved:
  description: Whether there is saved memory now.
  returned: success
  type: bool
"""

import contextlib
import threading
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.fork import adopt, read_progress
from ansible_collections.vmw.worktree.plugins.module_utils.image import CallerWatch, Progress
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    domain_state,
    find_own_domain,
    has_saved_memory,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.saved_memory import (
    check_daemon,
    check_room,
    failure,
    save_directory,
)
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Daemon, find_virtiofsd
from ansible_collections.vmw.worktree.plugins.module_utils.state import command

try:
    import libvirt
except ImportError:
    libvirt = None

TASK = "Save the VM's memory"
"""The task's name in the role, by which the progress is known to be its."""

POLL_SECONDS = 0.1
ABORT_SECONDS = 30
"""How long libvirt may take to give a save up and let the VM run on."""

# libvirt-python has no type information of its own, hence Any for its objects.


def memory_bytes(domain: Any) -> int:  # noqa: ANN401
    """Return the most that a running domain's memory takes on a disk: what QEMU holds, as empty pages are left out."""
    return int(domain.memoryStats().get("rss", 0)) << 10


def now(domain: Any) -> str:  # noqa: ANN401
    """Return ``running``, ``paused`` or ``off``."""
    if not is_running(domain):
        return "off"
    return "paused" if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED else "running"


class Save:
    """A save under way, in a thread of its own, as libvirt's call returns only when it is done."""

    def __init__(self, name: str, domain: Any, *, session: bool = False) -> None:  # noqa: ANN401
        """Prepare; nothing is saved yet.

        Args:
            name: The VM.
            domain: Its domain.
            session: Whether passt is its network.
        """
        self.name = name
        self.domain = domain
        self.session = session
        self.reason = ""
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        paused = False
        try:
            if self.session and now(self.domain) == "running":
                # passt cannot save connections, and a guest that stands still makes no new ones in the fresh one.
                self.domain.suspend()
                paused = True
                passt_units.renew(self.name)
            # A VM that was paused goes on as well when it is resumed.
            self.domain.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING)
        except (VmwError, libvirt.libvirtError) as error:
            self.reason = str(error)
            if paused:
                # It may have ended.
                with contextlib.suppress(libvirt.libvirtError):
                    self.domain.resume()

    def run(self, progress: Progress, watch: CallerWatch, timeout: int) -> None:
        """Save, and give it up when it takes too long or nobody waits any more.

        Args:
            progress: Is told how far it is.
            watch: Sees whether somebody waits.
            timeout: In seconds.

        Raises:
            VmwError: The memory was not saved.
        """
        deadline = time.monotonic() + timeout
        late = False
        self._thread.start()
        try:
            while self._thread.is_alive() and not late:
                self._thread.join(POLL_SECONDS)
                watch.check()
                self._tell(progress)
                late = time.monotonic() >= deadline
        finally:
            # After an exception too: a VM must not disappear under somebody who was told that nothing was done.
            self._give_up()
        if has_saved_memory(self.domain):
            return
        reason = f"it took longer than {timeout} s" if late else self.reason or "libvirt does not say why"
        raise failure(self.name, reason, now(self.domain))

    def _tell(self, progress: Progress) -> None:
        try:
            job = self.domain.jobInfo()
        except libvirt.libvirtError:
            # It has just ended.
            return
        total, done = int(job[3]), int(job[4])
        if total:
            progress.update(done, total)

    def _give_up(self) -> None:
        if self._thread.is_alive():
            # It may just have ended.
            with contextlib.suppress(libvirt.libvirtError):
                self.domain.abortJob()
            self._thread.join(ABORT_SECONDS)
            if not self._thread.is_alive() and is_running(self.domain):
                # libvirt has been seen to leave what was written, and would take it for saved memory after its next start.
                with contextlib.suppress(libvirt.libvirtError):
                    self.domain.managedSaveRemove(0)


def find(files: InstanceFiles) -> Any:  # noqa: ANN401
    """Return the VM's domain, or ``None`` for one that libvirt does not know."""
    return find_own_domain(connect(files.load().libvirt_uri), files.name, str(files.record))


def present(module: AnsibleModule) -> dict[str, Any]:
    """Save the memory of a VM that runs."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode:
        return save(module, files)
    with files.start_lock():
        if read_progress(files) and not adopt(files, files.load(), find(files)):
            message = f"{files.name} is a fork that was never completed"
            raise VmwError(message, f"`vmw start {files.name}` makes it a whole VM", "conflict")
        return save(module, files)


def save(module: AnsibleModule, files: InstanceFiles) -> dict[str, Any]:
    """Save the memory of a VM that nobody starts meanwhile."""
    domain = find(files)
    if not is_running(domain):
        return {"changed": False, "saved": has_saved_memory(domain)}
    binary = find_virtiofsd()
    check_daemon(Daemon.probed(binary, command(binary, "--help")))
    check_room(files.name, memory_bytes(domain), save_directory(files.load().libvirt_uri))
    if module.check_mode:
        return {"changed": True, "saved": True}
    progress = Progress(files.state, TASK, "bytes")
    try:
        Save(files.name, domain, session=files.load().is_session).run(progress, CallerWatch(), module.params["timeout"])
    finally:
        progress.close()
    return {"changed": True, "saved": True}


def required(module: AnsibleModule) -> dict[str, Any]:
    """See that a VM can go on, or does."""
    files = files_of(module.params["state_dir"], module.params["name"])
    state = domain_state(find(files))
    if state not in {"running", "suspended"}:
        message = f"{files.name} is off and has no saved memory to go on from"
        raise VmwError(message, f"start it with `vmw start {files.name}`", "conflict")
    return {"changed": False, "saved": state == "suspended"}


def absent(module: AnsibleModule) -> dict[str, Any]:
    """Give saved memory up."""
    files = files_of(module.params["state_dir"], module.params["name"])
    domain = find(files)
    if not has_saved_memory(domain):
        return {"changed": False, "saved": False}
    if not module.params["force"]:
        message = f"{files.name} is suspended: stopped, it would lose its memory, and whatever ran in it"
        hint = f"`vmw resume {files.name}` first, or lose it with `vmw stop {files.name} --force`"
        raise VmwError(message, hint, "conflict")
    if not module.check_mode:
        domain.managedSaveRemove(0)
    module.warn(f"the saved memory of {files.name} is given up, as if the plug had been pulled")
    return {"changed": True, "saved": False}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "required", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 900},
        },
        supports_check_mode=True,
    )
    run(module, {"present": present, "required": required, "absent": absent}[module.params["state"]])


if __name__ == "__main__":
    main()
