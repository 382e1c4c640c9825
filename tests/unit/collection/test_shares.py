"""The units on disk."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import user_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import NO_LINK, Bind, Mirror, ShareSpec
from ansible_collections.vmw.worktree.plugins.modules import shares

if TYPE_CHECKING:
    from pathlib import Path

SHARES = [ShareSpec("vmw:repo", "/w", read_only=False), ShareSpec("vmw:secrets", "/s", read_only=True)]


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for the user's units, with a virtiofsd that knows every option."""
    monkeypatch.setattr(shares, "unit_directory", lambda: tmp_path / "units")
    monkeypatch.setattr(shares, "find_virtiofsd", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setattr(shares, "command", lambda *_argv: "--readonly --translate-uid --translate-gid")
    return tmp_path / "units"


def test_every_unit_is_written_at_once(units: Path) -> None:
    assert shares.write_units("n", "/run/vmw/me", SHARES, check_mode=False)
    assert sorted(path.name for path in units.iterdir()) == [
        "vmw-n-repo.service",
        "vmw-n-repo.socket",
        "vmw-n-secrets.service",
        "vmw-n-secrets.socket",
    ]
    assert not shares.write_units("n", "/run/vmw/me", SHARES, check_mode=False)


def test_a_link_in_the_place_of_a_worktree_is_not_followed(tmp_path: Path) -> None:
    worktree, keys = tmp_path / "w", tmp_path / ".ssh"
    worktree.mkdir()
    share = ShareSpec("vmw:repo", str(worktree), read_only=False)
    assert shares.spec_of(share, "n").path == str(worktree)
    worktree.rmdir()
    with pytest.raises(VmwError, match="is gone"):
        shares.spec_of(share, "n")
    keys.mkdir()
    worktree.symlink_to(keys)
    with pytest.raises(VmwError, match=f"leads to {keys}") as caught:
        shares.spec_of(share, "n")
    assert caught.value.code == "conflict"
    # A guest may have written a repository before that was protected.
    with pytest.raises(VmwError, match=f"leads to {keys}"):
        shares.spec_of(replace(share, tag="vmw:git", read_only=True), "n")
    # The secrets, which no guest can change, may stand behind a link of the user's own.
    assert shares.spec_of(replace(share, tag="vmw:secrets", read_only=True), "n").path == str(keys)


def test_what_stands_in_a_share_is_looked_at_too(tmp_path: Path) -> None:
    worktree, mask = tmp_path / "w", tmp_path / "mask"
    worktree.mkdir()
    share = ShareSpec("vmw:repo", str(worktree), read_only=False, binds=(Bind(str(mask), ".git", read_only=True),))
    with pytest.raises(VmwError, match=r"mask.* is gone"):
        shares.spec_of(share, "n")
    mask.symlink_to("/etc/passwd")
    with pytest.raises(VmwError, match="leads to /etc/passwd"):
        shares.spec_of(share, "n")
    mask.unlink()
    mask.touch()
    assert shares.spec_of(share, "n") == share


def test_the_daemon_itself_refuses_a_link(tmp_path: Path) -> None:
    (tmp_path / "a $b").mkdir()
    (tmp_path / "link").symlink_to("a $b")
    for path, code in ((tmp_path / "a $b", 0), (tmp_path / "link", 1), (tmp_path / "gone", 1)):
        assert subprocess.run(["sh", "-c", NO_LINK, "sh", path], stderr=subprocess.DEVNULL, check=False).returncode == code


class Module:
    """Stand for the module's side of Ansible."""

    check_mode = False

    def __init__(self, runtime_dir: Path) -> None:
        self.params = {"name": "n", "state_dir": str(runtime_dir / "state"), "runtime_dir": str(runtime_dir)}


def absent(module: Module) -> dict[str, Any]:
    return shares.absent(module)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand for the user's service manager: it holds one socket unit, and notes what it is told."""
    told: list[list[str]] = []

    def systemctl(*argv: str) -> str:
        told.append(list(argv))
        if argv[0] != "list-units":
            return ""
        return "vmw-n-repo.socket loaded active listening x\nvmw-n-secrets.socket not-found inactive dead x\n"

    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd/private").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(shares, "systemctl", systemctl)
    monkeypatch.setattr(user_units, "systemctl", systemctl)
    return told


def test_removal_takes_units_links_and_sockets_of_this_vm_alone(units: Path, tmp_path: Path, manager: list[list[str]]) -> None:
    shares.write_units("n", str(tmp_path), SHARES, check_mode=False)
    shares.write_units("n-2", str(tmp_path), SHARES, check_mode=False)
    (units / "sockets.target.wants").mkdir()
    (units / "sockets.target.wants/vmw-n-repo.socket").symlink_to(units / "vmw-n-repo.socket")
    (tmp_path / "n-repo.sock").touch()
    assert absent(Module(tmp_path)) == {"changed": True}
    assert ["stop", "vmw-n-repo.socket"] in manager
    assert ["daemon-reload"] in manager
    left = sorted(path.name for path in units.iterdir())
    assert left == [
        "sockets.target.wants",
        "vmw-n-2-repo.service",
        "vmw-n-2-repo.socket",
        "vmw-n-2-secrets.service",
        "vmw-n-2-secrets.socket",
    ]
    assert not list((units / "sockets.target.wants").iterdir())
    assert not (tmp_path / "n-repo.sock").exists()


def test_units_whose_files_are_gone_are_stopped(units: Path, tmp_path: Path, manager: list[list[str]]) -> None:
    assert absent(Module(tmp_path)) == {"changed": True}
    assert ["stop", "vmw-n-repo.socket"] in manager


def test_nothing_left_is_no_change(units: Path, tmp_path: Path, manager: list[list[str]]) -> None:
    (tmp_path / "systemd/private").unlink()
    assert absent(Module(tmp_path)) == {"changed": False}
    assert manager == []


def test_the_units_of_copies_are_written_and_removed(units: Path, tmp_path: Path, manager: list[list[str]]) -> None:
    share = ShareSpec("vmw:git", "/g", read_only=False, mirrors=(Mirror("/g/config", "/m/config"),))
    shares.write_units("n", str(tmp_path), [share], check_mode=False)
    expected = ["vmw-n-git.service", "vmw-n-git.socket", "vmw-n-mirror.service"]
    assert sorted(path.name for path in units.iterdir()) == expected
    assert absent(Module(tmp_path)) == {"changed": True}
    assert not list(units.iterdir())


def test_check_mode_says_and_writes_nothing(units: Path) -> None:
    assert shares.write_units("n", "/run/vmw/me", SHARES, check_mode=True)
    assert not units.exists()
