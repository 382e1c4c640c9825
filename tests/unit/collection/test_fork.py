"""From a saved template to a machine of its own, with a libvirt and a guest that only note what they are asked."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import fork, guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Boot,
    Fork,
    Machine,
    Share,
    marked_record,
    template_xml,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.fork import Progress
from ansible_collections.vmw.worktree.plugins.module_utils.instance import RENDERED, Instance, InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock
from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import socket_path
from ansible_collections.vmw.worktree.plugins.module_utils.save_image import head_of
from ansible_collections.vmw.worktree.plugins.module_utils.state import State, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.template import Template, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Load = Callable[[Callable[[str], None]], Progress]
    """Loads a template's memory by what stands for libvirt's restore, and returns how that went."""

INSTANCE = Instance(
    schema=1,
    name="n",
    uuid="0bd16cbf-4c3a-4a46-9aee-0f6aa3e1f2a7",
    mac="52:54:00:01:02:03",
    worktree="/home/dev/n",
    created="",
    memory_mib=4096,
    vcpus=4,
    disk_gib=20,
    bridge="br0",
    guest_user="claude",
    uid=1234,
    authorized_keys=[],
    generation="g",
    virt_type="kvm",
    libvirt_uri="qemu:///session",
    ssh_port=22017,
)
WORDS = "x=1\n"
APART = "\r\nvmw-identity: apart\r\n"
DONE = "\r\nvmw-identity: done\r\n"


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = RuntimeError  # noqa: N815 - libvirt's name
    VIR_DOMAIN_AFFECT_LIVE = 1
    VIR_DOMAIN_SAVE_RUNNING = 2
    VIR_DOMAIN_BLOCK_RESIZE_BYTES = 1


class Domain:
    """A domain that notes what is plugged into it."""

    def __init__(self, events: list[str], *, active: bool = True, saved: bool = False) -> None:
        self.events = events
        self.active = active
        self.saved = saved
        self.devices: list[str] = []
        self.xml = "<domain/>"

    def XMLDesc(self) -> str:  # noqa: N802 - libvirt's name
        return self.xml

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def destroy(self) -> None:
        self.active = False
        self.events.append("destroy")

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802 - libvirt's name
        return self.saved

    def managedSaveRemove(self, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.saved = False
        self.events.append("forget memory")

    def attachDeviceFlags(self, xml: str, flags: int) -> None:  # noqa: N802 - libvirt's name
        self.devices.append(xml)
        assert flags == Libvirt.VIR_DOMAIN_AFFECT_LIVE
        self.events.append("card" if "<interface" in xml else "share")

    def blockResize(self, disk: str, size: int, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.events.append(f"resize {disk} {size >> 30}")


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path), "n")
    files.save(INSTANCE)
    files.console.touch()
    files.seed_sources.mkdir()
    (files.seed_sources / RENDERED).write_text("host=n\n")
    return files


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, files: InstanceFiles) -> list[str]:
    """Collect what happens, in its order; the guest does what it is told and says so at once."""
    events: list[str] = []
    monkeypatch.setattr(fork, "libvirt", Libvirt)

    def start(_domain: Domain, path: str, mode: str, *, stdin: str) -> int:
        assert path == "/usr/lib/vmw/identity"
        events.append(mode)
        files.console.write_text(APART)
        return 7

    def pause(_seconds: float) -> None:
        # Once the host has nothing more to do, the guest comes to its end.
        files.console.write_text(APART + DONE)

    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(guest_agent, "await_answer", lambda _domain, _timeout: None)
    monkeypatch.setattr(guest_agent, "start", start)
    return events


def say(monkeypatch: pytest.MonkeyPatch, files: InstanceFiles, words: str) -> None:
    """Have the guest's program say something else."""

    def start(*_arguments: object, **_options: object) -> int:
        files.console.write_text(words)
        return 7

    monkeypatch.setattr(guest_agent, "start", start)


def identify(files: InstanceFiles, domain: Domain, instance: Instance = INSTANCE) -> None:
    """Run the guest's program, with a host that only notes that it is its turn."""
    fork.run_identity(files, instance, domain, WORDS, lambda: domain.events.append("plug in"))


def complete(files: InstanceFiles, domain: Domain, instance: Instance = INSTANCE, *tags: str) -> list[str]:
    """Complete a loaded fork, and return the phases of that."""
    clock = Clock()
    fork.write_progress(files, Progress(fork.LOADED))
    fork.complete(files, instance, domain, [Share(tag, f"/{tag}") for tag in tags], clock)
    return [phase["phase"] for phase in clock.phases]


def test_progress_comes_back_as_it_was_written(files: InstanceFiles) -> None:
    assert fork.read_progress(files) is None
    fork.write_progress(files, Progress(fork.LOADED, "", 1.5))
    assert fork.read_progress(files) == Progress(fork.LOADED, "", 1.5)
    assert files.fork.stat().st_mode & 0o777 == 0o600


def test_the_devices_come_when_the_guest_is_apart_and_the_card_first(files: InstanceFiles, events: list[str]) -> None:
    domain = Domain(events)
    assert complete(files, domain, INSTANCE, "repo", "secrets") == ["identity", "shares"]
    assert events == ["--fork", "card", "share", "share"]
    assert ["/repo" in xml for xml in domain.devices] == [False, True, False]


def test_a_guest_is_told_nothing_before_its_agent_answers(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_agent, "await_answer", lambda _domain, timeout: events.append(f"agent {timeout}"))
    identify(files, Domain(events))
    assert events == [f"agent {fork.AGENT_SECONDS}", "--fork", "plug in"]


def test_a_fork_whose_completion_was_interrupted_is_not_taken_for_a_loaded_one(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(guest_agent, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(files, Domain(events))
    progress = fork.read_progress(files)
    assert progress
    assert progress.phase == fork.COMPLETING


def test_a_guest_that_fails_is_quoted(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, files, "vmw-identity: failed to write the files\r\n")
    monkeypatch.setattr(guest_agent, "ended", lambda _domain, _pid: guest_agent.Ended(1, "first\ncannot create x\n"))
    with pytest.raises(VmwError, match="cannot create x"):
        identify(files, Domain(events))


def test_a_guest_that_fails_without_a_word_is_told_too(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, files, "vmw-identity: failed to x\r\n")
    monkeypatch.setattr(guest_agent, "ended", lambda _domain, _pid: None)
    with pytest.raises(VmwError, match="see its console"):
        identify(files, Domain(events))


def test_a_guest_that_takes_too_long_is_given_up(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, files, "boot\r\n")
    monkeypatch.setattr(fork, "IDENTITY_SECONDS", {"kvm": -1.0})
    with pytest.raises(VmwError, match="in time"):
        identify(files, Domain(events))


def test_a_guest_that_goes_off_is_given_up(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, files, "boot\r\n")
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it is waited for"))
    with pytest.raises(VmwError, match="in time"):
        identify(files, Domain(events, active=False))


def test_an_agent_that_answers_nonsense_is_told(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_arguments: object, **_options: object) -> int:
        raise KeyError

    monkeypatch.setattr(guest_agent, "start", start)
    with pytest.raises(VmwError, match="does not answer as it should"):
        identify(files, Domain(events))


def test_a_larger_disk_is_grown_before_the_guest_looks(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        virtual_size = 20 << 30

    monkeypatch.setattr(fork, "load_manifest", lambda _directory: Small)
    complete(files, Domain(events), replace(INSTANCE, disk_gib=24))
    assert events == ["resize vda 24", "--fork", "card"]


def as_sh_reads(tmp_path: Path, text: str, *names: str) -> list[str]:
    file = tmp_path / "words"
    file.write_text(text)
    quoted = " ".join(f'"${name}"' for name in names)
    done = subprocess.run(["sh", "-euc", f'. "$1"; printf "%s\\n" {quoted}', "sh", str(file)], check=True, capture_output=True)
    return done.stdout.decode().splitlines()


def test_each_fork_gets_random_bytes_of_its_own(files: InstanceFiles, tmp_path: Path) -> None:
    host, one, now = as_sh_reads(tmp_path, fork.identity_words(files, grown=False), "host", "entropy", "now")
    _, two, _ = as_sh_reads(tmp_path, fork.identity_words(files, grown=False), "host", "entropy", "now")
    assert host == "n"
    assert len(one) >= fork.ENTROPY_BYTES
    assert one != two
    assert float(now) > 1.7e9


@pytest.mark.parametrize("grown", [True, False])
def test_the_guest_is_told_whether_its_disk_has_grown(files: InstanceFiles, tmp_path: Path, *, grown: bool) -> None:
    assert as_sh_reads(tmp_path, fork.identity_words(files, grown=grown), "grown", "host") == [str(grown).lower(), "n"]


def memory_of(template: Template) -> int:
    return fork._inode(parts(template.directory).memory)


@pytest.fixture
def template(tmp_path: Path) -> Template:
    template = Template(tmp_path / "images/g", "0123")
    template.directory.mkdir(parents=True)
    (tmp_path / "images/g/disk.qcow2").touch()
    own = parts(template.directory)
    for path in (own.disk, own.memory, own.head, own.manifest):
        path.write_text(path.name)
    return template


def test_a_fork_begins_with_a_copy_of_the_templates_disk(
    files: InstanceFiles, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 1)
    fork.begin(files, INSTANCE, template)
    assert files.disk.read_text() == "disk.qcow2"
    assert files.disk.stat().st_mode & 0o777 == 0o600
    progress = fork.read_progress(files)
    assert progress
    assert progress.phase == fork.LOADING


class Connection:
    """A libvirt that restores, or does not."""

    def __init__(self, restore: Callable[[str], None]) -> None:
        self.restore = restore

    def restoreFlags(self, path: str, xml: str | None, _flags: int) -> None:  # noqa: N802 - libvirt's name
        assert xml is None
        self.restore(path)


@pytest.fixture
def load(files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch) -> Load:
    def describe(path: Path, _head: Path, _change: object) -> None:
        events.append("describe")
        path.write_text("of a fork")

    def run(restore: Callable[[str], None]) -> Progress:
        monkeypatch.setattr(fork, "connect", lambda _uri: Connection(restore))
        monkeypatch.setattr(fork, "change_xml", describe)
        monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events))
        fork.write_progress(files, Progress(fork.LOADING))
        fork._load(files, INSTANCE, parts(template.directory), memory_of(template))
        progress = fork.read_progress(files)
        assert progress
        return progress

    return run


def test_a_loaded_fork_has_no_devices_yet(files: InstanceFiles, events: list[str], load: Load) -> None:
    progress = load(lambda _path: events.append("restore"))
    assert progress.phase == fork.LOADED
    assert events == ["describe", "restore"]
    assert not files.memory.exists()


def lock(path: Path) -> None:
    """Take a file's lock, or fail at once when somebody has it."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_memory_is_loaded_from_the_templates_own_file_which_is_locked_for_it(
    files: InstanceFiles,
    template: Template,
    load: Load,
) -> None:
    own, seen = parts(template.directory).memory, []

    def restore(path: str) -> None:
        with pytest.raises(BlockingIOError):
            lock(own)
        seen.append((path, own.read_text(), files.memory.exists()))

    for _ in range(2):
        load(restore)
        lock(own)
        # As it was saved, before the memory.
        assert own.read_text() == "head fork"
    assert seen == [(str(own), "of a fork", False)] * 2


def test_two_forks_at_once_do_not_share_a_description(
    files: InstanceFiles,
    template: Template,
    load: Load,
) -> None:
    own, seen = parts(template.directory).memory, []

    def restore(path: str) -> None:
        seen.append((path, Path(path).read_text(), Path(path).stat().st_mode & 0o777))

    with own.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        load(restore)
    assert seen == [(str(files.memory), "of a fork", 0o600)]
    assert not files.memory.exists()
    assert own.read_text() == "memory"


@pytest.mark.parametrize("busy", [True, False])
def test_a_disk_is_not_paired_with_another_templates_memory(
    files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch, *, busy: bool
) -> None:
    before, own = memory_of(template), parts(template.directory).memory
    monkeypatch.setattr(fork, "connect", lambda _uri: Connection(lambda _path: events.append("restore")))
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events, active=False))
    own.rename(own.with_name("old"))
    own.write_text("new memory")
    with own.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX if busy else fcntl.LOCK_UN)
        fork._load(files, INSTANCE, parts(template.directory), before)
    assert fork.read_progress(files) == Progress(fork.FAILED, "its template was made anew meanwhile")
    assert "restore" not in events


def test_a_restore_that_fails_is_written_down(files: InstanceFiles, load: Load) -> None:
    def restore(_path: str) -> None:
        message = "load of migration failed"
        raise RuntimeError(message)

    progress = load(restore)
    assert (progress.phase, progress.reason) == (fork.FAILED, "load of migration failed")
    assert not files.memory.exists()


@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_a_template_that_cannot_be_restored_is_marked_until_it_can(load: Load, template: Template, kind: type[Exception]) -> None:
    refused = parts(template.directory).refused

    def restore(_path: str) -> None:
        message = "load of migration failed"
        raise kind(message)

    load(restore)
    assert refused.read_text() == "load of migration failed\n"
    load(lambda _path: None)
    assert not refused.exists()


@pytest.mark.parametrize("active", [True, False])
def test_a_fork_that_failed_leaves_a_vm_to_be_started_cold(
    files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    made: list[str] = []
    monkeypatch.setattr(fork, "create_overlay", lambda path, backing, gib: made.append(f"{path.name} {backing} {gib}"))
    fork.write_progress(files, Progress(fork.FAILED, "x"))
    files.memory.touch()
    fork.discard(files, INSTANCE, Domain(events, active=active))
    assert made == [f"disk.qcow2 {template.generation}/disk.qcow2 20"]
    assert events == (["destroy"] if active else [])
    assert not files.fork.exists()
    assert not files.memory.exists()


def booted(events: list[str]) -> Domain:
    """Return a running domain that was booted from its definition, which has a card."""
    domain = Domain(events)
    domain.xml = f"<domain><devices><interface><mac address='{INSTANCE.mac}'/></interface></devices></domain>"
    return domain


class Stubborn(Domain):
    """A domain that libvirt refuses to end."""

    def destroy(self) -> None:
        super().destroy()
        message = "no such job"
        raise Libvirt.libvirtError(message)


def test_a_fork_that_ends_by_itself_meanwhile_is_taken_back_all_the_same(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(fork, "backing_file", lambda *_arguments: None)
    monkeypatch.setattr(fork, "create_overlay", lambda path, *_arguments: made.append(path))
    fork.discard(files, INSTANCE, Stubborn(events))
    assert made == [files.disk]


def test_the_disk_of_a_fork_that_cannot_be_ended_stays(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(fork, "create_overlay", lambda path, *_arguments: made.append(path))
    monkeypatch.setattr(fork, "is_running", lambda _domain: True)
    with pytest.raises(RuntimeError, match="no such job"):
        fork.discard(files, INSTANCE, Stubborn(events))
    assert made == []


@pytest.fixture
def spawned(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> InstanceFiles:
    """Give a VM with a disk, whose domain a test sets."""
    monkeypatch.setattr(fork, "connect", lambda uri: uri)
    files.save(INSTANCE)
    files.disk.touch()
    return files


@pytest.mark.parametrize("phase", [fork.LOADING, fork.LOADED, fork.GIVEN_UP])
def test_a_fork_that_is_given_up_leaves_nothing(
    spawned: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events))
    fork.write_progress(spawned, Progress(phase))
    fork.abandon(spawned, INSTANCE.uuid)
    assert events == ["destroy"]
    assert not spawned.disk.exists()
    assert fork.read_progress(spawned) is None


@pytest.mark.parametrize("phase", [fork.COMPLETING, fork.FAILED, ""])
def test_what_may_be_a_vm_or_is_to_start_cold_is_not_given_up(
    spawned: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events))
    if phase:
        fork.write_progress(spawned, Progress(phase))
    before = fork.read_progress(spawned)
    fork.abandon(spawned, INSTANCE.uuid)
    assert events == []
    assert spawned.disk.exists()
    assert fork.read_progress(spawned) == before


@pytest.mark.parametrize(("other", "phase"), [("booted", fork.LOADED), ("another VM", fork.LOADED), ("another VM", fork.LOADING)])
def test_what_somebody_else_has_made_of_it_is_not_given_up(
    spawned: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, other: str, phase: str
) -> None:
    domain = booted(events) if other == "booted" else Domain(events)
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: domain)
    fork.write_progress(spawned, Progress(phase))
    fork.abandon(spawned, INSTANCE.uuid if other == "booted" else "of-the-one-before")
    assert events == []
    assert spawned.disk.exists()
    assert fork.read_progress(spawned) == Progress(phase)


def test_a_fork_that_is_being_removed_is_left_to_that(
    spawned: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events))
    fork.write_progress(spawned, Progress(fork.LOADING))
    spawned.leaving.touch()
    with pytest.raises(VmwError, match="being removed"):
        fork.abandon(spawned, INSTANCE.uuid)
    assert events == []
    assert fork.read_progress(spawned) == Progress(fork.LOADING)


def refuse(*_arguments: object) -> None:
    message = "the connection is lost"
    raise RuntimeError(message)


@pytest.mark.parametrize("refused", ["to find it", "to end it"])
def test_the_disk_of_a_fork_that_may_run_on_stays(
    spawned: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    monkeypatch.setattr(fork, "find_own_domain", refuse if refused == "to find it" else lambda *_arguments: Stubborn(events))
    monkeypatch.setattr(fork, "is_running", lambda _domain: True)
    fork.write_progress(spawned, Progress(fork.LOADED))
    with pytest.raises(RuntimeError):
        fork.abandon(spawned, INSTANCE.uuid)
    assert spawned.disk.exists()
    assert fork.read_progress(spawned) == Progress(fork.LOADED)


@pytest.mark.parametrize("when", ["in its turn", "while it is restored"])
def test_a_fork_that_is_given_up_is_not_loaded(
    files: InstanceFiles, events: list[str], load: Load, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def give_up() -> None:
        fork.write_progress(files, Progress(fork.GIVEN_UP))

    @contextlib.contextmanager
    def turn(_state: State, _virt_type: str, check: Callable[[], object]) -> Iterator[bool]:
        if when == "in its turn":
            give_up()
            check()
        yield False

    def restore(_path: str) -> None:
        events.append("restore")
        give_up()

    monkeypatch.setattr(fork, "turn", turn)
    progress = load(restore)
    assert (progress.phase, progress.reason) == (fork.FAILED, fork.GIVEN_UP)
    assert ("restore" in events) == (when != "in its turn")
    assert events[-1] == "destroy"


@pytest.mark.parametrize("seconds", ["soon", None, [], {}])
def test_progress_of_no_length_is_a_failure(files: InstanceFiles, seconds: object) -> None:
    files.fork.write_text(json.dumps({"phase": "loaded", "reason": "", "seconds": seconds}))
    progress = fork.read_progress(files)
    assert progress
    assert progress.phase == fork.FAILED


def test_progress_that_may_not_be_read_is_a_failure(files: InstanceFiles) -> None:
    files.fork.mkdir()
    progress = fork.read_progress(files)
    assert progress
    assert progress.phase == fork.FAILED


@pytest.mark.parametrize("complete", [True, False])
def test_a_template_is_found_when_it_is_complete(
    files: InstanceFiles, template: Template, monkeypatch: pytest.MonkeyPatch, *, complete: bool
) -> None:
    asked: list[tuple[object, ...]] = []
    connection = object()

    def template_for(*arguments: object) -> Template:
        asked.append(arguments)
        return template

    monkeypatch.setattr(fork, "template_for", template_for)
    if not complete:
        parts(template.directory).manifest.unlink()
    found, reason = fork.find_template(files, INSTANCE, connection)
    assert found == (template if complete else None)
    assert ("a part of it is missing" in reason) == (not complete)
    assert asked == [(files.state, "g", Machine("kvm", 4096, 4), connection)]


def test_the_program_gets_its_words(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []

    def start(domain: Domain, path: str, mode: str, *, stdin: str) -> int:
        told.append((domain, path, mode, stdin))
        files.console.write_text(APART)
        return 7

    monkeypatch.setattr(guest_agent, "start", start)
    domain = Domain(events)
    identify(files, domain)
    assert told == [(domain, fork.IDENTITY, "--fork", "x=1\n")]


def test_the_end_is_waited_for(files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, files, "boot\r\n")
    said = ["", "", APART, APART, APART + DONE]

    def sleep(seconds: float) -> None:
        assert seconds == fork.POLL_SECONDS
        events.append(f"sleep {len(said)}")
        files.console.write_text(f"boot\r\n{said.pop(0)}")

    monkeypatch.setattr(time, "sleep", sleep)
    identify(files, Domain(events))
    # No device before the guest is apart.
    assert events == ["sleep 5", "sleep 4", "sleep 3", "plug in", "sleep 2", "sleep 1"]


def test_a_guest_that_is_done_without_its_devices_is_none(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, files, DONE)
    with pytest.raises(VmwError, match="before it had its devices"):
        identify(files, Domain(events))


@pytest.mark.parametrize("words", ["x vmw-identity: done\r\n", "vmw-identity: undone\r\n", "done\r\n"])
def test_other_words_on_the_console_are_no_end(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    say(monkeypatch, files, words)
    monkeypatch.setattr(fork, "IDENTITY_SECONDS", {"kvm": -1.0})
    with pytest.raises(VmwError, match="in time"):
        identify(files, Domain(events))


def test_an_emulated_guest_may_take_longer() -> None:
    assert fork.IDENTITY_SECONDS["qemu"] > fork.IDENTITY_SECONDS["kvm"] > 0


def test_a_fork_whose_guest_failed_gets_no_device(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, files, "vmw-identity: failed to set the fork apart\r\n")
    monkeypatch.setattr(guest_agent, "ended", lambda _domain, _pid: None)
    domain = Domain(events)
    with pytest.raises(VmwError):
        complete(files, domain, INSTANCE, "repo")
    assert domain.devices == []


def test_the_card_is_the_records(files: InstanceFiles, events: list[str]) -> None:
    domain = Domain(events)
    complete(files, domain, replace(INSTANCE, libvirt_uri="qemu:///system"))
    (card,) = domain.devices
    assert '<mac address="52:54:00:01:02:03" />' in card
    assert '<source bridge="br0" />' in card


def test_the_card_of_a_vm_of_the_users_own_libvirt_is_passts(files: InstanceFiles, events: list[str]) -> None:
    domain = Domain(events)
    complete(files, domain)
    (card,) = domain.devices
    assert '<mac address="52:54:00:01:02:03" />' in card
    assert f'path="{socket_path("n")}" mode="client"' in card
    assert "bridge" not in card


def test_a_fork_that_is_not_complete_says_so_still(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, files, "vmw-identity: failed to write the files\r\n")
    monkeypatch.setattr(guest_agent, "ended", lambda _domain, _pid: None)
    with pytest.raises(VmwError):
        complete(files, Domain(events))
    assert fork.read_progress(files) == Progress(fork.COMPLETING)


@pytest.mark.parametrize("size", [19 << 30, 20 << 30])
def test_a_disk_of_the_templates_size_stays_as_it_is(
    files: InstanceFiles, events: list[str], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    class Manifest:
        virtual_size = 20 << 30

    monkeypatch.setattr(fork, "load_manifest", lambda _directory: Manifest)
    complete(files, Domain(events), replace(INSTANCE, disk_gib=size >> 30))
    assert events == ["--fork", "card"]


NASTY = (
    "it's",
    '"quoted"',
    "$(exit 7) `exit 8` ${HOME}",
    "back\\slash\\",
    "two\nlines",
    "carriage\rreturn",
    "; exit 9 #",
    " blanks\t",
    "Jörg 日本",
    "",
)


def words_of_sh(tmp_path: Path, text: str, name: str) -> str:
    """Return a variable's value, byte for byte, after a shell has read ``text``."""
    file = tmp_path / "words"
    file.write_text(text, newline="")
    script = f'. "$1"; printf %s "${name}"'
    return subprocess.run(["sh", "-euc", script, "sh", str(file)], check=True, capture_output=True).stdout.decode()


@pytest.mark.parametrize("value", NASTY)
def test_any_word_of_the_seed_arrives_as_it_was(files: InstanceFiles, tmp_path: Path, value: str) -> None:
    write_file(files.seed_sources / RENDERED, f"account={shlex.quote(value)}\n")
    assert words_of_sh(tmp_path, fork.identity_words(files, grown=True), "account") == value


@pytest.mark.parametrize("value", NASTY)
def test_words_that_are_there_are_not_written_again(files: InstanceFiles, value: str) -> None:
    assert write_file(files.seed_sources / RENDERED, f"account={shlex.quote(value)}\n")
    assert not write_file(files.seed_sources / RENDERED, f"account={shlex.quote(value)}\n")


def test_a_fork_begins_with_an_empty_console_log_of_the_users(
    files: InstanceFiles, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: 1)
    files.console.write_text("vmw-identity: failed to x")
    fork.begin(files, INSTANCE, template)
    assert files.console.read_text() == ""
    assert files.console.stat().st_mode & 0o777 == 0o600


def test_a_fork_whose_disk_cannot_be_copied_is_none_and_says_so(
    files: InstanceFiles, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked: list[int] = []

    def process() -> int:
        forked.append(1)
        return 1

    monkeypatch.setattr(os, "fork", process)
    parts(template.directory).disk.unlink()
    with pytest.raises(VmwError, match="No such file"):
        fork.begin(files, INSTANCE, template)
    assert forked == []
    assert not files.disk.exists()
    assert fork.read_progress(files) is None


def test_memory_that_cannot_be_copied_is_written_down(
    files: InstanceFiles,
    template: Template,
    load: Load,
) -> None:
    parts(template.directory).memory.unlink()
    progress = load(lambda _path: None)
    assert progress.phase == fork.FAILED
    assert "No such file" in progress.reason
    assert list(files.directory.glob("memory*")) == []


def test_a_libvirt_that_refuses_is_written_down(
    files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(_uri: str) -> None:
        message = "libvirt refuses the connection"
        raise VmwError(message)

    monkeypatch.setattr(fork, "connect", connect)
    files.memory.touch()
    fork._load(files, INSTANCE, parts(template.directory), memory_of(template))
    assert fork.read_progress(files) == Progress(fork.FAILED, "libvirt refuses the connection")
    assert not files.memory.exists()


def test_what_is_restored_is_the_fork_and_the_templates_memory_stays(
    files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    itself = Fork("vmw-template-1", "1d4a46bb-4f6b-4e04-b6b9-6a6d2d0f0e5b", "/t/template.json", "/t/disk.qcow2", "/t/console.log")
    xml = template_xml(Machine("kvm", 4096, 4), itself, Boot("/i/kernel", "/i/initrd", "ro", "/i/disk.qcow2"), "")
    header = struct.pack("=16s19I", b"LibvirtQemudSave", 2, 16384, 1, 0, 0, *([0] * 14))
    saved = header + xml.encode().ljust(16384, b"\0") + b"memory"
    own = parts(template.directory)
    own.memory.write_bytes(saved)
    own.head.write_bytes(head_of(own.memory))
    restored: list[bytes] = []
    monkeypatch.setattr(fork, "connect", lambda _uri: Connection(lambda _path: restored.append(own.memory.read_bytes())))
    monkeypatch.setattr(fork, "find_own_domain", lambda *_arguments: Domain(events))
    fork.write_progress(files, Progress(fork.LOADING))
    fork._load(files, INSTANCE, parts(template.directory), memory_of(template))
    progress = fork.read_progress(files)
    assert progress
    assert progress.phase == fork.LOADED
    text, memory = restored[0][len(header) : -6].rstrip(b"\0").decode(), restored[0][-6:]
    assert marked_record(text) == str(files.record)
    assert f"<name>{INSTANCE.name}</name>" in text
    assert str(files.disk) in text
    assert str(files.console) in text
    assert memory == b"memory"
    assert own.head.read_bytes() + b"memory" == saved


def test_taking_back_a_fork_without_a_domain_works_too(
    files: InstanceFiles, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "create_overlay", lambda *_arguments: None)
    fork.write_progress(files, Progress(fork.FAILED, "x"))
    fork.discard(files, INSTANCE, None)
    assert not files.fork.exists()


def test_a_fork_that_cannot_be_taken_back_is_no_whole_vm_yet(files: InstanceFiles, events: list[str]) -> None:
    fork.write_progress(files, Progress(fork.FAILED, "x"))
    with pytest.raises(VmwError, match="the golden image g"):
        fork.discard(files, INSTANCE, Domain(events))
    assert fork.read_progress(files) == Progress(fork.FAILED, "x")


def test_saved_memory_goes_with_the_disk_that_it_belongs_to(
    files: InstanceFiles, events: list[str], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "create_overlay", lambda *_arguments: events.append("disk"))
    fork.write_progress(files, Progress(fork.COMPLETING))
    fork.discard(files, INSTANCE, Domain(events, active=False, saved=True))
    assert events == ["forget memory", "disk"]


@pytest.mark.parametrize(
    ("progress", "console", "whole"),
    [
        (Progress(fork.COMPLETING), "vmw-identity: apart\r\nvmw-identity: done\r\n", True),
        (Progress(fork.COMPLETING), "vmw-identity: apart\r\n", False),
        (Progress(fork.LOADED), "vmw-identity: done\r\n", False),
        (Progress(fork.FAILED), "vmw-identity: done\r\n", False),
    ],
)
def test_a_fork_that_was_done_when_the_host_was_interrupted_is_a_whole_vm(
    files: InstanceFiles, progress: Progress, console: str, *, whole: bool
) -> None:
    fork.write_progress(files, progress)
    files.console.write_text(console)
    assert fork.adopt(files, INSTANCE, None) == whole
    assert files.fork.exists() != whole


def test_a_vm_that_is_no_fork_is_not_adopted(files: InstanceFiles) -> None:
    assert not fork.adopt(files, INSTANCE, None)


@pytest.mark.parametrize("phase", [fork.LOADED, fork.FAILED, fork.GIVEN_UP])
def test_a_fork_that_somebody_has_booted_meanwhile_is_a_vm(files: InstanceFiles, events: list[str], phase: str) -> None:
    fork.write_progress(files, Progress(phase))
    assert not fork.adopt(files, INSTANCE, Domain(events))
    assert not fork.adopt(files, INSTANCE, Domain(events, active=False))
    assert fork.adopt(files, INSTANCE, booted(events))
    assert fork.read_progress(files) is None


def test_one_whose_completion_was_cut_off_is_none_though_it_has_its_card(files: InstanceFiles, events: list[str]) -> None:
    files.console.write_text(APART)
    fork.write_progress(files, Progress(fork.COMPLETING))
    assert not fork.adopt(files, INSTANCE, booted(events))


def test_what_was_loaded_of_a_fork_that_failed_is_ended(files: InstanceFiles, events: list[str], load: Load) -> None:
    files.leaving.touch()
    progress = load(lambda _path: events.append("restore"))
    assert progress.phase == fork.FAILED
    assert events[-2:] == ["restore", "destroy"]
