from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from wrapper_support import FakeAnsible

from vmw import cli
from vmw.errors import VmwError
from vmw.runner import playbook
from vmw.services import ports
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SYSTEMCTL = """for unit; do case "$unit" in
vmw-one-port-8080.service) printf 'Id=%s\\nActiveState=active\\n\\n' "$unit";;
vmw-one-port-9000.service) printf 'Id=%s\\nActiveState=activating\\n\\n' "$unit";;
*.service) printf 'Id=%s\\nActiveState=inactive\\n\\n' "$unit";;
esac; done"""


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> FakeAnsible:
    fake = FakeAnsible()
    monkeypatch.setattr(playbook.PlaybookRunner, "run", fake.run)
    return fake


@pytest.fixture
def units(home: Path) -> Path:
    """Return the directory of the user's units, with the ports of two VMs."""
    directory = home / ".config/systemd/user"
    directory.mkdir(parents=True)
    for name, host, guest in (("one", 9000, 80), ("one", 8080, 3000), ("two", 5000, 5000)):
        (directory / f"vmw-{name}-port-{host}.service").write_text(f"[Service]\n\n[X-vmw]\nGuestPort={guest}\n")
    (directory / "vmw-one-port-7000.service").write_text("[Service]\n")
    return directory


def test_list(units: Path, fake_program: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake_program("systemctl", SYSTEMCTL)
    assert cli.run(["port"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME  PORT  PUBLISHED AT    STATE",
        "one   3000  127.0.0.1:8080  open",
        "one   80    127.0.0.1:9000  connecting",
        "two   5000  127.0.0.1:5000  closed",
    ]
    assert len(calls.read_text().splitlines()) == 1


def test_list_of_one_vm_for_programs(
    units: Path, fake_program: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_program("systemctl", SYSTEMCTL)
    assert cli.run(["port", "two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "ports": [{"name": "two", "guest_port": 5000, "host_port": 5000, "address": "127.0.0.1", "state": "closed"}],
    }


def test_a_service_manager_that_does_not_answer_leaves_the_states_unknown(
    units: Path, fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program("systemctl", "echo 'Failed to connect to bus' >&2; exit 1")
    assert {row.state for row in ports.list_ports(load_settings(), None)} == {"unknown"}
    monkeypatch.setenv("PATH", "/nonexistent")
    assert {row.state for row in ports.list_ports(load_settings(), None)} == {"unknown"}
    fake_program("systemctl", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{units.parents[4]}/bin:/usr/bin:/bin")
    monkeypatch.setattr(ports, "QUERY_SECONDS", 0.2)
    assert {row.state for row in ports.list_ports(load_settings(), None)} == {"unknown"}


def test_nothing_published(make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("one")
    assert cli.run(["port"]) == 0
    assert capsys.readouterr().err == "No port is published; `vmw port NAME 3000` publishes one.\n"
    assert cli.run(["port", "one"]) == 0
    assert capsys.readouterr().err == "No port of one is published; `vmw port one 3000` publishes one.\n"
    assert cli.run(["port", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "ports": []}


@pytest.mark.parametrize(
    ("results", "changed", "words"),
    [
        ({"running": True, "listening": True}, 1, "Port 3000 of one is published at:"),
        ({"running": True, "listening": True}, 0, "Port 3000 of one was published already, at:"),
        ({"running": False, "listening": False}, 1, "Port 3000 of one is published, and opens when one runs, at:"),
        ({"running": False, "listening": False}, 0, "Port 3000 of one was published already, and opens when one runs, at:"),
        ({"running": True, "listening": False}, 1, "Port 3000 of one is published, and opens when one can be reached, at:"),
    ],
)
def test_publish(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    results: dict[str, Any],
    changed: int,
    words: str,
) -> None:
    make_vm("one")
    ansible.results = {"guest_port": 3000, "host_port": 8080, **results}
    ansible.changed = changed
    assert cli.run(["port", "one", "3000:8080"]) == 0
    values = {"vmw_name": "one", "vmw_port": "3000:8080", "vmw_port_state": "present"}
    assert [(run.verb, run.extra_vars, run.command) for run in ansible.runs] == [("port", values, "vmw port one 3000:8080")]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == words
    assert shown.out == "127.0.0.1:8080\n"


@pytest.mark.parametrize(
    ("removed", "words"), [(["3000:8080"], "3000:8080 of one is published no more."), ([], "3000 of one was not published.")]
)
def test_remove(
    ansible: FakeAnsible, make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str], removed: list[str], words: str
) -> None:
    make_vm("one")
    ansible.results = {"removed": removed}
    assert cli.run(["port", "one", "3000", "--remove"]) == 0
    assert ansible.runs[0].extra_vars == {"vmw_name": "one", "vmw_port": "3000", "vmw_port_state": "absent"}
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == words
    assert shown.out == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["one", "80"], 2, "port 80 of the host is below 1024"),
        (["one", "70000"], 2, "70000 is no port"),
        (["one", "3000:"], 2, "'3000:' is no port"),
        (["one", "{{ 7 * 7 }}"], 2, "is no port"),
        (["one", "x", "--remove"], 2, "'x' is no port"),
        (["one", "--remove"], 2, "which port of which VM"),
        (["--remove"], 2, "which port of which VM"),
        (["one", "3000", "--json"], 2, "`--json` is for the list"),
        (["onne", "3000"], 4, "there is no VM named 'onne'"),
        (["../one", "3000"], 4, "there is no VM named '../one'"),
        (["onne", "3000", "--remove"], 4, "there is no VM named 'onne'"),
    ],
)
def test_refused_in_words_before_ansible_is_started(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    message: str,
) -> None:
    make_vm("one")
    assert cli.run(["port", *words]) == code
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[0]
    assert shown.err.splitlines()[1].startswith("hint: ")
    assert shown.out == ""
    assert ansible.runs == []


def test_ports_that_a_lost_vm_left_are_listed(units: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("systemctl", SYSTEMCTL)
    assert [row.host_port for row in ports.list_ports(load_settings(), "two")] == [5000]
    with pytest.raises(VmwError, match="no VM named 'three'"):
        ports.list_ports(load_settings(), "three")
