#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Make a profile of API keys."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secrets_profile
short_description: Make the file of a secrets profile
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Makes C(secrets/PROFILE/secrets.env), a file for API keys that the VMs of this profile see, and no others.
  - Makes the file of the profile V(default) too, and gives that profile a directory of its own where its file stood beside the
    others' directories before. VMs that run meanwhile go on seeing it.
  - An existing file is never touched, and never read.
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: The files hold secrets.
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  profile:
    description: The profile's name, a plain label.
    type: str
    default: default
  template:
    description: What a new file says.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Make the profile
  vmw.worktree.secrets_profile:
    state_dir: ~/.config/vmw
    profile: work
    template: "ANTHROPIC_API_KEY="
"""

RETURN = r"""
secrets_file:
  description: The path of the profile's file.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import FILE, is_made, make_profile
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, State


def make(module: AnsibleModule) -> dict[str, Any]:
    """Make the profile."""
    state, profile = State.at(module.params["state_dir"]), module.params["profile"]
    path = state.secrets_of(profile) / FILE
    changed = not is_made(state, profile) if module.check_mode else make_profile(state, profile, module.params["template"])
    return {"changed": changed, "secrets_file": str(path)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "profile": {"type": "str", "default": DEFAULT_PROFILE},
            "template": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, make)


if __name__ == "__main__":
    main()
