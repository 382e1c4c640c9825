"""The process in which the module ``vm`` runs on the machine that Ansible runs on, and who decides that it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.action import vm as action
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, outcome
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import ARGUMENTS
from module_docs import documented_options

ROOT = Path(__file__).parents[3]
PYTHON = "/usr/bin/python3"


def told(**params: object) -> dict[str, Any]:
    """Return what the process tells that the action plugin starts."""
    asked = {"params": params, "check_mode": True}
    argv = [sys.executable, "-I", "-c", action.START, str(ROOT / "collections")]
    done = subprocess.run(argv, input=json.dumps(asked), capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_failure_is_told_in_the_modules_words(tmp_path: Path) -> None:
    answer = told(state_dir=str(tmp_path), worktree=None, name="one")
    assert answer["failed"]
    assert (answer["code"], answer["warnings"]) == ("not_found", [])
    assert "vmw list" in answer["hint"]


def test_it_imports_nothing_of_ansibles() -> None:
    script = action.START.replace("main()", "print([name for name in sys.modules if name.partition('.')[0] == 'ansible'])")
    argv = [sys.executable, "-I", "-c", script, str(ROOT / "collections")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VmwError("no", "do this", "conflict", "/log"), {"msg": "no", "hint": "do this", "code": "conflict", "log": "/log"}),
        (VmwError("no"), {"msg": "no", "code": "failed"}),
        (
            OSError(28, "No space left on device", "/x"),
            {"msg": "/x: No space left on device", "hint": "make room and run it again"},
        ),
    ],
)
def test_an_expected_failure_is_a_result(error: Exception, expected: dict[str, str]) -> None:
    def fail() -> dict[str, Any]:
        raise error

    result = outcome(fail)
    assert result["failed"]
    assert {key: result[key] for key in expected} == expected
    assert expected.keys() | {"failed", "code"} == result.keys()


def test_an_unexpected_one_is_none() -> None:
    def fail() -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outcome(fail)


def place(
    transport: str = "local", *, become: object = None, background: int = 0, environment: object = None
) -> action.ActionModule:
    """Return the action plugin for a host, without Ansible around it."""
    plugin = action.ActionModule.__new__(action.ActionModule)
    plugin._connection = SimpleNamespace(transport=transport, become=become)
    plugin._task = SimpleNamespace(async_val=background, environment=environment)
    plugin._templar = SimpleNamespace(template=lambda value: value)
    return plugin


@pytest.mark.parametrize("environment", [None, [], [{}]])
def test_on_this_machine_it_runs_in_place(environment: object) -> None:
    assert place(environment=environment)._python_in_place({"ansible_python_interpreter": PYTHON}) == PYTHON


@pytest.mark.parametrize(
    "elsewhere",
    [{"transport": "ssh"}, {"become": object()}, {"background": 60}, {"environment": [{"http_proxy": "http://x"}]}],
)
def test_anywhere_else_ansible_brings_it(elsewhere: dict[str, Any]) -> None:
    assert place(**elsewhere)._python_in_place({"ansible_python_interpreter": PYTHON}) == ""


@pytest.mark.parametrize("python", ["", "auto", "auto_silent", "python3"])
def test_a_python_that_is_to_be_found_is_ansibles_to_find(python: str) -> None:
    assert place()._python_in_place({"ansible_python_interpreter": python}) == ""
    assert place()._python_in_place({}) == ""


def test_the_documentation_names_every_argument() -> None:
    documented = documented_options("vm")
    assert documented.keys() == ARGUMENTS.keys()
    for name, option in documented.items():
        for key in ("type", "choices", "default", "required"):
            assert option.get(key) == ARGUMENTS[name].get(key), f"{name}: {key}"
