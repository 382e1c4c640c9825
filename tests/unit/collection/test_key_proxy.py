"""How `secrets.env` is read, and what a guest sees of it whose keys stay on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import key_proxy

SECRETS = """# mine
ANTHROPIC_API_KEY=sk-ant-real
export OPENAI_API_KEY="sk-proj-real"
PERPLEXITY_API_KEY=pplx-real
GH_TOKEN=
ANTHROPIC_BASE_URL=https://gateway.example
"""


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("K=v", "v"),
        ("  K=v  ", "v"),
        ("export K=v", "v"),
        ("export   K=v", "v"),
        ("K=a=b", "a=b"),
        ("K=v # mine", "v"),
        ("K=v#mine", "v"),
        ('K="v"', "v"),
        ("K='v'", "v"),
        ("K='a b'", "a b"),
        ("K=a b", "a b"),
        (r"K=a\b$c%d", r"a\b$c%d"),
        ("K=", ""),
        ("K=1\r\nL=2", "1"),
        ("K=1\nK=2", "2"),
    ],
)
def test_lines_are_read_as_in_a_guest(line: str, value: str) -> None:
    assert key_proxy.parse(line)["K"] == value


@pytest.mark.parametrize("line", ["", "#K=v", "K", "K v", "K =v", "1K=v", "=v", "export", "expor K=v", "K-L=v"])
def test_other_lines_are_passed_over(line: str) -> None:
    assert key_proxy.parse(f"{line}\nL=w\n") == {"L": "w"}


def test_a_guest_sees_placeholders_for_the_keys_that_there_are() -> None:
    text, left_out = key_proxy.guest_secrets(SECRETS, "feature-x", "192.168.150.1", 47000)
    assert key_proxy.parse(text) == {
        "ANTHROPIC_API_KEY": "vmw-feature-x",
        "ANTHROPIC_BASE_URL": "http://192.168.150.1:47000/anthropic",
        "OPENAI_API_KEY": "vmw-feature-x",
        "OPENAI_BASE_URL": "http://192.168.150.1:47000/openai/v1",
    }
    assert left_out == ["PERPLEXITY_API_KEY", "ANTHROPIC_BASE_URL"]
    assert "real" not in text


def test_nothing_leads_to_an_api_without_a_key() -> None:
    text, left_out = key_proxy.guest_secrets("ANTHROPIC_AUTH_TOKEN=t\nOPENAI_API_KEY=with blank\n", "vm", "fd00::1", 1)
    assert key_proxy.parse(text) == {"ANTHROPIC_AUTH_TOKEN": "vmw-vm", "ANTHROPIC_BASE_URL": "http://[fd00::1]:1/anthropic"}
    assert left_out == ["OPENAI_API_KEY"]
    assert key_proxy.parse(key_proxy.guest_secrets("", "vm", "h", 1)[0]) == {}


def test_the_template_of_a_profile_has_no_key() -> None:
    template = Path(__file__).resolve().parents[3] / "roles/secrets/files/secrets.env"
    assert key_proxy.parse(template.read_text()) == {"ANTHROPIC_API_KEY": ""}
    filled = (
        template.read_text().replace("ANTHROPIC_API_KEY=", "ANTHROPIC_API_KEY=k").replace("#OPENAI_API_KEY=", "OPENAI_API_KEY=k")
    )
    assert key_proxy.guest_secrets(filled, "vm", "h", 1)[1] == []
