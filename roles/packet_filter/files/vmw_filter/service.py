"""One request on a connected socket, and the reply."""

from __future__ import annotations

import grp
import json
import pwd
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from vmw_filter import FilterError
from vmw_filter.control import answer
from vmw_filter.policy import MAX_REQUEST, parse_request

if TYPE_CHECKING:
    from vmw_filter.store import Store

PATIENCE_S = 10
"""How long somebody may take to send a request."""

_CREDENTIALS = struct.Struct("iII")
"""struct ucred of unix(7): process, user, group."""


GROUP = "libvirt"
"""Whose members run VMs; that group is as good as root already."""


def check_member(owner: int) -> None:
    """Refuse whoever may run no VMs.

    The group is looked up, as polkit does for libvirt itself: a process that is older than its user's membership has it not.

    Raises:
        FilterError: The user is neither root nor in the group.
    """
    if owner == 0:
        return
    try:
        user = pwd.getpwuid(owner)
        group = grp.getgrnam(GROUP)
    except KeyError:
        members = False
    else:
        members = user.pw_name in group.gr_mem or user.pw_gid == group.gr_gid
    if not members:
        message = f"you are not in the group {GROUP}"
        raise FilterError(message, "`vmw host` sets this machine up for you")


def serve(connection: socket.socket, store: Store) -> None:
    """Answer one request. Who asks is the user that the kernel names."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, owner, _ = _CREDENTIALS.unpack(packed)
    reply: dict[str, Any]
    try:
        check_member(owner)
        reply = answer(store, parse_request(_line(connection)), owner)
    except FilterError as error:
        reply = {"ok": False, "error": error.message, "hint": error.hint}
    except OSError as error:
        reply = {"ok": False, "error": f"{error.filename or 'vmw-filter'}: {error.strerror or error}", "hint": ""}
    if not reply["ok"]:
        sys.stderr.write(f"user {owner}: {reply['error']}\n")
    connection.settimeout(PATIENCE_S)
    connection.sendall(json.dumps(reply).encode() + b"\n")


def _line(connection: socket.socket) -> bytes:
    """Read up to the first line's end.

    Raises:
        FilterError: It is too long or does not come.
    """
    deadline = time.monotonic() + PATIENCE_S
    found = b""
    while b"\n" not in found:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            more = connection.recv(MAX_REQUEST)
        except TimeoutError:
            more = b""
        if not more or len(found) > MAX_REQUEST:
            message = "there is no whole request"
            raise FilterError(message)
        found += more
    line, _, rest = found.partition(b"\n")
    if rest:
        message = "there is more than one request"
        raise FilterError(message)
    return line
