"""The seed's parts that come from the record."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import read_settings
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import GuestShare
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import ShareSpec
from ansible_collections.vmw.worktree.plugins.modules import seed

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = (
    "Jörg 日本",
    'a "b" c',
    "back\\slash\\",
    "# no comment",
    "; no comment",
    "tab\there",
    "two\nlines",
    "x\n[core]\n\tfsmonitor = touch /tmp/x",
    '"]\n[alias]\n\tst = !x',
    " blanks ",
    "$HOME `id` %n",
    "carriage\rreturn",
    "\\n",
)


def settings(git: GitShare, directory: Path) -> list[tuple[str, str]]:
    """Return the guest's settings as git reads them."""
    file = directory / "gitconfig"
    file.write_text(seed.git_config(git), newline="")
    return read_settings(file)


@pytest.mark.parametrize("value", HOSTILE)
def test_any_name_comes_back_as_it_was(tmp_path: Path, value: str) -> None:
    assert settings(GitShare(user_name=value, user_email=value), tmp_path) == [
        ("safe.directory", "*"),
        ("user.name", value),
        ("user.email", value),
    ]


def test_without_a_name_git_asks_for_one(tmp_path: Path) -> None:
    assert settings(GitShare(), tmp_path) == [("safe.directory", "*")]


def test_half_a_name_is_taken_too(tmp_path: Path) -> None:
    assert ("user.email", "a@b") in settings(GitShare(user_email="a@b"), tmp_path)
    assert "user.name" not in dict(settings(GitShare(user_email="a@b"), tmp_path))


@pytest.mark.parametrize(("mode", "expected"), [("protected", True), ("isolated", False), ("none", False)])
def test_git_is_kept_from_cleaning_up_where_the_host_owns_the_repository(tmp_path: Path, mode: str, *, expected: bool) -> None:
    found = dict(settings(GitShare(mode=mode), tmp_path))
    assert ("gc.auto" in found) == ("maintenance.auto" in found) == ("gc.worktreepruneexpire" in found) == expected


def unescaped(field: str) -> str:
    """Read a field as fstab(5) says: three octal digits after a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


@pytest.mark.parametrize("path", ["/a b", "/a  b ", "/a#b", "/#a", "/a\\b", "/a\\040b", "/a\\", "/日本/a:b,c"])
def test_a_mountpoint_is_one_field_and_means_the_same(path: str) -> None:
    field = seed.fstab_path(path)
    assert unescaped(field) == path
    assert not re.search(r"[\s#]", field)


def mount(mountpoint: str) -> list[str]:
    (line,) = seed.mounts([GuestShare(ShareSpec("vmw:git", "/x", read_only=False), mountpoint)])
    return line


def test_a_mount_has_every_field() -> None:
    assert mount("/srv/repo") == ["vmw:git", "/srv/repo", "virtiofs", "rw,nosuid,nodev,nofail", "0", "0"]


@pytest.mark.parametrize(("path", "expected"), [("/srv/repo", False), ("/srv/a b", True), ("/srv/a#b", True), ("/a\\b", True)])
def test_systemd_makes_the_directory_where_cloud_init_would_make_another(path: str, *, expected: bool) -> None:
    assert ("x-mount.mkdir" in mount(path)[3].split(",")) == expected
