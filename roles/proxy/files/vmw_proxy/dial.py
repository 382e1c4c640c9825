# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""From a name to a connection: the host looks the name up, and connects to the very addresses that it has checked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from aiohttp.abc import AbstractResolver

from vmw_proxy import addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmw_proxy.records import Vm

Resolve: TypeAlias = "Callable[[str, int], list[str]]"
Route: TypeAlias = "Callable[[str, int], tuple[str, int]]"

THREADS = 64
"""Names that are looked up at once."""

MOST_LOOKUPS = 8
"""Names that one VM has looked up at once; the others wait. Dead ones take as long as the system's resolver tries."""

LOOKUP_SECONDS = 15.0
CONNECT_SECONDS = 15.0

MOST_ADDRESSES = 16
"""Addresses of a name that are tried."""

NEXT_SECONDS = 0.25
"""When the next address is tried beside the one before: RFC 8305, section 5."""


class RefusedError(Exception):
    """The guest may not be connected to what it asked for; the message says why."""


class UnreachableError(Exception):
    """What the guest may be connected to does not answer; the message says how."""


def look_up(name: str, port: int) -> list[str]:
    """Return the addresses of a name, as the host's own resolver orders them.

    Raises:
        OSError: There are none, or they cannot be had.
    """
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def alternate(found: Sequence[str]) -> list[str]:
    """Return addresses with the families in turn, beginning with the first one's: RFC 8305, section 4."""
    first = [each for each in found if (":" in each) == (":" in found[0])]
    other = [each for each in found if each not in first]
    return [each for pair in itertools.zip_longest(first, other) for each in pair if each is not None]


def straight(address: str, port: int) -> tuple[str, int]:
    """Connect to an address itself."""
    return address, port


class Dialer:
    """Looks names up and connects.

    Args:
        resolve: Returns a name's addresses; called in a thread.
        route: Where an address that was checked is connected to: there, but for tests.
        may_be_reached: Tells whether an address, with the prefixes that are near, is one that guests may reach.
    """

    def __init__(
        self,
        resolve: Resolve = look_up,
        route: Route = straight,
        may_be_reached: Callable[[str, list[addresses.Network]], bool] = addresses.may_be_reached,
    ) -> None:
        """Make the threads that wait for the system's resolver."""
        self._resolve = resolve
        self.route = route
        self._may_be_reached = may_be_reached
        self._threads = ThreadPoolExecutor(THREADS, "lookup")
        self._neighbourhood = addresses.Neighbourhood()
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._running: dict[tuple[str, str, int], asyncio.Task[list[str]]] = {}

    def close(self) -> None:
        """Wait for no lookup any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def checked(self, vm: Vm, name: str, port: int) -> list[str]:
        """Look a name up and return the addresses of it that guests may reach.

        Args:
            vm: Who asks.
            name: The name, in its canonical form.
            port: The port.

        Raises:
            RefusedError: It has others only.
            UnreachableError: It has none, or there is no answer.
            OSError: What is near cannot be known.
        """
        found = await self._look_up(vm, name, port)
        near = self._neighbourhood.now()
        allowed = [each for each in found if self._may_be_reached(each, near)]
        if not allowed:
            message = "no public address"
            raise RefusedError(message)
        return alternate(allowed[:MOST_ADDRESSES])

    async def _look_up(self, vm: Vm, name: str, port: int) -> list[str]:
        wanted = (vm.uuid, name, port)
        lookup = self._running.get(wanted)
        if lookup is None:
            lookup = self._running[wanted] = asyncio.create_task(self._in_thread(vm, name, port))
            lookup.add_done_callback(lambda task: self._done(wanted, task))
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                # The thread goes on after the time-out, and counts for as long as it does.
                found = await asyncio.shield(lookup)
        except TimeoutError as error:
            message = "the name's addresses did not come in time"
            raise UnreachableError(message) from error
        except (OSError, UnicodeError) as error:
            message = "the name has no address"
            raise UnreachableError(message) from error
        return found

    async def _in_thread(self, vm: Vm, name: str, port: int) -> list[str]:
        async with self._slots.setdefault(vm.uuid, asyncio.Semaphore(MOST_LOOKUPS)):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, name, port)

    def _done(self, wanted: tuple[str, str, int], task: asyncio.Task[list[str]]) -> None:
        del self._running[wanted]
        if not task.cancelled():
            task.exception()

    async def connect(self, allowed: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first of some addresses that answers; the next one is tried while one is silent.

        Args:
            allowed: What `checked` returned.
            port: The port.

        Raises:
            UnreachableError: None of them answers.
        """
        attempts: set[asyncio.Task[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = set()
        rest = list(allowed)
        winner = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while winner is None and (rest or attempts):
                    if rest:
                        place, number = self.route(rest.pop(0), port)
                        attempts.add(asyncio.create_task(asyncio.open_connection(place, number)))
                    pause = NEXT_SECONDS if rest else None
                    done, attempts = await asyncio.wait(attempts, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    good = [task for task in done if not task.exception()]
                    winner = good[0] if good else None
                    attempts |= set(good[1:])
        except TimeoutError:
            pass
        finally:
            for task in attempts:
                task.add_done_callback(_give_up)
                task.cancel()
        if winner is None:
            message = "no address of it answers"
            raise UnreachableError(message)
        return winner.result()


def _give_up(task: asyncio.Task[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Close what an attempt that is no longer wanted has opened."""
    if not task.cancelled() and not task.exception():
        with contextlib.suppress(OSError):
            task.result()[1].transport.abort()


class Fixed(AbstractResolver):
    """Gives aiohttp's client the addresses that were checked, and no others.

    Args:
        allowed: What `Dialer.checked` returned.
        route: Where an address is connected to.
    """

    def __init__(self, allowed: Sequence[str], route: Route) -> None:
        """Keep them."""
        self._allowed = allowed
        self._route = route

    # The type of the result is another one since aiohttp 3.10.
    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[dict[str, object]]:  # type: ignore[override]  # noqa: ARG002
        """Return them in the form that aiohttp wants."""
        return [self._entry(host, *self._route(address, port)) for address in self._allowed]

    @staticmethod
    def _entry(host: str, address: str, port: int) -> dict[str, object]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": flags}

    async def close(self) -> None:
        """Hold nothing that is to be closed."""
