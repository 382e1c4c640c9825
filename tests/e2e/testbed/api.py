"""A stand-in of the Messages API: it answers each request with a stream of events, slowly, and notes who asked with what key."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("Hello", " from", " the", " stand-in")
"""The answer, a piece at a time."""

PAUSE_S = 0.5
INPUT_TOKENS, OUTPUT_TOKENS = 11, 7


@dataclass(frozen=True)
class Request:
    """What was asked: the path, the headers in small letters, and the body."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Api:
    """The stand-in, and what it was asked."""

    address: str
    port: int
    requests: list[Request] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Answer from now on."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                body = json.loads(text or b"{}")
                api.requests.append(Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                if body.get("stream"):
                    self._stream(body.get("model", ""))
                else:
                    self._whole(body.get("model", ""))

            def _whole(self, model: str) -> None:
                usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
                content = [{"type": "text", "text": "".join(WORDS)}]
                answer = json.dumps({**_message(model, usage), "content": content, "stop_reason": "end_turn"}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _stream(self, model: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                block = {"index": 0, "content_block": {"type": "text", "text": ""}}
                self._event("message_start", message=_message(model, {"input_tokens": INPUT_TOKENS, "output_tokens": 1}))
                self._event("content_block_start", **block)
                for word in WORDS:
                    self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
                    time.sleep(PAUSE_S)
                self._event("content_block_stop", index=0)
                end = {"stop_reason": "end_turn", "stop_sequence": None}
                self._event("message_delta", delta=end, usage={"output_tokens": OUTPUT_TOKENS})
                self._event("message_stop")
                self.wfile.write(b"0\r\n\r\n")

            def _event(self, kind: str, **values: object) -> None:
                data = f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, *_words: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer((self.address, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()


def _message(model: str, usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
