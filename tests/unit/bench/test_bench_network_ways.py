"""The network benchmark's client and servers, on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from networking import client, proxying, servers, streams
from spawning.machine import BenchError
from vmw_proxy.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
def test_end_of_an_answer_is_seen(answer: bytes) -> None:
    assert client.is_whole(answer)
    assert not any(client.is_whole(answer[:length]) for length in range(len(answer)))


def read(*parts: bytes) -> bytes:
    own, other = socket.socketpair()
    with own:
        with other:
            for part in parts:
                other.sendall(part)
        return client.read_until(own, client.is_whole)


def test_answer_is_read_to_its_end() -> None:
    assert read(WHOLE[:20], WHOLE[20:]) == WHOLE


@pytest.mark.parametrize("parts", [(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",), (WHOLE[:-1],), ()])
def test_other_answers_are_failures(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(BenchError, match="instead of an answer"):
        read(*parts)


def test_streams_and_datagrams_reach_the_peer() -> None:
    with servers.serving([sys.executable, servers.PROGRAMS / "peer.py", "127.0.0.1"]) as ports:
        for measure in (streams.send, streams.receive):
            with socket.create_connection(("127.0.0.1", ports["stream"])) as connection:
                assert measure(connection, 0.05) > 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(("127.0.0.1", ports["datagram"]))
            assert streams.exchange(datagrams, 3) > 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports["stream"]))


def test_program_that_does_not_start_is_told() -> None:
    with (
        pytest.raises(BenchError, match=r"did not start: .*sorry"),
        servers.serving([sys.executable, "-c", "import sys; sys.exit('sorry')"]),
    ):
        pass


def test_thread_returns_to_all_its_processors() -> None:
    before = os.sched_getaffinity(0)
    with streams.on_processor(streams.processors()[-1]):
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_proxy_knows_the_guest_among_the_records(tmp_path: Path) -> None:
    proxying.write_state(tmp_path, 1, 20)
    records = Records(tmp_path / "instances", tmp_path / "arp")
    vm = records.who(proxying.GUEST, "br0")
    assert vm is not None
    assert (vm.name, vm.mode, vm.proxied) == ("vm0", "allowlist", True)
    assert len(list(records.instances.iterdir())) == 20
    assert records.who("127.0.0.1", "br0") is None


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[proxying.Proxying]:
    if not shutil.which("openssl"):
        pytest.skip("not installed: openssl")
    few = {
        "INTERPRETERS": (sys.executable,),
        "REQUESTS": 2,
        "STREAMS": 1,
        "HANDSHAKES": 1,
        "CONNECTIONS": 2,
        "BULK_BYTES": 1 << 20,
    }
    made = proxying.Proxying(tmp_path_factory.mktemp("ways"), seconds=0.05)
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in few.items():
            patch.setattr(proxying, name, value)
        made.make(stack)
        yield made


def test_every_way_gives_every_figure(ways: proxying.Proxying) -> None:
    assert list(ways.ways) == list(proxying.SECTION.rows)
    for row in ways.ways:
        taken = ways.take(row)
        assert list(taken) == list(proxying.SECTION.measures)
        assert all(value > 0 for value in taken.values())


def test_what_the_proxy_refuses_is_a_failure(ways: proxying.Proxying) -> None:
    way = ways.ways["proxy"]
    with pytest.raises(BenchError, match=r"403 .*not in the allow-list"):
        client.bulk(dataclasses.replace(way, name="other.example.org"), 1)
    with pytest.raises(BenchError, match="403"):
        client.many(dataclasses.replace(way, source="127.0.0.1"), 2, 0.05)


def test_api_takes_the_key_alone(ways: proxying.Proxying) -> None:
    with pytest.raises(BenchError, match="401"):
        client.small(dataclasses.replace(ways.ways["direct"], key=proxying.PLACEHOLDER), 1)


def test_python_without_aiohttp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxying, "INTERPRETERS", ("/nonexistent/python3",))
    monkeypatch.setattr(shutil, "which", lambda name: None if "nonexistent" in name else name)
    assert "has aiohttp 3.9 or newer" in proxying.obstacle()
