# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What the proxy says itself: plain text to those who want a name, and errors in the form of the API to its clients."""

from __future__ import annotations

import json

from aiohttp import web

from vmw_proxy.key_proxy import ANTHROPIC
from vmw_proxy.policy import METHODS

SERVER = "vmw-proxy"

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
}
"""Anthropic's names of errors. What is not here is an ``api_error``."""


def _headers(status: int) -> dict[str, str]:
    allow = {"Allow": ", ".join(METHODS)} if status == web.HTTPMethodNotAllowed.status_code else {}
    return {"Server": SERVER, **allow}


def text(status: int, message: str, *, close: bool = False) -> web.Response:
    """Return a sentence as an answer.

    Args:
        status: Of the answer.
        message: The sentence, without a full stop.
        close: Whether the connection is of no more use.
    """
    response = web.Response(status=status, text=f"vmw-proxy: {message}\n", headers=_headers(status))
    if close:
        response.force_close()
    return response


def error(api: str, status: int, message: str, *, again: bool = False) -> web.Response:
    """Return an error as a client of an API understands it.

    Args:
        api: The API.
        status: Of the answer.
        message: The sentence, without a full stop.
        again: Whether the client may try again soon, where there were too many requests.
    """
    kind = KINDS.get(status, "api_error")
    inner: dict[str, str | None] = {"type": kind, "message": f"vmw-proxy: {message}"}
    whole = {"type": "error", "error": inner} if api == ANTHROPIC else {"error": {**inner, "param": None, "code": kind}}
    headers = _headers(status)
    if status == web.HTTPTooManyRequests.status_code:
        # Clients try again by themselves otherwise, and most limits are of the day.
        headers |= {"Retry-After": "1"} if again else {"x-should-retry": "false"}
    return web.Response(status=status, text=json.dumps(whole), content_type="application/json", headers=headers)
