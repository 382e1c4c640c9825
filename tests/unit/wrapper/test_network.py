"""`vmw net`: what it shows, what it hands to the playbook, and what it refuses before."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import packet_filter
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from wrapper_support import FakeAnsible

from vmw import cli
from vmw.runner import playbook
from vmw.services import doctor, host, network, virsh, worktree
from vmw.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAN = {"time": "2026-11-28T10:00:00Z", "address": "192.168.1.1", "protocol": "tcp", "port": 80, "count": 3}
PING = {"time": "2026-11-28T10:00:02Z", "address": "192.168.1.9", "protocol": "icmp", "port": None, "count": 1}
NAMED = {"time": "2026-11-28T10:00:01Z", "host": "evil.example", "port": 443, "count": 2}


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> FakeAnsible:
    fake = FakeAnsible(results={"egress": {"mode": "offline", "allow": []}})
    monkeypatch.setattr(playbook.PlaybookRunner, "run", fake.run)
    return fake


@pytest.fixture
def refusing(make_vm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record a VM to which the filter and the proxy have refused something, and return its directory."""
    directory = make_vm("one", egress={"mode": "allowlist", "allow": ["a.org"], "told": ""})
    (directory / "refused.json").write_text(json.dumps({"schema": 1, "refused": [NAMED]}))
    monkeypatch.setattr(packet_filter, "ask", lambda verb, **_values: {"ok": True, verb: [LAN, PING]})
    return directory


def test_the_policy_is_shown(refusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["net", "one"]) == 0
    assert capsys.readouterr().out == "allowlist\n  + a.org\n"
    assert cli.run(["net", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "name": "one", "policy": "allowlist", "allow": ["a.org"]}


@pytest.mark.parametrize("words", [["net", "one", "offline"], ["net", "policy", "one", "offline"]])
def test_the_policy_is_changed(
    ansible: FakeAnsible, make_vm: Callable[..., Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_vm("one")
    assert cli.run(words) == 0
    (run,) = ansible.runs
    assert (run.verb, run.extra_vars) == ("net", {"vmw_name": "one", "vmw_net_mode": "offline"})
    assert "one has the network policy offline." in capsys.readouterr().err


def test_a_vm_may_be_named_as_a_command_is(make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("log")
    assert cli.run(["net", "policy", "log"]) == 0
    assert capsys.readouterr().out == "internet\n"


@pytest.mark.parametrize(("verb", "variable"), [("allow", "vmw_net_allow"), ("forbid", "vmw_net_forbid")])
def test_hosts_are_handed_over_in_one_form(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    verb: str,
    variable: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_vm("one")
    assert cli.run(["net", verb, "one", "A.org.", "*.b.org"]) == 0
    assert ansible.runs[0].extra_vars == {"vmw_name": "one", "vmw_net_mode": "", variable: "a.org,*.b.org"}
    said = capsys.readouterr().err
    assert "a.org, *.b.org" in said
    assert "`vmw net one allowlist` changes it" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["net", "allow", "one", "10.0.0.1"], 2, "'10.0.0.1' is not the name of a host"),
        (["net", "one", "shut"], 2, "shut"),
        (["net", "two"], 4, "there is no VM named 'two'"),
        (["net", "log", "two"], 4, "there is no VM named 'two'"),
        (["net", "allow", "two", "a.org"], 4, "there is no VM named 'two'"),
        (["net", "--nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_are_told_before_ansible_is_started(
    ansible: FakeAnsible, make_vm: Callable[..., Path], words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vm("one")
    assert cli.run(words) == code
    assert ansible.runs == []
    told = capsys.readouterr().err
    assert said in told
    assert "hint: " in told


def test_the_log_has_both_and_is_in_order(refusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["net", "log", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "LAST REFUSED          DESTINATION   PROTOCOL  PORT  TIMES",
        "2026-11-28T10:00:00Z  192.168.1.1   tcp       80    3",
        "2026-11-28T10:00:01Z  evil.example  tcp       443   2",
        "2026-11-28T10:00:02Z  192.168.1.9   icmp      -     1",
    ]
    assert cli.run(["net", "log", "one", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["refused"]
    assert rows[1] == {**NAMED, "address": None, "protocol": "tcp"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"refused": 1}', '{"refused": [{}]}'])
def test_a_log_of_the_proxys_that_cannot_be_read_tells_nothing(refusing: Path, content: str) -> None:
    (refusing / "refused.json").write_text(content)
    assert [row.address for row in network.refused(load_settings(), "one")] == ["192.168.1.1", "192.168.1.9"]


def test_what_a_guest_has_chosen_does_not_reach_the_terminal(refusing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {**NAMED, "host": "a\x1b[2J.org"}
    (refusing / "refused.json").write_text(json.dumps({"schema": 1, "refused": [row]}))
    assert cli.run(["net", "log", "one"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_following_tells_each_refusal_once(refusing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Any = iter([[LAN], [LAN], [{**LAN, "count": 4}]])
    monkeypatch.setattr(packet_filter, "ask", lambda *_words, **_values: {"ok": True, "refused": next(answers)})
    monkeypatch.setattr(network, "FOLLOW_SECONDS", 0)
    (refusing / "refused.json").unlink()
    told = list(itertools.islice(network.follow(load_settings(), "one"), 2))
    assert [row.count for row in told] == [3, 4]


def test_spawn_hands_over_the_policy() -> None:
    assert worktree.spawn_vars("/w", egress="offline")["vmw_egress"] == "offline"
    assert "vmw_egress" not in worktree.spawn_vars("/w")


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ({"ok": True, "loaded": True, "policies": [{}]}, doctor.Status.OK, "of 1 VM are"),
        ({"ok": True, "loaded": False, "policies": []}, doctor.Status.FAIL, "not loaded"),
        (None, doctor.Status.FAIL, "is not there"),
    ],
)
def test_doctor_looks_at_the_filter(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | None, status: doctor.Status, words: str
) -> None:
    def ask(_verb: str) -> dict[str, Any]:
        if answer is None:
            message = "it is not there"
            raise CollectionError(message, "", "host_not_ready")
        return answer

    monkeypatch.setattr(packet_filter, "ask", ask)
    check = next(check for check in doctor.CHECKS if check.name == "packet filter")
    finding = check.look(Settings())
    assert finding.status is status
    assert words in finding.message


def test_doctor_names_vms_that_run_without_a_policy(
    make_vm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_vm("one")
    monkeypatch.setattr(packet_filter, "ask", lambda _verb: {"ok": True, "loaded": True, "policies": []})
    monkeypatch.setattr(virsh.Virsh, "states", lambda _self: {"one": "running"})
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    check = next(check for check in doctor.CHECKS if check.name == "packet filter")
    finding = check.look(Settings())
    assert (finding.status, finding.message) == (doctor.Status.FAIL, "one runs without a network policy")
    (tmp_path / "vmw-0c3a1f3e").mkdir()
    assert check.look(Settings()).status is doctor.Status.OK


@pytest.mark.parametrize(
    "words",
    [["net", "one", "offline"], ["net", "allow", "one", "a.org"], ["net", "forbid", "one", "a.org"], ["net", "log", "one"]],
)
def test_nobody_enforces_a_policy_for_the_users_own_libvirt(
    ansible: FakeAnsible, make_vm: Callable[..., Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_vm("one", libvirt_uri="qemu:///session", ssh_port=22017, egress={"mode": "open", "allow": [], "told": ""})
    assert cli.run(words) == 2
    shown = capsys.readouterr().err
    assert "qemu:///session" in shown
    assert "hint: " in shown
    assert ansible.runs == []


def test_its_policy_is_shown_all_the_same(make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("one", libvirt_uri="qemu:///session", ssh_port=22017, egress={"mode": "open", "allow": [], "told": ""})
    assert cli.run(["net", "one"]) == 0
    assert capsys.readouterr().out == "open\n"


@pytest.mark.parametrize("words", [["--egress", "internet"], ["--keys", "proxy"]])
def test_spawn_refuses_what_does_not_go_with_it_before_anything_is_done(
    ansible: FakeAnsible, home: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".config/vmw").mkdir(parents=True, exist_ok=True)
    (home / ".config/vmw/config.yml").write_text("vmw_libvirt_uri: qemu:///session\n")
    (home / "w").mkdir()
    assert cli.run(["spawn", str(home / "w"), *words]) == 2
    shown = capsys.readouterr().err
    assert "qemu:///session" in shown
    assert f"'{words[1]}'" in shown
    assert ansible.runs == []
