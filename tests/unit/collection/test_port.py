"""What the module `port` does to units, with a service manager that only notes what it is told."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import user_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import Port, all_published
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import port
from records import record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WANTS = "vmw-one-repo.service.wants"


@pytest.fixture
def free() -> int:
    """Return a port of the host that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Manager:
    """The user's service manager: which units are active, and what it was told."""

    units: Path
    active: set[str] = field(default_factory=set)
    told: list[list[str]] = field(default_factory=list)
    reachable: bool = True

    def __call__(self, *argv: str) -> str:
        if argv[0] == "show":
            if "NeedDaemonReload" in argv[1]:
                return "NeedDaemonReload=no\n"
            return "\n\n".join(f"ActiveState={'active' if unit in self.active else 'inactive'}" for unit in argv[2:])
        if argv[0] == "list-units":
            return "".join(f"{unit} loaded active running x\n" for unit in sorted(self.active))
        self.told.append(list(argv))
        unit = argv[-1]
        if argv[0] == "enable":
            (self.units / WANTS).mkdir(exist_ok=True)
            (self.units / WANTS / unit).symlink_to(self.units / unit)
        if argv[0] == "restart":
            if not self.reachable:
                message = "`systemctl` failed"
                raise VmwError(message)
            self.active.add(unit)
        if argv[0] == "stop":
            self.active.difference_update(argv[1:])
        return ""


@dataclass
class Module:
    """Stand for the module's side of Ansible."""

    params: dict[str, Any]
    check_mode: bool = False
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    """Give a home with the VM `one`, whose share is not served."""
    units = tmp_path / ".config/systemd/user"
    stand_in = Manager(units)
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/private").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(port, "systemctl", stand_in)
    monkeypatch.setattr(user_units, "systemctl", stand_in)
    monkeypatch.setattr(port, "complaint", lambda _unit: "Permission denied (publickey).")
    files = InstanceFiles(State(tmp_path / "vmw"), "one")
    files.save(record())
    return stand_in


def module(manager: Manager, spec: str | None, *, name: str = "one", check_mode: bool = False) -> Module:
    state_dir = str(manager.units.parents[2] / "vmw")
    return Module({"name": name, "state_dir": state_dir, "port": spec}, check_mode)


def publish(manager: Manager, spec: str, *, check_mode: bool = False) -> dict[str, Any]:
    return port.present(module(manager, spec, check_mode=check_mode))


def remove(manager: Manager, spec: str | None, *, name: str = "one", check_mode: bool = False) -> dict[str, Any]:
    return port.absent(module(manager, spec, name=name, check_mode=check_mode))


def test_a_port_of_a_vm_that_is_off_waits_for_it(manager: Manager, free: int) -> None:
    result = publish(manager, f"3000:{free}")
    assert result["changed"]
    assert (result["guest_port"], result["host_port"]) == (3000, free)
    assert not result["running"]
    assert not result["listening"]
    assert result["diff"] == {"before": "", "after": f"127.0.0.1:{free} -> 3000\n"}
    unit = f"vmw-one-port-{free}.service"
    # Started it would bring the share's daemon with it.
    assert manager.told == [["daemon-reload"], ["enable", "--quiet", unit]]
    assert [each.port for each in all_published(manager.units)] == [Port(free, 3000)]
    assert not publish(manager, f"3000:{free}")["changed"]


def test_a_port_of_a_running_vm_is_open_at_once(manager: Manager, free: int) -> None:
    manager.active.add("vmw-one-repo.service")
    assert publish(manager, f"3000:{free}")["listening"]
    assert manager.told[-1] == ["restart", f"vmw-one-port-{free}.service"]
    told = len(manager.told)
    again = publish(manager, f"3000:{free}")
    assert not again["changed"]
    assert again["listening"]
    assert len(manager.told) == told


def test_a_port_that_was_stopped_by_hand_is_opened_again(manager: Manager, free: int) -> None:
    manager.active.add("vmw-one-repo.service")
    publish(manager, f"3000:{free}")
    manager.active.discard(f"vmw-one-port-{free}.service")
    again = publish(manager, f"3000:{free}")
    assert again["changed"]
    assert again["listening"]


def test_ssh_that_is_refused_is_told_with_its_remedy(manager: Manager, free: int) -> None:
    manager.active.add("vmw-one-repo.service")
    manager.reachable = False
    asked = module(manager, f"3000:{free}")
    result = port.present(asked)
    assert result["changed"]
    assert not result["listening"]
    assert "Permission denied" in asked.warnings[0]
    assert "import-environment SSH_AUTH_SOCK" in asked.warnings[0]


def test_check_mode_says_and_writes_nothing(manager: Manager, free: int) -> None:
    result = publish(manager, f"3000:{free}", check_mode=True)
    assert result["changed"]
    assert result["diff"]["after"] == f"127.0.0.1:{free} -> 3000\n"
    assert not manager.units.exists()
    assert manager.told == []
    publish(manager, f"3000:{free}")
    assert not publish(manager, f"3000:{free}", check_mode=True)["changed"]
    assert remove(manager, f"3000:{free}", check_mode=True)["changed"]
    assert len(all_published(manager.units)) == 1


def test_a_half_written_port_is_completed(manager: Manager, free: int) -> None:
    publish(manager, f"3000:{free}")
    (manager.units / WANTS / f"vmw-one-port-{free}.service").unlink()
    assert publish(manager, f"3000:{free}")["changed"]
    assert (manager.units / WANTS / f"vmw-one-port-{free}.service").is_symlink()


@pytest.fixture
def taken() -> Iterator[int]:
    """Give a port of the host at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_another_program_has_is_refused(manager: Manager, taken: int) -> None:
    for check_mode in (True, False):
        with pytest.raises(VmwError, match=f"port {taken} of the host is taken by another program") as caught:
            publish(manager, f"3000:{taken}", check_mode=check_mode)
        assert caught.value.code == "conflict"
        assert "3000:PORT" in caught.value.hint
    assert all_published(manager.units) == []


def test_our_own_listener_is_not_in_the_way(manager: Manager, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "can_bind", lambda _address, _port: True)
    manager.active.add("vmw-one-repo.service")
    publish(manager, f"3000:{taken}")
    monkeypatch.undo()
    monkeypatch.setattr(port, "systemctl", manager)
    monkeypatch.setenv("HOME", str(manager.units.parents[2]))
    assert not publish(manager, f"3000:{taken}")["changed"]


def test_a_port_that_another_vm_has_is_refused(manager: Manager, free: int) -> None:
    publish(manager, f"3000:{free}")
    InstanceFiles(State(manager.units.parents[2] / "vmw"), "two").save(record())
    with pytest.raises(VmwError, match=f"port {free} of the host is taken: port 3000 of one is published there") as caught:
        port.present(module(manager, f"80:{free}", name="two"))
    assert caught.value.code == "conflict"
    assert f"vmw port one 3000:{free} --remove" in caught.value.hint


def test_a_host_port_leads_to_one_guest_port(manager: Manager, free: int) -> None:
    publish(manager, f"3000:{free}")
    with pytest.raises(VmwError, match="is taken: port 3000 of one"):
        publish(manager, f"4000:{free}")


def test_a_unit_of_somebody_elses_is_left_alone(manager: Manager, free: int) -> None:
    manager.units.mkdir(parents=True)
    foreign = manager.units / f"vmw-one-port-{free}.service"
    foreign.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(VmwError, match="was not written by vmw") as caught:
        publish(manager, f"3000:{free}")
    assert caught.value.code == "conflict"
    manager.active.add(foreign.name)
    assert remove(manager, None) == {"changed": False, "removed": [], "diff": {"before": "", "after": ""}}
    assert foreign.exists()
    assert foreign.name in manager.active


def test_nothing_is_published_for_a_vm_that_is_leaving_or_unknown(manager: Manager, free: int) -> None:
    InstanceFiles(State(manager.units.parents[2] / "vmw"), "one").leaving.touch()
    with pytest.raises(VmwError, match="is being removed"):
        publish(manager, f"3000:{free}")
    for name in ("nobody", "../one", "one\n", "", "One"):
        with pytest.raises(VmwError, match="there is no VM named") as caught:
            port.present(module(manager, "3000", name=name))
        assert caught.value.code == "not_found"
    assert not manager.units.exists()


def test_one_port_is_removed_and_the_others_stay(manager: Manager, free: int) -> None:
    manager.active.add("vmw-one-repo.service")
    publish(manager, f"3000:{free}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        second = int(probe.getsockname()[1])
    publish(manager, f"4000:{second}")
    result = remove(manager, "3000")
    assert result["changed"]
    assert result["removed"] == [f"3000:{free}"]
    assert manager.active == {"vmw-one-repo.service", f"vmw-one-port-{second}.service"}
    assert sorted(path.name for path in (manager.units / WANTS).iterdir()) == [f"vmw-one-port-{second}.service"]
    assert [each.port for each in all_published(manager.units)] == [Port(second, 4000)]
    again = remove(manager, "3000")
    assert not again["changed"]
    assert again["removed"] == []
    with pytest.raises(VmwError, match="is no port"):
        remove(manager, "")
    assert len(all_published(manager.units)) == 1


def test_all_ports_go_with_the_vm_and_no_other_units(manager: Manager, free: int) -> None:
    manager.active.add("vmw-one-repo.service")
    publish(manager, f"3000:{free}")
    # Those of the VM `one-port-x`, which the pattern fits too.
    others = [
        "vmw-one-port-x-repo.service",
        "vmw-one-port-x-repo.socket",
        "vmw-one-repo.service",
        "vmw-one-two-port-9000.service",
    ]
    for other in others:
        (manager.units / other).write_text("[Service]\n")
        manager.active.add(other)
    left = manager.units / WANTS / "vmw-one-port-9999.service"
    left.symlink_to("nothing")
    assert remove(manager, None)["removed"] == [f"3000:{free}"]
    assert sorted(path.name for path in manager.units.iterdir()) == sorted(others)
    assert manager.active == set(others)
    assert remove(manager, None)["changed"] is False


def test_a_unit_whose_file_is_gone_is_stopped(manager: Manager, free: int) -> None:
    manager.active.add(f"vmw-one-port-{free}.service")
    assert remove(manager, None)["changed"]
    assert ["stop", f"vmw-one-port-{free}.service"] in manager.told


def test_nothing_left_is_no_change_and_makes_no_directory(manager: Manager, tmp_path: Path) -> None:
    gone = Module({"name": "one", "state_dir": str(tmp_path / "none"), "port": None})
    assert port.absent(gone)["changed"] is False
    assert not (tmp_path / "none").exists()


def test_links_of_others_keep_their_directory(manager: Manager, free: int) -> None:
    publish(manager, f"3000:{free}")
    own = manager.units / WANTS / "mine.service"
    own.symlink_to("/home/dev/mine.service")
    remove(manager, None)
    assert own.is_symlink()


def test_what_ssh_said_is_bounded_and_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "command", lambda *_argv: "\x1b[2Jbad\n\n" + "x" * 9000)
    said = port.complaint("vmw-one-port-8080.service")
    assert len(said) == port.SAID_LENGTH
    assert "\x1b" not in said

    def fails(*_argv: str) -> str:
        message = "`journalctl` is not installed"
        raise VmwError(message)

    monkeypatch.setattr(port, "command", fails)
    assert port.complaint("vmw-one-port-8080.service") == ""
