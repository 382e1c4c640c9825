#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell what a VM left in its worktree that would run on the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: audit
short_description: Tell what a VM left in its worktree that would run on the host
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Compares a worktree with the fingerprint from when its VM was made, and returns what is new or changed and would run on the
    host, or leads out of the worktree, when somebody comes back to it.
  - Runs nothing of the worktree, and changes nothing.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Only reads.
  diff_mode:
    support: none
    description: Only reads.
"""

EXAMPLES = r"""
- name: Look at what the VM left in the worktree
  vmw.worktree.audit:
    state_dir: ~/.config/vmw
    name: project
  register: audit
"""

RETURN = r"""
clean:
  description: Whether nothing was found.
  returned: success
  type: bool
findings:
  description: What was found, by kind and path; at most 200 of each kind.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description: What it is, as one word that stays the same between releases.
      type: str
      sample: symlink
    path:
      description:
        - Where it is, from the worktree; absolute for what is elsewhere.
        - Empty where a finding stands for the whole worktree, or for the rest of a kind.
        - Characters that cannot be printed are escaped, and so is the backslash.
      type: str
    change:
      description: V(new), V(changed), or V(present) where there is nothing to compare with.
      type: str
    detail:
      description: One line for people.
      type: str
    count:
      description: How many things it stands for; more than one for the rest of a kind.
      type: int
counts:
  description: How many things of each kind were found, those that are not listed too.
  returned: success
  type: dict
summary:
  description: One line on all of it; empty when nothing was found.
  returned: success
  type: str
listing:
  description: The summary and the first findings, one a line; empty when nothing was found.
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.audit import counts, findings, listing, summary
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of


def look(module: AnsibleModule) -> dict[str, Any]:
    """Return what was found."""
    files = files_of(module.params["state_dir"], module.params["name"])
    # Also of a VM that is being removed: its worktree stays.
    found = findings(files, files.read())
    return {
        "changed": False,
        "clean": not found,
        "findings": [finding.as_dict() for finding in found],
        "counts": counts(found),
        "summary": summary(files.name, found),
        "listing": listing(files.name, found),
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, look)


if __name__ == "__main__":
    main()
