"""What a guest's client does: small requests, streams, and bulk through a tunnel or without one."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spawning.machine import BenchError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

BODY = b'{"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "Good day."}]}'
FIRST_EVENT = b"message_start"
PATIENCE_S = 30.0
BLOCK = 1 << 18
BITS = 8


@dataclass(frozen=True)
class Way:
    """How a client gets to the API and to a server of bulk.

    Attributes:
        api: Where the API, or the proxy in its place, listens.
        prefix: What its paths begin with.
        key: What the client takes for its key.
        tls: Whom to trust as the API; None for the proxy, which is asked in plain HTTP.
        bulk: Where the server of bulk, or the proxy, listens.
        bulk_tls: Whom to trust as the server of bulk.
        name: The name of the server of bulk.
        tunnel: Whether it is reached through a tunnel of the proxy.
        source: The address that the client has.
    """

    api: int
    prefix: str
    key: str
    tls: ssl.SSLContext | None
    bulk: int
    bulk_tls: ssl.SSLContext
    name: str
    tunnel: bool
    source: str

    def connect(self, port: int) -> socket.socket:
        """Connect to a port on loopback."""
        found = socket.create_connection(("127.0.0.1", port), PATIENCE_S, (self.source, 0))
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def to_api(self) -> socket.socket:
        """Connect to the API."""
        plain = self.connect(self.api)
        return self.tls.wrap_socket(plain, server_hostname=self.name) if self.tls else plain

    def to_bulk(self) -> socket.socket:
        """Connect to the server of bulk, all the way.

        Raises:
            BenchError: The proxy refused.
        """
        plain = self.connect(self.bulk)
        if self.tunnel:
            target = f"{self.name}:443"
            plain.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            read_until(plain, lambda data: data.endswith(b"\r\n\r\n"))
        return self.bulk_tls.wrap_socket(plain, server_hostname=self.name)

    def request(self, path: str) -> bytes:
        """Write a request to the API."""
        head = f"POST {self.prefix}{path} HTTP/1.1\r\nHost: {self.name}\r\nx-api-key: {self.key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY


def is_whole(data: bytes) -> bool:
    """Tell whether an answer has come to its end, by its length or by its last chunk."""
    head, blank, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if not blank:
        return False
    return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")


def read_until(connection: socket.socket, enough: Callable[[bytes], bool], data: bytes = b"") -> bytes:
    """Read an answer as far as is wanted.

    Raises:
        BenchError: It is not a good one, or ended before.
    """
    while not enough(data):
        more = connection.recv(65536)
        data += more
        if not more or not b"HTTP/1.1 200".startswith(data[:12]):
            message = f"instead of an answer there came {data[:300]!r}"
            raise BenchError(message)
    return data


def small(way: Way, count: int) -> float:
    """Make small requests one after the other on one connection; return the median time, in seconds."""
    found, request = [], way.request("/v1/messages")
    with way.to_api() as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(request)
            read_until(connection, is_whole)
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def many(way: Way, connections: int, seconds: float) -> float:
    """Make small requests on several connections at once for a time; return how many were answered in a second.

    Raises:
        BenchError: One was not answered.
    """
    counts: list[int] = []
    failures: list[Exception] = []
    request = way.request("/v1/messages")
    start = threading.Barrier(connections + 1, timeout=PATIENCE_S)

    def ask() -> None:
        try:
            with way.to_api() as connection:
                start.wait()
                count, end = 0, time.perf_counter() + seconds
                while time.perf_counter() < end:
                    connection.sendall(request)
                    read_until(connection, is_whole)
                    count += 1
            counts.append(count)
        except Exception as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        message = f"{len(failures)} of {connections} connections failed: {failures[0]}"
        raise BenchError(message) from failures[0]
    return sum(counts) / (time.perf_counter() - began)


def first_event(way: Way, count: int) -> float:
    """Ask for streams on one connection; return the median time to the first event, in seconds."""
    found, request = [], way.request("/v1/stream")
    with way.to_api() as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(request)
            data = read_until(connection, lambda data: FIRST_EVENT in data)
            found.append(time.perf_counter() - began)
            read_until(connection, is_whole, data)
    return statistics.median(found)


def tls(way: Way, count: int) -> float:
    """Connect to the server of bulk one time after the other; return the median time until TLS was agreed, in seconds."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        with way.to_bulk():
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def bulk(way: Way, size: int) -> float:
    """Fetch bytes from the server of bulk; return the bits per second.

    Raises:
        BenchError: Less came.
    """
    with way.to_bulk() as connection:
        began = time.perf_counter()
        connection.sendall(b"%d\n" % size)
        buffer, left = bytearray(BLOCK), size
        while left > 0:
            count = connection.recv_into(buffer)
            if not count:
                message = f"{left} of {size} bytes did not come"
                raise BenchError(message)
            left -= count
        return size * BITS / (time.perf_counter() - began)
