"""The units on disk."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import user_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Keys
from ansible_collections.vmw.worktree.plugins.module_utils.layers import virtiofsd as shares
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import NO_LINK, Bind, Mirror, ShareSpec
from records import recorded

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

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

    def warn(self, warning: str) -> None:
        raise AssertionError(warning)


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
    # Without its file, one that failed would stay in the list.
    assert manager[-2:] == [["daemon-reload"], ["reset-failed", "vmw-n-repo.socke[t]"]]
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


# --- keys that stay on the host ---------------------------------------------------------------------------------------


class Telling(Module):
    """Stand for the module, and note what it warns of."""

    def __init__(self, runtime_dir: Path) -> None:
        super().__init__(runtime_dir)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def proxied(tmp_path: Path) -> tuple[Instance, InstanceFiles]:
    """Record a VM whose keys stay on the host, with its profile and the proxy."""
    path = tmp_path / "w"
    path.mkdir()
    instance, files = recorded(path, tmp_path, "none")
    profile = files.state.secrets_of("default")
    profile.mkdir(mode=0o700, parents=True)
    (profile / "secrets.env").touch(0o600)
    (files.state.root / "proxy").mkdir()
    (files.state.root / "proxy/settings.json").write_text('{"address": "10.0.0.1", "port": 47000}')
    return replace(instance, keys=Keys("proxy")), files


@pytest.mark.parametrize(
    ("secrets", "warnings"),
    [
        ("ANTHROPIC_API_KEY=planted\n#GITHUB_TOKEN=x\nEMPTY=\n", []),
        ("GITHUB_TOKEN=ghp\nB=1\n", ["{} reads GITHUB_TOKEN, B itself: the proxy has no API for that"]),
        ("OPENAI_API_KEY=planted b\n", ["{} does not get OPENAI_API_KEY: a key has no blanks and only letters of ASCII"]),
        (
            "OPENAI_API_KEY=planted-key\nCOPY=planted-key\n",
            ["{} does not get COPY: the value of a key that stays on the host stands in it"],
        ),
        (
            "OPENAI_API_KEY=planted\nOPENAI_BASE_URL=ftp://h\n",
            ["the proxy refuses what {} asks for: OPENAI_BASE_URL is no http:// or https:// address"],
        ),
    ],
)
def test_what_the_proxy_does_not_do_is_told_by_name(
    proxied: tuple[Instance, InstanceFiles], tmp_path: Path, secrets: str, warnings: list[str]
) -> None:
    instance, files = proxied
    (files.state.secrets_of("default") / "secrets.env").write_text(secrets)
    module = Telling(tmp_path)
    shares.hide_keys(module, instance, files)
    assert module.warnings == [words.format(instance.name) for words in warnings]
    assert "planted" not in (files.guest_secrets / "secrets.env").read_text()


def test_a_proxy_that_nobody_reaches_any_more_is_told(
    proxied: tuple[Instance, InstanceFiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, files = proxied
    for address, words in (("10.0.0.1", []), ("10.0.0.2", ["br0 has the address 10.0.0.2 by now; run `vmw host`"])):
        monkeypatch.setattr(shares, "bridge_address", lambda _bridge, address=address: address)
        module = Telling(tmp_path)
        shares.hide_keys(module, instance, files)
        assert [text.partition(": ")[2] for text in module.warnings] == words


def test_without_a_proxy_the_user_is_told_what_makes_one(proxied: tuple[Instance, InstanceFiles], tmp_path: Path) -> None:
    instance, files = proxied
    (files.state.root / "proxy/settings.json").unlink()
    with pytest.raises(VmwError, match="not set up") as caught:
        shares.hide_keys(Telling(tmp_path), instance, files)
    assert caught.value.code == "host_not_ready"
    assert "vmw host" in caught.value.hint
    assert "--keys file" in caught.value.hint


def test_check_mode_says_and_writes_nothing(units: Path) -> None:
    assert shares.write_units("n", "/run/vmw/me", SHARES, check_mode=True)
    assert not units.exists()
