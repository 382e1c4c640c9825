# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Connect to libvirt, with its refusals put into words."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import pwd
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import marked_record
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK, is_session, runtime_directory

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

try:
    import libvirt
except ImportError:
    libvirt = None

T = TypeVar("T")

PAUSED_BY_IO_ERROR = (3, 5)
"""VIR_DOMAIN_PAUSED and VIR_DOMAIN_PAUSED_IOERROR of libvirt-domain.h."""

IPV4 = 4

GROUP = "libvirt"
"""Group whose members may use system libvirt, on every distribution that we know."""

# libvirt-python has no type information of its own, hence Any for its objects.


def _refusal_hint(reason: str) -> str:
    """Say what gets a process in that libvirt refuses."""
    if "ermission denied" not in reason and "authentication" not in reason:
        return "run `vmw host` to set up this machine, or `vmw doctor` to see what is wrong"
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        members = grp.getgrnam(GROUP).gr_mem
    except KeyError:
        members = []
    if user not in members:
        return f"{user} is not in the group {GROUP}; run `vmw host`, which sees to that"
    return f"{user} is in the group {GROUP} since this login; log in again, or run it through `sg {GROUP} -c '…'`"


def connect(uri: str) -> Any:  # noqa: ANN401
    """Open a connection to libvirt.

    Args:
        uri: For example ``qemu:///system``.

    Raises:
        VmwError: libvirt is missing, does not run or refuses this process.
    """
    if libvirt is None:
        message = "Python's libvirt module is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    if is_session(uri):
        # libvirt looks for the user's daemon there.
        runtime_directory()
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        message = f"libvirt at {uri} refuses the connection: {error}"
        hint = "run `vmw host` to set up this machine" if is_session(uri) else _refusal_hint(str(error))
        raise VmwError(message, hint, "host_not_ready") from error


def find_domain(connection: Any, name: str) -> Any:  # noqa: ANN401
    """Return the domain named ``name``, or ``None``."""
    return _unless_gone(lambda: connection.lookupByName(name), None)


def _unless_gone(ask: Callable[[], T], gone: T) -> T:
    """Ask about a domain; libvirt may forget a transient one at any time, such as a fork whose memory it cannot load.

    Args:
        ask: The question.
        gone: The answer when there is no such domain any more.
    """
    try:
        return ask()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return gone
        raise


def find_own_domain(connection: Any, name: str, record: str) -> Any:  # noqa: ANN401
    """Return the domain of one instance, or ``None``.

    Args:
        connection: The connection to libvirt.
        name: The domain's name.
        record: Path of the instance record that the domain must carry.

    Raises:
        VmwError: A domain of that name is somebody else's.
    """
    domain = find_domain(connection, name)
    if domain is None:
        return None
    xml = _unless_gone(lambda: domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "")
    if not xml:
        return None
    owner = marked_record(xml)
    if owner != record:
        whose = f"belongs to {owner}" if owner else "was not made by vmw"
        message = f"libvirt already has a domain named {name!r}, which {whose}"
        raise VmwError(message, "choose another name with `--name` (the playbook's `vmw_name`)", "conflict")
    return domain


def xml_of(domain: Any) -> str:  # noqa: ANN401
    """Return a domain's XML as it is now, or that of an empty one when libvirt has just forgotten it."""
    return _unless_gone(domain.XMLDesc, "<domain/>")


def is_out_of_space(domain: Any) -> bool:  # noqa: ANN401
    """Tell whether QEMU stopped a domain that could not write: libvirt's error_policy is enospace."""
    try:
        return tuple(domain.state()) == PAUSED_BY_IO_ERROR
    except libvirt.libvirtError:
        # It has just ended, which the next look finds.
        return False


def is_running(domain: Any) -> bool:  # noqa: ANN401
    """Tell whether a domain, or ``None``, is active."""
    return domain is not None and _unless_gone(lambda: bool(domain.isActive()), gone=False)


def has_saved_memory(domain: Any) -> bool:  # noqa: ANN401
    """Tell whether a domain, or ``None``, is off with its memory saved, so that its next start goes on from there."""
    return domain is not None and _unless_gone(lambda: not domain.isActive() and bool(domain.hasManagedSaveImage(0)), gone=False)


def domain_state(domain: Any) -> str:  # noqa: ANN401
    """Return ``running``, ``suspended``, ``shut off``, or ``undefined`` for ``None``."""
    if domain is None:
        return "undefined"
    if is_running(domain):
        return "running"
    return "suspended" if has_saved_memory(domain) else "shut off"


def _ipv4(interfaces: dict[str, Any], mac: str, *, link_local: bool) -> str:
    for interface in interfaces.values():
        if (interface.get("hwaddr") or "").lower() != mac:
            continue
        for address in interface.get("addrs") or []:
            # The agent's words are the guest's.
            with contextlib.suppress(ValueError):
                parsed = ipaddress.ip_address(address["addr"])
                useless = parsed.is_loopback or parsed.is_multicast or (parsed.is_link_local and not link_local)
                if parsed.version == IPV4 and not useless:
                    return str(parsed)
    return ""


def guest_address(domain: Any, instance: Instance) -> str:  # noqa: ANN401
    """Return the address at which the host reaches a guest once its agent tells that it has one, or an empty string.

    The host's neighbour table would know it too, but also the one that the guest had before its last start.
    """
    session = instance.is_session
    try:
        told = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, 0)
    except libvirt.libvirtError:
        return ""
    # On a host without any network, passt gives its guest a link-local address, and leads to it as ever.
    address = _ipv4(told, instance.mac, link_local=session)
    return LOOPBACK if session and address else address
