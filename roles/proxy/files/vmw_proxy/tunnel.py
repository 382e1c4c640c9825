# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""CONNECT: a tunnel for TLS to the name that the guest asked for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from vmw_proxy import hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.web_protocol import RequestHandler

IDLE_SECONDS = 2 * 3600.0
"""How long a tunnel may carry nothing."""

CHUNK = 64 * 1024


class _Early:
    """Takes what came behind a CONNECT, in the place of aiohttp's reader of a WebSocket."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Have nothing to end."""


class _Protocol(asyncio.StreamReaderProtocol):
    """Reads a tunnel, and tells aiohttp's server of the end of what is its connection all the same."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, server: RequestHandler) -> None:
        super().__init__(reader, loop=loop)
        self._server = server
        self.lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        super().connection_lost(exc)
        self._server.connection_lost(exc)


class Client:
    """The guest's side of a tunnel: a connection of aiohttp's server that carries HTTP no more.

    Args:
        request: The CONNECT, whose head was answered already.
    """

    def __init__(self, request: web.BaseRequest) -> None:
        """Take the connection over, with all that came early. Nothing is read in between: this is one step of the loop."""
        transport = request.transport
        if transport is None:
            message = "the guest has gone"
            raise ConnectionResetError(message)
        early = _Early()
        self._server: RequestHandler = request.protocol
        # The way in which aiohttp's own WebSockets get what follows the head.
        self._server.set_parser(early)  # type: ignore[arg-type]
        self._transport = transport
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(CHUNK, loop)
        self._protocol = _Protocol(self.reader, loop, self._server)
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        self.writer = asyncio.StreamWriter(transport, self._protocol, self.reader, loop)
        transport.resume_reading()
        self.reader.feed_data(early.data)

    def close(self) -> None:
        """End the connection and give it back to aiohttp's server."""
        if not self._protocol.lost:
            self._transport.set_protocol(self._server)
        self._server.force_close()
        self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()


def hold(request: web.BaseRequest) -> None:
    """Read no more from a guest that wants a tunnel until there is one."""
    if request.transport is not None:
        with contextlib.suppress(RuntimeError):
            request.transport.pause_reading()


async def greet(request: web.BaseRequest) -> web.StreamResponse:
    """Say that the tunnel is there."""
    response = web.StreamResponse(status=200, reason="Connection established", headers={"Server": "vmw-proxy"})
    await response.prepare(request)
    return response


async def read_hello(reader: asyncio.StreamReader) -> tuple[str | None, bytes]:
    """Return the server name of a ClientHello, or nothing, and all that was read on the way."""
    parts = hello.HelloReader()
    data = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(hello.SECONDS):
            while chunk := await reader.read(CHUNK):
                data += chunk
                found = parts.feed(chunk)
                if found.complete:
                    return found.name, data
    return None, data


async def carry(
    client: Client,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    limit: asyncio.Timeout,
    idle: Callable[[], float] = lambda: IDLE_SECONDS,
) -> None:
    """Carry bytes both ways until both sides have ended, one has failed, or neither has said anything for long.

    Args:
        client: The guest's side.
        reader: What comes from the other side.
        writer: What goes there.
        limit: The time-out that surrounds this, which is put off while there is traffic.
        idle: Returns the seconds without any that end the tunnel.
    """
    loop = asyncio.get_running_loop()

    async def one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK):
            if not limit.expired():
                limit.reschedule(loop.time() + idle())
            target.write(data)
            # The other side decides how fast this one may send.
            await target.drain()
        with contextlib.suppress(OSError):
            target.write_eof()

    ways = [asyncio.create_task(one_way(*pair)) for pair in ((client.reader, writer), (reader, client.writer))]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.exception()
    finally:
        for task in ways:
            task.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
