# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The server name in the first words of a TLS client, as the stdlib's own TLS reads them.

What a client may still do is the server's affair: ask a web server of many sites for another one inside the encrypted request, or
(Encrypted Client Hello) hide a second name. No proxy that leaves the encryption alone can see either.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

LARGEST = 64 * 1024
"""Bytes in which a ClientHello must be complete: more than its longest, with post-quantum keys and a session ticket, ever are."""

SECONDS = 15.0
"""How long a guest may take for it."""


@dataclass(frozen=True)
class Hello:
    """What has been read.

    Attributes:
        complete: Whether no more is needed.
        name: The server name; nothing where the client is no TLS client, or names none.
    """

    complete: bool
    name: str | None = None


class HelloReader:
    """Reads a ClientHello that comes in parts."""

    def __init__(self) -> None:
        """Make a server that only looks at who is asked for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._named
        self._incoming = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)
        self._hello: Hello | None = None
        self._size = 0

    def _named(self, _tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int:
        self._hello = Hello(complete=True, name=name)
        # The handshake is the real server's to make.
        return int(ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE)

    def feed(self, data: bytes) -> Hello:
        """Take in what the client sent, and return what is known by now."""
        self._size += len(data)
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._hello or Hello(complete=self._size > LARGEST)
        except ssl.SSLError:
            pass
        return self._hello or Hello(complete=True)
