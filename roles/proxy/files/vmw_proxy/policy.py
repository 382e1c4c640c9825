# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a VM may be connected to. Every answer is a refusal's reason, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmw_proxy.names import NotANameError, canonical

if TYPE_CHECKING:
    from vmw_proxy.names import Names
    from vmw_proxy.records import Vm

HTTPS = 443
HTTP = 80

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
"""Methods that are passed on. An answer to TRACE would hold the request as it was sent, with the key."""

OFFLINE = "the VM is offline"
NOT_FORWARDED = "only a VM with an allow-list reaches names by the proxy; this one reaches the internet itself"
NOT_LISTED = "not in the allow-list"
NOT_PUBLIC = "no public address"
NO_TLS = "no TLS with a server name"


def check_port(scheme: str, port: int) -> str | None:
    """Refuse other ports than that of the scheme: ``https`` for a tunnel, which is to carry TLS, and ``http``."""
    return None if port == (HTTPS if scheme == "https" else HTTP) else "neither port 443 by CONNECT nor port 80 by http"


def check_mode(vm: Vm) -> str | None:
    """Refuse all names to a VM whose mode is not ``allowlist``.

    With ``internet`` and ``open`` it has the proxy's port for its keys alone: the packet filter decides there what it reaches.
    """
    if vm.mode == "allowlist":
        return None
    return OFFLINE if vm.mode == "offline" else NOT_FORWARDED


def check_name(vm: Vm, ready: Names, name: str) -> str | None:
    """Refuse a name, in its canonical form, that the VM's mode and lists do not allow.

    Args:
        vm: Who asks.
        ready: The list that all VMs have.
        name: What is asked for.
    """
    listed = ready.allow(name) or vm.allow.allow(name)
    return check_mode(vm) or (None if listed else NOT_LISTED)


def check_server_name(asked: str | None, name: str) -> str | None:
    """Refuse a TLS server name other than that of the tunnel: behind a shared address it would lead elsewhere.

    Args:
        asked: What the guest's ClientHello names; nothing where it is none, or names nothing.
        name: The tunnel's name, in its canonical form.
    """
    if asked is None:
        return NO_TLS
    try:
        return None if canonical(asked) == name else "TLS server name is another"
    except NotANameError:
        return "TLS server name is none"
