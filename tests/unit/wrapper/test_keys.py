"""`vmw keys`: what it shows, and what it hands to the playbook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from wrapper_support import FakeAnsible

from vmw import cli
from vmw.runner import playbook
from vmw.services import keys, worktree
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAYS = {
    "2026-11-28": {"anthropic": {"requests": 2, "input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 300}},
    "2026-11-27": {
        "openai": {"requests": 1},
        "anthropic": {"requests": 7, "input_tokens": 8, "output_tokens": 9},
    },
}


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> FakeAnsible:
    fake = FakeAnsible()
    monkeypatch.setattr(playbook.PlaybookRunner, "run", fake.run)
    return fake


@pytest.fixture
def proxied(make_vm: Callable[..., Path]) -> Path:
    """Record a VM whose keys stay on the host, and return its directory."""
    limits = {"mode": "proxy", "revoked": True, "daily_requests": 0, "daily_tokens": 5000}
    directory = make_vm("one", keys=limits, secrets_profile="work")
    (directory / "usage.json").write_text(json.dumps({"schema": 1, "days": DAYS}))
    return directory


def test_a_vm_of_the_usual_kind(make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("one")
    assert cli.run(["keys", "one"]) == 0
    assert capsys.readouterr().out == "file, profile default\n"


def test_the_account_is_shown_by_day(proxied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["keys", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "proxy, profile work, revoked",
        "at most 5000 tokens a day",
        "DAY         API        REQUESTS  TOKENS IN  TOKENS OUT",
        "2026-11-27  anthropic  7         8          9",
        "2026-11-27  openai     1         0          0",
        "2026-11-28  anthropic  2         10         300",
    ]
    assert cli.run(["keys", "one", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["revoked"], len(told["days"])) == (1, True, 3)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"days": 1}', '{"days": {"x": 1}}', '{"days": {"x": {"y": {}}}}'])
def test_an_account_that_cannot_be_read_tells_nothing(proxied: Path, content: str) -> None:
    (proxied / "usage.json").write_text(content)
    assert keys.account(load_settings(), "one").days == []


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["revoke", "one"], {"vmw_keys_revoked": True}),
        (["restore", "one"], {"vmw_keys_revoked": False}),
        (["limit", "one", "--requests", "5"], {"vmw_keys_daily_requests": 5}),
        (["limit", "one", "--requests", "0", "--tokens", "9"], {"vmw_keys_daily_requests": 0, "vmw_keys_daily_tokens": 9}),
    ],
)
def test_a_change_names_only_what_changes(
    ansible: FakeAnsible, make_vm: Callable[..., Path], words: list[str], values: dict[str, object]
) -> None:
    make_vm("one")
    assert cli.run(["keys", *words]) == 0
    (run,) = ansible.runs
    assert (run.verb, run.extra_vars) == ("keys", {"vmw_name": "one", **values})


@pytest.mark.parametrize(
    ("words", "code"), [(["two"], 4), (["revoke", "two"], 4), (["limit", "one"], 2), (["limit", "one", "--tokens", "-1"], 2)]
)
def test_mistakes_start_no_ansible(ansible: FakeAnsible, make_vm: Callable[..., Path], words: list[str], code: int) -> None:
    make_vm("one")
    assert cli.run(["keys", *words]) == code
    assert ansible.runs == []


def test_spawn_hands_over_how_keys_are_come_by() -> None:
    assert worktree.spawn_vars("/w", keys="proxy")["vmw_keys"] == "proxy"
    assert "vmw_keys" not in worktree.spawn_vars("/w")
