# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""How guests come in: so many connections of one, and on each so much that is not yet a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import StreamReader

MOST_CONNECTIONS = 256
"""Connections of one VM at once."""

LARGEST_HEADER = 16 * 1024
"""Bytes of the longest request line, and of the longest header."""

LARGEST_HEAD = 64 * 1024
"""Bytes of the longest head: aiohttp did not limit the number of headers until late."""

MOST_WAITING = 32
"""Requests that may wait on a connection behind the one that is answered: aiohttp did not limit these either."""

HEAD_SECONDS = 30.0
"""How long a new connection may take to say what it wants."""

KEEP_ALIVE_SECONDS = 75.0
"""How long after an answer the whole head of the next request may take."""

LINGER_SECONDS = 2.0
"""How long the rest of a body that nobody wants is read."""


class Door(RequestHandler):
    """aiohttp's side of one connection, which is ended where it would have to keep ever more."""

    _heard = 0
    _body: StreamReader | None = None

    def data_received(self, data: bytes) -> None:
        """Take in what the guest sent: of a body, which waits outside until somebody reads it, or of the next head."""
        in_body, waiting = self._body is not None and not self._body.is_eof(), len(self._messages)
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]
        self._heard = 0 if in_body or len(self._messages) > waiting else self._heard + len(data)
        if (self._heard > LARGEST_HEAD or len(self._messages) > MOST_WAITING) and self.transport is not None:
            self.transport.abort()


class Doors(web.Server):
    """aiohttp's server, with a limit for each guest.

    Args:
        handler: Answers a request.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], Any]) -> None:
        """Set the limits."""
        super().__init__(
            handler,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=LINGER_SECONDS,
            max_line_size=LARGEST_HEADER,
            max_field_size=LARGEST_HEADER,
        )
        self._of: dict[RequestHandler, str] = {}
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}
        self.count: Counter[str] = Counter()

    def __call__(self) -> RequestHandler:
        """Make what serves a connection."""
        return Door(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection, and end it at once where the peer has too many."""
        super().connection_made(handler, transport)
        peer = str((transport.get_extra_info("peername") or ("",))[0])
        self._of[handler] = peer
        self.count[peer] += 1
        # aiohttp 3.9 would wait for ever.
        self._silent[handler] = asyncio.get_running_loop().call_later(HEAD_SECONDS, transport.abort)
        if self.count[peer] > MOST_CONNECTIONS:
            # Not within this step, in which aiohttp begins to wait for a request.
            asyncio.get_running_loop().call_soon(transport.abort)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count a connection no more."""
        super().connection_lost(handler, exc)
        self.spoke(handler)
        peer = self._of.pop(handler, None)
        if peer is not None:
            self.count[peer] -= 1
            if not self.count[peer]:
                del self.count[peer]

    def spoke(self, handler: RequestHandler) -> None:
        """Wait no longer for a connection's first request."""
        timer = self._silent.pop(handler, None)
        if timer is not None:
            timer.cancel()
