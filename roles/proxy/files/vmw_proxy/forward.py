# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Plain http to a name, as apt of Debian speaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from vmw_proxy.dial import CONNECT_SECONDS, Fixed
from vmw_proxy.headers import NEVER_SENT, passed_on

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

    from vmw_proxy.dial import Dialer

SILENT_SECONDS = 900.0
"""How long the other side may say nothing."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ADDED_BY_CLIENT = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that aiohttp's client would add where the guest sent none."""


async def encourage(request: web.BaseRequest) -> None:
    """Have a guest send the body that it holds back: only now is it known that somebody wants it."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(CONTINUE)


def body_of(request: web.BaseRequest) -> aiohttp.StreamReader | None:
    """Return a request's body, for aiohttp's client to send while it comes; nothing where there is none."""
    return request.content if request.body_exists else None


async def pass_back(answer: aiohttp.ClientResponse, response: web.StreamResponse, request: web.BaseRequest) -> None:
    """Send an answer to the guest, each part when it comes."""
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)


async def forward(request: web.BaseRequest, url: URL, allowed: Sequence[str], dialer: Dialer) -> web.StreamResponse:
    """Answer a request for an ``http://`` address.

    Args:
        request: The guest's request.
        url: What it asks for, with the name in its canonical form.
        allowed: The addresses of that name that were checked.
        dialer: Knows where they are.

    Raises:
        aiohttp.ClientError: The other side does not answer, or stops.
        OSError: Either side is gone.
    """
    # Each request has a connection of its own: no guest is to find what another one left in it.
    connector = aiohttp.TCPConnector(resolver=Fixed(allowed, dialer.route), use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=ADDED_BY_CLIENT,
    ) as session:
        await encourage(request)
        headers = passed_on(request.headers, NEVER_SENT)
        async with session.request(request.method, url, headers=headers, data=body_of(request), allow_redirects=False) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=passed_on(answer.headers))
            await pass_back(answer, response, request)
    return response
