"""Whether this machine is set up, found out in milliseconds, without root and without a question."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import packet_filter
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.key_proxy import FOLLOWER
from ansible_collections.vmw.worktree.plugins.module_utils.session import DAEMON_UNIT, is_session
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import find_virtiofsd
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory

from vmw.errors import VmwError
from vmw.services import group, virsh

if TYPE_CHECKING:
    from vmw.settings import Settings

PROGRAMS = ("virsh", "qemu-img", "bwrap", "setfacl", "git", "inotifywait")
LIBVIRT_SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
"""Sockets of the monolithic and of the modular daemons."""

SESSION_SOCKET = f"{DAEMON_UNIT}.socket"
"""Where clients find the user's own libvirt, as the role kvm sets it up for qemu:///session."""

NETWORK_DEVICES = Path("/sys/class/net")
NAT_NETWORK = "vmw"
"""libvirt's network where the bridge has no uplink, as the role bridge names it."""

RUNTIME_BASE = Path("/run/vmw")


LINGER = Path("/var/lib/systemd/linger")


def user_name() -> str:
    """Return the calling user's login name."""
    return pwd.getpwuid(os.getuid()).pw_name


def find_program(name: str) -> str | None:
    """Return a program's path; an ordinary user's PATH often lacks the sbin directories."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def network_exists(settings: Settings) -> bool:
    """Tell whether the VMs' bridge is up, or is a libvirt network that can be started."""
    if (NETWORK_DEVICES / settings.vmw_bridge).exists():
        return True
    try:
        return NAT_NETWORK in virsh.Virsh(settings.vmw_libvirt_uri).networks("--all")
    except VmwError:
        return False


def missing(settings: Settings) -> list[str]:
    """Return what keeps a VM from being made here; empty when the machine is set up."""
    found = missing_for_builds(settings)
    if not (settings.state_dir / "golden-image.qcow2").exists():
        found.append("there is no golden image")
    # An image is built without it.
    if settings.system_libvirt and not (unit_directory() / FOLLOWER).exists():
        found.append("the proxy that has the API keys is not there")
    return found


def _missing_for_session(user: str) -> list[str]:
    """Return what the user's own libvirt lacks."""
    needed = {
        "passt is not installed": find_program("passt"),
        "your own libvirt is not set up": (unit_directory() / SESSION_SOCKET).exists(),
        f"the services of {user} end with the login": (LINGER / user).exists(),
    }
    return [what for what, there in needed.items() if not there]


def missing_for_builds(settings: Settings) -> list[str]:
    """Return what keeps a golden image from being built here: all that a VM needs but the image."""
    found = [f"{program} is not installed" for program in PROGRAMS if not find_program(program)]
    try:
        find_virtiofsd()
    except CollectionError:
        found.append("virtiofsd is not installed")
    user = user_name()
    if is_session(settings.vmw_libvirt_uri):
        return found + _missing_for_session(user)
    if not (RUNTIME_BASE / user).is_dir():
        found.append(f"{RUNTIME_BASE / user} does not exist")
    if settings.system_libvirt:
        if not group.membership().in_database:
            found.append(f"{user} is not in the group {group.GROUP}")
        if not any(path.exists() for path in LIBVIRT_SOCKETS):
            found.append("libvirt does not run")
        if not packet_filter.SOCKET.exists():
            found.append("the packet filter is not there")
    if not found and not network_exists(settings):
        found.append(f"the bridge {settings.vmw_bridge} does not exist")
    return found
