# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ask the host's packet filter, a service of root's, to enforce what a VM may reach, and what it has refused."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import tap_of
from ansible_collections.vmw.worktree.plugins.module_utils.egress import ALLOWLIST, OFFLINE
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import PROXY

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

SOCKET = Path("/run/vmw-filter.sock")
SCHEMA = 1
ANSWER_SECONDS = 30.0
"""How long an answer may take: systemd starts a process for each question, and an emulated or busy host takes its time."""

MAXIMUM_ANSWER = 4 << 20

SET_UP = "`vmw host` sets it up"


def ask(verb: str, **values: object) -> dict[str, Any]:
    """Send one request and return the answer.

    Args:
        verb: What is asked for: ``set``, ``remove``, ``refused`` or ``status``.
        values: The request's other fields.

    Raises:
        VmwError: The service is not there, does not answer, or refuses.
    """
    request = json.dumps({"schema": SCHEMA, "verb": verb, **values}) + "\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(SOCKET))
            connection.sendall(request.encode())
            with connection.makefile("rb") as stream:
                line = stream.readline(MAXIMUM_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        message = "the host's packet filter is not there, without which no VM gets a network"
        raise VmwError(message, SET_UP, "host_not_ready") from error
    except OSError as error:
        message = f"the host's packet filter does not answer: {error}"
        raise VmwError(message, "`journalctl -u 'vmw-filter*'` tells more", "host_not_ready") from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        message = "the host's packet filter gave no answer"
        raise VmwError(message, "`journalctl -u 'vmw-filter*'` tells more", "host_not_ready") from error
    if not isinstance(answer, dict) or not answer.get("ok"):
        told = answer if isinstance(answer, dict) else {}
        message = f"the host's packet filter refuses: {told.get('error', 'it does not say why')}"
        raise VmwError(message, str(told.get("hint", "")) or "`vmw doctor` tells whether the host is well")
    return answer


def policy(instance: Instance, port: int) -> dict[str, object]:
    """Return what the filter is told of a VM.

    Args:
        instance: The VM's record.
        port: The port of the user's proxy, which a VM that needs it may reach.
    """
    mode = instance.egress.mode
    needs_proxy = mode == ALLOWLIST or (instance.keys.mode == PROXY and mode != OFFLINE)
    return {
        "name": instance.name,
        "tap": instance.tap,
        "mac": instance.mac,
        "bridge": instance.bridge,
        "mode": mode,
        "proxy_port": port if needs_proxy else 0,
    }


def card_warning(instance: Instance, xml: str) -> str:
    """Return what to tell of a VM that runs with a network card of the time before there were policies; nothing for others.

    Args:
        instance: The VM's record.
        xml: The definition of its running domain.
    """
    if instance.is_session or tap_of(xml, instance.mac) == instance.tap:
        return ""
    return f"{instance.name} runs since before there were network policies, and has none until it is started again"


def enforce(instance: Instance, port: int) -> bool:
    """Have a VM's policy enforced from now on, and after each boot of the host; return whether that is new.

    Raises:
        VmwError: See `ask`.
    """
    return bool(ask("set", **policy(instance, port)).get("changed", True))


def release(name: str) -> bool:
    """Have the filter forget a VM, and return whether it knew it; a host without a filter has nothing to forget.

    Raises:
        VmwError: See `ask`.
    """
    try:
        return bool(ask("remove", name=name).get("changed", True))
    except VmwError as error:
        if error.code == "host_not_ready" and not SOCKET.exists():
            return False
        raise
