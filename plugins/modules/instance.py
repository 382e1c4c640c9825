#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Create, find or remove the record of a VM."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: Record a VM for a worktree
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Decides everything about one VM and writes it down as its instance record, together with the VM's SSH host key.
  - With O(state=absent) removes the record and the directory it is in. The worktree is never touched.
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The record is returned as a whole.
options:
  state:
    description: Whether the record exists. With V(leaving) it does, and nothing is made or started of this VM any more.
    type: str
    choices: [present, leaving, absent]
    default: present
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  worktree:
    description: The worktree's absolute path. Needed with O(state=present).
    type: str
  name:
    description: The VM's name; with O(state=present) by default made from the last component of O(worktree).
    type: str
  memory_mib:
    description: Memory of a new VM, in MiB.
    type: int
  vcpus:
    description: Virtual CPUs of a new VM.
    type: int
  disk_gib:
    description: Size of a new VM's disk, in GiB.
    type: int
  bridge:
    description: The host's bridge to which the VM is attached.
    type: str
  guest_user:
    description: Name of the user in the guest.
    type: str
  git_mode:
    description:
      - What of the worktree's git data a new VM gets. V(protected) lets the guest commit to the repository, and keeps from it
        whatever the host's git would run. V(isolated) gives it a git directory of its own, which only borrows the repository's
        objects. V(none) is no git data at all.
    type: str
    choices: [protected, isolated, none]
    default: protected
  secrets_profile:
    description: The secrets profile of a new VM, of which it sees C(secrets.env), when O(secrets) names none.
    type: str
    default: default
  secrets:
    description: The secrets profile that the VM is to have. An existing VM with another one is a failure.
    type: str
    default: ""
  egress:
    description:
      - What a new VM may reach in the network; see M(vmw.worktree.egress), which changes it.
      - With the user's own libvirt (C(qemu:///session)) only V(open), as nobody would enforce another one.
    type: str
    choices: [internet, allowlist, open, offline]
    default: internet
  keys:
    description:
      - How a new VM comes to the API keys of its secrets profile. V(proxy) keeps them on the host, whose proxy puts them into the
        VM's requests; it does not go with C(qemu:///session). V(file) shows them to it, read-only.
    type: str
    choices: [file, proxy]
    default: proxy
  ssh_agent:
    description:
      - Whether plain ssh forwards the user's SSH agent to the VM, by the stanza that the user's own configuration can include.
        Only V(forward) does; the filter of V(filter) is C(vmw ssh)'s.
    type: str
    choices: [forward, "off", filter]
    default: forward
  virt_type:
    description: The accelerator.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  libvirt_uri:
    description: Where libvirt listens.
    type: str
    default: qemu:///system
"""

EXAMPLES = r"""
- name: Record the VM
  vmw.worktree.instance:
    state_dir: ~/.config/vmw
    worktree: /home/me/Code/project
    memory_mib: 4096
    vcpus: 4
    disk_gib: 20
    bridge: br0
    guest_user: claude

- name: Forget the VM
  vmw.worktree.instance:
    state: absent
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
instance:
  description: The instance record.
  returned: when O(state=present)
  type: dict
warnings:
  description: What the user asked for and did not get.
  returned: when there is any
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.egress import INTERNET, MODES
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import KEY_MODES, PROXY
from ansible_collections.vmw.worktree.plugins.module_utils.layers.instance import absent, leaving, present
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "leaving", "absent"], "default": "present"},
            "state_dir": {"type": "str", "required": True},
            "worktree": {"type": "str"},
            "name": {"type": "str"},
            "memory_mib": {"type": "int"},
            "vcpus": {"type": "int"},
            "disk_gib": {"type": "int"},
            "bridge": {"type": "str"},
            "guest_user": {"type": "str"},
            "git_mode": {"type": "str", "choices": ["protected", "isolated", "none"], "default": "protected"},
            # Names of profiles, which Ansible would take for secrets by these options' names.
            "secrets_profile": {"type": "str", "default": DEFAULT_PROFILE, "no_log": False},
            "secrets": {"type": "str", "default": "", "no_log": False},
            "egress": {"type": "str", "choices": list(MODES), "default": INTERNET},
            "keys": {"type": "str", "choices": list(KEY_MODES), "default": PROXY, "no_log": False},
            "ssh_agent": {"type": "str", "choices": ["forward", "off", "filter"], "default": "forward"},
            "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
            "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        },
        required_if=[
            ("state", "present", ["worktree", "memory_mib", "vcpus", "disk_gib", "bridge", "guest_user"]),
            ("state", "leaving", ["name"]),
            ("state", "absent", ["name"]),
        ],
        supports_check_mode=True,
    )
    work = {"present": present, "leaving": leaving, "absent": absent}
    run(module, work[module.params["state"]])


if __name__ == "__main__":
    main()
