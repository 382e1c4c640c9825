from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services import worktree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", "/a/b"),
        ("b", "/place/b"),
        ("./b/", "/place/b"),
        ("../b", "/place/../b"),
        (".", "/place"),
        ("{{ x }}", "/place/{{ x }}"),
        ("a b\n", "/place/a b\n"),
        ("~no-such-user/x", "/place/~no-such-user/x"),
    ],
)
def test_paths_become_absolute(path: str, expected: str) -> None:
    assert worktree.absolute(path, "/place") == expected


def test_tilde(home: Path) -> None:
    assert worktree.absolute("~/code") == f"{home}/code"


def test_links_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert worktree.absolute("link", str(tmp_path)) == f"{tmp_path}/link"


def test_only_what_the_user_said() -> None:
    assert worktree.spawn_vars("/a") == {"worktree": "/a", "vmw_wait": True}


def test_everything_the_user_said() -> None:
    assert worktree.spawn_vars("/a", name="x", memory="8G", cpus=2, disk="40", wait=False) == {
        "worktree": "/a",
        "vmw_wait": False,
        "vmw_name": "x",
        "vmw_memory_mib": 8192,
        "vmw_vcpus": 2,
        "vmw_disk_gib": 40,
    }


def test_a_profile_is_what_was_asked_for() -> None:
    assert worktree.spawn_vars("/a", secrets="work") == {"worktree": "/a", "vmw_wait": True, "vmw_secrets": "work"}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "{{ x }}", "a\n", "-x"])
def test_a_profile_has_a_plain_name(name: str) -> None:
    with pytest.raises(VmwError, match="cannot name a secrets profile") as caught:
        worktree.spawn_vars("/a", secrets=name)
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_profile_is_looked_at_first(tmp_path: Path) -> None:
    # The set-up of the machine makes the default one.
    worktree.check_secrets("default", tmp_path)
    with pytest.raises(VmwError, match="there is no secrets profile 'work'") as caught:
        worktree.check_secrets("work", tmp_path)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "`vmw secrets work`" in caught.value.hint
    path = tmp_path / "secrets/work/secrets.env"
    path.parent.mkdir(mode=0o700, parents=True)
    path.touch(mode=0o600)
    worktree.check_secrets("work", tmp_path)
    path.chmod(0o640)
    with pytest.raises(VmwError, match="is open to others") as caught:
        worktree.check_secrets("work", tmp_path)
    assert caught.value.hint == f"`chmod 600 {path}`"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "does not exist"),
        ("file", "is not a directory"),
        ("loop", "cannot be reached"),
        ("file/inner", "cannot be reached"),
        (os.fsdecode(b"caf\xe9"), "not valid UTF-8"),
        ("___", "no name for a VM"),
        ("new\nline", "control character"),
        (".", "your home directory"),
        ("/", "your home directory"),
        (".config/vmw/instances", "vmw's own directory"),
    ],
)
def test_bad_paths(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    entry = pwd.struct_passwd(("dev", "x", 1234, 1234, "", str(home), "/bin/sh"))
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: entry)
    (home / "file").touch()
    (home / "loop").symlink_to("loop")
    (home / "___").mkdir()
    (home / ".config" / "vmw" / "instances").mkdir(parents=True)
    with pytest.raises(VmwError, match=words) as caught:
        worktree.check_worktree(worktree.absolute(name, str(home)), home / ".config" / "vmw", named=False)
    assert caught.value.exit_code is ExitCode.USAGE


def test_the_empty_path(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="no worktree was named"):
        worktree.check_worktree(worktree.absolute(""), tmp_path, named=False)


def test_a_name_makes_up_for_a_nameless_path(tmp_path: Path) -> None:
    (tmp_path / "___").mkdir()
    worktree.check_worktree(str(tmp_path / "___"), tmp_path / "state", named=True)


def test_key_file(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_ed25519.pub").touch()
    assert worktree.has_ssh_key()


def test_key_in_the_agent(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("ssh-add", "exit 0")
    assert worktree.has_ssh_key()


def test_no_key(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("ssh-add", "exit 1")
    assert not worktree.has_ssh_key()


def test_making_a_key(home: Path, fake_program: Callable[[str, str], Path]) -> None:
    calls = fake_program("ssh-keygen", "exit 0")
    worktree.make_ssh_key()
    assert calls.read_text() == f"-t ed25519 -f {home}/.ssh/id_ed25519\n"
    assert (home / ".ssh").stat().st_mode & 0o777 == 0o700


def test_making_a_key_fails(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("ssh-keygen", "exit 1")
    with pytest.raises(VmwError):
        worktree.make_ssh_key()
