from __future__ import annotations

import grp
import os
import pwd
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from vmw.services import group

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SG = 'while [ "$1" != -c ]; do shift; done\nexec sh -c "$2"'


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], list[int]], None]:
    """Return a function that makes the caller the user dev, with these members and these groups of the process."""

    def become(members: list[str], groups: list[int]) -> None:
        entry = SimpleNamespace(gr_name="libvirt", gr_gid=970, gr_mem=members)
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
        monkeypatch.setattr(os, "getgroups", lambda: groups)
        monkeypatch.setattr(os, "getegid", lambda: 1234)
        monkeypatch.setattr(pwd, "getpwuid", lambda _uid: SimpleNamespace(pw_name="dev", pw_gid=1234))
        monkeypatch.setattr(grp, "getgrnam", lambda _name: entry)
        monkeypatch.setattr(grp, "getgrgid", lambda _gid: SimpleNamespace(gr_name="dev"))

    return become


def test_member_of_old(dev: Callable[[list[str], list[int]], None]) -> None:
    dev(["dev"], [970, 1234])
    assert group.membership() == group.Membership(in_database=True, in_process=True)
    assert group.reexec_argv(["vmw"]) is None


def test_fresh_member(dev: Callable[[list[str], list[int]], None], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("sg", SG)
    dev(["other", "dev"], [1234])
    assert group.membership().stale
    assert group.reexec_argv(["vmw", "list"]) == ["sg", "libvirt", "-c", "exec sg dev -c 'exec vmw list'"]


def test_a_primary_group_without_a_name(
    dev: Callable[[list[str], list[int]], None], fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless(gid: int) -> None:
        raise KeyError(gid)

    fake_program("sg", SG)
    dev(["dev"], [1234])
    monkeypatch.setattr(grp, "getgrgid", nameless)
    assert group.reexec_argv(["vmw"]) is None


def test_no_member(dev: Callable[[list[str], list[int]], None]) -> None:
    dev(["other"], [1234])
    assert group.membership() == group.Membership(in_database=False, in_process=False)
    assert group.reexec_argv(["vmw"]) is None


def test_never_twice(
    dev: Callable[[list[str], list[int]], None], fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_program("sg", SG)
    dev(["dev"], [1234])
    monkeypatch.setenv(group.MARKER, "1")
    assert group.reexec_argv(["vmw"]) is None


def test_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(grp, "getgrnam", missing)
    assert group.membership() == group.Membership(in_database=False, in_process=False)


def test_root_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not group.membership().stale


WORDS = ["a b", "it's", 'say "hi"', "$HOME", "`id`", "back\\slash", "new\nline", "", "{{ x }}", "größe", "--", "*"]


def test_words_survive_both_shells(fake_program: Callable[[str, str], Path], tmp_path: Path) -> None:
    fake_program("sg", SG)
    show = tmp_path / "show"
    show.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n')
    show.chmod(0o755)
    argv = group.sg_argv([str(show), *WORDS], "my group")
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().split("\0")[:-1] == WORDS


def test_exit_code_passes(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("sg", SG)
    assert subprocess.run(group.sg_argv(["sh", "-c", "exit 42"], "dev"), check=False).returncode == 42
