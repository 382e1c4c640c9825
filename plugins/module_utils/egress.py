# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What a VM may reach in the network: the words for it, and what its guest is told so that programs find their way."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from collections.abc import Iterable

INTERNET = "internet"
ALLOWLIST = "allowlist"
OPEN = "open"
OFFLINE = "offline"

MODES = (INTERNET, ALLOWLIST, OPEN, OFFLINE)
"""The public internet (the default), named hosts, everything, or nothing but the host's own connections."""

MAX_HOSTS = 1000
"""How many names one VM's list may have."""

MAX_HOST_LENGTH = 253
"""Longest DNS name (RFC 1035, section 2.3.4)."""

FIRST_PROXY_PORT = 61000
"""Above those that Linux gives to connections by itself, 32768 to 60999 (ip(7), ip_local_port_range): one that happens to
have the proxy's port would keep it from listening."""

PROXY_PORTS = 1000

TAP_PREFIX = "vmw-"
"""How the names of the VMs' network cards on the host begin."""

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?({_LABEL}\.)+(?!(\d+|0x[0-9a-f]*)\Z){_LABEL}")
"""A name of two labels or more; the last is no number, as that of an IPv4 address (WHATWG's URL standard, "ends in a number")."""


@dataclass(frozen=True)
class Egress:
    """What one VM may reach.

    Attributes:
        mode: One of `MODES`.
        allow: Names of hosts, and ``*.suffix`` for all below a name, that it may reach besides the ready list.
        told: The URL of the proxy that its guest was told last; empty for none.
    """

    mode: str = INTERNET
    allow: list[str] = field(default_factory=list)
    told: str = ""

    def changed(self, mode: str, allow: Iterable[str] = (), forbid: Iterable[str] = ()) -> Egress:
        """Return what it is after a change.

        Args:
            mode: The new mode; empty for the one it has.
            allow: Hosts to add.
            forbid: Hosts to take off the list again.

        Raises:
            VmwError: A host is no name, or there are too many.
        """
        added = [check_host(host) for host in allow]
        dropped = {check_host(host) for host in forbid}
        hosts = sorted(({*self.allow, *added}) - dropped)
        if len(hosts) > MAX_HOSTS:
            message = f"{len(hosts)} hosts are more than the {MAX_HOSTS} that a VM's list may have"
            raise VmwError(message, "`*.example.org` stands for all below a name", "usage")
        return replace(self, mode=check_mode(mode) if mode else self.mode, allow=hosts)

    def is_wider(self, other: Egress) -> bool:
        """Tell whether it lets more through than another one: by its mode, or in the same mode by its list."""
        widths = (OFFLINE, ALLOWLIST, INTERNET, OPEN)
        if self.mode != other.mode:
            return widths.index(self.mode) > widths.index(other.mode)
        return not set(self.allow) <= set(other.allow)


def check_mode(mode: str) -> str:
    """Return ``mode`` when it is one.

    Raises:
        VmwError: It is none.
    """
    if mode not in MODES:
        message = f"{mode!r} is no network policy"
        raise VmwError(message, f"choose one of {', '.join(MODES)}", "usage")
    return mode


def check_host(host: str) -> str:
    """Return a host's name as the proxy compares it: in small letters and ASCII, without a dot at its end.

    Args:
        host: A name, or ``*.suffix``, in ASCII: the releases of IDNA do not agree on what other letters become.

    Raises:
        VmwError: It is an address, a pattern of another kind, or no name at all.
    """
    if not host.isascii():
        message = f"{host!r} has other letters than those of ASCII"
        raise VmwError(message, "give the name as DNS has it: the form that begins with xn--", "usage")
    plain = host.removesuffix(".").lower()
    if len(plain.removeprefix("*.")) > MAX_HOST_LENGTH or not _HOST.fullmatch(plain):
        message = f"{host!r} is not the name of a host"
        raise VmwError(message, "give a whole name, as github.com, or `*.github.com` for all below it; no address", "usage")
    return plain


def tap_name(identity: str) -> str:
    """Return the name of the host's end of a VM's network card, by which the host's packet filter knows it.

    Args:
        identity: The VM's UUID. Its first part is random, and leaves the name shorter than the kernel's 15 characters.
    """
    return f"{TAP_PREFIX}{identity.partition('-')[0]}"


def proxy_port(setting: int, uid: int) -> int:
    """Return the port at which a user's proxy listens on the bridge.

    Args:
        setting: The user's choice, or 0.
        uid: The user's number, so that several users of a host do not meet.
    """
    return setting or FIRST_PROXY_PORT + uid % PROXY_PORTS


ENVIRONMENT = "/etc/environment"
"""What each session in the guest has for its environment: pam_env(8)."""

APT = "/etc/apt/apt.conf.d/95vmw-proxy"

_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_NO_PROXY = ("no_proxy", "NO_PROXY")
# Node.js 24 asks for being told to.
_NODE = "NODE_USE_ENV_PROXY"


def proxy_url(address: str, port: int) -> str:
    """Return where a guest finds the proxy.

    Args:
        address: The host's address on the bridge.
        port: The proxy's port there.
    """
    return f"http://{address}:{port}"


def proxy_environment(url: str) -> dict[str, str]:
    """Return the variables by which programs find the proxy at ``url``."""
    # Besides the guest itself, the host: the key proxy is none for others.
    beside = f"localhost,127.0.0.1,::1,.local,{urlsplit(url).hostname}"
    return {**dict.fromkeys(_VARIABLES, url), **dict.fromkeys(_NO_PROXY, beside), _NODE: "1"}


def guest_script(url: str) -> str:
    """Return the shell program by which a guest's programs use the proxy, or, without a URL, need none any more."""
    names = "|".join((*_VARIABLES, *_NO_PROXY, _NODE))
    # The file may have lines of the guest's user, which stay.
    lines = [
        "set -e",
        "umask 022",
        f"touch {ENVIRONMENT}",
        f"others=$(grep -vE '^({names})=' {ENVIRONMENT} || true)",
        f"""printf '%s' "${{others:+$others\n}}" >{ENVIRONMENT}""",
    ]
    if not url:
        return "\n".join([*lines, f"rm -f {APT}"]) + "\n"
    variables = "".join(f"{name}={value}\n" for name, value in proxy_environment(url).items())
    apt = "".join(f'Acquire::{scheme}::Proxy "{url}";\n' for scheme in ("http", "https"))
    lines += [f"printf '%s' {shlex.quote(variables)} >>{ENVIRONMENT}", f"printf '%s' {shlex.quote(apt)} >{APT}"]
    return "\n".join(lines) + "\n"
