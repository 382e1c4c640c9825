# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Start the user's proxy on the sockets that systemd hands over, and end when nobody has used it for long."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from vmw_proxy.server import Proxy

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

CHECK_SECONDS = 5.0
END_SECONDS = 2.0
"""How long what runs may go on when the proxy is told to end."""


def handed_over() -> list[socket.socket]:
    """Return the sockets that the service manager opened: see sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=number) for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + count)]


def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log that something went wrong by the kind of the error alone: its text may hold what a guest or an API sent."""
    logging.getLogger("vmw_proxy").error("%s", type(context.get("exception")).__name__)


async def idle(proxy: Proxy, seconds: float) -> None:
    """Return when there was no connection for some time."""
    loop = asyncio.get_running_loop()
    last = loop.time()
    while loop.time() - last < seconds:
        await asyncio.sleep(min(CHECK_SECONDS, seconds))
        if proxy.server.count:
            last = loop.time()


async def serve(proxy: Proxy, sockets: Sequence[socket.socket], idle_seconds: float) -> None:
    """Serve until told to end, or until nobody has used it for long.

    Args:
        proxy: Answers.
        sockets: Listening ones. Another process of the same sockets takes over what comes afterwards.
        idle_seconds: How long without a connection.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    runner = web.ServerRunner(proxy.server, shutdown_timeout=END_SECONDS)
    await runner.setup()
    sites = [web.SockSite(runner, each) for each in sockets]
    for site in sites:
        await site.start()
    tasks = [asyncio.create_task(each) for each in (proxy.watch(), told.wait(), idle(proxy, idle_seconds))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for site in sites:
            await site.stop()
        if not told.is_set():
            # Somebody may have come in the last moment.
            await idle(proxy, END_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * END_SECONDS):
                await runner.cleanup()
        await proxy.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(prog="vmw-proxy", description=(__doc__ or "").strip())
    parser.add_argument("--state-dir", type=Path, required=True, metavar="DIRECTORY", help="vmw's directory on the host")
    parser.add_argument("--idle-minutes", type=float, default=10, metavar="N", help="end after so long without a connection")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # They log what guests send, at length.
    for name in ("aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sockets = handed_over()
    if not sockets:
        sys.stderr.write("vmw-proxy: there is no socket to listen on; vmw-proxy.socket starts this program\n")
        return 2

    async def run() -> None:
        await serve(Proxy(options.state_dir), sockets, options.idle_minutes * 60)

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
