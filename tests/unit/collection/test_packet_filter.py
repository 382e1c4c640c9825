"""The questions to the host's packet filter, to a service that answers on a real socket."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import packet_filter
from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Keys
from records import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Return a function that has a service give one answer to each request, and returns the requests as they come."""
    place = tmp_path / "filter.sock"
    monkeypatch.setattr(packet_filter, "SOCKET", place)
    servers: list[socket.socket] = []

    def begin(answer: str) -> list[dict[str, Any]]:
        requests: list[dict[str, Any]] = []
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(place))
        server.listen()
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as stream:
                    requests.append(json.loads(stream.readline()))
                    connection.sendall(answer.encode())

        threading.Thread(target=serve, daemon=True).start()
        return requests

    yield begin
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_a_policy_is_told_as_it_is_recorded(answering: Callable[[str], list[dict[str, Any]]]) -> None:
    requests = answering('{"ok": true, "changed": false}\n')
    instance = dataclasses.replace(record(), egress=Egress("offline", ["a.org"]))
    assert packet_filter.enforce(instance, 47000) is False
    assert requests == [
        {
            "schema": 1,
            "verb": "set",
            "name": "one",
            "tap": "vmw-1b671a64",
            "mac": "52:54:00:00:00:01",
            "bridge": "br0",
            "mode": "offline",
            "proxy_port": 0,
        }
    ]


@pytest.mark.parametrize(
    ("mode", "keys", "port"),
    [
        ("allowlist", "file", 47000),
        ("internet", "proxy", 47000),
        ("internet", "file", 0),
        ("open", "file", 0),
        ("offline", "proxy", 0),
    ],
)
def test_only_who_needs_the_proxy_may_reach_it(mode: str, keys: str, port: int) -> None:
    instance = dataclasses.replace(record(), egress=Egress(mode), keys=Keys(keys))
    assert packet_filter.policy(instance, 47000)["proxy_port"] == port


def test_a_refusal_is_worded(answering: Callable[[str], list[dict[str, Any]]]) -> None:
    answering('{"ok": false, "error": "the tap is another VM\'s", "hint": "ask it"}\n')
    with pytest.raises(VmwError, match="refuses: the tap is another VM's") as caught:
        packet_filter.ask("set")
    assert caught.value.hint == "ask it"


@pytest.mark.parametrize("answer", ["", "\n", "nonsense\n", "[1]\n", "{}\n"])
def test_what_is_no_answer_is_no_success(answering: Callable[[str], list[dict[str, Any]]], answer: str) -> None:
    answering(answer)
    with pytest.raises(VmwError) as caught:
        packet_filter.ask("status")
    assert caught.value.hint


def test_without_a_filter_no_vm_gets_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_filter, "SOCKET", tmp_path / "none.sock")
    with pytest.raises(VmwError, match="is not there") as caught:
        packet_filter.ask("set")
    assert caught.value.code == "host_not_ready"
    assert "vmw host" in caught.value.hint


def test_a_host_without_a_filter_has_nothing_to_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answering: Callable[[str], list[dict[str, Any]]]
) -> None:
    requests = answering('{"ok": true, "changed": true}\n')
    assert packet_filter.release("one") is True
    assert requests == [{"schema": 1, "verb": "remove", "name": "one"}]
    monkeypatch.setattr(packet_filter, "SOCKET", tmp_path / "none.sock")
    assert packet_filter.release("one") is False
