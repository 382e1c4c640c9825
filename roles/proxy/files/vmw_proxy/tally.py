# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a VM's limit of tokens is held against.

The rule: what an answer tells of its usage counts, as soon as it tells it. Where an answer of a path that takes tokens tells
nothing, or ends early, a quarter of the bytes that passed counts as output tokens besides: so it is with Chat Completions that
are streamed without ``stream_options.include_usage``. An answer in one piece that tells none is of a response that goes on in the
background, of whose end the proxy hears nothing: it counts as `BACKGROUND_TOKENS` at least. With a limit, other paths than those
that tell their usage or take no tokens are refused; without one, they pass and count what they tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmw_proxy.key_proxy import ANTHROPIC, OPENAI
from vmw_proxy.usage import Meter

if TYPE_CHECKING:
    from vmw_proxy.records import Vm
    from vmw_proxy.usage import Usage

SPENDING = {ANTHROPIC: frozenset({"/v1/messages"}), OPENAI: frozenset({"/v1/responses", "/v1/chat/completions"})}
"""Paths of each API to which a POST takes tokens, and whose answer tells how many."""

FREE = {ANTHROPIC: frozenset({"/v1/messages/count_tokens"}), OPENAI: frozenset[str]()}
"""Paths to which a POST takes none."""

MODELS = "/v1/models"
"""Where both APIs tell of their models."""

BYTES_OF_TOKEN = 4
"""A usual figure for English text: an estimate."""

BACKGROUND_TOKENS = 32_000
"""As much as a long answer has."""

FEW = 4
"""Requests of a VM with a limit of tokens that are under way at once: what they take is known when they end."""

MANY = 64
"""Those of a VM without one."""


def spends(api: str, method: str, path: str) -> bool:
    """Tell whether a request takes tokens and is told how many.

    Args:
        api: The API.
        method: Of the request.
        path: Of the request, with its query.
    """
    return method == "POST" and path.partition("?")[0] in SPENDING[api]


def check_path(vm: Vm, api: str, method: str, path: str) -> str | None:
    """Refuse, to a VM with a limit of tokens, what might take tokens without telling how many; return why, or nothing."""
    plain = path.partition("?")[0]
    models = method == "GET" and (plain == MODELS or plain.startswith(f"{MODELS}/"))
    free = method == "POST" and plain in FREE[api]
    if not vm.daily_tokens or spends(api, method, path) or free or models:
        return None
    return "this VM has a limit of tokens, and what this path takes is not told"


def most_at_once(vm: Vm) -> int:
    """Return how many requests of a VM may be under way."""
    return FEW if vm.daily_tokens else MANY


class Tally:
    """Counts an answer while it passes.

    Args:
        usage: What all VMs used.
        vm: The VM.
        api: The API.
        content_type: Of the answer.
        estimated: Whether what the answer does not tell is estimated.
    """

    def __init__(self, usage: Usage, vm: Vm, api: str, content_type: str, *, estimated: bool) -> None:
        """Begin with nothing."""
        self._usage = usage
        self._vm = vm
        self._api = api
        self._estimated = estimated
        self._meter = Meter(content_type, usage.budget)
        self._noted: dict[str, int] = {}
        self._received = 0

    def feed(self, data: bytes) -> None:
        """Take in a part of the answer."""
        self._received += len(data)
        self._meter.feed(data)
        self._note()

    def end(self, sent: int, *, whole: bool) -> None:
        """Take in that no more comes.

        Args:
            sent: Bytes of the request's body.
            whole: Whether the answer came to its end.
        """
        self._meter.end()
        self._note()
        more = self._estimate(sent, whole=whole) if self._estimated else 0
        if more:
            self._usage.add(self._vm, self._api, {"output_tokens": more})

    def _estimate(self, sent: int, *, whole: bool) -> int:
        if whole and self._noted and not self._meter.missed:
            return 0
        passed = (self._received + (0 if self._noted else sent)) // BYTES_OF_TOKEN
        return max(passed, BACKGROUND_TOKENS) if self._meter.read_whole and not self._noted else passed

    def _note(self) -> None:
        told = self._meter.tokens
        more = {name: value - self._noted.get(name, 0) for name, value in told.items() if value > self._noted.get(name, 0)}
        if more:
            self._noted = dict(told)
            self._usage.add(self._vm, self._api, more)
