"""What may be shared with a guest, and what never."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.worktree import check_worktree


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for the user's home directory, as the password database names it."""
    directory = tmp_path / "home" / "dev"
    directory.mkdir(parents=True)
    entry = (str(os.getuid()), "x", os.getuid(), os.getgid(), "", str(directory), "/bin/sh")
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: pwd.struct_passwd(entry))
    monkeypatch.setenv("HOME", str(directory))
    return directory


def refusal(text: str, state: Path) -> str:
    """Return the message of the refusal that must come."""
    with pytest.raises(VmwError) as caught:
        check_worktree(text, state)
    assert caught.value.code == "usage"
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("name", ["plain", "with blank", "quo'te\"s", "{{ 7*7 }}", "日本語", "a%b$c\\d", "-dash", "a:b"])
def test_any_printable_path_works(home: Path, name: str) -> None:
    directory = home / name
    directory.mkdir()
    assert check_worktree(str(directory), home / "state") == directory


def test_a_tilde_is_the_home_directory(home: Path) -> None:
    (home / "w").mkdir()
    assert check_worktree("~/w", home / "state") == home / "w"


def test_a_link_is_followed(home: Path) -> None:
    (home / "w").mkdir()
    (home / "link").symlink_to("w")
    assert check_worktree(str(home / "link"), home / "state") == home / "w"


def test_missing_file_and_loop_are_refused(home: Path) -> None:
    (home / "file").write_text("x")
    (home / "loop").symlink_to("loop")
    state = home / "state"
    assert "does not exist" in refusal(str(home / "nothing"), state)
    assert "not a directory" in refusal(str(home / "file"), state)
    assert refusal(str(home / "loop"), state)
    assert "not absolute" in refusal("relative", state)
    assert "no worktree" in refusal("", state)


@pytest.mark.parametrize("text", ["/w/a\nb", "/w/a\x00b", "/w/a\x7fb", "/w/\udcff"])
def test_control_characters_and_broken_bytes_are_refused(home: Path, text: str) -> None:
    assert refusal(text, home / "state")


def test_home_and_what_holds_it_are_refused(home: Path) -> None:
    for path in (home, home.parent, Path("/")):
        assert "home directory" in refusal(str(path), home / "state")


def test_the_state_directory_is_never_shared(home: Path) -> None:
    state = home / ".config" / "vmw"
    (state / "secrets").mkdir(parents=True)
    for path in (state, state / "secrets", state.parent):
        assert "own directory" in refusal(str(path), state)


def test_an_unreadable_directory_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = home / "locked"
    directory.mkdir()
    # The tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != directory)
    assert "not yours" in refusal(str(directory), home / "state")
