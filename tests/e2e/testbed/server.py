"""The web server of the stand-ins: byte ranges, and a throttle for tests that interrupt a download."""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

BLOCK = 256 * 1024


class Handler(SimpleHTTPRequestHandler):
    """Serve files under a directory; ``/slow/N/PATH`` is PATH at N KiB a second."""

    protocol_version = "HTTP/1.1"
    _length = 0
    _rate = 0.0

    def send_head(self) -> BinaryIO | None:
        """Send the answer's headers, for the part that a Range header asks for."""
        self._rate = 0.0
        slow = re.fullmatch(r"/slow/([0-9]+)(/.*)", self.path)
        if slow:
            self._rate = int(slow[1]) * 1024.0
            self.path = slow[2]
        path = self.translate_path(self.path)
        try:
            source = open(path, "rb")  # noqa: SIM115, PTH123 - the caller closes it
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        status = os.fstat(source.fileno())
        size = status.st_size
        first, last = 0, size - 1
        wanted = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if wanted:
            first = int(wanted[1])
            last = min(int(wanted[2] or last), last)
            if first > last:
                source.close()
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self._length = last - first + 1
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(self._length))
        self.send_header("Content-Type", self.guess_type(path))
        self.send_header("Last-Modified", self.date_time_string(status.st_mtime))
        self.end_headers()
        source.seek(first)
        return source

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]
        """Send the part that `send_head` announced."""
        left = self._length
        while left and (data := source.read(min(BLOCK, left))):
            outputfile.write(data)
            left -= len(data)
            if self._rate:
                time.sleep(len(data) / self._rate)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("address", nargs="+")
    arguments = parser.parse_args()
    servers = [ThreadingHTTPServer((address, arguments.port), Handler) for address in arguments.address]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
