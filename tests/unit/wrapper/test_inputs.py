from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from vmw.layout import Layout
from vmw.runner.inputs import drop_questions, environment, extra_vars_yaml, runner_settings

LAYOUT = Layout(Path("/srv/vmw"), Path("/srv/vmw/collections"))
PRIVATE = Path("/run/user/1000/vmw-x")


class _Loader(yaml.SafeLoader):
    """Reads `!unsafe` as Ansible does: the string as it is, never a template."""


def _unsafe(loader: _Loader, node: yaml.ScalarNode) -> tuple[str, object]:
    return "unsafe", loader.construct_scalar(node)


_Loader.add_constructor("!unsafe", _unsafe)


@pytest.mark.parametrize(
    "text",
    [
        "/home/dev/Code/project",
        "/with blank/and 'quotes\" and \\",
        "/{{ lookup('pipe', 'id') }}/{% raw %}",
        "/new\nline\ttab\x7f\x85\u2028",
        "/größe/日本/😀",
        "# no comment: - [x] {y}",
        "",
    ],
)
def test_strings_survive_and_are_never_templates(text: str) -> None:
    loaded = yaml.load(extra_vars_yaml({"worktree": text}), _Loader)  # noqa: S506 - a safe loader with one more tag
    assert loaded == {"worktree": ("unsafe", text)}


def test_figures_and_switches_keep_their_type() -> None:
    assert yaml.safe_load(extra_vars_yaml({"vmw_memory_mib": 4096, "vmw_wait": False})) == {
        "vmw_memory_mib": 4096,
        "vmw_wait": False,
    }


def test_no_extra_vars_are_still_a_dictionary() -> None:
    assert yaml.safe_load(extra_vars_yaml({})) == {}


def test_environment_is_exactly_this() -> None:
    assert environment(LAYOUT, {"PATH": "/usr/bin", "LANG": "de_DE.UTF-8"}, None, PRIVATE) == {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin",
        "ANSIBLE_CONFIG": "/srv/vmw/ansible.cfg",
        "ANSIBLE_COLLECTIONS_PATH": "/srv/vmw/collections",
        "ANSIBLE_INVENTORY_ENABLED": "yaml",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_LOCAL_TEMP": "/run/user/1000/vmw-x/ansible",
        "ANSIBLE_REMOTE_TEMP": "/run/user/1000/vmw-x/ansible",
    }


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({}, "C.UTF-8"),
        ({"LANG": "C"}, "C.UTF-8"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "POSIX"}, "C.UTF-8"),
        ({"LC_CTYPE": "C.utf8"}, None),
        ({"LANG": "en_US.UTF-8"}, None),
    ],
)
def test_ansible_gets_a_character_set_it_accepts(base: dict[str, str], expected: str | None) -> None:
    assert environment(LAYOUT, base, None, PRIVATE).get("LC_ALL") == expected


def test_a_foreign_python_stays_outside() -> None:
    assert environment(LAYOUT, {"PYTHONPATH": "/opt/ros"}, None, PRIVATE)["PYTHONPATH"] == ""


def test_password_is_named_by_file_only() -> None:
    values = environment(LAYOUT, {"LANG": "C.UTF-8"}, PRIVATE / "become_password", PRIVATE)
    assert values["ANSIBLE_BECOME_PASSWORD_FILE"] == "/run/user/1000/vmw-x/become_password"


def test_the_callers_own_password_file_is_found_from_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    values = environment(LAYOUT, {"LANG": "C.UTF-8", "ANSIBLE_BECOME_PASSWORD_FILE": "password"}, None, PRIVATE)
    assert values["ANSIBLE_BECOME_PASSWORD_FILE"] == f"{tmp_path}/password"


@pytest.mark.parametrize(
    ("identities", "left"),
    [("dev@prompt,prompt", None), ("dev@~/key,x@prompt,@prompt_ask_vault_pass,~/other", "dev@~/key,~/other"), ("", None)],
)
def test_ansible_never_asks(identities: str, left: str | None) -> None:
    environ = {
        "ANSIBLE_ASK_PASS": "1",
        "ANSIBLE_ASK_VAULT_PASS": "1",
        "ANSIBLE_BECOME_ASK_PASS": "1",
        "ANSIBLE_FORKS": "2",
        "ANSIBLE_VAULT_IDENTITY_LIST": identities,
    }
    drop_questions(environ)
    assert environ == {"ANSIBLE_FORKS": "2", **({"ANSIBLE_VAULT_IDENTITY_LIST": left} if left else {})}


def test_runner_polls_often() -> None:
    assert json.loads(runner_settings())["pexpect_timeout"] <= 0.2
