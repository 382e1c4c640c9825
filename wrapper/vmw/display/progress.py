"""The progress of a playbook run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmw.display import console
from vmw.runner.events import NoteIssued, PhaseFailed, PhaseFinished, PhaseStarted, StepStarted, Update, WarningIssued

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from vmw.runner.playbook import Observer

SCHEMA = 1
READ_SECONDS = 0.2
PLAIN_STEP_PERCENT = 25
"""How often a long download shows in a log file."""


@dataclass(frozen=True)
class LongTask:
    """How far a task is that takes minutes, as its module wrote it down."""

    task: str
    done: float
    total: float
    unit: str
    detail: str


class ProgressFile:
    """The file through which a module tells how far it is."""

    def __init__(self, path: Path) -> None:
        """Remember the file and when the run began, so that one left over by a killed run is not believed."""
        self._path = path
        self._since = time.time()
        self._next_read = 0.0
        self._last: LongTask | None = None

    def read(self, title: str) -> LongTask | None:
        """Return the latest progress of a task.

        Args:
            title: The task's name. Another one's progress is another run's: there is one file for all.
        """
        now = time.monotonic()
        if now >= self._next_read:
            self._next_read = now + READ_SECONDS
            self._last = self._load()
        return self._last if self._last and self._last.task == title else None

    def _load(self) -> LongTask | None:
        try:
            if self._path.stat().st_mtime < self._since - 1:
                return None
            data = json.loads(self._path.read_text())
            if data["schema"] != SCHEMA:
                return None
            return LongTask(
                str(data["task"]), float(data["done"]), float(data["total"] or 0), str(data["unit"]), str(data.get("detail", ""))
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _amount(task: LongTask) -> str:
    if task.unit == "bytes":
        return f"{console.size(task.done)} of {console.size(task.total)}" if task.total else console.size(task.done)
    return f"{task.done:.0f}/{task.total:.0f}"


def _finished_line(update: PhaseFinished, *, show_changes: bool) -> str:
    changes = ""
    if show_changes:
        changes = f", {update.changes} changed" if update.changes else ", no change"
    return f"{update.title} ({update.seconds:.1f} s{changes})"


class PlainProgress:
    """One line per finished phase, and a few while a long task goes on."""

    def __init__(self, progress_file: ProgressFile, *, show_changes: bool) -> None:
        """Show changes only where they tell something: on a run that sets up a machine."""
        self._file = progress_file
        self._show_changes = show_changes
        self._shown: tuple[str, str, int] | None = None
        self._step = ""

    def update(self, update: Update) -> None:
        """Print the end of a phase, or a warning."""
        if isinstance(update, (PhaseStarted, StepStarted)):
            self._step = update.title
        elif isinstance(update, PhaseFinished):
            console.say(f"  done: {_finished_line(update, show_changes=self._show_changes)}")
        elif isinstance(update, PhaseFailed):
            console.say(f"  failed: {update.title}")
        elif isinstance(update, WarningIssued):
            console.warn(update.text)
        elif isinstance(update, NoteIssued):
            console.say(f"  {update.text}")

    def poll(self) -> None:
        """Print a line when a long task reached its next part."""
        task = self._file.read(self._step)
        if task is None:
            return
        percent = int(100 * task.done / task.total) if task.total else 0
        key = (task.task, task.detail, percent // PLAIN_STEP_PERCENT if task.unit == "bytes" else int(task.done))
        if key != self._shown:
            self._shown = key
            detail = f": {task.detail}" if task.detail else ""
            console.say(f"  {task.task}{detail} ({_amount(task)})")

    def notice(self, text: str) -> None:
        """Print a line."""
        console.say(text)

    def close(self) -> None:
        """Nothing is open."""


class LiveProgress:
    """A line that changes while a phase goes on, and a lasting one for each phase that is done."""

    def __init__(self, progress_file: ProgressFile, *, show_changes: bool) -> None:
        """Prepare the display; nothing is drawn yet and no thread is ever started."""
        from rich.console import Console  # noqa: PLC0415 - takes 0.2 s, after the first words are on the screen
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._file = progress_file
        self._show_changes = show_changes
        self._console = Console(stderr=True, highlight=False, no_color=bool(os.environ.get("NO_COLOR")))
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task: TaskID | None = None
        self._phase = ""
        self._step = ""

    def update(self, update: Update) -> None:
        """Take up the next phase or step, or leave a line for the one that is done."""
        match update:
            case PhaseStarted(title):
                self._phase, self._step = title, ""
                self._restart()
            case StepStarted(title):
                self._step = title
            case PhaseFinished():
                self._stop()
                self._lasting("✓", "green", _finished_line(update, show_changes=self._show_changes))
            case PhaseFailed(title):
                self._stop()
                self._lasting("✗", "red", title)
            case WarningIssued(text):
                self._lasting("warning:", "yellow", text)
            case NoteIssued(text):
                self._lasting("", "default", text)

    def poll(self) -> None:
        """Draw the current state."""
        if self._task is None:
            return
        long_task = self._file.read(self._step or self._phase)
        description = f"{self._phase}: {self._step}" if self._step else self._phase
        if long_task:
            description = f"{long_task.task}: {long_task.detail}" if long_task.detail else long_task.task
            self._progress.update(
                self._task,
                description=description,
                total=long_task.total or None,
                completed=long_task.done,
                amount=_amount(long_task),
            )
        else:
            # `update` takes None for "as it was", so the bar is told directly that there is no end in sight.
            self._progress.tasks[0].total = None
            self._progress.update(self._task, description=description, amount="")
        self._progress.refresh()

    def notice(self, text: str) -> None:
        """Leave a line above the live one."""
        self._lasting("", "yellow", text)

    def close(self) -> None:
        """Take the live line away and give the cursor back."""
        self._stop()
        self._progress.stop()

    def _restart(self) -> None:
        self._stop()
        self._task = self._progress.add_task(self._phase, total=None, amount="")
        self._progress.start()
        self._progress.refresh()

    def _stop(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
            self._progress.refresh()

    def _lasting(self, mark: str, colour: str, text: str) -> None:
        from rich.text import Text  # noqa: PLC0415 - imported with the rest of rich

        line = Text.assemble((f"{mark} ", colour), text) if mark else Text(text, colour)
        self._console.print(line)


def make_progress(state_dir: Path, *, show_changes: bool) -> Observer:
    """Return the display that fits where stderr goes.

    Args:
        state_dir: vmw's directory, where a long task leaves its progress.
        show_changes: Whether each phase says how many changes it made.
    """
    progress_file = ProgressFile(state_dir / "progress.json")
    if console.is_terminal(sys.stderr):
        return LiveProgress(progress_file, show_changes=show_changes)
    return PlainProgress(progress_file, show_changes=show_changes)
