"""What is asked of a guest's agent, and what its answers may do."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError


class LibvirtError(Exception):
    """Stand for the binding's own."""


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name


class Agent:
    """Answer with what a test has prepared, and note what was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.orders: list[dict[str, Any]] = []

    def qemuAgentCommand(self, _domain: object, order: str, _timeout: int, _flags: int) -> str:  # noqa: N802 - libvirt's name
        self.orders.append(json.loads(order))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps({"return": answer})


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a function
    def install(*answers: object) -> Agent:
        agent = Agent(*answers)
        monkeypatch.setattr(guest_agent, "libvirt", Libvirt)
        monkeypatch.setattr(guest_agent, "libvirt_qemu", agent)
        return agent

    return install


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_a_program_gets_its_arguments_and_its_input(agent: Any) -> None:  # noqa: ANN401
    fake = agent({"pid": 7})
    assert guest_agent.start(object(), "/bin/x", "a b", "$c", stdin="words\n") == 7
    (order,) = fake.orders
    assert order["execute"] == "guest-exec"
    assert order["arguments"]["arg"] == ["a b", "$c"]
    assert base64.b64decode(order["arguments"]["input-data"]) == b"words\n"


def test_a_program_without_input_has_none(agent: Any) -> None:  # noqa: ANN401
    fake = agent({"pid": 7})
    guest_agent.start(object(), "/bin/x")
    assert "input-data" not in fake.orders[0]["arguments"]


def test_status_and_both_outputs_of_an_ended_program(agent: Any) -> None:  # noqa: ANN401
    agent({"exited": True, "exitcode": 3, "out-data": encoded("out\n"), "err-data": encoded("err\n")})
    assert guest_agent.ended(object(), 7) == guest_agent.Ended(3, "out\nerr\n")


def test_a_running_program_has_not_ended(agent: Any) -> None:  # noqa: ANN401
    agent({"exited": False})
    assert guest_agent.ended(object(), 7) is None


def test_a_program_that_a_signal_ended_did_not_succeed(agent: Any) -> None:  # noqa: ANN401
    agent({"exited": True, "signal": 9})
    assert guest_agent.ended(object(), 7) == guest_agent.Ended(-1, "")


def test_a_call_waits_for_the_end(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(guest_agent, "POLL_SECONDS", 0)
    fake = agent({"pid": 7}, {"exited": False}, {"exited": False}, {"exited": True, "exitcode": 0})
    assert guest_agent.call(object(), "/bin/x").status == 0
    assert len(fake.orders) == 4


def test_a_call_that_takes_too_long_is_told(agent: Any) -> None:  # noqa: ANN401
    agent({"pid": 7}, {"exited": False})
    with pytest.raises(VmwError, match="/bin/x did not end in the guest"):
        guest_agent.call(object(), "/bin/x", timeout=-1)


@pytest.mark.parametrize("answer", [LibvirtError("gone"), "{", "[]", json.dumps({"return": {}}), json.dumps({"return": None})])
def test_nonsense_from_a_guest_is_an_agent_that_does_not_answer(agent: Any, answer: object) -> None:  # noqa: ANN401
    agent(answer)
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.call(object(), "/bin/x")
    assert guest_agent.answer(object(), "guest-ping") in (None, {})


def test_output_without_end_is_cut(agent: Any) -> None:  # noqa: ANN401
    agent({"exited": True, "exitcode": 0, "out-data": encoded("x" * (1 << 20))})
    result = guest_agent.ended(object(), 7)
    assert result
    assert 0 < len(result.output) <= guest_agent.MAXIMUM_OUTPUT


def test_an_agent_that_answers_late_is_waited_for(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(guest_agent, "ARRIVAL_POLL_SECONDS", 0)
    fake = agent(LibvirtError("QEMU guest agent is not connected"), LibvirtError("QEMU guest agent is not connected"), {})
    guest_agent.await_answer(object(), 60)
    assert [order["execute"] for order in fake.orders] == ["guest-ping"] * 3


def test_an_agent_that_does_not_come_is_given_up(agent: Any) -> None:  # noqa: ANN401
    agent(LibvirtError("QEMU guest agent is not connected"))
    with pytest.raises(VmwError, match="does not answer"):
        guest_agent.await_answer(object(), -1)


def test_a_file_is_read_and_closed(agent: Any) -> None:  # noqa: ANN401
    fake = agent(7, {"count": 5, "buf-b64": encoded("words"), "eof": True}, {})
    assert guest_agent.read_file(object(), "/a b") == "words"
    assert [order["execute"] for order in fake.orders] == ["guest-file-open", "guest-file-read", "guest-file-close"]
    assert fake.orders[0]["arguments"] == {"path": "/a b", "mode": "r"}
    assert fake.orders[2]["arguments"] == {"handle": 7}


def test_a_file_that_is_not_there_is_none(agent: Any) -> None:  # noqa: ANN401
    agent(LibvirtError("failed to open file '/a' (mode: 'r'): No such file or directory"))
    assert guest_agent.read_file(object(), "/a") is None


def test_a_file_that_cannot_be_read_is_closed_and_told(agent: Any) -> None:  # noqa: ANN401
    fake = agent(7, LibvirtError("Input/output error"), {})
    with pytest.raises(VmwError, match="Input/output error"):
        guest_agent.read_file(object(), "/a")
    assert fake.orders[-1]["execute"] == "guest-file-close"


@pytest.mark.parametrize("answer", ["{", {"buf-b64": "x"}, {}, None])
def test_nonsense_in_place_of_a_file_is_told(agent: Any, answer: object) -> None:  # noqa: ANN401
    agent(7, answer, {})
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.read_file(object(), "/a")


def test_a_command_without_arguments_has_no_word_of_them(agent: Any) -> None:  # noqa: ANN401
    fake = agent({})
    guest_agent.ask(object(), "guest-ping")
    assert fake.orders == [{"execute": "guest-ping"}]


def test_what_the_agent_returns_is_the_answer(agent: Any) -> None:  # noqa: ANN401
    agent(["eth0"])
    assert guest_agent.ask(object(), "guest-network-get-interfaces") == ["eth0"]
    assert guest_agent.answer(object(), "guest-network-get-interfaces") == ["eth0"]


def test_who_asks_sees_the_refusal_and_who_wants_an_answer_gets_none(agent: Any) -> None:  # noqa: ANN401
    agent(LibvirtError("gone"))
    with pytest.raises(LibvirtError):
        guest_agent.ask(object(), "guest-ping")
    assert guest_agent.answer(object(), "guest-ping") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"return"', '{"error": {}}'])
def test_what_is_no_answer_is_none(agent: Any, text: str) -> None:  # noqa: ANN401
    agent(text)
    assert guest_agent.answer(object(), "guest-ping") is None
    with pytest.raises((ValueError, KeyError, TypeError)):
        guest_agent.ask(object(), "guest-ping")


def test_what_a_program_writes_is_kept_for_the_host(agent: Any) -> None:  # noqa: ANN401
    fake = agent({"pid": 7})
    guest_agent.start(object(), "/bin/x")
    assert fake.orders[0]["arguments"]["path"] == "/bin/x"
    assert fake.orders[0]["arguments"]["arg"] == []
    assert fake.orders[0]["arguments"]["capture-output"] is True


def test_input_of_every_language_arrives(agent: Any) -> None:  # noqa: ANN401
    fake = agent({"pid": 7})
    guest_agent.start(object(), "/bin/x", stdin="Jörg\r\n日本\0")
    assert base64.b64decode(fake.orders[0]["arguments"]["input-data"]).decode() == "Jörg\r\n日本\0"


def test_the_process_that_was_started_is_asked_for(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(guest_agent, "POLL_SECONDS", 0)
    fake = agent({"pid": 4711}, {"exited": True, "exitcode": 2})
    assert guest_agent.call(object(), "/bin/x").status == 2
    assert fake.orders[1] == {"execute": "guest-exec-status", "arguments": {"pid": 4711}}


def test_output_that_is_no_text_is_made_one(agent: Any) -> None:  # noqa: ANN401
    agent({"exited": True, "exitcode": 0, "out-data": base64.b64encode(b"a\xffb").decode()})
    assert guest_agent.ended(object(), 7) == guest_agent.Ended(0, "a\ufffdb")


NO_NUMBERS: tuple[object, ...] = (float("inf"), float("nan"), 1.5, "7", None, [], {})


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_a_process_id_that_is_no_number_is_no_answer(agent: Any, number: object) -> None:  # noqa: ANN401
    agent({"pid": number})
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.call(object(), "/bin/x")


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_a_status_that_is_no_number_is_no_answer(agent: Any, number: object) -> None:  # noqa: ANN401
    agent({"pid": 7}, {"exited": True, "exitcode": number})
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.call(object(), "/bin/x")


@pytest.mark.parametrize("status", [None, [], "exited", {}, {"exited": True, "out-data": "x"}, {"exited": True, "err-data": "ä"}])
def test_a_status_of_another_form_is_no_answer(agent: Any, status: object) -> None:  # noqa: ANN401
    agent({"pid": 7}, status)
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.call(object(), "/bin/x")


@pytest.mark.parametrize("told", [10**4000, -(10**4000)], ids=["future", "past"])
def test_a_time_beyond_all_numbers_is_no_time(agent: Any, told: int) -> None:  # noqa: ANN401
    agent(told)
    assert guest_agent.clock_offset(object()) is None
    assert not guest_agent.set_clock(object())


def test_an_answer_without_bottom_is_none(agent: Any) -> None:  # noqa: ANN401
    agent('{"return": ' + "[" * 100_000)
    assert guest_agent.answer(object(), "guest-ping") is None
    with pytest.raises(VmwError, match="agent does not answer"):
        guest_agent.call(object(), "/bin/x")
