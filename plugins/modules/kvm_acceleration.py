#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Load the KVM modules, and tell what virtual machines will run on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kvm_acceleration
short_description: Load the KVM modules now and at boot
version_added: 0.1.0
description:
  - Loads the KVM module of this machine's CPU now, and has it loaded at boot.
  - A machine without hardware virtualisation is no failure. VMs are emulated there, and a warning says so.
author:
  - The vmw authors
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tells what would change.
  diff_mode:
    support: full
    description: Shows what changes in the file that has the module loaded at boot.
options: {}
"""

EXAMPLES = r"""
- name: Load the KVM modules
  vmw.worktree.kvm_acceleration:
  become: true
"""

RETURN = r"""
virt_type:
  description: What VMs will run on, V(kvm) or V(qemu), the latter being emulation.
  returned: always
  type: str
  sample: kvm
reason:
  description: Why VMs are emulated; empty when they are not.
  returned: always
  type: str
  sample: the CPU shows neither vmx nor svm
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import accelerator
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.state import write_file

MODULES_LOAD = Path("/etc/modules-load.d/vmw.conf")
DRIVERS = {"vmx": "kvm_intel", "svm": "kvm_amd"}


def load(module: AnsibleModule, driver: str) -> tuple[bool, str]:
    """Load a driver unless it is there.

    Returns:
        Whether it was loaded just now, and what the kernel said when it did not want to.
    """
    modprobe = module.get_bin_path("modprobe", opt_dirs=["/sbin", "/usr/sbin"])
    if accelerator.KVM_DEVICE.exists() or not modprobe:
        return False, ""
    if module.check_mode:
        return True, ""
    status, _, error = module.run_command([modprobe, driver])
    return not status, error.strip()


def configure(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work and return its results."""
    extension = accelerator.cpu_virtualisation(accelerator.CPU_INFO.read_text())
    before = MODULES_LOAD.read_text() if MODULES_LOAD.is_file() else ""
    after, loaded, error = before, False, ""
    if extension:
        after = f"# Managed by vmw.\n{DRIVERS[extension]}\n"
        loaded, error = load(module, DRIVERS[extension])
    if after != before and not module.check_mode:
        MODULES_LOAD.parent.mkdir(parents=True, exist_ok=True)
        write_file(MODULES_LOAD, after)
    reason = "" if loaded and module.check_mode else accelerator.kvm_obstacle()
    if reason:
        reason += f" ({error})" if error else ""
        module.warn(f"VMs will be emulated, many times slower than with KVM: {reason}")
    return {
        "changed": after != before or loaded,
        "virt_type": "qemu" if reason else "kvm",
        "reason": reason,
        "diff": {"before_header": str(MODULES_LOAD), "after_header": str(MODULES_LOAD), "before": before, "after": after},
    }


def main() -> None:
    """Run the module."""
    run(AnsibleModule(argument_spec={}, supports_check_mode=True), configure)


if __name__ == "__main__":
    main()
