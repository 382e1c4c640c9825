# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Run programs in a guest through its agent. What comes back is the guest's word, and never trusted further than a status."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import libvirt
    import libvirt_qemu
except ImportError:
    libvirt = libvirt_qemu = None

POLL_SECONDS = 0.05
ARRIVAL_POLL_SECONDS = 0.02
ANSWER_SECONDS = 5
"""How long the agent may take for one answer."""

MAXIMUM_OUTPUT = 65536

CLOCK_TOLERANCE = 1.0
"""By how many seconds a guest's clock may be off: what an answer may take on a busy host."""

# libvirt-python has no type information of its own, hence Any for a domain.


@dataclass(frozen=True)
class Ended:
    """How a program in the guest ended. ``output`` is what it wrote, both streams."""

    status: int
    output: str


def ask(domain: Any, command: str, **arguments: Any) -> Any:  # noqa: ANN401
    """Send the agent one command and return its answer.

    Raises:
        libvirtError: It does not answer, or refuses.
        ValueError: Its answer is none.
    """
    order: dict[str, Any] = {"execute": command}
    if arguments:
        order["arguments"] = arguments
    told = libvirt_qemu.qemuAgentCommand(domain, json.dumps(order), ANSWER_SECONDS, 0)
    try:
        return json.loads(told)["return"]
    except RecursionError as error:
        message = "it is nested too deeply"
        raise ValueError(message) from error


def answer(domain: Any, command: str, **arguments: Any) -> Any:  # noqa: ANN401
    """Send the agent one command and return its answer, or ``None`` when it does not give one."""
    try:
        return ask(domain, command, **arguments)
    except (libvirt.libvirtError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def limited_answers(domain: Any) -> Iterator[None]:  # noqa: ANN401
    """Have libvirt's own questions to a domain, or ``None``, end in `ANSWER_SECONDS` too.

    Otherwise it waits without end for a guest that takes a question and never answers it. Afterwards it does again: what others
    ask, such as to trim a large disk, may take long.
    """
    _set_limit(domain, ANSWER_SECONDS)
    try:
        yield
    finally:
        _set_limit(domain, libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)


def _set_limit(domain: Any, seconds: int) -> None:  # noqa: ANN401
    # One that does not run has none.
    with contextlib.suppress(libvirt.libvirtError, AttributeError):
        domain.agentSetResponseTimeout(seconds, 0)


def await_answer(domain: Any, timeout: float) -> None:  # noqa: ANN401
    """Wait until the agent answers: libvirt learns a moment after it has restored a guest that its agent is there.

    Args:
        domain: The guest's domain.
        timeout: In seconds.

    Raises:
        VmwError: It does not.
    """
    deadline = time.monotonic() + timeout
    while answer(domain, "guest-ping") is None:
        if time.monotonic() > deadline:
            message = "the guest's agent does not answer"
            raise VmwError(message)
        time.sleep(ARRIVAL_POLL_SECONDS)


def _number(value: object) -> int:
    """Return a whole number of an answer; JSON has others too, such as ``1e999``."""
    if not isinstance(value, int):
        message = f"{value!r:.20} is no whole number"
        raise ValueError(message)  # noqa: TRY004 - the guest's word, not a caller's
    return value


def start(domain: Any, *argv: str, stdin: str = "") -> int:  # noqa: ANN401
    """Start a program in the guest and return its process id; see `ask` for what is raised."""
    more = {"input-data": base64.b64encode(stdin.encode()).decode()} if stdin else {}
    order = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True, **more}
    return _number(ask(domain, "guest-exec", **order)["pid"])


def ended(domain: Any, pid: int) -> Ended | None:  # noqa: ANN401
    """Tell how a program ended, or ``None`` while it runs; see `ask` for what is raised."""
    status = ask(domain, "guest-exec-status", pid=pid)
    if not status["exited"]:
        return None
    texts = (base64.b64decode(str(status.get(name, ""))[:MAXIMUM_OUTPUT]) for name in ("out-data", "err-data"))
    return Ended(_number(status.get("exitcode", -1)), b"".join(texts).decode(errors="replace"))


def call(domain: Any, *argv: str, stdin: str = "", timeout: float = ANSWER_SECONDS) -> Ended:  # noqa: ANN401
    """Run a program in the guest to its end.

    Args:
        domain: The guest's domain.
        argv: The program and its arguments.
        stdin: What it reads.
        timeout: In seconds.

    Raises:
        VmwError: The agent does not answer, or the program does not end in time.
    """
    deadline = time.monotonic() + timeout
    try:
        pid = start(domain, *argv, stdin=stdin)
        while (result := ended(domain, pid)) is None:
            if time.monotonic() > deadline:
                message = f"{argv[0]} did not end in the guest within {timeout:.0f} s"
                raise VmwError(message)
            time.sleep(POLL_SECONDS)
    except (libvirt.libvirtError, ValueError, KeyError, TypeError) as error:
        message = f"the guest's agent does not answer: {error}"
        raise VmwError(message) from error
    return result


def read_file(domain: Any, path: str) -> str | None:  # noqa: ANN401
    """Return the beginning of a file in the guest, or ``None`` where there is none.

    The agent does that by itself; a program in its place takes an emulated guest a twentieth of a second, and a shell more.

    Raises:
        VmwError: The agent does not answer.
    """
    try:
        handle = _number(ask(domain, "guest-file-open", path=path, mode="r"))
        try:
            buffer = str(ask(domain, "guest-file-read", handle=handle, count=MAXIMUM_OUTPUT)["buf-b64"])
        finally:
            answer(domain, "guest-file-close", handle=handle)
        return base64.b64decode(buffer[: 2 * MAXIMUM_OUTPUT]).decode(errors="replace")
    except (libvirt.libvirtError, ValueError, KeyError, TypeError) as error:
        if "No such file" in str(error):
            return None
        message = f"the guest's agent does not answer: {error}"
        raise VmwError(message) from error


def clock_offset(domain: Any) -> float | None:  # noqa: ANN401
    """Return by how many seconds the guest's clock is ahead of the host's, or ``None`` when its agent does not tell."""
    told = answer(domain, "guest-get-time")
    try:
        return told / 1e9 - time.time() if isinstance(told, int) else None
    except OverflowError:
        return None


def set_clock(domain: Any) -> bool:  # noqa: ANN401
    """Give the guest the host's time, and return whether it took it.

    The agent calls it a failure when the guest has no hwclock(8) to set its hardware clock with, so the time itself is looked at.
    """
    answer(domain, "guest-set-time", time=time.time_ns())
    offset = clock_offset(domain)
    return offset is not None and abs(offset) <= CLOCK_TOLERANCE


RENEW = 'for each in /sys/class/net/*; do [ "$(cat "$each/address")" != "$1" ] || exec networkctl renew "${each##*/}"; done'
"""Shell command that has the guest ask for a lease again: its clocks stood still, and the server's did not."""


def renew_lease(domain: Any, mac: str) -> None:  # noqa: ANN401
    """Have the guest confirm its address with the DHCP server, or get another; it does not matter when that is not known.

    Args:
        domain: The domain.
        mac: The MAC address of its interface.
    """
    answer(domain, "guest-exec", path="/bin/sh", arg=["-c", RENEW, "sh", mac])
