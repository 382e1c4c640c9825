"""The module that has the user's own libvirt run apart from any login."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import NEEDED_OPTIONS
from ansible_collections.vmw.worktree.plugins.modules import session_libvirt

if TYPE_CHECKING:
    from collections.abc import Iterator


class Host:
    """A machine with a libvirt and a passt."""

    def __init__(self, root: Path) -> None:
        self.units = root / "units"
        self.calls: list[tuple[str, ...]] = []
        self.active = False
        self.passt = " ".join(NEEDED_OPTIONS)
        self.vms = ""

    def systemctl(self, *argv: str) -> str:
        self.calls.append(argv)
        if argv[0] == "enable":
            self.active = True
        return f"ActiveState={'active' if self.active else 'inactive'}\n" if argv[0] == "show" else ""

    def command(self, *argv: str) -> str:
        return self.passt if argv[1] == "--help" else self.vms


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    (tmp_path / "libvirt").mkdir()
    (tmp_path / "libvirtd").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(session_libvirt, "DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(session_libvirt, "unit_directory", lambda: host.units)
    monkeypatch.setattr(session_libvirt, "systemctl", host.systemctl)
    monkeypatch.setattr(session_libvirt, "command", host.command)
    return host


@pytest.fixture
def daemon(tmp_path: Path, host: Host) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that has the daemon's name and its file."""
    program = tmp_path / "libvirtd"
    program.unlink()
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    # It has the name a moment after it was started.
    while Path(f"/proc/{process.pid}/comm").read_text() != "libvirtd\n":
        time.sleep(0.01)
    (tmp_path / "libvirt/libvirtd.pid").write_text(f"{process.pid}\n")
    yield process
    process.kill()
    process.wait()


def provide(*, check_mode: bool = False) -> dict[str, Any]:
    module: Any = SimpleNamespace(check_mode=check_mode, params={})
    return session_libvirt.provide(module)


def test_the_second_run_changes_nothing(host: Host, tmp_path: Path) -> None:
    assert provide(check_mode=True)["changed"]
    assert not host.units.exists()
    assert provide() == {"changed": True, "daemon": f"{tmp_path}/libvirtd"}
    assert provide() == {"changed": False, "daemon": f"{tmp_path}/libvirtd"}
    assert sorted(path.name for path in host.units.iterdir()) == ["vmw-libvirt.service", "vmw-libvirt.socket"]
    assert [call for call in host.calls if call[0] == "enable"] == [("enable", "--now", "--quiet", "vmw-libvirt.socket")]


def test_the_daemon_for_qemu_alone_is_preferred(host: Host, tmp_path: Path) -> None:
    (tmp_path / "virtqemud").touch()
    assert provide()["daemon"] == f"{tmp_path}/virtqemud"
    assert "virtqemud-sock" in (host.units / "vmw-libvirt.socket").read_text()


def test_a_machine_without_libvirt(host: Host, tmp_path: Path) -> None:
    (tmp_path / "libvirtd").unlink()
    assert provide(check_mode=True) == {"changed": True, "daemon": ""}
    with pytest.raises(VmwError, match="not installed") as caught:
        provide()
    assert caught.value.code == "host_not_ready"


def test_a_passt_that_is_too_old(host: Host) -> None:
    host.passt = NEEDED_OPTIONS[1]
    with pytest.raises(VmwError, match=f"lacks {NEEDED_OPTIONS[0]}"):
        provide()
    assert not host.units.exists()


def test_a_libvirt_without_vms_makes_room(host: Host, daemon: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    # A child of this process stays, as one that has ended, until it is waited for.
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: (kill(pid, number), daemon.wait(10)))
    assert session_libvirt.others() == [daemon.pid]
    provide()
    assert daemon.returncode == -15
    assert host.active


def test_a_libvirt_with_vms_stays(host: Host, daemon: subprocess.Popen[bytes]) -> None:
    host.vms = "mine\n"
    with pytest.raises(VmwError, match="some program has started") as caught:
        provide()
    assert caught.value.code == "conflict"
    assert daemon.poll() is None
    assert not host.active


def test_a_file_of_a_daemon_that_is_gone_says_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "libvirt/libvirtd.pid").write_text(f"{os.getpid()}\n")
    assert session_libvirt.others() == []
