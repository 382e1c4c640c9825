# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What the modules ``instance``, ``domain`` and ``vm`` take; the action plugin of the last looks at it as well."""

from __future__ import annotations

from typing import Any

from ansible_collections.vmw.worktree.plugins.module_utils.egress import INTERNET, MODES
from ansible_collections.vmw.worktree.plugins.module_utils.instance import KEY_MODES, PROXY
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE

DECISIONS: dict[str, dict[str, Any]] = {
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
}
"""What is decided when a VM is made."""

NEEDED = ("memory_mib", "vcpus", "disk_gib", "bridge", "guest_user")
"""Those of them that have no default."""

WAITING: dict[str, dict[str, Any]] = {
    "wait": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 0},
    "timings": {"type": "bool", "default": False},
}
"""How a start is waited for."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "state_dir": {"type": "str", "required": True},
    "worktree": {"type": "str"},
    "name": {"type": "str"},
    **DECISIONS,
    "proxy_port": {"type": "int", "default": 0},
    "warm": {"type": "bool", "default": False},
    **WAITING,
}

RULES: dict[str, Any] = {
    "required_one_of": [("worktree", "name")],
    "required_by": {"worktree": NEEDED},
}
