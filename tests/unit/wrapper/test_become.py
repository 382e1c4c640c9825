from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services import become

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUDO = """case "$*" in
"-n -k true") exit 1;;
"-S -k "*) read -r password; [ "$password" = secret ];;
*) exit 99;;
esac"""


@pytest.fixture(autouse=True)
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)


def _terminal(monkeypatch: pytest.MonkeyPatch, *, present: bool) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: present, raising=False)


def _no_question(_prompt: str) -> str:
    pytest.fail("asked for a password")


def test_passwordless_sudo(fake_program: Callable[[str, str], Path]) -> None:
    calls = fake_program("sudo", "exit 0")
    assert become.become_password(None, _no_question) is None
    assert calls.read_text() == "-n -k true\n"


def test_asked_once_and_checked(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_program("sudo", SUDO)
    _terminal(monkeypatch, present=True)
    assert become.become_password(None, lambda _prompt: "secret") == "secret"
    assert "secret" not in calls.read_text()


def test_three_attempts(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program("sudo", SUDO)
    _terminal(monkeypatch, present=True)
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "wrong"

    with pytest.raises(VmwError) as caught:
        become.become_password(None, ask)
    assert len(prompts) == 3
    assert prompts[1].startswith("Sorry, try again.")
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY


def test_the_second_attempt_may_do(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program("sudo", SUDO)
    _terminal(monkeypatch, present=True)
    answers = iter(["wrong", "secret"])
    assert become.become_password(None, lambda _prompt: next(answers)) == "secret"


def test_no_terminal(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_program("sudo", SUDO)
    _terminal(monkeypatch, present=False)
    with pytest.raises(VmwError) as caught:
        become.become_password(None, _no_question)
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY
    assert "ANSIBLE_BECOME_PASSWORD_FILE" in caught.value.hint


def test_own_password_file(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_program("sudo", SUDO)
    monkeypatch.setenv("ANSIBLE_BECOME_PASSWORD_FILE", "/etc/hostname")
    assert become.become_password(None, _no_question) is None
    assert not calls.exists()


def test_known_password(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("sudo", SUDO)
    assert become.become_password("secret", _no_question) == "secret"


def test_no_sudo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmwError) as caught:
        become.become_password(None, _no_question)
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY


def test_root_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert become.become_password(None, _no_question) is None


def test_password_of_the_launcher_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"with blank \xe9 \n")
    descriptor = os.open(path, os.O_RDONLY)
    monkeypatch.setenv(become.DESCRIPTOR, str(descriptor))
    assert become.take_over_password() == "with blank \udce9 "
    assert become.DESCRIPTOR not in os.environ
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(descriptor)
    assert become.take_over_password() is None


def test_a_password_that_is_no_utf8(tmp_path: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("sudo", f"cat >'{tmp_path}/typed'")
    assert become.password_works("caf\udce9")
    assert (tmp_path / "typed").read_bytes() == b"caf\xe9\n"


def test_own_password_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_text("secret\n")
    monkeypatch.setenv("ANSIBLE_BECOME_PASSWORD_FILE", str(path))
    assert become.take_over_password() is None
    assert path.exists()
