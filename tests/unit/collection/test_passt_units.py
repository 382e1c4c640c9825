"""The units of passt: what they say, and how they come and go."""

from __future__ import annotations

import configparser
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import passt_units, session, user_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    """Stands for the user's service manager: it starts what it is told to, and notes it."""

    def __init__(self, units: Path) -> None:
        self.units = units
        self.calls: list[tuple[str, ...]] = []
        self.loaded: list[str] = []
        self.active = False
        self.socket: Path | None = None

    def systemctl(self, *argv: str) -> str:
        self.calls.append(argv)
        if argv[0] == "show":
            state = "active" if self.active else "inactive"
            return f"ActiveState={state}\n" if "ActiveState" in argv[1] else "NeedDaemonReload=no\n"
        if argv[0] == "enable":
            self.active = True
            link = self.units / passt_units.WANTS / argv[-1]
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(self.units / argv[-1])
            if self.socket:
                self.socket.touch()
        return ""

    def loaded_units(self, _units: list[str]) -> list[str]:
        return self.loaded


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "vmw").mkdir()
    manager = Manager(tmp_path / "units")
    manager.socket = tmp_path / "vmw/one-net.sock"
    monkeypatch.setattr(passt_units, "unit_directory", lambda: manager.units)
    monkeypatch.setattr(passt_units, "systemctl", manager.systemctl)
    monkeypatch.setattr(user_units, "systemctl", manager.systemctl)
    monkeypatch.setattr(passt_units, "loaded_units", manager.loaded_units)
    return manager


def parsed(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return parser


def option(name: str, ssh_port: int = 22017) -> str:
    argv = passt_units.command_line(ssh_port)
    assert argv.count(name) == 1
    return argv[argv.index(name) + 1]


def test_one_port_of_the_loopback_leads_in_and_nothing_else() -> None:
    assert option("--tcp-ports") == "127.0.0.1/22017:22"
    assert option("--udp-ports") == "none"
    assert option("--tcp-ports", 0) == "none"


def test_no_address_leads_to_the_hosts_loopback() -> None:
    assert option("--map-host-loopback") == "none"
    assert option("--map-guest-addr") == "none"


def test_the_host_resolves_names() -> None:
    assert option("--dns-forward") == passt_units.RESOLVER
    # With it, passt would not read the host's name servers.
    assert "--dns" not in passt_units.command_line(1)


def test_each_connection_of_qemu_gets_a_passt_of_its_own(manager: Manager) -> None:
    socket = parsed(passt_units.socket_unit("one"))["Socket"]
    assert socket["ListenStream"] == passt_units.socket_path("one") == f"{session.socket_directory()}/one-net.sock"
    assert (socket["Accept"], socket["SocketMode"]) == ("yes", "0600")
    service = parsed(passt_units.service_unit("one", 22017))["Service"]
    assert service["ExecStart"].split() == passt_units.command_line(22017)


def test_the_network_is_served_once(manager: Manager) -> None:
    assert passt_units.present("one", 22017, check_mode=True)
    assert not manager.units.exists()
    assert passt_units.present("one", 22017)
    assert not passt_units.present("one", 22017)
    assert not passt_units.present("one", 22017, check_mode=True)
    assert sorted(path.name for path in manager.units.glob("vmw-*")) == ["vmw-one-net.socket", "vmw-one-net@.service"]
    assert manager.calls.count(("enable", "--now", "--quiet", "vmw-one-net.socket")) == 1


@pytest.mark.parametrize("lost", ["socket", "link", "state"])
def test_what_does_not_listen_is_started_again(manager: Manager, lost: str) -> None:
    assert manager.socket
    passt_units.present("one", 22017)
    if lost == "socket":
        manager.socket.unlink()
    elif lost == "link":
        (manager.units / passt_units.WANTS / "vmw-one-net.socket").unlink()
    else:
        manager.active = False
    assert passt_units.present("one", 22017)
    assert not passt_units.present("one", 22017)


def test_another_port_is_written_and_loaded(manager: Manager) -> None:
    passt_units.present("one", 22017)
    manager.calls.clear()
    assert passt_units.present("one", 22018)
    assert ("daemon-reload",) in manager.calls
    assert "127.0.0.1/22018:22" in (manager.units / "vmw-one-net@.service").read_text()


def test_everything_goes_by_exact_name(manager: Manager) -> None:
    passt_units.present("one", 22017)
    passt_units.present("one-net", 22018)
    manager.loaded = ["vmw-one-net.socket", "vmw-one-net@0-1-1.service"]
    assert passt_units.absent("one", check_mode=True)
    assert (manager.units / "vmw-one-net.socket").exists()
    assert passt_units.absent("one")
    assert ("stop", "vmw-one-net.socket", "vmw-one-net@0-1-1.service") in manager.calls
    left = sorted(path.name for path in manager.units.rglob("vmw-*"))
    assert left == ["vmw-one-net-net.socket", "vmw-one-net-net.socket", "vmw-one-net-net@.service"]
    manager.loaded = []
    assert not passt_units.absent("one")


def test_a_passt_is_replaced(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt_units, "SETTLE_SECONDS", 0)
    answers = [["vmw-one-net@0-1-1.service"], [], ["vmw-one-net@1-1-1.service"]]
    monkeypatch.setattr(passt_units, "loaded_units", lambda _units: answers.pop(0))
    passt_units.renew("one")
    assert manager.calls == [("stop", "vmw-one-net@0-1-1.service")]
    assert answers == []


def test_a_network_that_does_not_come_back_is_told(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passt_units, "RENEW_SECONDS", 0)
    with pytest.raises(VmwError, match="does not connect"):
        passt_units.renew("one")
