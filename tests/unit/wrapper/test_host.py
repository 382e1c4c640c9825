from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import packet_filter, share_units

from vmw.services import group, host
from vmw.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def ready(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]) -> Path:
    """Make a machine on which everything is there, below a directory."""
    for program in host.PROGRAMS:
        fake_program(program, "exit 1")
    root = tmp_path / "root"
    for name in ("virtiofsd", "libvirt-sock", "filter-sock"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in (f"run/{host.user_name()}", "net/br0"):
        (root / name).mkdir(parents=True)
    follower = home / ".config/systemd/user/vmw-keys.service"
    follower.parent.mkdir(parents=True)
    follower.touch()
    image = home / ".config" / "vmw" / "images" / "g1" / "disk.qcow2"
    image.parent.mkdir(parents=True)
    image.touch()
    (home / ".config" / "vmw" / "golden-image.qcow2").symlink_to("images/g1/disk.qcow2")
    monkeypatch.setattr(share_units, "VIRTIOFSD_PATHS", (str(root / "virtiofsd"),))
    monkeypatch.setattr(host, "LIBVIRT_SOCKETS", (root / "libvirt-sock",))
    monkeypatch.setattr(packet_filter, "SOCKET", root / "filter-sock")
    monkeypatch.setattr(host, "RUNTIME_BASE", root / "run")
    monkeypatch.setattr(host, "NETWORK_DEVICES", root / "net")
    monkeypatch.setattr(group, "membership", lambda: group.Membership(in_database=True, in_process=False))
    return root


def test_a_machine_that_is_set_up(ready: Path) -> None:
    assert host.missing(Settings()) == []


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("virtiofsd", "virtiofsd is not installed"),
        ("libvirt-sock", "libvirt does not run"),
        ("filter-sock", "the packet filter is not there"),
    ],
)
def test_a_missing_file(ready: Path, what: str, complaint: str) -> None:
    (ready / what).unlink()
    assert host.missing(Settings()) == [complaint]


def test_no_proxy(ready: Path, home: Path) -> None:
    (home / ".config/systemd/user/vmw-keys.service").unlink()
    assert host.missing(Settings()) == ["the proxy that has the API keys is not there"]
    # The user's own libvirt goes without.
    assert "the proxy that has the API keys is not there" not in host.missing(Settings(vmw_libvirt_uri="qemu:///session"))


def test_no_bridge(ready: Path) -> None:
    assert host.missing(Settings(vmw_bridge="br9")) == ["the bridge br9 does not exist"]


def test_a_network_that_is_not_started_will_do(ready: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "printf 'default\\nvmw\\n'")
    assert host.missing(Settings(vmw_bridge="br9")) == []


def test_no_socket_directory(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RUNTIME_BASE", ready / "elsewhere")
    assert len(host.missing(Settings())) == 1


def test_no_golden_image(ready: Path, home: Path) -> None:
    (home / ".config" / "vmw" / "images" / "g1" / "disk.qcow2").unlink()
    assert host.missing(Settings()) == ["there is no golden image"]
    assert host.missing_for_builds(Settings()) == []


def test_not_in_the_group(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "membership", lambda: group.Membership(in_database=False, in_process=False))
    assert host.missing(Settings()) == [f"{host.user_name()} is not in the group libvirt"]


def test_the_users_own_libvirt_takes_less_of_the_host(
    ready: Path, home: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    monkeypatch.setattr(group, "membership", lambda: group.Membership(in_database=False, in_process=False))
    monkeypatch.setattr(host, "LINGER", ready / "linger")
    for gone in ("libvirt-sock", "filter-sock"):
        (ready / gone).unlink()
    (ready / f"run/{host.user_name()}").rmdir()
    settings = Settings(vmw_libvirt_uri="qemu:///session", vmw_bridge="br9")
    assert host.missing(settings) == [
        "passt is not installed",
        "your own libvirt is not set up",
        f"the services of {host.user_name()} end with the login",
    ]
    fake_program("passt", "exit 0")
    unit = home / ".config/systemd/user" / host.SESSION_SOCKET
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.touch()
    (ready / "linger").mkdir()
    (ready / "linger" / host.user_name()).touch()
    assert host.missing(settings) == []


def test_nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find_program", lambda _name: None)
    monkeypatch.setattr(host, "RUNTIME_BASE", tmp_path)
    found = host.missing(Settings())
    assert "virsh is not installed" in found
    assert "there is no golden image" in found
