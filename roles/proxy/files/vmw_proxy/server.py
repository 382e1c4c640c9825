# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The server: who asks, for what, and by which part it is answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from yarl import URL

from vmw_proxy import keys, policy, replies, tunnel
from vmw_proxy.dial import Dialer, RefusedError, UnreachableError
from vmw_proxy.doors import Doors
from vmw_proxy.forward import forward
from vmw_proxy.keys import KeyProxy
from vmw_proxy.names import NotANameError, canonical
from vmw_proxy.notes import Notes
from vmw_proxy.records import ARP, Records
from vmw_proxy.refusals import Refusals
from vmw_proxy.settings import SettingsError, SettingsFile
from vmw_proxy.usage import Usage

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmw_proxy.records import Vm
    from vmw_proxy.settings import Settings

NEIGHBOUR_SECONDS = 0.2
"""How long to wait before a peer that is no VM is looked for again."""

LOOK_SECONDS = 5.0
"""Time between two looks at whether what runs may still run."""

log = logging.getLogger("vmw_proxy")


class Proxy:
    """Answers what guests ask.

    Args:
        state: The state directory.
        arp: The host's table of neighbours.
        dialer: Looks names up and connects.
        trust: Whom to trust as an API; the system's own choice by default.
    """

    def __init__(self, state: Path, arp: Path = ARP, dialer: Dialer | None = None, trust: ssl.SSLContext | None = None) -> None:
        """Put the parts together; within a running event loop."""
        self._settings = SettingsFile(state / "proxy" / "settings.json")
        self._records = Records(state / "instances", arp)
        self._dialer = dialer or Dialer()
        self._notes = Notes()
        self._refusals = Refusals(self._notes)
        self._keys = KeyProxy(state / "secrets", Usage(self._notes), trust)
        self._running: dict[object, tuple[Vm, str | None, Callable[[], None]]] = {}
        self._unusable: tuple[str, ...] = ()
        self.server = Doors(self.handle)

    async def close(self) -> None:
        """Write what is noted, and end."""
        self._notes.flush()
        self._dialer.close()
        await self._keys.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""
        self.server.spoke(request.protocol)
        tunnelled = request.method == "CONNECT"
        if tunnelled:
            tunnel.hold(request)
        try:
            settings = self._settings.read()
        except SettingsError as error:
            log.error("%s", error)  # noqa: TRY400 - the message says all
            return replies.text(503, "the proxy is not set up", close=True)
        self._warn(settings)
        vm = await self._who(request.remote or "", settings.bridge)
        if vm is None:
            log.warning("%s is no VM of this user", request.remote)
            return replies.text(403, "you are no VM of this proxy's user", close=True)
        try:
            if tunnelled:
                return await self._tunnel(vm, settings, request)
            if request.raw_path.startswith("/"):
                return await self._api(vm, settings, request)
            return await self._forward(vm, settings, request)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            # The message of an error may hold headers.
            log.info("%s: %s", vm.name, type(error).__name__)
            return self._failed(request)

    async def _who(self, address: str, bridge: str) -> Vm | None:
        vm = self._records.who(address, bridge)
        if vm is None:
            # The kernel may be asking anew who has the address of a connection that was silent for long.
            await asyncio.sleep(NEIGHBOUR_SECONDS)
            vm = self._records.who(address, bridge)
        return vm

    def _failed(self, request: web.BaseRequest) -> web.StreamResponse:
        """End what cannot be finished: with an error, as long as no answer has begun; else by ending the connection."""
        wanted = keys.split(request.raw_path) if request.method != "CONNECT" else None
        message = "the other side does not answer"
        if request.transport is not None and request.writer is not None and request.writer.output_size:
            request.transport.abort()
        return replies.error(wanted[0], 502, message) if wanted else replies.text(502, message, close=True)

    def _warn(self, settings: Settings) -> None:
        if settings.allow.unusable != self._unusable:
            self._unusable = settings.allow.unusable
            log.warning("no names, and so passed over: %s", ", ".join(map(repr, self._unusable)))

    # --- names -------------------------------------------------------------------------------------------------------

    def _refuse(self, vm: Vm, host: str, port: int, reason: str) -> web.Response:
        self._refusals.note(vm, host, port, reason)
        return replies.text(403, f"refused: {reason}", close=True)

    async def _checked(self, vm: Vm, settings: Settings, scheme: str, host: str, port: int) -> tuple[str, list[str]]:
        """Return the canonical name and the addresses for it.

        Raises:
            RefusedError: It is refused.
            UnreachableError: It has no address.
        """
        try:
            name = canonical(host)
        except NotANameError as error:
            raise RefusedError(policy.check_mode(vm) or f"{error}") from error
        reason = policy.check_name(vm, settings.allow, name) or policy.check_port(scheme, port)
        if reason:
            raise RefusedError(reason)
        return name, await self._dialer.checked(vm, name, port)

    async def _tunnel(self, vm: Vm, settings: Settings, request: web.BaseRequest) -> web.StreamResponse:
        host, _, digits = request.raw_path.rpartition(":")
        port = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= len("65535") else 0
        try:
            name, allowed = await self._checked(vm, settings, "https", host, port)
            reader, writer = await self._dialer.connect(allowed, port)
        except RefusedError as error:
            return self._refuse(vm, host, port, str(error))
        except UnreachableError as error:
            return replies.text(502, str(error), close=True)
        try:
            response = await tunnel.greet(request)
            client = tunnel.Client(request)
            try:
                asked, data = await tunnel.read_hello(client.reader)
                reason = policy.check_server_name(asked, name)
                if reason:
                    if data:
                        self._refusals.note(vm, host, port, reason)
                    return response
                writer.write(data)

                def end() -> None:
                    client.abort()
                    writer.transport.abort()

                with self._known(vm, name, end), contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(tunnel.IDLE_SECONDS) as limit:
                        await tunnel.carry(client, reader, writer, limit)
            finally:
                client.close()
        finally:
            writer.close()
        return response

    async def _forward(self, vm: Vm, settings: Settings, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in policy.METHODS:
            return replies.text(405, f"only {', '.join(policy.METHODS)} are passed on", close=True)
        try:
            url = URL(request.raw_path, encoded=True)
            host, port = url.raw_host or "", url.port or 0
        except ValueError:
            return self._refuse(vm, request.raw_path, 0, "no address of the web")
        if url.scheme != "http" or url.raw_user is not None:
            return self._refuse(vm, host, port, policy.check_port("http", 0) or "")
        try:
            name, allowed = await self._checked(vm, settings, "http", host, port)
        except RefusedError as error:
            return self._refuse(vm, host, port, str(error))
        except UnreachableError as error:
            return replies.text(502, str(error))
        target = URL.build(scheme="http", host=name, path=url.raw_path or "/", query_string=url.raw_query_string, encoded=True)
        with self._known(vm, name, self._end(request)):
            return await forward(request, target, allowed, self._dialer)

    # --- keys --------------------------------------------------------------------------------------------------------

    async def _api(self, vm: Vm, settings: Settings, request: web.BaseRequest) -> web.StreamResponse:
        wanted = keys.split(request.raw_path)
        if wanted is None:
            return replies.text(404, "there is nothing here")
        api, path = wanted
        task = asyncio.current_task()

        def end() -> None:
            self._end(request)()
            # The guest may have gone while the answer is read on.
            if task is not None:
                task.cancel()

        with self._known(vm, None, end):
            return await self._keys.answer(vm, request, api, path, settings.upstreams.get(api))

    # --- what runs ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _end(request: web.BaseRequest) -> Callable[[], None]:
        def end() -> None:
            if request.transport is not None:
                request.transport.abort()

        return end

    @contextlib.contextmanager
    def _known(self, vm: Vm, name: str | None, end: Callable[[], None]) -> Iterator[None]:
        """Keep in mind what runs for a VM: a name that it is connected to, or, without one, a request with a key."""
        mark = object()
        self._running[mark] = (vm, name, end)
        try:
            yield
        finally:
            del self._running[mark]

    def look(self) -> None:
        """End what a VM may have no more: its user has withdrawn it, or removed the VM."""
        if not self._running:
            return
        try:
            ready = self._settings.read().allow
        except SettingsError:
            return
        for vm, name, end in list(self._running.values()):
            current = self._records.again(vm)
            allowed = current is not None and (
                policy.check_name(current, ready, name) is None if name else current.proxied and not current.revoked
            )
            if not allowed:
                end()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
