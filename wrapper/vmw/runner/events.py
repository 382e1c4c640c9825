"""The stream of Ansible's events, as a state machine without any input or output."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Event = dict[str, Any]

SILENT_ACTIONS = frozenset(
    {
        "assert", "debug", "fail", "import_role", "import_tasks", "include_role", "include_tasks", "include_vars", "meta",
        "set_fact", "validate_argument_spec",
    }
)  # fmt: skip
"""Actions that are bookkeeping and no phase of their own."""

RESULTS = (
    "instance", "generation", "removed", "freed_bytes", "branch", "commits", "look", "branches", "guest_port", "host_port",
    "running", "listening", "secrets_file", "egress",
)  # fmt: skip
"""What our modules return and a command shows."""

DETAIL_LINES = 15
"""How much of a failed program's output is shown; the log has all of it."""


class Grouping(Enum):
    """What makes a phase."""

    TASK = "task"
    ROLE = "role"


@dataclass(frozen=True)
class PhaseStarted:
    """A phase began."""

    title: str


@dataclass(frozen=True)
class StepStarted:
    """Inside a phase of several tasks, the next one began."""

    title: str


@dataclass(frozen=True)
class PhaseFinished:
    """A phase ended well."""

    title: str
    seconds: float
    changes: int


@dataclass(frozen=True)
class PhaseFailed:
    """A phase ended with a failure."""

    title: str


@dataclass(frozen=True)
class WarningIssued:
    """A module has something to say that is no failure."""

    text: str


@dataclass(frozen=True)
class NoteIssued:
    """A playbook has something to say that asks for nothing."""

    text: str


Update = PhaseStarted | StepStarted | PhaseFinished | PhaseFailed | WarningIssued | NoteIssued


@dataclass(frozen=True)
class Failure:
    """Why a playbook stopped."""

    task: str
    message: str
    hint: str = ""
    code: str = "failed"
    log: str = ""
    detail: str = ""
    worded: bool = False
    """Whether the message comes from one of our modules and stands for itself."""


_PREFIX = re.compile(r"^(\[ERROR\]: |ERROR! |Task failed: |Module failed: |Action failed: )+")
"""What Ansible says before it comes to the point."""


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-DETAIL_LINES:])


def _first_failed_item(res: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the result that failed: the one of a loop's item, or ``res`` itself."""
    items = res.get("results")
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict) and item.get("failed"):
                return item
    return res


def failure_of(task: str, result: Mapping[str, Any]) -> Failure:
    """Read a failed task's result; ours has `code` and `hint`, any other has `msg` and perhaps a program's output."""
    res = _first_failed_item(result)
    message = _PREFIX.sub("", str(res.get("msg") or res.get("reason") or "no reason given").strip())
    output = str(res.get("stderr") or res.get("module_stderr") or res.get("stdout") or res.get("module_stdout") or "")
    first, _, rest = message.partition("\n")
    if output.strip() and first.startswith("non-zero return code"):
        # All that Ansible says of a failed command; the program's last line says more.
        output, _, first = output.strip().rpartition("\n")
    detail = "\n".join(part for part in (_tail(rest), _tail(output)) if part)
    return Failure(
        task=task,
        message=first,
        hint=str(res.get("hint") or ""),
        code=str(res.get("code") or "failed"),
        log=str(res.get("log") or ""),
        detail=detail,
        worded="code" in res,
    )


def _action(data: Mapping[str, Any]) -> str:
    """Return the short name of a task's action."""
    return str(data.get("task_action") or data.get("resolved_action") or "").rpartition(".")[2]


def _short_role(name: str) -> str:
    return name.rpartition(".")[2].replace("_", " ")


@dataclass
class Tracker:
    """Follow one playbook run.

    Args:
        grouping: Whether each task is a phase, or each role.
        clock: Returns seconds; replaced in tests.
    """

    grouping: Grouping
    clock: Callable[[], float] = time.monotonic
    failure: Failure | None = None
    results: dict[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    changed: int = 0
    _phase: str = ""
    _phase_start: float = 0.0
    _phase_changes: int = 0
    _failed_here: bool = False
    _roles: set[str] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)

    def feed(self, event: Event) -> Iterator[Update]:
        """Take the next event and yield what there is to show."""
        kind = event.get("event", "")
        data = event.get("event_data") or {}
        if kind in {"playbook_on_task_start", "playbook_on_handler_task_start"}:
            yield from self._task_started(data)
        elif kind in {"runner_on_ok", "runner_on_skipped"}:
            yield from self._task_ended(data, skipped=kind == "runner_on_skipped")
        elif kind in {"runner_on_failed", "runner_on_unreachable", "runner_on_async_failed"}:
            yield from self._task_failed(data, unreachable=kind == "runner_on_unreachable")
        elif kind == "playbook_on_stats":
            yield from self._finish_phase()
        elif kind in {"error", "verbose", "warning"}:
            text = str(event.get("stdout") or "").strip()
            if text:
                self.complaints.append(text)

    def error(self, playbook: str, log: str) -> VmwError:
        """Word the failure of a run that ended with an error.

        Args:
            playbook: Name of the playbook, for a failure before its first task.
            log: Path of the log with Ansible's whole output.
        """
        if self.failure:
            failure = self.failure
            message = failure.message if failure.worded else f"`{failure.task}` failed: {failure.message}"
            code = ExitCode.of(failure.code)
            hint = failure.hint
            if "sudo" in failure.message.lower() and "password" in failure.message.lower():
                code = ExitCode.HOST_NOT_READY
                hint = hint or "run it on a terminal, or name a file with the password in ANSIBLE_BECOME_PASSWORD_FILE"
            log_lines = "\n".join(path for path in (failure.log, log) if path)
            return VmwError(message, hint or "the log below has the whole output", code, log_lines, failure.detail)
        said = [line for text in self.complaints for line in text.splitlines() if "ERROR" in line] or self.complaints[-1:]
        message = _PREFIX.sub("", said[0].strip()) if said else f"ansible-playbook ended before the first task of {playbook}.yml"
        return VmwError(message, "the log below has the whole output", ExitCode.FAILED, log, _tail("\n".join(said[1:])))

    def _task_started(self, data: Mapping[str, Any]) -> Iterator[Update]:
        title = str(data.get("task") or "").strip()
        action = _action(data)
        if self.grouping is Grouping.ROLE:
            role = _short_role(str(data.get("role") or "")) or title
            # A role that was there before is included by the one at work, and part of it.
            if role not in self._roles:
                self._roles.add(role)
                yield from self._finish_phase()
                yield from self._start_phase(role)
            if action not in SILENT_ACTIONS:
                yield StepStarted(title)
        else:
            yield from self._finish_phase()
            if action not in SILENT_ACTIONS:
                yield from self._start_phase(title)

    def _task_ended(self, data: Mapping[str, Any], *, skipped: bool) -> Iterator[Update]:
        res = data.get("res") or {}
        yield from self._said(res)
        if skipped:
            if self.grouping is Grouping.TASK:
                self._phase = ""
            return
        if _action(data) == "debug" and isinstance(res.get("msg"), str):
            yield NoteIssued(res["msg"])
        self._keep(res)
        if res.get("changed"):
            self.changed += 1
            self._phase_changes += 1
        if self.grouping is Grouping.TASK:
            yield from self._finish_phase()

    def _said(self, res: Mapping[str, Any]) -> Iterator[Update]:
        for warning in res.get("warnings") or []:
            if str(warning) not in self._warned:
                self._warned.add(str(warning))
                yield WarningIssued(str(warning))

    def _keep(self, res: Mapping[str, Any]) -> None:
        for key in RESULTS:
            value = res.get(key)
            if isinstance(value, dict):
                self.results[key] = {**self.results.get(key, {}), **value}
            elif value is not None:
                self.results[key] = value

    def _task_failed(self, data: Mapping[str, Any], *, unreachable: bool) -> Iterator[Update]:
        if data.get("ignore_errors"):
            yield from self._task_ended(data, skipped=False)
            return
        task = str(data.get("task") or "")
        failure = failure_of(task, data.get("res") or {})
        if unreachable:
            failure = Failure(task, f"the machine cannot be reached: {failure.message}", failure.hint, detail=failure.detail)
        self.failure = failure
        self._failed_here = True

    def _start_phase(self, title: str) -> Iterator[Update]:
        self._phase, self._phase_start, self._phase_changes, self._failed_here = title, self.clock(), 0, False
        yield PhaseStarted(title)

    def _finish_phase(self) -> Iterator[Update]:
        if self._phase and self._failed_here:
            yield PhaseFailed(self._phase)
        elif self._phase:
            yield PhaseFinished(self._phase, self.clock() - self._phase_start, self._phase_changes)
        self._phase = ""
