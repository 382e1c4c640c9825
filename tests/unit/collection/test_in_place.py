"""The process in which the module ``vm`` runs on the machine that Ansible runs on, and who decides that it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmw.worktree.plugins.action import vm as action
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, outcome
from ansible_collections.vmw.worktree.plugins.module_utils.vm_arguments import ARGUMENTS
from module_docs import documented_options

ROOT = Path(__file__).parents[3]
PYTHON = "/usr/bin/python3"


class Plugin(action.ActionModule):
    """The action plugin for a host, without Ansible around it, but with its validation."""

    def __init__(self, transport: str = "local", become: object = None, **task: object) -> None:
        values = {"args": {}, "check_mode": False, "async_val": 0, "environment": None, "delegate_to": None, **task}
        self._connection = SimpleNamespace(transport=transport, become=become)
        self._task = SimpleNamespace(**values)
        self._templar = SimpleNamespace(template=lambda value: value)
        self._loader = SimpleNamespace(get_basedir=lambda: "/")
        self._load_name = "vm"
        self.packed: list[dict[str, Any]] = []

    def _execute_module(self, **words: Any) -> dict[str, Any]:  # noqa: ANN401 - as Ansible has it
        self.packed.append(words)
        return {"packed": True}


@pytest.fixture(autouse=True)
def around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp, _task_vars: {})
    monkeypatch.setattr(action, "COLLECTIONS", ROOT / "collections/ansible_collections")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def run(*, python: str = sys.executable, check_mode: bool = True, **args: object) -> dict[str, Any]:
    """Run the task in place."""
    plugin = Plugin(args=args, check_mode=check_mode)
    result: dict[str, Any] = plugin.run(task_vars={"ansible_python_interpreter": python})
    assert plugin.packed == []
    return result


def fake_python(tmp_path: Path, script: str) -> str:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_failure_is_told_in_the_modules_words(tmp_path: Path) -> None:
    answer = run(state_dir=str(tmp_path), name="one")
    assert answer["failed"]
    assert (answer["code"], answer["warnings"]) == ("not_found", [])
    assert "vmw list" in answer["hint"]


def test_what_is_compiled_lies_in_the_users_cache(tmp_path: Path) -> None:
    run(state_dir=str(tmp_path), name="one")
    assert list((tmp_path / "cache/vmw/python").rglob("in_place.*.pyc"))


def test_bad_arguments_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    python = fake_python(tmp_path, f"touch {tmp_path}/started")
    bad: list[dict[str, object]] = [{}, {"worktree": "/w"}, {"name": "n", "timeout": "soon"}, {"name": "n", "nothing": 1}]
    for args in bad:
        with pytest.raises(AnsibleActionFail):
            Plugin(args={"state_dir": "/x", **args}).run(task_vars={"ansible_python_interpreter": python})
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("check_mode", [True, False])
def test_the_process_is_told_everything_and_works_where_ansibles_own_do(tmp_path: Path, *, check_mode: bool) -> None:
    note = f"cat > {tmp_path}/asked; pwd > {tmp_path}/cwd; echo noise"
    python = fake_python(tmp_path, f"""{note}; printf '\\n{{"changed": true}}\\n'""")
    assert run(python=python, check_mode=check_mode, state_dir="/x", name="one", timeout="7") == {"changed": True}
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked["check_mode"] == check_mode
    assert (asked["params"]["timeout"], asked["params"]["egress"], asked["params"]["worktree"]) == (7, "internet", None)
    assert asked["params"].keys() == ARGUMENTS.keys()
    assert (tmp_path / "cwd").read_text() == "/\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo Traceback >&2; printf 'ValueError: b\\377d\\n' >&2; exit 1", "ValueError: b"),
        ("exit 3", "ended with status 3, without a word"),
        ("echo '[]'", "ended with status 0"),
    ],
)
def test_a_process_that_tells_nothing_is_a_failure(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(AnsibleActionFail, match=message):
        run(python=fake_python(tmp_path, script), state_dir="/x", name="one")


def test_it_imports_nothing_of_ansibles() -> None:
    script = action.START.replace("main()", "print([name for name in sys.modules if name.partition('.')[0] == 'ansible'])")
    argv = [sys.executable, "-c", script, str(action.COLLECTIONS)]
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


@pytest.mark.parametrize("environment", [None, [], [{}]])
def test_on_this_machine_it_runs_in_place(environment: object) -> None:
    assert Plugin(environment=environment)._python_in_place({"ansible_python_interpreter": f"{PYTHON} "}) == PYTHON


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"transport": "ssh"},
        {"become": object()},
        {"async_val": 60},
        {"environment": [{"http_proxy": "http://x"}]},
        {"delegate_to": "localhost"},
    ],
)
def test_anywhere_else_ansible_brings_it(elsewhere: dict[str, Any]) -> None:
    plugin = Plugin(**elsewhere)
    task_vars = {"ansible_python_interpreter": PYTHON}
    assert plugin.run(task_vars=task_vars) == {"packed": True}
    assert plugin.packed == [{"task_vars": task_vars, "wrap_async": elsewhere.get("async_val", 0)}]


@pytest.mark.parametrize("python", ["", "auto", "auto_silent", "python3", "/usr/bin/env python3", "/nowhere/python3"])
def test_a_python_that_is_to_be_found_is_ansibles_to_find(python: str) -> None:
    assert Plugin()._python_in_place({"ansible_python_interpreter": python}) == ""
    assert Plugin()._python_in_place({}) == ""


def test_the_documentation_names_every_argument() -> None:
    documented = documented_options("vm")
    assert documented.keys() == ARGUMENTS.keys()
    for name, option in documented.items():
        for key in ("type", "choices", "default", "required"):
            assert option.get(key) == ARGUMENTS[name].get(key), f"{name}: {key}"
