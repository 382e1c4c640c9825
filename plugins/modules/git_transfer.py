#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Carry commits between the host's repository and a VM's private one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: git_transfer
short_description: Carry commits between the host's repository and a VM's private one
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Fetches the commits of a running VM into the host's branch C(vmw/NAME), or sends the host's branches to the VM, where they are
    C(refs/remotes/host/*).
  - Only a VM whose git mode is V(isolated) has a repository of its own. git runs on the host beside the host's repository, runs
    no hook, checks every object that comes, and never looks into the worktree.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Asks the guest what it has, and carries nothing.
  diff_mode:
    support: none
    description: Commits are counted, not shown.
options:
  direction:
    description: Whether commits go from the guest to the host (V(pull)) or from the host to the guest (V(push)).
    type: str
    choices: [pull, push]
    required: true
  branch:
    description:
      - With O(direction=pull) the guest's branch, by default what it has checked out.
      - With O(direction=push) the host's branch, by default all but those that came from guests.
    type: str
  force:
    description: Whether a pull may leave commits out of C(vmw/NAME) that came before and that the guest does not have any more.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Fetch what the guest has committed
  vmw.worktree.git_transfer:
    state_dir: ~/.config/vmw
    name: project
    direction: pull
"""

RETURN = r"""
branch:
  description: The host's branch that has the commits.
  returned: when O(direction=pull)
  type: str
commits:
  description: How many commits came. Not known in check mode where the host does not have them.
  returned: when O(direction=pull)
  type: int
look:
  description: A command that shows what came.
  returned: when O(direction=pull)
  type: str
branches:
  description: The host's branches that are new or other in the guest.
  returned: when O(direction=push)
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.git_transfer import check_mode_of, pull, push, remote_of
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    guest_address,
    is_running,
)


def address_of(instance: Instance, files: InstanceFiles) -> str:
    """Return the address of a running VM.

    Raises:
        VmwError: It is off, or does not tell its address.
    """
    domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
    if not is_running(domain):
        message = f"{files.name} is off"
        raise VmwError(message, f"start it with `vmw start {files.name}`")
    with guest_agent.limited_answers(domain):
        address = guest_address(domain, instance)
    if not address:
        message = f"{files.name} does not tell its address"
        raise VmwError(
            message, f"`vmw start {files.name}` waits until it can be reached; `vmw logs {files.name}` may tell why not"
        )
    return address


def transfer(module: AnsibleModule) -> dict[str, Any]:
    """Carry commits one way."""
    files = files_of(module.params["state_dir"], module.params["name"])
    instance = files.load()
    check_mode_of(instance)
    remote = remote_of(instance, files, address_of(instance, files))
    branch = module.params["branch"] or ""
    if module.params["direction"] == "push":
        sent = push(instance, remote, branch, dry=module.check_mode)
        return {"changed": sent.changed, "branches": sent.branches}
    came = pull(instance, remote, branch, force=module.params["force"], dry=module.check_mode)
    return {"changed": came.changed, "branch": came.branch, "commits": came.commits, "look": came.look}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "direction": {"type": "str", "choices": ["pull", "push"], "required": True},
            "branch": {"type": "str"},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, transfer)


if __name__ == "__main__":
    main()
