from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from wrapper_support import stream

from vmw.errors import ExitCode
from vmw.runner.events import (
    Grouping,
    NoteIssued,
    PhaseFailed,
    PhaseFinished,
    PhaseStarted,
    StepStarted,
    Tracker,
    Update,
    WarningIssued,
    failure_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


def play(tracker: Tracker, events: Iterable[dict[str, Any]]) -> list[Update]:
    return [update for event in events for update in tracker.feed(event)]


def tracker(grouping: Grouping = Grouping.TASK) -> Tracker:
    seconds = itertools.count()
    return Tracker(grouping, clock=lambda: float(next(seconds)))


def test_each_task_is_a_phase() -> None:
    followed = tracker()
    assert play(followed, stream("ok")) == [
        PhaseStarted("Show the worktree"),
        PhaseFinished("Show the worktree", 1.0, 1),
        PhaseStarted("Skip this"),
        PhaseStarted("Ignore a failure"),
        PhaseFinished("Ignore a failure", 1.0, 1),
        PhaseStarted("Loop"),
        PhaseFinished("Loop", 1.0, 0),
    ]
    assert followed.failure is None
    assert followed.changed == 2


def test_each_role_is_a_phase() -> None:
    updates = play(tracker(Grouping.ROLE), stream("roles"))
    assert updates == [
        PhaseStarted("first role"),
        StepStarted("One thing"),
        StepStarted("Another thing"),
        PhaseFinished("first role", 1.0, 1),
        PhaseStarted("second"),
        StepStarted("Third thing"),
        StepStarted("Warn"),
        StepStarted("Reload it"),
        PhaseFinished("second", 1.0, 1),
    ]


def test_an_included_role_is_part_of_the_one_at_work() -> None:
    events = [
        {
            "event": "playbook_on_task_start",
            "event_data": {"task": "Do", "task_action": "command", "role": f"vmw.worktree.{role}"},
        }
        for role in ("kvm", "mdns", "kvm", "mdns")
    ]
    updates = play(tracker(Grouping.ROLE), [*events, {"event": "playbook_on_stats"}])
    phases = [update for update in updates if not isinstance(update, StepStarted)]
    assert phases == [
        PhaseStarted("kvm"),
        PhaseFinished("kvm", 1.0, 0),
        PhaseStarted("mdns"),
        PhaseFinished("mdns", 1.0, 0),
    ]


def test_failed_command() -> None:
    followed = tracker()
    updates = play(followed, stream("failed"))
    assert updates[-1] == PhaseFailed("Break")
    error = followed.error("spawn", "/log")
    assert error.message == "`Break` failed: some trouble"
    assert error.exit_code is ExitCode.FAILED
    assert error.log == "/log"


def test_unreachable_machine() -> None:
    followed = tracker()
    play(followed, stream("unreachable"))
    message = followed.error("spawn", "/log").message
    assert message.startswith("`Reach out` failed: the machine cannot be reached: Failed to connect")


def test_canceled_stream_has_no_failure() -> None:
    followed = tracker()
    updates = play(followed, stream("canceled"))
    assert updates[-1] == PhaseStarted("Sleep long")
    assert followed.failure is None


def test_failure_before_the_first_task() -> None:
    followed = tracker()
    assert play(followed, stream("broken")) == []
    assert followed.error("spawn", "/log").message.startswith("the role 'nonesuch' was not found")


def test_silence_before_the_first_task() -> None:
    assert tracker().error("spawn", "/log").message == "ansible-playbook ended before the first task of spawn.yml"


def _failed(res: dict[str, Any], **data: object) -> dict[str, Any]:
    return {"event": "runner_on_failed", "event_data": {"task": "Do it", "res": res, **data}}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("failed", ExitCode.FAILED),
        ("usage", ExitCode.USAGE),
        ("host_not_ready", ExitCode.HOST_NOT_READY),
        ("not_found", ExitCode.NOT_FOUND),
        ("conflict", ExitCode.CONFLICT),
        ("something new", ExitCode.FAILED),
    ],
)
def test_codes_of_our_modules(code: str, expected: ExitCode) -> None:
    followed = tracker()
    play(followed, [_failed({"msg": "it went wrong", "hint": "do this", "code": code, "log": "/console.log"})])
    error = followed.error("spawn", "/run.log")
    assert (error.message, error.hint, error.exit_code) == ("it went wrong", "do this", expected)
    assert error.log == "/console.log\n/run.log"


def test_wrong_sudo_password_is_a_host_that_is_not_ready() -> None:
    followed = tracker()
    play(followed, [_failed({"msg": "Task failed: Incorrect sudo password"})])
    error = followed.error("host", "/log")
    assert error.exit_code is ExitCode.HOST_NOT_READY
    assert "ANSIBLE_BECOME_PASSWORD_FILE" in error.hint


def test_failed_item_of_a_loop_speaks() -> None:
    res = {"msg": "One or more items failed", "results": [{"msg": "fine"}, {"failed": True, "msg": "no space left"}]}
    assert failure_of("Copy", res).message == "no space left"


def test_output_of_a_failed_command_is_cut_to_its_end() -> None:
    failure = failure_of("Run", {"msg": "non-zero return code", "stderr": "\n".join(map(str, range(100)))})
    assert failure.message == "99"
    assert failure.detail.splitlines()[0] == "84"
    assert failure.detail.splitlines()[-1] == "98"


def test_message_of_several_lines() -> None:
    failure = failure_of("Run", {"msg": "first\nsecond\nthird"})
    assert (failure.message, failure.detail) == ("first", "second\nthird")


def test_rescued_failure_gives_way_to_the_last_one() -> None:
    followed = tracker()
    play(followed, [_failed({"msg": "one"}), _failed({"msg": "two"})])
    assert followed.error("host", "").message == "`Do it` failed: two"


def test_results_are_merged() -> None:
    followed = tracker()
    for res in ({"instance": {"name": "x", "state": "off"}}, {"instance": {"state": "running"}}, {"generation": "g1"}):
        play(followed, [{"event": "runner_on_ok", "event_data": {"res": res}}])
    assert followed.results == {"instance": {"name": "x", "state": "running"}, "generation": "g1"}


def test_a_warning_is_shown_once() -> None:
    event = {"event": "runner_on_ok", "event_data": {"res": {"warnings": ["slow without KVM"]}}}
    assert play(tracker(), [event, event]) == [WarningIssued("slow without KVM")]


def test_what_a_playbook_says_is_shown() -> None:
    data = {"task_action": "ansible.builtin.debug", "res": {"msg": "follow it with tail"}}
    assert play(tracker(), [{"event": "runner_on_ok", "event_data": data}]) == [NoteIssued("follow it with tail")]
    assert play(tracker(), [{"event": "runner_on_skipped", "event_data": data}]) == []


def test_unknown_events_are_passed_over() -> None:
    assert play(tracker(), [{"event": "playbook_on_something_new"}, {}, {"event": "runner_on_ok", "event_data": None}]) == []
