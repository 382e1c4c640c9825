"""The module that installs a program's files."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.modules import program_files as module

if TYPE_CHECKING:
    from pathlib import Path

FILES = {"start": "#!/bin/sh\r\necho ä\n", "parts/deep/one.py": "", "note": "{{ no template }}\n"}


def call(directory: Path, *, check_mode: bool = False, files: dict[str, str] = FILES) -> dict[str, Any]:
    ansible: Any = SimpleNamespace(params={"directory": str(directory), "files": files}, check_mode=check_mode)
    return module.install(ansible)


def tree(directory: Path) -> dict[str, tuple[str, int]]:
    """Return what is in a directory, with contents and modes."""
    return {
        str(path.relative_to(directory)): ("" if path.is_dir() else path.read_bytes().decode(), path.stat().st_mode & 0o7777)
        for path in directory.glob("**/*")
    }


INSTALLED = {
    "start": (FILES["start"], 0o755),
    "parts": ("", 0o755),
    "parts/deep": ("", 0o755),
    "parts/deep/one.py": ("", 0o644),
    "note": (FILES["note"], 0o644),
}


def test_files_are_installed_once_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        result = call(tmp_path)
    finally:
        os.umask(before)
    assert result["changed"]
    assert result["paths"] == [str(tmp_path / name) for name in FILES]
    assert tree(tmp_path) == INSTALLED
    again = call(tmp_path)
    assert (again["changed"], again["paths"], again["diff"]) == (False, [], [])


def test_check_mode_only_says(tmp_path: Path) -> None:
    result = call(tmp_path, check_mode=True)
    assert result["changed"]
    assert [(part["before"], part["after"]) for part in result["diff"]] == [("", content) for content in FILES.values()]
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("spoilt", ["content", "mode", "link"])
def test_what_is_not_as_it_should_be_is_replaced_alone(tmp_path: Path, spoilt: str) -> None:
    call(tmp_path)
    path, kept = tmp_path / "start", (tmp_path / "note").stat()
    if spoilt == "content":
        path.write_text("other\n")
    elif spoilt == "mode":
        path.chmod(0o777)
    else:
        (tmp_path / "elsewhere").write_text("theirs\n")
        path.unlink()
        path.symlink_to("elsewhere")
    assert call(tmp_path)["paths"] == [str(path)]
    assert tree(tmp_path).items() >= INSTALLED.items()
    assert not path.is_symlink()
    if spoilt == "link":
        assert (tmp_path / "elsewhere").read_text() == "theirs\n"
    assert (tmp_path / "note").stat() == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_a_file_of_another_user_is_replaced(tmp_path: Path) -> None:
    call(tmp_path)
    os.chown(tmp_path / "start", 12345, 12345)
    assert call(tmp_path)["paths"] == [str(tmp_path / "start")]
    status = (tmp_path / "start").stat()
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir(mode=0o700)
    (tmp_path / "parts/other").write_text("theirs\n")
    call(tmp_path)
    assert (tmp_path / "parts/other").read_text() == "theirs\n"
    assert (tmp_path / "parts").stat().st_mode & 0o777 == 0o700
