"""An API's stand-in and a server of bulk, both over TLS on loopback. Ends with its standard input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import sys
import threading
from functools import partial

ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Good day."}],
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
).encode()
FIRST: dict[str, object] = {
    "type": "message_start",
    "message": {"id": "msg_1", "usage": {"input_tokens": 25, "output_tokens": 1}},
}
LAST: dict[str, object] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}}
BETWEEN_SECONDS = 0.02
"""Between the first event of a stream and the last: who collects a stream before passing it on is slower by that."""

BLOCK = bytes(1 << 18)


def event(content: dict[str, object]) -> bytes:
    """Write an event of a stream as a chunk."""
    text = f"event: {content['type']}\ndata: {json.dumps(content)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


async def answer(secret: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of a connection, one after the other, as long as they have the key."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            if secret not in head:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            elif b"/stream " in head.partition(b"\r\n")[0]:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + event(FIRST)
                )
                await writer.drain()
                await asyncio.sleep(BETWEEN_SECONDS)
                writer.write(event(LAST) + b"0\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
                )
            await writer.drain()
    writer.close()


def give(connection: socket.socket, context: ssl.SSLContext) -> None:
    """Send as many bytes as the other side's line says; it may also end without a word."""
    with contextlib.suppress(OSError, ValueError), connection, context.wrap_socket(connection, server_side=True) as tls:
        left = int(tls.recv(32))
        while left > 0:
            left -= tls.send(BLOCK[:left])
        # The other side ends first, with all that it wanted.
        tls.recv(1)


def accept(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Give bulk to each connection in a thread."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=give, args=[connection, context], daemon=True).start()


async def serve(certificate: str, key: str, secret: str) -> None:
    """Serve on free ports until nobody holds the standard input any more.

    Args:
        certificate: File of the server's certificate.
        key: File of its private key.
        secret: The key that requests to the API must have.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(partial(answer, secret.encode()), "127.0.0.1", 0, ssl=context)
    bulk = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=[bulk, context], daemon=True).start()
    sys.stdout.write(json.dumps({"api": server.sockets[0].getsockname()[1], "bulk": bulk.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
