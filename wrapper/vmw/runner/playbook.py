"""Run one playbook. The only importer of ansible_runner.

Everything happens in the main thread: ansible-runner forks a pseudo-terminal, which must not be done beside other
threads, so the display is drawn from its poll callback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from vmw.errors import ExitCode, InterruptedByUserError, VmwError
from vmw.runner import processes
from vmw.runner.events import Event, Grouping, Tracker, Update
from vmw.runner.inputs import ExtraVars, drop_questions, environment, extra_vars_yaml, own_password_file, runner_settings
from vmw.runner.logs import open_log
from vmw.runner.resources import Resources, children_cpu_seconds, measure
from vmw.runner.timings import Timeline, Timing, now
from vmw.settings import log_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from vmw.layout import Layout

REPEAT_SECONDS = 10.0
"""After how long Ansible is asked again to end."""

GRACE_SECONDS = 3.0
"""How long interrupted processes may take to clean up before they are killed."""

ROOT_GRACE_SECONDS = 300.0
"""How long a step that runs as root may take to end: a package manager that is killed half-way leaves a broken system."""

NOT_FOUND_STATUS = 127

IMPORTED = now()
"""Stands for the start of the program where /proc does not tell it."""


class Observer(Protocol):
    """Shows a run while it goes on."""

    def update(self, update: Update) -> None:
        """Show what an event brought."""

    def poll(self) -> None:
        """Redraw; called about ten times a second."""

    def notice(self, text: str) -> None:
        """Say something at once."""

    def close(self) -> None:
        """Leave the terminal as it was."""


@dataclass(frozen=True)
class Run:
    """What to run.

    Args:
        verb: Name of the playbook.
        extra_vars: Its inputs.
        command: What the user typed for it, to be typed again after Ctrl-C.
        grouping: What counts as a phase.
        become_password: Password for sudo, or None when none is needed or the environment names a file with it.
    """

    verb: str
    extra_vars: ExtraVars
    command: str
    grouping: Grouping = Grouping.TASK
    become_password: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What a successful run brought.

    Args:
        results: What our modules returned.
        changed: How many tasks changed something.
        timings: How long each phase took, from the start of the program on, and last the total.
        resources: What it took of processor and memory.
    """

    results: dict[str, Any]
    changed: int
    timings: tuple[Timing, ...]
    resources: Resources


@dataclass
class _Interruption:
    """Count Ctrl-C and pass it on: the first one asks Ansible to end, the second one kills."""

    requests: int = 0
    passed_on: float | None = None
    previous: dict[signal.Signals, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Take over the signals that end a program, and give them back."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            previous = signal.getsignal(number)
            if number is signal.SIGHUP and previous is signal.SIG_IGN:
                # nohup(1): the user wants it to outlive the terminal.
                continue
            self.previous[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in self.previous.items():
                signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.request()

    def request(self) -> None:
        """Ask Ansible to end, the second time by force."""
        # From now on nothing that loses its parent gets out of sight.
        processes.adopt_orphans()
        self.requests += 1
        self.passed_on = None
        self.pass_on()

    def pass_on(self) -> None:
        """Signal Ansible; called from the poll too, for a process that was not there yet or did not listen."""
        now = time.monotonic()
        if not self.requests or (self.passed_on is not None and now < self.passed_on + REPEAT_SECONDS):
            return
        if self.requests > 1:
            targets, number = processes.descendants(), signal.SIGKILL
        else:
            # SIGINT to ansible-playbook itself ends its workers too; ansible-runner's own way, SIGKILL, orphans them.
            targets, number = processes.children(), signal.SIGINT
        self.passed_on = now if targets else None
        processes.send(targets, number)


@dataclass
class _Session:
    """One run in progress."""

    layout: Layout
    observer: Observer
    run: Run
    log: TextIO
    tracker: Tracker
    interruption: _Interruption = field(default_factory=_Interruption)
    starter: processes.Starter = field(default_factory=processes.Starter)
    timeline: Timeline = field(default_factory=lambda: Timeline(processes.program_start() or IMPORTED))
    returned: float = 0.0
    events: deque[Event] = field(default_factory=deque)
    announced: int = 0
    trouble: Exception | None = None

    def drive(self, private: Path) -> int | None:
        """Hand the run to ansible-runner and draw while it works.

        Args:
            private: The run's private directory.

        Returns:
            ansible-playbook's exit status, or None when a signal ended it.
        """
        password_file = _write_inputs(private, self.run)
        drop_questions(os.environ)
        import ansible_runner  # noqa: PLC0415 - takes 0.2 s, after the first words are on the screen

        from vmw.runner.terminals import close_at_once  # noqa: PLC0415 - loads what ansible-runner has loaded

        close_at_once()
        self.timeline.handed_over()
        result = ansible_runner.run(
            private_data_dir=str(private),
            ident="run",
            playbook=str(self.layout.playbook(self.run.verb)),
            inventory=str(self.layout.inventory),
            envvars=environment(self.layout, os.environ, password_file, private),
            verbosity=1,
            quiet=True,
            suppress_env_files=True,
            event_handler=self._take,
            cancel_callback=self._poll,
        )
        self.returned = now()
        # What came last is not worth more than the rest: the same care for a terminal that is gone.
        self._poll()
        return None if result.rc is None else int(result.rc)

    def end_leftovers(self) -> None:
        """End what an interrupted run left behind."""
        deadline = time.monotonic() + GRACE_SECONDS
        ours = processes.mine(processes.descendants())
        processes.send(ours, signal.SIGTERM)
        while processes.mine(processes.descendants()) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes.send(processes.mine(processes.descendants()), signal.SIGKILL)
        self._end_root_leftovers()

    def _end_root_leftovers(self) -> None:
        if not processes.descendants():
            return
        self._say("Waiting for a step that runs as root to end ... (Ctrl-C again kills it)")
        deadline = time.monotonic() + ROOT_GRACE_SECONDS
        seen = self.interruption.requests
        while processes.descendants() and time.monotonic() < deadline and self.interruption.requests == seen:
            time.sleep(0.1)
        remaining = processes.descendants()
        if remaining and not _kill_as_root(remaining, self.run.become_password):
            self._say(f"sudo did not kill what still runs as root: {' '.join(map(str, remaining))}")

    def _say(self, text: str) -> None:
        """Tell the user, if the terminal is still there."""
        with contextlib.suppress(OSError):
            self.observer.notice(text)

    def _take(self, event: Event) -> bool:
        """Keep an event for the poll; drawing or raising here would leave ansible-runner with Ansible still running."""
        self.events.append(event)
        return False

    def _drain(self) -> None:
        """Take in everything before anything is drawn: a display that fails must not cost a result."""
        updates: list[Update] = []
        while self.events:
            event = self.events.popleft()
            if event.get("stdout"):
                with contextlib.suppress(OSError):
                    self.log.write(event["stdout"].replace("\r\n", "\n") + "\n")
            self.timeline.feed(event)
            updates.extend(self.tracker.feed(event))
        for update in updates:
            self.observer.update(update)

    def _poll(self) -> bool:
        """Draw what came in; the answer is that ansible-runner shall not cancel, which would orphan Ansible's workers.

        Nothing is raised either, for the same reason: a display that fails ends the run as Ctrl-C does.
        """
        try:
            if self.starter.has_ended() and not self.interruption.requests:
                self.interruption.request()
            self.interruption.pass_on()
            self._draw()
        except OSError:
            # The terminal is gone or the disk with the log is full; the run itself need not care.
            return False
        except Exception as error:  # noqa: BLE001 - raised again when Ansible has ended
            if not self.trouble:
                self.trouble = error
                self.interruption.request()
        return False

    def _draw(self) -> None:
        self._drain()
        if self.interruption.requests > self.announced:
            self.announced = self.interruption.requests
            again = self.announced > 1
            self.observer.notice("Killing ..." if again else "Interrupted, stopping ... (Ctrl-C again kills)")
        self.observer.poll()


class PlaybookRunner:
    """Runs playbooks of one collection for one display."""

    def __init__(self, layout: Layout, observer: Observer) -> None:
        """Remember where the playbooks are and who shows their progress."""
        self._layout = layout
        self._observer = observer

    def run(self, run: Run) -> Outcome:
        """Run a playbook to its end.

        Raises:
            VmwError: It failed; the exception says which task, and names the log.
            InterruptedByUserError: Ctrl-C; no process of the run is left.
        """
        log_path, log = open_log(log_dir(), run.verb)
        tracker = Tracker(run.grouping)
        children_before = children_cpu_seconds()
        session = _Session(self._layout, self._observer, run, log, tracker)
        try:
            # The directory may hold the password, so no signal may come between its making and its removal.
            with session.interruption.handled(), _private_directory() as private:
                status = session.drive(private)
                if session.interruption.requests:
                    session.end_leftovers()
        finally:
            with contextlib.suppress(OSError):
                self._observer.close()
            with contextlib.suppress(OSError):
                log.close()
        if session.trouble:
            raise session.trouble
        if session.interruption.requests:
            raise InterruptedByUserError(hint=f"run `{run.command}` again: it carries on or cleans up", log=str(log_path))
        if status is None:
            message = "a signal ended ansible-playbook"
            hint = f"is there enough memory (`journalctl -k`)? Then run `{run.command}` again"
            raise VmwError(message, hint, ExitCode.FAILED, str(log_path))
        if status == NOT_FOUND_STATUS and not tracker.failure:
            message = "ansible-playbook is missing from vmw's Python environment"
            raise VmwError(message, "install vmw anew; in a checkout, remove .venv and try again", ExitCode.FAILED, str(log_path))
        if status:
            raise tracker.error(run.verb, str(log_path))
        timings = session.timeline.timings(session.returned)
        return Outcome(tracker.results, tracker.changed, timings, measure(children_before))


def _kill_as_root(pids: list[int], password: str | None) -> bool:
    """Kill processes of root's and tell whether sudo did so."""
    try:
        secret = _password_of_the_user() if password is None else os.fsencode(password)
        how = ["-n"] if secret is None else ["-S", "-p", ""]
        done = subprocess.run(
            ["sudo", *how, "kill", "-KILL", "--", *map(str, pids)],
            input=(secret or b"") + b"\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def _password_of_the_user() -> bytes | None:
    """Return the password that Ansible took from the caller's own file, which may also be a program that prints it."""
    path = own_password_file(os.environ)
    if not path:
        return None
    if os.access(path, os.X_OK):
        return subprocess.run([path], stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout.strip()
    return path.read_bytes().strip()


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    """Make a directory for one run's inputs, in memory where the user has a runtime directory, and remove it."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = runtime if runtime and os.access(runtime, os.W_OK | os.X_OK) else None
    path = Path(tempfile.mkdtemp(prefix="vmw-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_inputs(private: Path, run: Run) -> Path | None:
    """Write a run's inputs below its private directory.

    Returns:
        The file with the password for sudo, if one was given.
    """
    (private / "env").mkdir(mode=0o700)
    (private / "env" / "settings").write_text(runner_settings())
    (private / "env" / "extravars").write_text(extra_vars_yaml(run.extra_vars))
    if run.become_password is None:
        return None
    path = private / "become_password"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(os.fsencode(run.become_password) + b"\n")
    return path
