# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Run the module ``vm`` as it lies in the collection: what it is asked comes in as JSON, and so goes out what it tells.

The action plugin of that name starts it, with the Python of the host's modules. It needs nothing of Ansible's.
"""

from __future__ import annotations

import json
import sys

from ansible_collections.vmw.worktree.plugins.module_utils.errors import outcome
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Part
from ansible_collections.vmw.worktree.plugins.module_utils.layers.whole import running


def main() -> None:
    """Do what is asked. An unexpected failure ends the process with its traceback."""
    asked = json.load(sys.stdin)
    warnings: list[str] = []
    task = Part(asked["params"], asked["check_mode"], warnings.append)
    result = outcome(lambda: running(task))
    # On a line of its own, whatever was printed before. A process that goes on in the background has no part in this stream, of
    # which the end is waited for.
    sys.stdout.write(f"\n{json.dumps({**result, 'warnings': warnings})}\n")
