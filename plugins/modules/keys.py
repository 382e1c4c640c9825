#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Cut a VM off from API keys that stay on the host, or limit what it spends with them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keys
short_description: Limit what a VM does with the host's API keys
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - For a VM that was made with C(vmw_keys=proxy), decides whether the host's proxy puts the keys of its secrets profile into its
    requests, and into how many a day. The proxy obeys from the next request on.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows the limits before and after.
options:
  revoked:
    description: Whether the VM's requests get no key any more. By default that stays as it is.
    type: bool
  daily_requests:
    description: How many requests a day the VM may make, or 0 for any number. By default that stays as it is.
    type: int
  daily_tokens:
    description: How many tokens a day they may take, or 0 for any number. By default that stays as it is.
    type: int
"""

EXAMPLES = r"""
- name: Cut a VM off from the keys
  vmw.worktree.keys:
    state_dir: ~/.config/vmw
    name: project
    revoked: true
"""

RETURN = r"""
keys:
  description: How the VM comes to keys, and its limits.
  returned: success
  type: dict
"""

import contextlib
import dataclasses
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import PROXY, Keys, files_of

LIMITS = ("daily_requests", "daily_tokens")


def described(keys: Keys) -> str:
    """Return the limits for a diff."""
    return "".join(f"{name}: {value}\n" for name, value in dataclasses.asdict(keys).items())


def change(module: AnsibleModule) -> dict[str, Any]:
    """Write the limits down, where the proxy reads them."""
    files = files_of(module.params["state_dir"], module.params["name"])
    wanted = {name: module.params[name] for name in ("revoked", *LIMITS) if module.params[name] is not None}
    for name in LIMITS:
        if wanted.get(name, 0) < 0:
            message = f"{name} is {wanted[name]}, and a limit is not below 0"
            raise VmwError(message, "0 is no limit", "usage")
    with contextlib.nullcontext() if module.check_mode else files.state.lock("instances"):
        before = files.load()
        if before.keys.mode != PROXY:
            message = f"{files.name} reads its keys itself, so that the host cannot cut it off from them"
            hint = "revoke the key where you got it; a VM made with `--keys proxy` never sees one"
            raise VmwError(message, hint, "conflict")
        keys = dataclasses.replace(before.keys, **wanted)
        if keys != before.keys and not module.check_mode:
            files.save(dataclasses.replace(before, keys=keys))
    return {
        "changed": keys != before.keys,
        "keys": dataclasses.asdict(keys),
        "diff": {"before": described(before.keys), "after": described(keys)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "revoked": {"type": "bool"},
            "daily_requests": {"type": "int"},
            # A number, which Ansible would take for a secret by its name.
            "daily_tokens": {"type": "int", "no_log": False},
        },
        supports_check_mode=True,
    )
    run(module, change)


if __name__ == "__main__":
    main()
