# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Run the module ``vm`` in place where that is possible.

Ansible packs a module with all that it imports, and its Python reads and compiles all of that anew: some tenths of a second on
the way to a usable VM. On the machine that Ansible runs on, nothing needs to be sent.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import ARGUMENTS, RULES

ROOT = Path(__file__).parents[5]
"""The directory with ``ansible_collections``, as Ansible has found it: in a checkout that is a link."""

START = """\
import sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.vmw.worktree.plugins.module_utils.in_place import main
main()
"""


# Ansible has no type information.
class ActionModule(ActionBase):  # type: ignore[misc]
    """Decides where the module runs."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:  # noqa: ANN401 - Ansible's own
        """Run the module and return what it tells."""
        super().run(tmp, task_vars)
        python = self._python_in_place(task_vars or {})
        if not python:
            return dict(self._execute_module(task_vars=task_vars, wrap_async=self._task.async_val))
        _, params = self.validate_argument_spec(ARGUMENTS, **RULES)
        asked = json.dumps({"params": params, "check_mode": self._task.check_mode})
        argv = [python, "-I", "-c", START, str(ROOT)]
        done = subprocess.run(argv, input=asked, capture_output=True, text=True, check=False)
        try:
            result: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise AnsibleActionFail(message=lines[-1], result={"module_stderr": done.stderr}) from error
        return result

    def _python_in_place(self, task_vars: dict[str, Any]) -> str:
        """Return the Python of this machine's modules, or an empty string where Ansible has to bring the module there."""
        elsewhere = self._connection.transport != "local" or self._connection.become is not None
        if elsewhere or self._task.async_val or any(self._task.environment or ()):
            return ""
        python = str(self._templar.template(task_vars.get("ansible_python_interpreter", "")))
        return python if Path(python).is_absolute() else ""
