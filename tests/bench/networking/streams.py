"""Streams and datagrams to a peer across the network that is measured."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import time
from typing import TYPE_CHECKING

from spawning.machine import BenchError

from networking import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = bytes(1 << 20)
SIZE = struct.Struct("!Q")
"""What the peer says of a stream that it took."""

PATIENCE_S = 10.0
PAYLOAD = bytes(64)
EXCHANGES = 1000
IPERF_PORT = 5201
BITS = 8


def processors() -> list[int]:
    """Return the processors that may be used: the client of a measurement has the first, its server the last."""
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def on_processor(number: int) -> Iterator[None]:
    """Keep this thread, and the programs that it starts, on one processor: else the scheduler's choice is what is measured."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tool() -> str:
    """Return what the streams are measured with."""
    return "iperf3" if shutil.which("iperf3") else "own sockets"


def send(connection: socket.socket, seconds: float) -> float:
    """Send to the peer for a time, and return the bits per second that arrived there."""
    connection.settimeout(PATIENCE_S)
    connection.sendall(b"T")
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        connection.sendall(BLOCK)
    connection.shutdown(socket.SHUT_WR)
    told = b""
    while len(told) < SIZE.size:
        told += _some(connection.recv(SIZE.size))
    arrived: int = SIZE.unpack(told)[0]
    return arrived * BITS / (time.perf_counter() - began)


def receive(connection: socket.socket, seconds: float) -> float:
    """Receive from the peer for a time, and return the bits per second."""
    connection.settimeout(PATIENCE_S)
    connection.sendall(b"G")
    buffer, total = bytearray(len(BLOCK)), 0
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        count = connection.recv_into(buffer)
        if not count:
            _some(b"")
        total += count
    return total * BITS / took


def exchange(datagrams: socket.socket, count: int = EXCHANGES) -> float:
    """Send datagrams that come back, one after the other; return the median time, in seconds.

    Raises:
        TimeoutError: One did not come back.
    """
    datagrams.settimeout(PATIENCE_S)
    found = []
    for _ in range(count):
        began = time.perf_counter()
        datagrams.send(PAYLOAD)
        datagrams.recv(len(PAYLOAD))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


@contextlib.contextmanager
def iperf_server() -> Iterator[None]:
    """Have iperf3's server run."""
    process = subprocess.Popen(
        ["iperf3", "--server", "--port", str(IPERF_PORT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        servers.end(process)


def iperf(address: str, seconds: float, *, backwards: bool) -> float:
    """Have iperf3 send to its server, or take from it; return the bits per second.

    Args:
        address: The server's.
        seconds: How long; iperf3 knows whole seconds only.
        backwards: Take instead of send.

    Raises:
        BenchError: It failed.
    """
    argv = ["iperf3", "--client", address, "--port", str(IPERF_PORT), "--time", str(max(1, round(seconds))), "--json"]
    done = subprocess.run([*argv, *(["--reverse"] if backwards else [])], capture_output=True, text=True, check=False)
    return read_iperf(done.stdout)


def read_iperf(text: str) -> float:
    """Read the bits per second that arrived from what `iperf3 --json` prints.

    Raises:
        BenchError: It says that it failed, or nothing.
    """
    try:
        found = json.loads(text)
        return float(found["end"]["sum_received"]["bits_per_second"])
    except (ValueError, KeyError) as error:
        said = found.get("error") if isinstance(error, KeyError) else text[-500:]
        message = f"iperf3 failed: {said or 'it said nothing'}"
        raise BenchError(message) from error


def _some(data: bytes) -> bytes:
    if not data:
        message = "the peer has ended the stream"
        raise BenchError(message)
    return data
