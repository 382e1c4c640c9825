# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Run the module ``vm`` in place where that is possible.

Ansible packs a module with all that it imports, and its Python reads and compiles all of that anew: some tenths of a second on
the way to a usable VM. On the machine that Ansible runs on, nothing needs to be sent.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import ARGUMENTS, RULES

COLLECTIONS = Path(__file__).parents[4]
"""The directory ``ansible_collections``, as Ansible has found it: in a checkout the collection in it is a link."""

START = """\
import sys, types
sys.path[:] = [place for place in sys.path if place]
collections = types.ModuleType("ansible_collections")
collections.__path__ = [sys.argv[1]]
sys.modules["ansible_collections"] = collections
from ansible_collections.vmw.worktree.plugins.module_utils.in_place import main
main()
"""
"""Finds the collection, and nothing else beside it or in the working directory."""


def bytecode_directory() -> str:
    """Return where Python keeps what it compiles: not beside the sources, where a guest that works on vmw itself could put it."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vmw/python")


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
        done = subprocess.run(
            [python, "-X", f"pycache_prefix={bytecode_directory()}", "-c", START, str(COLLECTIONS)],
            input=json.dumps({"params": params, "check_mode": self._task.check_mode}),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            # As Ansible's own connection has it for local modules.
            cwd=self._loader.get_basedir(),
        )
        result = _result(done.stdout)
        if result is None:
            said = done.stderr.strip().splitlines()
            message = said[-1] if said else f"its Python ended with status {done.returncode}, without a word"
            raise AnsibleActionFail(message=message, result={"module_stderr": done.stderr, "module_stdout": done.stdout})
        return result

    def _python_in_place(self, task_vars: dict[str, Any]) -> str:
        """Return the Python of this machine's modules, or an empty string where Ansible has to bring the module there."""
        task = self._task
        elsewhere = self._connection.transport != "local" or self._connection.become is not None or task.delegate_to
        if elsewhere or task.async_val or any(task.environment or ()):
            return ""
        python = str(self._templar.template(task_vars.get("ansible_python_interpreter", ""))).strip()
        # Ansible takes more than a program's path, and finds one by itself.
        return python if Path(python).is_absolute() and os.access(python, os.X_OK) else ""


def _result(output: str) -> dict[str, Any] | None:
    """Return what the module told on its last line, or ``None`` when it told nothing."""
    try:
        told = json.loads(output.strip().rpartition("\n")[2])
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
