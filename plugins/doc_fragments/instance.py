# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation that the modules of one VM share."""

from __future__ import annotations


class ModuleDocFragment:
    """The options that name a recorded VM."""

    DOCUMENTATION = r"""
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  name:
    description: The VM's name.
    type: str
    required: true
"""

    DECISIONS = r"""
options:
  memory_mib:
    description: Memory of a new VM, in MiB. Needed to make one.
    type: int
  vcpus:
    description: Virtual CPUs of a new VM. Needed to make one.
    type: int
  disk_gib:
    description: Size of a new VM's disk, in GiB. Needed to make one.
    type: int
  bridge:
    description: The host's bridge to which the VM is attached. Needed to make one.
    type: str
  guest_user:
    description: Name of the user in the guest. Needed to make one.
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

    WAITING = r"""
options:
  wait:
    description:
      - Whether to wait until the guest can be used.
      - As many of the user's emulated VMs start at a time as the host has CPUs. One that is waited for is among them until then.
    type: bool
    default: true
  timeout:
    description: How long each phase of the wait may take, in seconds; V(0) is 180 under KVM and 900 in software, which takes
      about five times as long.
    type: int
    default: 0
  timings:
    description: Whether to ask the guest how long its kernel and its services took, which takes some time itself.
    type: bool
    default: false
"""
