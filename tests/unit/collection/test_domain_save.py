"""What suspending a VM takes, what becomes of one that cannot be, and what a guest is told when it goes on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import fork, passt_units, saved_memory
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import InterruptedByUserError, Progress
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.saved_memory import check_daemon, check_room, failure
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Daemon
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import domain_save
from records import record, session_record

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
GIB = 1 << 30


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding, which a virtual environment cannot have."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name
    VIR_DOMAIN_PAUSED = 3
    VIR_DOMAIN_SAVE_RUNNING = 2


class Domain:
    """A domain that saves its memory well, fails, or takes for ever until it is told to give up."""

    def __init__(
        self, *, active: bool = True, saved: bool = False, reason: str = "", slow: bool = False, paused: bool = False
    ) -> None:
        self.active, self.saved, self.reason, self.slow, self.paused = active, saved, reason, slow, paused
        self.aborted = threading.Event()
        self.calls: list[str] = []

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802 - libvirt's name
        return self.saved

    def memoryStats(self) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {"rss": 1024}

    def state(self) -> list[int]:
        return [3 if self.paused else 1, 1]

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's name
        return [1, 0, 0, 4 * MIB, MIB, 3 * MIB]

    def abortJob(self) -> None:  # noqa: N802 - libvirt's name
        self.aborted.set()

    def managedSave(self, flags: int) -> None:  # noqa: N802 - libvirt's name
        assert flags == Libvirt.VIR_DOMAIN_SAVE_RUNNING
        if self.slow:
            assert self.aborted.wait(10)
            self.reason = "operation aborted: job 'save' canceled by client"
        if self.reason:
            raise LibvirtError(self.reason)
        self.active, self.saved = False, True

    def suspend(self) -> None:
        self.calls.append("suspend")
        self.paused = True

    def resume(self) -> None:
        self.calls.append("resume")
        self.paused = False

    def managedSaveRemove(self, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.calls.append("managedSaveRemove")
        self.saved = False


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InstanceFiles:
    """Record a VM, and put stand-ins where the modules look for libvirt and virtiofsd."""
    files = InstanceFiles(State(tmp_path), "one")
    files.save(record())
    monkeypatch.setattr(domain_save, "libvirt", Libvirt)
    monkeypatch.setattr(domain_save, "find_virtiofsd", lambda: "/usr/libexec/virtiofsd")
    monkeypatch.setattr(domain_save, "command", lambda *_argv: "--migration-mode --migration-on-error")
    monkeypatch.setattr(domain_save, "CallerWatch", lambda: SimpleNamespace(check=lambda: None))
    monkeypatch.setattr(domain_save, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(domain_save, "check_room", lambda *_arguments: None)
    return files


def module(files: InstanceFiles, **parameters: object) -> Any:  # noqa: ANN401 - stands for an AnsibleModule
    values = {"state_dir": str(files.state.root), "name": "one", "force": False, "timeout": 30}
    warnings: list[str] = []
    return SimpleNamespace(params={**values, **parameters}, check_mode=False, warn=warnings.append, warnings=warnings)


def watch(check: Callable[[], None]) -> Any:  # noqa: ANN401 - stands for a CallerWatch
    return SimpleNamespace(check=check)


def use(monkeypatch: pytest.MonkeyPatch, domain: Domain | None) -> None:
    monkeypatch.setattr(domain_save, "connect", lambda uri: uri)
    monkeypatch.setattr(domain_save, "find_own_domain", lambda _connection, _name, _record: domain)


def test_memory_is_saved(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    use(monkeypatch, domain)
    assert domain_save.present(module(files)) == {"changed": True, "saved": True}
    assert domain.saved
    assert not files.state.progress.exists()
    assert domain_save.present(module(files)) == {"changed": False, "saved": True}


@pytest.fixture
def renewed(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the VM one of the user's own libvirt, and return whose passt was replaced."""
    files.save(session_record(22017))
    renewed: list[str] = []
    monkeypatch.setattr(passt_units, "renew", renewed.append)
    return renewed


def test_a_vm_with_passt_stands_still_without_connections(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, renewed: list[str]
) -> None:
    domain = Domain()
    use(monkeypatch, domain)
    assert domain_save.present(module(files)) == {"changed": True, "saved": True}
    assert (domain.calls, renewed) == (["suspend"], ["one"])


def test_it_runs_on_when_it_is_not_saved(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, renewed: list[str]) -> None:
    domain = Domain(reason="no room")
    use(monkeypatch, domain)
    with pytest.raises(VmwError, match="runs on: no room"):
        domain_save.present(module(files))
    assert (domain.calls, renewed) == (["suspend", "resume"], ["one"])


def test_a_fork_on_its_way_is_not_suspended(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    use(monkeypatch, domain)
    fork.write_progress(files, fork.Progress(fork.COMPLETING))
    with pytest.raises(VmwError, match="never completed") as caught:
        domain_save.present(module(files))
    assert "vmw start one" in caught.value.hint
    assert not domain.saved


@pytest.mark.parametrize("domain", [None, Domain(active=False)])
def test_what_is_off_stays_as_it_is(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, domain: Domain | None) -> None:
    use(monkeypatch, domain)
    assert domain_save.present(module(files)) == {"changed": False, "saved": False}


def test_check_mode_saves_nothing(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    use(monkeypatch, domain)
    call = module(files)
    call.check_mode = True
    assert domain_save.present(call)["changed"]
    assert domain.active


def test_one_that_takes_too_long_is_given_up(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain(slow=True)
    use(monkeypatch, domain)
    with pytest.raises(VmwError, match="the VM runs on: it took longer than 0 s"):
        domain_save.present(module(files, timeout=0))
    assert domain.aborted.is_set()
    assert not files.state.progress.exists()


def test_one_that_nobody_waits_for_is_given_up(files: InstanceFiles) -> None:
    def gone() -> None:
        raise InterruptedByUserError

    domain = Domain(slow=True)
    progress = Progress(files.state, domain_save.TASK, "bytes")
    with pytest.raises(InterruptedByUserError):
        domain_save.Save("one", domain).run(progress, watch(gone), 30)
    assert domain.aborted.is_set()


def test_progress_is_told(files: InstanceFiles) -> None:
    progress = Progress(files.state, domain_save.TASK, "bytes")
    with pytest.raises(VmwError):
        domain_save.Save("one", Domain(slow=True)).run(progress, watch(lambda: None), 0)
    told = json.loads(files.state.progress.read_text())
    assert (told["task"], told["done"], told["total"]) == ("Save the VM's memory", MIB, 4 * MIB)


@pytest.mark.parametrize(
    ("domain", "words", "code"),
    [
        (Domain(reason="write failed: No space left on device"), "the VM runs on: write failed", "failed"),
        (Domain(reason="broken", paused=True), "the VM is paused: broken", "failed"),
        (Domain(reason="migration with virtiofs device is not supported"), "which runs on", "host_not_ready"),
        (Domain(reason="Operation not supported: cannot migrate domain: State blocked"), "which runs on", "host_not_ready"),
    ],
)
def test_a_failure_says_what_the_vm_does_now(
    files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, domain: Domain, words: str, code: str
) -> None:
    use(monkeypatch, domain)
    with pytest.raises(VmwError, match=words) as caught:
        domain_save.present(module(files))
    assert caught.value.code == code
    assert caught.value.hint


def test_a_vm_that_ended_meanwhile_is_told_as_off() -> None:
    assert "is off" in failure("one", "it went", "off").message


def test_old_virtiofsd_is_refused() -> None:
    check_daemon(Daemon("/v", frozenset({"migration-mode"})))
    with pytest.raises(VmwError, match="too old to suspend") as caught:
        check_daemon(Daemon("/v", frozenset({"readonly"})))
    assert caught.value.code == "host_not_ready"


def test_memory_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_memory, "free_bytes", lambda _directory: GIB)
    check_room("one", GIB - saved_memory.SPARE_BYTES, Path("/save"))
    with pytest.raises(VmwError, match="may take 1024 MiB, and only 1024 MiB are free on the file system of /save"):
        check_room("one", GIB, Path("/save"))


def test_the_nearest_directory_that_is_there_tells_the_room(tmp_path: Path) -> None:
    assert saved_memory.free_bytes(tmp_path / "closed" / "save") == saved_memory.free_bytes(tmp_path) > 0
    assert saved_memory.save_directory("qemu:///system") == Path("/var/lib/libvirt/qemu/save")
    assert saved_memory.save_directory("qemu:///session").name == "save"


@pytest.mark.parametrize(("domain", "saved"), [(Domain(), False), (Domain(active=False, saved=True), True)])
def test_what_can_go_on(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, domain: Domain, saved: bool) -> None:  # noqa: FBT001
    use(monkeypatch, domain)
    assert domain_save.required(module(files)) == {"changed": False, "saved": saved}


@pytest.mark.parametrize("domain", [None, Domain(active=False)])
def test_what_cannot(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, domain: Domain | None) -> None:
    use(monkeypatch, domain)
    with pytest.raises(VmwError, match="no saved memory") as caught:
        domain_save.required(module(files))
    assert caught.value.code == "conflict"
    assert "vmw start one" in caught.value.hint


def test_saved_memory_is_lost_by_force_alone(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain(active=False, saved=True)
    use(monkeypatch, domain)
    with pytest.raises(VmwError, match="would lose its memory") as caught:
        domain_save.absent(module(files))
    assert caught.value.code == "conflict"
    assert domain.calls == []
    call = module(files, force=True)
    assert domain_save.absent(call) == {"changed": True, "saved": False}
    assert domain.calls == ["managedSaveRemove"]
    assert "given up" in call.warnings[0]
    assert domain_save.absent(module(files)) == {"changed": False, "saved": False}
