#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Tell a guest that was suspended what it missed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_wake
short_description: Set the clock of a guest that was suspended
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Gives a guest that goes on from saved memory the host's time, through its agent, when its clock is off by more than a second.
  - Has it ask the DHCP server for its address again, as the lease may have run out meanwhile.
  - Warns, and does not fail, when the guest's agent does not answer; a wait for the guest tells why.
extends_documentation_fragment: [vmw.worktree.instance]
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: none
    description: Only the guest's clock changes.
options:
  timeout:
    description: How long to wait for the guest's agent, in seconds.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Set the guest's clock
  vmw.worktree.guest_wake:
    state_dir: ~/.config/vmw
    name: project
"""

RETURN = r"""
offset:
  description: By how many seconds the guest's clock was ahead; null when its agent did not tell.
  returned: success
  type: float
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.guest_agent import (
    CLOCK_TOLERANCE,
    clock_offset,
    renew_lease,
    set_clock,
)
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    is_running,
)

POLL_SECONDS = 0.2


def wait_for_agent(domain: Any, timeout: int) -> float | None:  # noqa: ANN401
    """Return the offset of the guest's clock as soon as its agent tells it.

    Args:
        domain: The domain.
        timeout: How long to wait, in seconds.

    Returns:
        Seconds, or ``None`` when the agent did not answer or the domain went off.
    """
    deadline = time.monotonic() + timeout
    while is_running(domain):
        offset = clock_offset(domain)
        if offset is not None or time.monotonic() >= deadline:
            return offset
        time.sleep(POLL_SECONDS)
    return None


def wake(module: AnsibleModule) -> dict[str, Any]:
    """Set the clock and have the lease renewed."""
    files = files_of(module.params["state_dir"], module.params["name"])
    instance = files.load()
    domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
    offset = wait_for_agent(domain, module.params["timeout"])
    changed = offset is not None and abs(offset) > CLOCK_TOLERANCE
    if offset is None:
        module.warn(f"the clock of {files.name} was not set, as its guest agent does not answer")
    if not module.check_mode:
        if changed and not set_clock(domain):
            module.warn(f"the clock of {files.name} could not be set and is {abs(offset or 0):.0f} s off")
        if offset is not None:
            renew_lease(domain, instance.mac)
    return {"changed": changed, "offset": offset}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    run(module, wake)


if __name__ == "__main__":
    main()
