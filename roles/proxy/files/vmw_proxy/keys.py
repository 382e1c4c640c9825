# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Requests to an API with the user's key, which the guest does not have.

No key, header or body is ever logged or kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from vmw_proxy import replies, tally
from vmw_proxy.dial import CONNECT_SECONDS
from vmw_proxy.forward import ADDED_BY_CLIENT, SILENT_SECONDS, body_of, encourage
from vmw_proxy.headers import ACCOUNTS_OWN, GUESTS_OWN, NEVER_SENT, passed_on
from vmw_proxy.key_proxy import BASE_URLS, below_own_address, is_address, keys_of, own_address, parse
from vmw_proxy.policy import METHODS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmw_proxy.key_proxy import Key
    from vmw_proxy.records import Vm
    from vmw_proxy.usage import Usage

LARGEST_SECRETS = 64 * 1024
"""Bytes of the longest ``secrets.env`` that is read."""

UNAUTHORISED = 401
FAILURES = 400
"""The least status of a failure, for which an API takes no tokens."""

REST_SECONDS = 900.0
REST_BYTES = 32 << 20
"""How much of an answer is read on for its usage when the guest has gone."""


class DeniedError(Exception):
    """A request that is answered here.

    Args:
        status: Of the answer.
        message: What the client is told.
        again: Whether it may try again soon.
    """

    def __init__(self, status: int, message: str, *, again: bool = False) -> None:
        """Keep all."""
        super().__init__(message)
        self.again = again
        self.status = status
        self.message = message


def split(target: str) -> tuple[str, str] | None:
    """Return the API that a request is for and the path there, with its query; nothing where it is for none.

    Args:
        target: Of the request, as it was sent: ``/anthropic/v1/messages?beta=true``.
    """
    api, slash, rest = target.removeprefix("/").partition("/")
    return (api, f"/{rest}") if target.startswith("/") and slash and api in BASE_URLS else None


def is_plain(path: str) -> bool:
    """Tell whether a path leads nowhere but down, however often the other side decodes it.

    Args:
        path: With its query, which is no part of it.
    """
    path = path.partition("?")[0]
    while (decoded := unquote(path)) != path:
        path = decoded
    steps = path.split("/")
    return path.isprintable() and "\\" not in path and "#" not in path and not {".", ".."} & set(steps) and "" not in steps[1:-1]


def choose(secrets: dict[str, str], api: str, headers: Mapping[str, str]) -> tuple[Key, str] | None:
    """Return the key for a request: that of the header in which the guest sent its placeholder, else the first there is."""
    usable = keys_of(secrets, api)
    return next(((key, secret) for key, secret in usable if key.header in headers), usable[0] if usable else None)


class KeyProxy:
    """The APIs as guests see them.

    Args:
        secrets: The directory with the secrets profiles.
        usage: Counts.
        trust: Whom to trust as an API; the system's own choice by default.
    """

    def __init__(self, secrets: Path, usage: Usage, trust: ssl.SSLContext | None = None) -> None:
        """Make the client that all requests share, so that its connections are used again."""
        self._secrets = secrets
        self._usage = usage
        self._under_way: Counter[str] = Counter()
        connector = aiohttp.TCPConnector(limit=0, ssl=trust) if trust else aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=ADDED_BY_CLIENT,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _read(self, vm: Vm) -> dict[str, str]:
        path = self._secrets / vm.profile / "secrets.env"
        try:
            # What is in no key and no address may be in any coding.
            with path.open(errors="surrogateescape", newline="") as handle:
                return parse(handle.read(LARGEST_SECRETS))
        except (OSError, ValueError) as error:
            raise DeniedError(503, f"the secrets profile {vm.profile} cannot be read on the host") from error

    @staticmethod
    def _key(vm: Vm, secrets: dict[str, str], api: str, headers: Mapping[str, str]) -> tuple[Key, str]:
        chosen = choose(secrets, api, headers)
        if chosen is None:
            raise DeniedError(401, f"the secrets profile {vm.profile} has no key for this API that can be used")
        return chosen

    def _check(self, vm: Vm, request: web.BaseRequest, api: str, path: str) -> None:
        if request.method not in METHODS:
            raise DeniedError(405, f"only {', '.join(METHODS)} are passed on")
        if not vm.proxied:
            raise DeniedError(403, "this VM has its keys in a file, not by the proxy")
        if vm.revoked:
            raise DeniedError(403, "the keys are withdrawn from this VM")
        if not is_plain(path):
            raise DeniedError(400, "the path is not a plain one")
        if not request.headers.get("x-api-key") and not request.headers.get("Authorization"):
            raise DeniedError(401, "the request has no placeholder in the place of a key")
        untold = tally.check_path(vm, api, request.method, path)
        if untold:
            raise DeniedError(403, untold)
        exceeded = self._usage.exceeded(vm)
        if exceeded:
            raise DeniedError(429, exceeded)
        most = tally.most_at_once(vm)
        if self._under_way[vm.uuid] >= most:
            raise DeniedError(429, f"this VM has {most} requests under way, and may have no more at once", again=True)

    @contextlib.contextmanager
    def _one_more(self, vm: Vm) -> Iterator[None]:
        """Count a request as under way, until the API has ended its answer."""
        self._under_way[vm.uuid] += 1
        try:
            yield
        finally:
            self._under_way[vm.uuid] -= 1
            if not self._under_way[vm.uuid]:
                del self._under_way[vm.uuid]

    @staticmethod
    def _url(vm: Vm, secrets: dict[str, str], api: str, path: str, base: URL | None) -> URL:
        """Return where a request goes: a key of a gateway's, which the profile names, is for nobody else."""
        own = own_address(secrets, api)
        if not own:
            if base is None:
                raise DeniedError(404, "the host has no address for this API")
            return URL(f"{str(base).rstrip('/')}{path}", encoded=True)
        variable, place = BASE_URLS[api]
        if not is_address(own):
            raise DeniedError(404, f"{variable} of the secrets profile {vm.profile} is no http:// or https:// address")
        below = below_own_address(api, path)
        if below is None:
            raise DeniedError(404, f"{variable} of the secrets profile {vm.profile} leads on from {place}/ alone")
        return URL(f"{own.rstrip('/')}{below}", encoded=True)

    async def answer(self, vm: Vm, request: web.BaseRequest, api: str, path: str, base: URL | None) -> web.StreamResponse:
        """Answer a request.

        Args:
            vm: Who asks.
            request: The guest's request.
            api: The API that it is for.
            path: The path there, with its query.
            base: The API's address, where the profile names no other.
        """
        try:
            self._check(vm, request, api, path)
            secrets = self._read(vm)
            key, secret = self._key(vm, secrets, api, request.headers)
            url = self._url(vm, secrets, api, path, base)
        except DeniedError as denial:
            return replies.error(api, denial.status, denial.message, again=denial.again)
        headers = passed_on(request.headers, NEVER_SENT | GUESTS_OWN)
        headers[key.header] = key.value(secret)
        # The usage is to be read in the answer.
        headers["Accept-Encoding"] = "identity"
        self._usage.add(vm, api, {"requests": 1})
        with self._one_more(vm):
            await encourage(request)
            async with self._session.request(
                request.method, url, headers=headers, data=body_of(request), allow_redirects=False
            ) as answer:
                if answer.status == UNAUTHORISED:
                    # An API may quote parts of the key that it does not like.
                    return replies.error(
                        api, UNAUTHORISED, f"the API does not take {key.variable} of the secrets profile {vm.profile}"
                    )
                estimated = answer.status < FAILURES and tally.spends(api, request.method, path)
                kind = answer.headers.get("Content-Type", "")
                return await self._pass_back(
                    request, answer, secret, tally.Tally(self._usage, vm, api, kind, estimated=estimated)
                )

    @staticmethod
    async def _pass_back(
        request: web.BaseRequest, answer: aiohttp.ClientResponse, secret: str, counted: tally.Tally
    ) -> web.StreamResponse:
        headers = passed_on(answer.headers, ACCOUNTS_OWN)
        for name in [name for name, value in headers.items() if secret in value]:
            headers.popall(name, None)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        whole = False
        try:
            whole = await _carry(request, response, answer, counted)
        finally:
            counted.end(request.content.total_bytes if request.body_exists else 0, whole=whole)
        return response


async def _carry(
    request: web.BaseRequest, response: web.StreamResponse, answer: aiohttp.ClientResponse, counted: tally.Tally
) -> bool:
    """Send an answer to the guest, each part when it comes; where the guest has gone, read on for what it has taken.

    Returns:
        Whether the answer came to its end.
    """
    gone = False
    rest = REST_BYTES
    try:
        await response.prepare(request)
    except (OSError, aiohttp.ClientError):
        gone = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_SECONDS if gone else None) as limit:
            async for chunk in answer.content.iter_any():
                counted.feed(chunk)
                if gone:
                    rest -= len(chunk)
                    if rest < 0:
                        return False
                    continue
                try:
                    await response.write(chunk)
                except (OSError, aiohttp.ClientError):
                    gone = True
                    limit.reschedule(asyncio.get_running_loop().time() + REST_SECONDS)
            return True
    return False
