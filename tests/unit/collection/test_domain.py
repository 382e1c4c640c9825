"""How a recorded VM is started, with a libvirt that only notes what it is asked."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import fork, guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import tap_of
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.fork import Progress
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers import domain as module
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from libvirt_support import LibvirtError
from records import record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Share
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

OPERATION_INVALID = 55


CARD = (
    "<domain><devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='vmw-1b671a64'/></interface>"
    "</devices></domain>"
)


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name
    VIR_ERR_OPERATION_INVALID = OPERATION_INVALID
    VIR_DOMAIN_UNDEFINE_MANAGED_SAVE = 1
    VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA = 2
    VIR_DOMAIN_UNDEFINE_NVRAM = 4
    VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA = 16
    VIR_DOMAIN_SAVE_IMAGE_XML_SECURE = 1


class Domain:
    """A domain that notes how it is started."""

    def __init__(self, *, active: bool = False, saved: bool = False, error: int = 0, started_by_others: bool = False) -> None:
        self.active = active
        self.saved = saved
        self.error = error
        self.started_by_others = started_by_others
        self.persistent = True
        self.removed: list[str] = []
        self.xml = CARD

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def XMLDesc(self) -> str:  # noqa: N802 - libvirt's name
        return self.xml

    def managedSaveGetXMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return self.xml

    def managedSaveDefineXML(self, xml: str, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.xml = xml

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802 - libvirt's name
        return self.saved

    def isPersistent(self) -> bool:  # noqa: N802 - libvirt's name
        return self.persistent

    def destroy(self) -> None:
        self.active = False
        self.removed.append("destroy")

    def undefineFlags(self, flags: int) -> None:  # noqa: N802 - libvirt's name
        self.removed.append(f"undefine {flags}")

    def create(self) -> None:
        self.active = self.started_by_others or not self.error
        if self.error:
            raise LibvirtError(self.error)


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path), "one")
    files.save(record())
    files.console.write_text("of the boot before")
    return files


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is done with a fork."""
    events: list[str] = []
    monkeypatch.setattr(module, "libvirt", Libvirt)

    def complete(*_arguments: object) -> None:
        events.append("complete")

    def discard(files: InstanceFiles, _instance: Instance, domain: Domain) -> None:
        events.append("discard")
        domain.active = False
        files.fork.unlink()

    monkeypatch.setattr(fork, "complete", complete)
    monkeypatch.setattr(fork, "discard", discard)
    return events


def start(files: InstanceFiles, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[str, str], list[str]]:
    monkeypatch.setattr(module, "find_own_domain", lambda *_arguments: domain)
    if files.fork.exists():
        # It gets its card when it is completed.
        domain.xml = "<domain/>"
    clock = Clock()
    with contextlib.ExitStack() as turns:
        how = module.start(files, object(), [], clock, turns)
    return how, [phase["phase"] for phase in clock.phases]


def test_a_vm_that_runs_is_left_alone(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    how, phases = start(files, Domain(active=True), monkeypatch)
    assert how == ("none", "")
    assert phases == events == []
    assert files.console.read_text() == "of the boot before"


def test_a_vm_that_somebody_starts_while_it_waits_for_its_turn_is_left_alone(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = Domain()

    @contextlib.contextmanager
    def turn(*_arguments: object) -> Iterator[bool]:
        domain.active = True
        yield True

    monkeypatch.setattr(module, "turn", turn)
    how, phases = start(files, domain, monkeypatch)
    assert (how, phases) == (("none", ""), ["wait for a turn"])
    assert files.console.read_text() == "of the boot before"


def test_a_cold_start_has_a_console_log_of_its_own(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = Domain()
    how, phases = start(files, domain, monkeypatch)
    assert how == ("cold", "")
    assert domain.active
    assert phases == ["QEMU start"]
    assert files.console.read_text() == ""
    assert files.console.stat().st_mode & 0o777 == 0o600


def test_a_resumed_vm_keeps_its_console_log(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    how, _ = start(files, Domain(saved=True), monkeypatch)
    assert how == ("resumed", "")
    assert files.console.read_text() == "of the boot before"


def test_a_vm_suspended_before_there_were_policies_goes_on_with_a_card_that_has_one(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = Domain(saved=True)
    domain.xml = CARD.replace("<target dev='vmw-1b671a64'/>", "")
    start(files, domain, monkeypatch)
    assert tap_of(domain.xml, record().mac) == "vmw-1b671a64"


def test_a_loaded_fork_is_completed(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fork.write_progress(files, Progress(fork.LOADED, "", 1.5))
    how, phases = start(files, Domain(active=True), monkeypatch)
    assert how == ("warm", "")
    assert events == ["complete"]
    assert fork.read_progress(files) is None
    assert phases == [
        "wait for the restore",
        "restore, in the background",
    ]


@pytest.mark.parametrize(
    ("progress", "active", "reason"),
    [
        (Progress(fork.FAILED, "load of migration failed"), False, "load of migration failed"),
        (Progress(fork.LOADING), True, "interrupted"),
        (Progress(fork.COMPLETING), True, "interrupted"),
        (Progress(fork.LOADED), False, "interrupted"),
    ],
)
def test_a_fork_that_did_not_come_so_far_is_started_cold(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, progress: Progress, reason: str, *, active: bool
) -> None:
    fork.write_progress(files, progress)
    domain = Domain(active=active)
    (how, why), _ = start(files, domain, monkeypatch)
    assert how == "cold"
    assert reason in why
    assert events == ["discard"]
    assert domain.active


@pytest.mark.parametrize("error", [VmwError("the guest did not take its identity"), LibvirtError(1), OSError("full")])
def test_a_fork_that_cannot_be_completed_is_started_cold(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def complete(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(fork, "complete", complete)
    fork.write_progress(files, Progress(fork.LOADED))
    (how, why), _ = start(files, Domain(active=True), monkeypatch)
    assert (how, why) == ("cold", str(error))
    assert events == ["discard"]


def test_a_fork_that_somebody_has_booted_is_left_alone(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork.write_progress(files, Progress(fork.LOADED))
    domain = Domain(active=True)
    monkeypatch.setattr(module, "find_own_domain", lambda *_arguments: domain)
    with contextlib.ExitStack() as turns:
        how = module.start(files, object(), [], Clock(), turns)
    assert how == ("none", "")
    assert events == []
    assert fork.read_progress(files) is None


def test_somebody_elses_start_may_come_first(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    how, _ = start(files, Domain(error=OPERATION_INVALID, started_by_others=True), monkeypatch)
    assert how == ("cold", "")


@pytest.mark.parametrize("error", [OPERATION_INVALID, 1])
def test_a_start_that_fails_is_no_start(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with pytest.raises(LibvirtError):
        start(files, Domain(error=error), monkeypatch)


def test_another_error_is_one_even_when_the_vm_runs_afterwards(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LibvirtError):
        start(files, Domain(error=1, started_by_others=True), monkeypatch)


def phases_of(monkeypatch: pytest.MonkeyPatch, answer: str | VmwError) -> list[dict[str, Any]]:
    def call(*_arguments: str) -> guest_agent.Ended:
        if isinstance(answer, VmwError):
            raise answer
        return guest_agent.Ended(0, answer)

    monkeypatch.setattr(guest_agent, "call", call)
    clock = Clock()
    module.boot_phases(object(), clock)
    return clock.phases


def test_the_guest_tells_how_long_its_boot_took(monkeypatch: pytest.MonkeyPatch) -> None:
    assert phases_of(monkeypatch, "UserspaceTimestampMonotonic=4500000\nFinishTimestampMonotonic=20500000\n") == [
        {"phase": "kernel", "seconds": 4.5},
        {"phase": "userspace", "seconds": 16.0},
    ]


def test_a_boot_that_goes_on_has_no_userspace_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "FinishTimestampMonotonic=0\nUserspaceTimestampMonotonic=4500000\n"
    assert phases_of(monkeypatch, told) == [{"phase": "kernel", "seconds": 4.5}]


HUGE = f"UserspaceTimestampMonotonic={10**4000}\nFinishTimestampMonotonic=1\n"


@pytest.mark.parametrize(
    "answer",
    ["", "x", "UserspaceTimestampMonotonic=many\nFinishTimestampMonotonic=1\n", VmwError("gone"), HUGE],
    ids=["nothing", "no property", "no number", "no agent", "no float"],
)
def test_nonsense_of_the_guest_is_no_phase(monkeypatch: pytest.MonkeyPatch, answer: str | VmwError) -> None:
    assert phases_of(monkeypatch, answer) == []


@pytest.mark.parametrize("told", ["UserspaceTimestampMonotonic=1\n", "FinishTimestampMonotonic=1\n", "a=b=c\n"])
def test_half_an_answer_is_no_phase(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    assert phases_of(monkeypatch, told) == []


def test_phases_follow_each_other() -> None:
    clock = Clock()
    clock.note("one")
    clock.add("elsewhere", 1.23456)
    clock.note("two")
    assert [phase["phase"] for phase in clock.phases] == ["one", "elsewhere", "two"]
    assert clock.phases[1]["seconds"] == 1.235
    assert all(0 <= phase["seconds"] < 60 for phase in (clock.phases[0], clock.phases[2]))


def test_the_generation_tells_what_is_booted(files: InstanceFiles) -> None:
    directory = files.state.images / record().generation
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text('{"cmdline": "root=UUID=1 ro"}')
    boot = module.boot_of(files, record())
    assert (boot.kernel, boot.initrd) == (f"{directory}/kernel", f"{directory}/initrd")
    assert (boot.cmdline, boot.backing_file) == ("root=UUID=1 ro", f"{directory}/disk.qcow2")


@pytest.mark.parametrize("manifest", [None, "", "{", "{}", "[]", "null"])
def test_a_damaged_generation_is_told(files: InstanceFiles, manifest: str | None) -> None:
    directory = files.state.images / record().generation
    directory.mkdir(parents=True)
    if manifest is not None:
        (directory / "manifest.json").write_text(manifest)
    with pytest.raises(VmwError, match=f"{record().generation} is damaged") as caught:
        module.boot_of(files, record())
    assert "vmw image build" in caught.value.hint


class Connection:
    """A libvirt that notes what is defined."""

    def __init__(self) -> None:
        self.defined: list[str] = []

    def defineXML(self, xml: str) -> None:  # noqa: N802 - libvirt's name
        self.defined.append(xml)


class Host:
    """A host with one VM, started in one way, and a guest that reaches every phase at once.

    Attributes:
        events: What is done with the guest.
        warnings: What the user is told.
    """

    def __init__(self, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = files
        self.events: list[str] = []
        self.warnings: list[str] = []
        self.connection = Connection()
        self.domain = Domain()
        self.outcome = ("cold", "")
        events = self.events

        class Guest:
            """Stand for the one that is waited for."""

            def __init__(self, *_arguments: object) -> None:
                pass

            def address(self) -> str:
                events.append("address")
                return "192.0.2.7"

            def ssh(self) -> str:
                events.append("ssh")
                return "192.0.2.8"

            def shares(self, mountpoints: list[str]) -> None:
                events.append(f"shares {mountpoints}")

        directory = files.state.images / record().generation
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text('{"cmdline": "ro"}')
        monkeypatch.setattr(module, "libvirt", Libvirt)
        monkeypatch.setattr(module, "connect", lambda _uri: self.connection)
        monkeypatch.setattr(module, "find_own_domain", lambda *_arguments: self.domain)
        monkeypatch.setattr(module, "qemu_peer", lambda _uri: "")
        monkeypatch.setattr(module, "start", self.start)
        monkeypatch.setattr(module, "boot_phases", lambda *_arguments: events.append("boot phases"))
        monkeypatch.setattr(module, "Guest", Guest)
        monkeypatch.setattr(module, "wake", lambda *_arguments: events.append("wake"))
        monkeypatch.setattr(module, "tell_guest", lambda *_arguments: events.append("tell"))

    def start(self, _files: InstanceFiles, _connection: object, shares: list[Share], *_rest: object) -> Any:  # noqa: ANN401
        assert self.connection.defined, "started before it was defined"
        self.events.append(f"start {[share.tag for share in shares]}")
        return self.outcome

    def call(self, *, check_mode: bool = False, **parameters: object) -> Any:  # noqa: ANN401 - stands for an AnsibleModule
        values = {
            "state_dir": str(self.files.state.root),
            "name": "one",
            "sockets": {"vmw:repo": "/r"},
            "mountpoints": ["/home/claude/repo"],
            "wait": True,
            "timeout": 1,
            "timings": False,
            "proxy_port": 0,
            "libvirt_uri": "qemu:///system",
        }
        return SimpleNamespace(params={**values, **parameters}, check_mode=check_mode, warn=self.warnings.append)

    def running(self, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - see `call`
        return module.running(self.call(**parameters))


def test_a_vm_whose_spawn_was_given_up_meanwhile_is_not_defined(host: Host, files: InstanceFiles) -> None:
    files.disk.unlink()
    with pytest.raises(VmwError, match=r"lacks disk\.qcow2") as caught:
        host.running()
    assert "vmw spawn" in caught.value.hint


@pytest.fixture
def host(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> Host:
    for path in (files.disk, files.seed, files.host_key.with_suffix(".pub")):
        path.touch()
    return Host(files, monkeypatch)


def test_a_cold_start_is_waited_for_to_its_shares(host: Host) -> None:
    result = host.running()
    assert host.events == ["start ['vmw:repo']", "address", "ssh", "shares ['/home/claude/repo']", "tell"]
    assert (result["changed"], result["start"], result["address"]) == (True, "cold", "192.0.2.8")
    assert [phase["phase"] for phase in result["timings"]] == ["network", "ssh", "shares"]
    assert host.warnings == []


def test_a_resumed_guest_is_told_the_time_also_when_nobody_waits(host: Host) -> None:
    host.outcome = ("resumed", "")
    host.running(wait=False)
    assert host.events == ["start ['vmw:repo']", "wake"]


def test_the_record_is_told_with_what_became_of_it(host: Host) -> None:
    told = host.running()["instance"]
    assert (told["name"], told["address"], told["start"], told["state"]) == ("one", "192.0.2.8", "cold", "running")


def test_a_fork_has_mounted_its_shares_already(host: Host) -> None:
    host.outcome = ("warm", "")
    assert host.running()["start"] == "warm"
    assert host.events == ["start ['vmw:repo']", "address", "ssh", "tell"]


def test_why_a_fork_became_a_cold_start_is_a_warning(host: Host) -> None:
    host.outcome = ("cold", "load of migration failed")
    assert host.running()["start"] == "cold"
    (warning,) = host.warnings
    assert warning.startswith("one could not be forked")
    assert warning.endswith(": load of migration failed")


def test_without_a_wait_the_guest_is_not_looked_at(host: Host) -> None:
    result = host.running(wait=False, timings=True)
    assert host.events == ["start ['vmw:repo']"]
    assert "address" not in result
    assert "address" not in result["instance"]


@pytest.mark.parametrize(("how", "asked"), [("cold", True), ("warm", False), ("resumed", False), ("none", False)])
def test_only_a_boot_is_asked_how_long_it_took(host: Host, how: str, *, asked: bool) -> None:
    host.outcome = (how, "")
    host.running(timings=True)
    assert ("boot phases" in host.events) == asked


def test_a_second_run_changes_nothing(host: Host) -> None:
    assert host.running()["changed"]
    host.outcome = ("none", "")
    assert not host.running()["changed"]


def test_another_definition_is_a_change_and_a_difference(host: Host) -> None:
    host.outcome = ("none", "")
    first = host.running()
    second = host.running(sockets={"vmw:repo": "/other"})
    assert second["changed"]
    assert (second["diff"]["before"], second["diff"]["after"]) == (first["xml"], second["xml"])
    assert host.files.domain.read_text() == second["xml"] == host.connection.defined[-1]


@pytest.mark.parametrize("active", [True, False])
def test_check_mode_tells_whether_the_vm_would_be_started_and_does_nothing(host: Host, *, active: bool) -> None:
    host.domain.active = True
    host.running()
    host.events.clear()
    host.connection.defined.clear()
    host.domain.active = active
    assert host.running(check_mode=True)["changed"] is not active
    assert host.running(check_mode=True, sockets={})["changed"]
    assert host.events == host.connection.defined == []


def test_check_mode_does_without_a_record(host: Host) -> None:
    host.files.record.unlink()
    assert host.running(check_mode=True)["changed"]
    with pytest.raises(VmwError, match="no VM named 'one'"):
        host.running()


def test_a_vm_that_is_being_removed_is_not_started(host: Host) -> None:
    host.files.leaving.touch()
    with pytest.raises(VmwError, match="is being removed"):
        host.running()
    assert host.events == []


def test_a_vm_that_is_removed_while_its_start_waits_is_not_started(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def lock(_state: State, name: str, _timeout: float) -> Iterator[None]:
        assert name == "start-one"
        host.files.leaving.touch()
        yield

    monkeypatch.setattr(State, "lock", lock)
    with pytest.raises(VmwError, match="is being removed"):
        host.running()
    assert host.events == host.connection.defined == []


ALL_OF_IT = "undefine 23"


@pytest.mark.parametrize(("active", "removed"), [(True, ["destroy", ALL_OF_IT]), (False, [ALL_OF_IT])])
def test_a_domain_goes_with_all_that_libvirt_keeps_of_it(host: Host, removed: list[str], *, active: bool) -> None:
    host.domain.active = active
    assert module.absent(host.call()) == {"changed": True}
    assert host.domain.removed == removed
    assert host.warnings == []


def test_a_domain_that_was_never_defined_ends_and_is_gone(host: Host) -> None:
    host.domain.active, host.domain.persistent = True, False
    assert module.absent(host.call()) == {"changed": True}
    assert host.domain.removed == ["destroy"]


def test_saved_memory_goes_with_a_warning(host: Host) -> None:
    host.domain.saved = True
    module.absent(host.call())
    assert host.domain.removed == [ALL_OF_IT]
    assert "saved memory of one" in host.warnings[0]


def test_check_mode_removes_nothing(host: Host) -> None:
    host.domain.active = True
    assert module.absent(host.call(check_mode=True)) == {"changed": True}
    assert host.domain.removed == []


def test_without_a_domain_there_is_nothing_to_remove(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_own_domain", lambda *_arguments: None)
    assert module.absent(host.call()) == {"changed": False}


def test_a_removal_waits_for_memory_that_is_being_loaded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextlib.contextmanager
    def lock(_state: State, name: str, _timeout: float) -> Iterator[None]:
        events.append(name)
        yield
        events.append("released")

    def remove(*_arguments: object) -> dict[str, Any]:
        events.append("remove")
        return {}

    monkeypatch.setattr(State, "lock", lock)
    monkeypatch.setattr(module, "remove", remove)
    module.absent(host.call())
    assert events == ["start-one", "remove", "released"]


def test_check_mode_of_a_removal_takes_no_lock(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "remove", lambda *_arguments: {"changed": True})
    assert module.absent(host.call(check_mode=True)) == {"changed": True}
    assert not (host.files.state.root / "locks").exists()
