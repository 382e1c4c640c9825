"""Real runs of small playbooks: what matters here is how Ansible and ansible-runner behave together."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wrapper_support import ROOT

from vmw.errors import ExitCode, InterruptedByUserError, VmwError
from vmw.layout import Layout
from vmw.runner import playbook, processes
from vmw.runner.events import Grouping, PhaseFailed, PhaseFinished, PhaseStarted, Tracker, Update
from vmw.runner.playbook import PlaybookRunner, Run, _Session
from vmw.runner.timings import Timing, now

if TYPE_CHECKING:
    from collections.abc import Callable

PLAY = """
- name: Play
  hosts: vmw_hosts
  gather_facts: false
  tasks:
    - name: Do the first thing
      ansible.builtin.command: "true"
"""

NOTE = """
    - name: Note what came in
      ansible.builtin.copy:
        content: "{{ worktree }}"
        dest: "{{ out }}"
        mode: "0600"
"""

FAIL = """
    - name: Break
      ansible.builtin.command: sh -c 'echo "no room" >&2; exit 3'
"""

SLEEP = """
    - name: Sleep
      ansible.builtin.command: sleep {}
"""

HOSTILE = "/a b/{{ lookup('pipe', 'touch /tmp/never') }}/\"quo'tes\n/größe😀"


@dataclass
class Recorder:
    """A display that remembers."""

    updates: list[Update] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    closed: bool = False

    def update(self, update: Update) -> None:
        self.updates.append(update)

    def poll(self) -> None:
        """Draw nothing."""

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Make a collection of one playbook, `spawn`."""
    root = tmp_path / "collection"
    (root / "playbooks").mkdir(parents=True)
    (root / "inventory").symlink_to(ROOT / "inventory")
    (root / "collections").mkdir()
    (root / "ansible.cfg").write_text("[defaults]\nretry_files_enabled = false\n")
    return Layout(root, root / "collections")


def _write(layout: Layout, text: str) -> None:
    layout.playbook("spawn").write_text(PLAY + text)


def test_ok_and_failed(layout: Layout, tmp_path: Path, home: Path) -> None:
    _write(layout, NOTE + FAIL)
    out = tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)
    recorder = Recorder()
    with pytest.raises(VmwError) as caught:
        PlaybookRunner(layout, recorder).run(Run("spawn", {"worktree": HOSTILE, "out": str(out)}, "vmw spawn x"))
    assert out.read_text() == HOSTILE
    assert caught.value.message == "`Break` failed: no room"
    assert caught.value.exit_code is ExitCode.FAILED
    kinds = [type(update) for update in recorder.updates]
    assert kinds == [PhaseStarted, PhaseFinished, PhaseStarted, PhaseFinished, PhaseStarted, PhaseFailed]
    assert recorder.closed
    assert signal.getsignal(signal.SIGINT) is before
    log = Path(caught.value.log)
    assert log.is_relative_to(home)
    text = log.read_text()
    assert "no room" in text
    assert "PATH" not in text
    assert "\x1b[" not in text
    assert list(Path(os.environ.get("TMPDIR", "/tmp")).glob("vmw-*/env/extravars")) == []


TOLD = """
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={})
module.exit_json(timings=[{"phase": "kernel", "seconds": 0.25}])
"""

ROLES = """
- name: Play
  hosts: vmw_hosts
  gather_facts: false
  roles:
    - disk
    - domain
"""


def _write_roles(layout: Layout) -> None:
    """Write a playbook of two roles, the second of which has a module that tells what took it how long."""
    playbooks = layout.root / "playbooks"
    layout.playbook("spawn").write_text(ROLES)
    (playbooks / "library").mkdir()
    (playbooks / "library" / "told.py").write_text("#!/usr/bin/python" + TOLD)
    for role, task in (("disk", "ansible.builtin.command: sleep 0.3"), ("domain", "told:")):
        (playbooks / "roles" / role / "tasks").mkdir(parents=True)
        (playbooks / "roles" / role / "tasks" / "main.yml").write_text(f"- name: Work\n  {task}\n")


def test_timings_and_resources(layout: Layout) -> None:
    _write_roles(layout)
    before = now()
    outcome = PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw spawn x"))
    took = now() - before
    rows = {row.phase: row for row in outcome.timings}
    assert list(rows) == ["wrapper", "Ansible start", "disk", "domain", "Ansible end", "total"]
    seconds = {phase: row.seconds for phase, row in rows.items()}
    assert all(length >= 0 for length in seconds.values()), seconds
    assert seconds["disk"] >= 0.3
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"])
    assert seconds["total"] - seconds["wrapper"] <= took
    assert seconds["wrapper"] >= before - (processes.program_start() or playbook.IMPORTED)
    assert rows["domain"].details == (Timing("kernel", 0.25),)
    assert 0 < outcome.resources.ansible_cpu_seconds <= took * (os.cpu_count() or 1)
    assert outcome.resources.wrapper_cpu_seconds > 0
    assert outcome.resources.wrapper_peak_mib > 5
    assert outcome.resources.ansible_peak_mib > 5


def test_the_first_row_begins_with_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _session(tmp_path, Recorder(), None).timeline.began == processes.program_start()
    monkeypatch.setattr(processes, "program_start", lambda: None)
    assert _session(tmp_path, Recorder(), None).timeline.began == playbook.IMPORTED


def test_interrupted(layout: Layout) -> None:
    marker = str(100000 + os.getpid())
    _write(layout, SLEEP.format(marker))

    recorder = Recorder()
    # Another process, not a thread: ansible-runner forks.
    watch = "until pgrep -x -f 'sleep {0}'; do sleep 0.05; done; kill -INT {1}"
    watcher = subprocess.Popen(["sh", "-c", watch.format(marker, os.getpid())], stdout=subprocess.DEVNULL)
    try:
        with pytest.raises(InterruptedByUserError) as caught:
            PlaybookRunner(layout, recorder).run(Run("spawn", {}, "vmw spawn x"))
    finally:
        watcher.kill()
        watcher.wait()
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert caught.value.hint.startswith("run `vmw spawn x` again")
    assert recorder.notices
    assert recorder.notices[0].startswith("Interrupted")
    assert _sleepers(marker) == []
    assert processes.descendants() == []


class Clumsy(Recorder):
    """A display with a mistake in it."""

    def update(self, update: Update) -> None:
        super().update(update)
        message = "cannot draw"
        raise RuntimeError(message)


def test_a_display_that_fails_leaves_no_ansible_behind(layout: Layout) -> None:
    _write(layout, SLEEP.format("100"))
    clumsy = Clumsy()
    with pytest.raises(RuntimeError, match="cannot draw"):
        PlaybookRunner(layout, clumsy).run(Run("spawn", {}, "vmw spawn x"))
    assert clumsy.closed
    assert processes.descendants() == []


class RootStep:
    """A process of root's below this one, that ends by itself after some looks or by sudo's hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
        self.looks = looks
        # Nothing here may reach a process that happens to have this number.
        monkeypatch.setattr(processes, "descendants", self._descendants)
        monkeypatch.setattr(processes, "mine", lambda _pids: [])
        monkeypatch.setattr(processes, "children", list)
        monkeypatch.setattr(processes, "send", lambda _pids, _number: None)

    def _descendants(self) -> list[int]:
        self.looks -= 1
        return [4194305] if self.looks > 0 else []


def _session(tmp_path: Path, recorder: Recorder, password: str | None) -> _Session:
    log = (tmp_path / "log").open("w")
    run = Run("host", {}, "vmw host", Grouping.ROLE, password)
    return _Session(Layout(tmp_path, tmp_path), recorder, run, log, Tracker(Grouping.ROLE))


def test_a_step_of_root_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    calls = fake_program("sudo", "exit 0")
    RootStep(monkeypatch, 6)
    recorder = Recorder()
    _session(tmp_path, recorder, None).end_leftovers()
    assert recorder.notices == ["Waiting for a step that runs as root to end ... (Ctrl-C again kills it)"]
    assert not calls.exists()


@pytest.mark.parametrize(("password", "words"), [(None, "-n kill -KILL -- 4194305"), ("secret", "-S -p  kill -KILL -- 4194305")])
def test_a_step_of_root_is_killed_at_the_second_ctrl_c(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    password: str | None,
    words: str,
) -> None:
    calls = fake_program("sudo", "cat >/dev/null")
    RootStep(monkeypatch, 1000)
    session = _session(tmp_path, Recorder(), password)
    monkeypatch.setattr(time, "sleep", lambda _seconds: session.interruption.request())
    session.end_leftovers()
    assert calls.read_text() == f"{words}\n"


@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_the_users_own_password_file_serves_to_kill_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], mode: int
) -> None:
    calls = fake_program("sudo", f"cat >'{tmp_path}/typed'")
    file = tmp_path / "own"
    # Ansible runs the file when it can be run.
    file.write_text("secret\n" if mode == 0o600 else "#!/bin/sh\necho secret\n")
    file.chmod(mode)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANSIBLE_BECOME_PASSWORD_FILE", "own")
    assert playbook._kill_as_root([4194305], None)
    assert calls.read_text() == "-S -p  kill -KILL -- 4194305\n"
    assert (tmp_path / "typed").read_text() == "secret\n"


def test_a_refusal_of_sudo_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    fake_program("sudo", "exit 1")
    RootStep(monkeypatch, 1000)
    recorder = Recorder()
    session = _session(tmp_path, recorder, None)
    monkeypatch.setattr(time, "sleep", lambda _seconds: session.interruption.request())
    session.end_leftovers()
    assert recorder.notices[-1] == "sudo did not kill what still runs as root: 4194305"


class Gone(Recorder):
    """A display whose terminal is gone."""

    def update(self, update: Update) -> None:
        super().update(update)
        raise OSError(errno.EIO, "Input/output error")

    def notice(self, text: str) -> None:
        super().notice(text)
        raise OSError(errno.EIO, "Input/output error")


def test_a_step_of_root_is_ended_without_a_terminal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    calls = fake_program("sudo", "exit 0")
    RootStep(monkeypatch, 1000)
    monkeypatch.setattr(playbook, "ROOT_GRACE_SECONDS", 0.2)
    _session(tmp_path, Gone(), None).end_leftovers()
    assert calls.exists()


def test_a_display_that_fails_costs_no_result(tmp_path: Path) -> None:
    session = _session(tmp_path, Gone(), None)
    result = {"warnings": ["slow"], "generation": "g1"}
    session._take({"event": "runner_on_ok", "event_data": {"res": result}})
    session._take({"event": "runner_on_ok", "event_data": {"res": {"removed": ["g0"]}}})
    session._poll()
    assert session.tracker.results == {"generation": "g1", "removed": ["g0"]}


def _play_ansible(monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], body: str) -> None:
    """Put a script in the place of ansible-playbook, which is looked for beside Python."""
    calls = fake_program("ansible-playbook", body)
    monkeypatch.setattr(sys, "executable", str(calls.parent / "bin" / "python"))


def test_an_ansible_that_a_signal_ended(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    _play_ansible(monkeypatch, fake_program, "kill -KILL $$")
    with pytest.raises(VmwError) as caught:
        PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw spawn x"))
    assert caught.value.message == "a signal ended ansible-playbook"
    assert "`vmw spawn x`" in caught.value.hint


def test_an_ansible_that_is_missing(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmwError, match="ansible-playbook is missing"):
        PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw spawn x"))


def test_an_early_ctrl_c_leaves_no_password_behind(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], tmp_path: Path
) -> None:
    _play_ansible(monkeypatch, fake_program, "exit 0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    (tmp_path / "runtime").mkdir()
    make = tempfile.mkdtemp

    def interrupted(**options: str) -> str:
        path = make(**options)
        os.kill(os.getpid(), signal.SIGINT)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", interrupted)
    with pytest.raises(InterruptedByUserError) as caught:
        PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw image prune", become_password="secret"))
    assert caught.value.hint == "run `vmw image prune` again: it carries on or cleans up"
    assert list((tmp_path / "runtime").iterdir()) == []


@pytest.mark.parametrize("lives", ["sleep 0.3", "exit 0"])
def test_the_end_of_the_process_that_the_user_started_ends_the_run(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], lives: str
) -> None:
    _play_ansible(monkeypatch, fake_program, "exec sleep 60")
    with subprocess.Popen(["sh", "-c", lives]) as starter:
        monkeypatch.setenv(processes.STARTER, str(starter.pid))
        with pytest.raises(InterruptedByUserError):
            PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw spawn x"))
    assert processes.descendants() == []


def test_questions_of_the_callers_settings_are_not_asked(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]
) -> None:
    _play_ansible(monkeypatch, fake_program, '[ -z "${ANSIBLE_BECOME_ASK_PASS-}" ]')
    monkeypatch.setenv("ANSIBLE_BECOME_ASK_PASS", "1")
    PlaybookRunner(layout, Recorder()).run(Run("spawn", {}, "vmw spawn x"))


def _sleepers(marker: str) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", marker.encode()]:
            found.append(path)
    return found
