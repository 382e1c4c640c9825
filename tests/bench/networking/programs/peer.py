"""The other end of a network: takes and gives streams, and sends datagrams back. Ends with its standard input."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading

BLOCK = bytes(1 << 20)
SIZE = struct.Struct("!Q")


def serve_stream(connection: socket.socket) -> None:
    """Take a stream and say how much came, or give one until the other side has enough, as its first byte asks."""
    with connection, contextlib.suppress(OSError):
        if connection.recv(1) == b"G":
            while True:
                connection.sendall(BLOCK)
        buffer, total = bytearray(len(BLOCK)), 0
        while count := connection.recv_into(buffer):
            total += count
        connection.sendall(SIZE.pack(total))


def accept(listener: socket.socket) -> None:
    """Serve each connection in a thread."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_stream, args=[connection], daemon=True).start()


def echo(datagrams: socket.socket) -> None:
    """Send each datagram back."""
    while True:
        data, peer = datagrams.recvfrom(2048)
        datagrams.sendto(data, peer)


def main(address: str) -> None:
    """Serve on free ports until nobody holds the standard input any more."""
    listener = socket.create_server((address, 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((address, 0))
    for serve, where in ((accept, listener), (echo, datagrams)):
        threading.Thread(target=serve, args=[where], daemon=True).start()
    sys.stdout.write(json.dumps({"stream": listener.getsockname()[1], "datagram": datagrams.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
