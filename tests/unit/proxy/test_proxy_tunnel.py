"""CONNECT and plain http, by the real server on loopback with a real TLS server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from typing import TYPE_CHECKING

import pytest
from proxy_support import GUEST, PUBLIC, PUBLIC6, STRANGER, World, play, until
from vmw_proxy import dial, doors, hello

if TYPE_CHECKING:
    from pathlib import Path


def client_hello(name: str | None) -> bytes:
    """Return the first words of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname = False
    out = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


async def exchange(world: World, target: str, name: str | None, address: str = GUEST) -> bytes:
    """Say something through a tunnel and return what comes back."""
    status, reader, writer = await world.connect(target, address)
    assert status == 200
    await world.secure(reader, writer, name)
    writer.write(b"hello")
    got = await reader.readexactly(5)
    writer.close()
    return got


def test_an_allowed_name_is_reached(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert await exchange(world, "github.com:443", "github.com") == b"hello"
        assert await exchange(world, "GitHub.com.:443", "github.com") == b"hello"
        assert world.connected == [(PUBLIC, 443)] * 2
        assert world.refused() == []

    play(tmp_path, story)


def test_a_subdomain_is_reached_where_the_list_says_so(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert await exchange(world, "raw.githubusercontent.com:443", "raw.githubusercontent.com") == b"hello"
        status, _ = await world.say(b"CONNECT githubusercontent.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 403

    play(tmp_path, story)


def test_other_names_are_refused_and_noted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for _ in range(3):
            status, text = await world.say(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: github.com\r\n\r\n")
            assert status == 403
            assert b"not in the allow-list" in text
        assert world.connected == []
        assert world.refused() == [("evil.example", 443, "not in the allow-list", 3)]
        world.vm(egress={"mode": "allowlist", "allow": ["evil.example"]})
        assert await exchange(world, "evil.example:443", "evil.example") == b"hello"

    play(tmp_path, story)


@pytest.mark.parametrize("mode", ["internet", "open"])
def test_other_modes_have_the_proxy_for_keys_alone(tmp_path: Path, mode: str) -> None:
    async def story(world: World) -> None:
        world.vm(egress={"mode": mode, "allow": ["github.com"]}, keys={"mode": "proxy"})
        for request in (b"CONNECT github.com:443", b"GET http://apt.example.org/", b"CONNECT 93.184.216.34:443"):
            status, text = await world.say(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, b"reaches the internet itself" in text) == (403, True), request
        assert (world.connected, world.seen) == ([], [])
        assert (await world.ask("/anthropic/v1/messages"))[0] == 200
        world.vm(egress={"mode": "allowlist", "allow": []})
        assert await exchange(world, "github.com:443", "github.com") == b"hello"
        # A change of the mode ends what the list allowed.
        _, reader, writer = await world.connect("github.com:443")
        await world.secure(reader, writer, "github.com")
        world.vm(egress={"mode": mode})
        world.proxy.look()
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)

    play(tmp_path, story)


@pytest.mark.parametrize("mode", ["offline", "of a later release"])
def test_an_offline_vm_reaches_nothing(tmp_path: Path, mode: str) -> None:
    async def story(world: World) -> None:
        world.vm(egress={"mode": mode, "allow": ["github.com"]})
        assert (await world.say(b"CONNECT github.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 403
        assert (await world.say(b"GET http://apt.example.org/ HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 403
        assert [entry[2] for entry in world.refused()] == ["the VM is offline"] * 2
        world.vm(egress={"mode": "allowlist"})
        assert await exchange(world, "github.com:443", "github.com") == b"hello"

    play(tmp_path, story)


def test_addresses_are_refused_in_every_spelling(tmp_path: Path) -> None:
    spellings = [
        "93.184.216.34",
        "1572395042",
        "0x5db8d822",
        "0135.0270.0330.042",
        "93.12113954",
        "[2606:2800:220:1::1]",
        "[::ffff:93.184.216.34]",
    ]

    async def story(world: World) -> None:
        world.vm(egress={"mode": "allowlist", "allow": spellings})
        world.names.update({spelling: [PUBLIC] for spelling in spellings})
        for spelling in spellings:
            status, text = await world.say(f"CONNECT {spelling}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (status, b"address" in text) == (403, True), spelling
            assert (await world.say(f"GET http://{spelling}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()))[0] == 403, spelling
        assert world.connected == []

    play(tmp_path, story)


def test_a_private_address_behind_an_allowed_name_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for address in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "fd00::1", "::ffff:192.168.1.1"):
            world.names["github.com"] = [address]
            status, text = await world.say(b"CONNECT github.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, b"no public address" in text) == (403, True), address
            world.names["apt.example.org"] = [address]
            assert (await world.say(b"GET http://apt.example.org/ HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 403, address
        assert world.connected == []
        world.names["github.com"] = ["10.0.0.1", PUBLIC]
        assert await exchange(world, "github.com:443", "github.com") == b"hello"
        assert world.connected == [(PUBLIC, 443)]

    play(tmp_path, story)


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        answers = [[PUBLIC], ["127.0.0.1"], [PUBLIC], ["127.0.0.1"]]
        world.proxy._dialer._resolve = lambda _name, _port: answers.pop(0)
        assert await exchange(world, "github.com:443", "github.com") == b"hello"
        assert (await world.say(b"CONNECT github.com:443 HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 403
        request = b"GET http://apt.example.org/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await world.say(request))[0] == 200
        assert (await world.say(request))[0] == 403
        assert world.connected == [(PUBLIC, 443), (PUBLIC, 80)]

    play(tmp_path, story)


@pytest.mark.parametrize("name", ["evil.example", None])
def test_another_server_name_ends_the_tunnel(tmp_path: Path, name: str | None) -> None:
    async def story(world: World) -> None:
        status, reader, writer = await world.connect("github.com:443")
        assert status == 200
        with pytest.raises((ssl.SSLError, OSError)):
            await world.secure(reader, writer, name)
        assert [entry[:2] for entry in world.refused()] == [("github.com", 443)]
        assert "TLS" in world.refused()[0][2]

    play(tmp_path, story)


@pytest.mark.parametrize(
    "words",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 100, b"\x16\x03\x01\xff\xff" + b"\x01" * 70_000],
)
def test_what_is_no_tls_ends_the_tunnel(tmp_path: Path, words: bytes) -> None:
    async def story(world: World) -> None:
        status, reader, writer = await world.connect("github.com:443")
        assert status == 200
        writer.write(words)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert [entry[2] for entry in world.refused()] == ["no TLS with a server name"]

    play(tmp_path, story)


def test_a_server_name_that_comes_in_parts_is_read(tmp_path: Path) -> None:
    for size in (1, 7, 10_000):
        parts = hello.HelloReader()
        words = client_hello("github.com")
        found = hello.Hello(complete=False)
        for start in range(0, len(words), size):
            assert not found.complete
            found = parts.feed(words[start : start + size])
        assert found == hello.Hello(complete=True, name="github.com")


@pytest.mark.parametrize(
    "target",
    ["github.com:22", "github.com:80", "github.com:0443x", "github.com", "github.com:", "github.com:-1", "github.com:65979"],
)
def test_only_port_443_is_tunnelled_to(tmp_path: Path, target: str) -> None:
    async def story(world: World) -> None:
        reader, writer = await world.open()
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        # aiohttp 3.9 leaves what is no port without an answer.
        writer.write_eof()
        whole = await reader.read()
        assert not whole or whole.split(b" ")[1] in {b"403", b"400"}
        assert world.connected == []
        assert await exchange(world, "github.com:443", "github.com") == b"hello"

    play(tmp_path, story)


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.say(b"CONNECT github.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", STRANGER))[0] == 403
        assert (await world.ask("/anthropic/v1/messages", address=STRANGER))[0] == 403
        world.vm("other", STRANGER, egress={"mode": "allowlist"})
        assert await exchange(world, "github.com:443", "github.com", STRANGER) == b"hello"

    play(tmp_path, story)


def test_a_vm_is_one_only_on_the_bridge_and_while_it_is_certain_which(tmp_path: Path) -> None:
    request = b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"

    async def story(world: World) -> None:
        table = tmp_path / "arp"
        rows = table.read_text()
        for change in (("br0", "eth0"), ("0x2", "0x0"), ("52:54:00", "52:54:01")):
            table.write_text(rows.replace(*change))
            assert b"no VM" in (await world.say(request))[1], change
        table.write_text(rows)
        assert b"allow-list" in (await world.say(request))[1]
        other = world.vm("other", egress={"mode": "open"})
        assert b"no VM" in (await world.say(request))[1]
        (other / "leaving").touch()
        assert b"allow-list" in (await world.say(request))[1]

    play(tmp_path, story)


def test_much_goes_both_ways(tmp_path: Path) -> None:
    much = os.urandom(1 << 20) * 8

    async def story(world: World) -> None:
        _, reader, writer = await world.connect("github.com:443")
        await world.secure(reader, writer, "github.com")

        async def send() -> None:
            for start in range(0, len(much), 1 << 18):
                writer.write(much[start : start + (1 << 18)])
                await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(much)) == much
        await sending
        writer.close()

    play(tmp_path, story)


def test_a_side_that_reads_nothing_holds_the_other_back(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        _, reader, writer = await world.connect("github.com:443")
        await world.secure(reader, writer, "github.com")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 64 << 20:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

        # The buffers of four sockets fill, and then it would go on for ever.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 2)
        writer.transport.abort()

    play(tmp_path, story)


def test_what_comes_early_is_not_lost_and_each_side_may_end_by_itself(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        got = asyncio.Queue[bytes]()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.put_nowait(await reader.read())
            writer.write(b"the answer")
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        world.echo = listener.sockets[0].getsockname()[1]
        words = client_hello("github.com") + b"and more"
        reader, writer = await world.open()
        writer.write(b"CONNECT github.com:443 HTTP/1.1\r\nHost: x\r\n\r\n" + words)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write_eof()
        assert await reader.read() == b"the answer"
        assert await got.get() == words
        listener.close()

    play(tmp_path, story)


def test_fifty_at_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        answers = await asyncio.gather(*(exchange(world, "github.com:443", "github.com") for _ in range(50)))
        assert answers == [b"hello"] * 50

    play(tmp_path, story)


def test_a_vm_has_so_many_connections_and_others_have_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "MOST_CONNECTIONS", 3)

    async def story(world: World) -> None:
        world.vm("other", "127.0.0.3", egress={"mode": "allowlist"})
        held = [await world.open() for _ in range(3)]
        await until(lambda: sum(world.proxy.server.count.values()) == 3)
        reader, _ = await world.open()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert await exchange(world, "github.com:443", "github.com", "127.0.0.3") == b"hello"
        for _, writer in held:
            writer.close()
        await until(lambda: not world.proxy.server.count)
        assert await exchange(world, "github.com:443", "github.com") == b"hello"

    play(tmp_path, story)


@pytest.mark.parametrize("words", [b"", b"GET http://apt.example.org/ HTTP/1.1\r\nHost: x\r\nX-More"])
def test_a_head_that_does_not_end_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: bytes) -> None:
    monkeypatch.setattr(doors, "HEAD_SECONDS", 0.5)

    async def story(world: World) -> None:
        _, kept, writer = await world.connect("github.com:443")
        await world.secure(kept, writer, "github.com")
        reader, silent = await world.open()
        silent.write(words)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        await until(lambda: sum(world.proxy.server.count.values()) == 1)
        # What said what it wants may go on for as long as it likes.
        writer.write(b"still")
        assert await kept.readexactly(5) == b"still"
        writer.close()

    play(tmp_path, story)


@pytest.mark.parametrize(
    "first", [b"", b"POST /anthropic/v1/stream HTTP/1.1\r\nHost: x\r\nx-api-key: k\r\nContent-Length: 2\r\n\r\n{}"]
)
@pytest.mark.parametrize("line", [b"X-More: %s\r\n" % (b"y" * 1000), b"\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_keeps_no_more_than_it_needs(tmp_path: Path, first: bytes, line: bytes) -> None:
    async def story(world: World) -> None:
        reader, writer = await world.open()
        writer.write(first)
        if first:
            await reader.readuntil(b"message_start")
        elif line.startswith(b"\r\n"):
            # Nobody is told who it is while this is looked for, and what follows waits.
            world.proxy._who = lambda _address, _bridge: asyncio.Event().wait()  # type: ignore[assignment,return-value,method-assign]
        writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 64 << 20:
                writer.write(line * 60)
                await writer.drain()
                sent += len(line) * 60

        # It is ended, or is not read from any more, as newer releases of aiohttp do with requests that wait.
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(flood(), 2)
        assert sent < 64 << 20
        assert all(len(each._messages) <= doors.MOST_WAITING for each in world.proxy.server.connections)
        writer.transport.abort()
        world.held.set()

    play(tmp_path, story)


def test_connections_are_forgotten_however_they_end(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        for end in ("close", "abort"):
            _, reader, writer = await world.connect("github.com:443")
            await world.secure(reader, writer, "github.com")
            assert len(world.proxy._running) == 1
            writer.close() if end == "close" else writer.transport.abort()
            await until(lambda: not (world.proxy.server.count or world.proxy._running or world.proxy.server.connections))

    play(tmp_path, story)


def test_a_name_without_an_address_breaks_nothing(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.settings("dead.example", "github.com", "127.0.0.1", "*.", "a..b")
        status, text = await world.say(b"CONNECT dead.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, b"no address" in text) == (502, True)
        assert await exchange(world, "github.com:443", "github.com") == b"hello"

    play(tmp_path, story)


def test_a_silent_address_does_not_keep_the_next_one_waiting(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.names["github.com"] = [PUBLIC6, PUBLIC]
        deaf = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        closed = deaf.sockets[0].getsockname()[1]
        deaf.close()
        echo = world.echo

        def route(address: str, port: int) -> tuple[str, int]:
            world.connected.append((address, port))
            return "127.0.0.1", closed if ":" in address else echo

        world.proxy._dialer.route = route
        assert await exchange(world, "github.com:443", "github.com") == b"hello"
        assert world.connected == [(PUBLIC6, 443), (PUBLIC, 443)]

    play(tmp_path, story)


def test_families_take_turns() -> None:
    assert dial.alternate(["a:1", "a:2", "b1", "b2", "a:3"]) == ["a:1", "b1", "a:2", "b2", "a:3"]


def test_tunnels_end_when_the_user_withdraws_the_name(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        _, reader, writer = await world.connect("github.com:443")
        await world.secure(reader, writer, "github.com")
        world.proxy.look()
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        world.vm(egress={"mode": "offline"})
        world.proxy.look()
        with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        await until(lambda: not world.proxy.server.count)

    play(tmp_path, story)


# --- plain http ------------------------------------------------------------------------------------------------------


def test_plain_http_is_passed_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        request = (
            b"GET http://Apt.Example.org/debian/a%2Fb?x=%41 HTTP/1.1\r\nHost: evil.example\r\n"
            b"Proxy-Authorization: p\r\nVia: v\r\nConnection: close\r\n\r\n"
        )
        status, text = await world.say(request)
        assert status == 200
        assert text.endswith(b"GET apt.example.org /debian/a%2Fb?x=%41 0")
        assert {"proxy-authorization", "via", "connection", "user-agent"} & set(world.seen[0].headers) <= {"connection"}

    play(tmp_path, story)


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PROPFIND"])
def test_other_methods_are_not_passed_on(tmp_path: Path, method: str) -> None:
    async def story(world: World) -> None:
        head = "http://apt.example.org/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await world.say(f"{method} {head}".encode()))[0] == 405
        assert world.seen == []
        assert (await world.say(f"DELETE {head}".encode()))[0] == 200
        assert [got.method for got in world.seen] == ["DELETE"]

    play(tmp_path, story)


def test_a_body_is_passed_on(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        head = b"POST http://apt.example.org/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        status, text = await world.say(head + b"Content-Length: 100000\r\n\r\n" + b"y" * 100_000)
        assert (status, text.endswith(b" 100000")) == (200, True)
        status, text = await world.say(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert (status, text.endswith(b" 3")) == (200, True)

    play(tmp_path, story)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://apt.example.org:8080/",
        "http://apt.example.org:443/",
        "http://u:p@apt.example.org/",
        "https://apt.example.org/",
        "ftp://apt.example.org/",
    ],
)
def test_other_addresses_of_the_web_are_refused(tmp_path: Path, url: str) -> None:
    async def story(world: World) -> None:
        assert (await world.say(f"GET {url} HTTP/1.1\r\nHost: apt.example.org\r\n\r\n".encode()))[0] == 403
        assert world.seen == []
        assert len(world.refused()) == 1

    play(tmp_path, story)


def test_long_headers_are_refused(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        head = b"GET http://apt.example.org/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: %s\r\n\r\n"
        assert (await world.say(head % (b"y" * 1000)))[0] == 200
        assert (await world.say(head % (b"y" * 20_000)))[0] == 400

    play(tmp_path, story)
