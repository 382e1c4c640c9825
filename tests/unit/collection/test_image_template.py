"""When a template is saved, and what is removed with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Boot, Fork, Machine, template_xml
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import BaseImage, Manifest
from ansible_collections.vmw.worktree.plugins.module_utils.template import Template
from ansible_collections.vmw.worktree.plugins.modules import image_template

MACHINE = Machine("qemu", 4096, 4)
ITSELF = Fork(
    "vmw-template-dev-0123",
    "1d4a46bb-4f6b-4e04-b6b9-6a6d2d0f0e5b",
    "/s/images/g2/templates/.build-0/template.json",
    "/i/t/disk",
    "/i/t/log",
)
PREFIX = "vmw-template-dev-"
IMAGES = Path("/s/images")
XML = template_xml(MACHINE, ITSELF, Boot("/k", "/i", "rw", "/b"), "")


def manifest(cmdline: str = "rw init=/usr/lib/vmw/init") -> Manifest:
    return Manifest(1, "g", "", BaseImage("", ""), "", "", cmdline, "", "", 1, "claude", "")


class Connection:
    """A libvirt of some version with some domains."""

    def __init__(self, libvirt: int = 11_003_000, qemu: int = 10_000_000, domains: tuple[Any, ...] = ()) -> None:
        self.libvirt = libvirt
        self.qemu = qemu
        self.domains = domains

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return self.libvirt

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        return self.qemu

    def listAllDomains(self) -> tuple[Any, ...]:  # noqa: N802 - libvirt's name
        return self.domains


class Domain:
    """A domain."""

    def __init__(self, name: str, xml: str = "", *, active: bool = True) -> None:
        self._name = name
        self.xml = xml
        self.active = active

    def name(self) -> str:
        return self._name

    def XMLDesc(self) -> str:  # noqa: N802 - libvirt's name
        return self.xml

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def destroy(self) -> None:
        self.active = False


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_template, "libvirt", Libvirt)


def test_a_host_of_today_can_save_one() -> None:
    assert image_template.obstacle(manifest(), Connection()) == ""  # type: ignore[no-untyped-call, unused-ignore]


@pytest.mark.parametrize("connection", [Connection(libvirt=10_000_000), Connection(qemu=8_002_002)])
def test_an_older_one_cannot(connection: Connection) -> None:
    assert "libvirt 11.2 and QEMU 9.0" in image_template.obstacle(manifest(), connection)


def test_an_image_of_before_has_nothing_to_fork() -> None:
    assert "vmw image build" in image_template.obstacle(manifest("ro ds=nocloud"), Connection())


def test_what_an_interrupted_run_left_is_ended() -> None:
    mine, other = Domain(ITSELF.name, XML), Domain("other")
    image_template.remove_leftovers(Connection(domains=(other, mine)), IMAGES, PREFIX)
    assert (mine.active, other.active) == (False, True)


def test_what_was_left_of_another_size_is_ended_too() -> None:
    left = Domain(f"{PREFIX}4567", XML)
    image_template.remove_leftovers(Connection(domains=(left,)), IMAGES, PREFIX)
    assert not left.active


def test_a_template_of_another_place_that_is_being_made_goes_on() -> None:
    foreign = Domain(f"{PREFIX}4567", XML.replace("/s/images", "/elsewhere/images"))
    image_template.remove_leftovers(Connection(domains=(foreign,)), IMAGES, PREFIX)
    assert foreign.active


def test_a_vm_that_is_named_like_a_template_stays() -> None:
    vm = Domain(f"{PREFIX}4567", XML.replace("/s/images/g2", "/s/instances"))
    image_template.remove_leftovers(Connection(domains=(vm,)), IMAGES, PREFIX)
    assert vm.active


def test_what_was_left_of_an_earlier_generation_is_ended_too() -> None:
    left = Domain(ITSELF.name, XML.replace("/g2/", "/g1/"))
    image_template.remove_leftovers(Connection(domains=(left,)), IMAGES, PREFIX)
    assert not left.active


@pytest.mark.parametrize("xml", ["<domain/>", XML.replace("/s/images", "/home/other/images")])
def test_a_foreign_domain_of_that_name_stays(xml: str) -> None:
    foreign = Domain(ITSELF.name, xml)
    image_template.remove_leftovers(Connection(domains=(foreign,)), IMAGES, PREFIX)
    assert foreign.active


def test_a_generation_has_one_template(tmp_path: Path) -> None:
    current = Template(tmp_path, "0123")
    for key in ("0123", "old", "broken"):
        Template(tmp_path, key).directory.mkdir(parents=True)
    Template(tmp_path, "half").build_directory.mkdir()
    (tmp_path / "templates/note").touch()
    assert [path.name for path in image_template.others(current)] == [".build-half", "broken", "old"]


class Caller:
    """Somebody who waits."""

    def check(self) -> None:
        """Wait on."""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what the agent answers to the question whether the system is up, one after the other."""
    answers: list[object] = []
    monkeypatch.setattr(image_template, "libvirt", Libvirt)
    monkeypatch.setattr(image_template, "POLL_SECONDS", 0)

    def start(*_arguments: object) -> int:
        if answers and isinstance(answers[0], Exception):
            raise answers.pop(0)  # type: ignore[misc]
        return 7

    monkeypatch.setattr(guest_agent, "start", start)
    monkeypatch.setattr(guest_agent, "ended", lambda _domain, _pid: answers.pop(0))
    return answers


def test_a_template_is_ready_when_its_system_is_up(tmp_path: Path, answers: list[object]) -> None:
    answers += [LibvirtError("not connected"), None, None, guest_agent.Ended(0, "running\n")]
    image_template.await_system(Domain("t"), tmp_path / "log", 60, Caller())  # type: ignore[arg-type]
    assert answers == []


def test_a_template_that_does_not_boot_is_told_at_once(tmp_path: Path, answers: list[object]) -> None:
    (tmp_path / "log").write_text("Kernel panic - not syncing: no root\n")
    with pytest.raises(VmwError, match="no root"):
        image_template.await_system(Domain("t"), tmp_path / "log", 60, Caller())  # type: ignore[arg-type]


@pytest.mark.parametrize(("active", "timeout"), [(False, 60), (True, -1)])
def test_a_template_that_goes_off_or_takes_too_long_is_given_up(
    tmp_path: Path, answers: list[object], timeout: int, *, active: bool
) -> None:
    with pytest.raises(VmwError, match="went off, or took too long"):
        image_template.await_system(Domain("t", active=active), tmp_path / "log", timeout, Caller())  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [0, 2])
def test_an_image_whose_forks_could_not_be_completed_has_no_template(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    ended = guest_agent.Ended(status, "identity: 1: .: Illegal option --\x1b\n")
    monkeypatch.setattr(guest_agent, "call", lambda _domain, *_argv, timeout: ended if timeout == 60 else None)
    if status:
        with pytest.raises(VmwError, match="image build") as caught:
            image_template.settle(Domain("t"), 60)
        assert "Illegal option" in caught.value.message
        assert "\x1b" not in caught.value.message
    else:
        image_template.settle(Domain("t"), 60)


@pytest.mark.parametrize("check_mode", [True, False])
def test_what_would_be_saved_is_told_where_libvirt_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, check_mode: bool
) -> None:
    def connect(_uri: str) -> None:
        message = "Python's libvirt module is not installed"
        raise VmwError(message, code="host_not_ready")

    monkeypatch.setattr(image_template, "current_generation", lambda _state: manifest())
    monkeypatch.setattr(image_template, "connect", connect)
    values = {"state_dir": str(tmp_path), "libvirt_uri": "qemu:///system", "virt_type": "qemu", "memory_mib": 4096, "vcpus": 4}
    called = SimpleNamespace(params=values, check_mode=check_mode)
    if check_mode:
        assert image_template.provide(called) == {"changed": True}
    else:
        with pytest.raises(VmwError, match="libvirt module"):
            image_template.provide(called)
