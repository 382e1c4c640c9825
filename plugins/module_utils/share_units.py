# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The systemd user units that serve a VM's shares: what they say, and how systemd quotes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

VIRTIOFSD_PATHS = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd/virtiofsd", "/usr/lib/virtiofsd")
"""Where distributions put the Rust virtiofsd: Debian, Ubuntu and Fedora; Arch."""

ALL_IDS = 4294967295
"""Count of user or group ids: all of them but the invalid one."""

OPEN_FILES = 524288
"""Descriptor limit of a daemon, which holds one per inode the guest remembers: systemd's default hard limit."""


@dataclass(frozen=True)
class ShareSpec:
    """A directory of the host and the name by which the guest mounts it."""

    tag: str
    path: str
    read_only: bool

    @property
    def short(self) -> str:
        """Return the tag's last part, which names units and sockets."""
        return self.tag.rpartition(":")[2]


@dataclass(frozen=True)
class Daemon:
    """The virtiofsd that is installed, and what it can do."""

    binary: str
    options: frozenset[str]

    @classmethod
    def probed(cls, binary: str, help_text: str) -> Daemon:
        """Read the options out of ``--help``; a version says too little, as distributions leave options out."""
        return cls(binary, frozenset(re.findall(r"--([a-z-]+)", help_text)))


def find_virtiofsd() -> str:
    """Return the path of the Rust virtiofsd.

    Raises:
        VmwError: It is not installed.
    """
    for path in VIRTIOFSD_PATHS:
        if Path(path).is_file():
            return path
    message = "virtiofsd is not installed"
    raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready")


def unit_name(instance: str, share: ShareSpec) -> str:
    """Return the name, without suffix, of a share's two units."""
    return f"vmw-{instance}-{share.short}"


def socket_path(runtime_dir: str, instance: str, share: ShareSpec) -> str:
    """Return the path of the socket on which QEMU reaches a share."""
    return f"{runtime_dir}/{instance}-{share.short}.sock"


def quote(argument: str) -> str:
    """Quote one word of a unit's command line, so that systemd takes every character for itself.

    Source: systemd.service(5), "Command lines", and systemd.unit(5), "Specifiers".
    """
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[^A-Za-z0-9_./:=,%+-]", argument) or not argument else escaped


def _daemon_options(daemon: Daemon, share: ShareSpec, uid: int, gid: int) -> list[str]:
    options = ["--fd=3", "--shared-dir=/share", "--sandbox=none", "--cache=auto"]
    if "translate-uid" in daemon.options:
        # Every id the guest uses becomes the user's own, so that also `sudo npm install` and chown work in the share.
        options += [f"--translate-uid=squash-guest:0:{uid}:{ALL_IDS}", f"--translate-gid=squash-guest:0:{gid}:{ALL_IDS}"]
    if share.read_only and "readonly" in daemon.options:
        options.append("--readonly")
    return options


def command_line(daemon: Daemon, share: ShareSpec, uid: int, gid: int) -> list[str]:
    """Return the command that serves a share: virtiofsd in a mount namespace that holds little else.

    The read-only bind is what keeps root in the guest from writing; virtiofsd's own option is a second lock.

    Args:
        daemon: The installed virtiofsd.
        share: What it serves.
        uid: The user to whom the guest's files belong.
        gid: That user's group.
    """
    links = [part for name in ("bin", "lib", "lib64", "sbin") for part in ("--symlink", f"usr/{name}", f"/{name}")]
    bind = "--ro-bind" if share.read_only else "--bind"
    return [
        "/usr/bin/bwrap", "--unshare-all", "--new-session", "--cap-drop", "ALL",
        "--ro-bind", "/usr", "/usr", *links, "--proc", "/proc", "--dev", "/dev",
        bind, share.path, "/share",
        "--", daemon.binary, *_daemon_options(daemon, share, uid, gid),
    ]  # fmt: skip


def socket_unit(instance: str, share: ShareSpec, runtime_dir: str) -> str:
    """Return the unit that listens for QEMU, for as long as the VM exists."""
    return f"""\
[Unit]
Description=vmw: socket of the share {share.short} of {instance}

[Socket]
ListenStream={socket_path(runtime_dir, instance, share)}
SocketMode=0660
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


NO_LINK = '[ "$(realpath -e -- "$1")" = "$1" ]'
"""Shell command that fails when a path leads over a link, or nowhere."""


def service_unit(instance: str, share: ShareSpec, argv: list[str]) -> str:
    """Return the unit of the daemon: a fresh one at each start of the VM, as it serves one connection and exits."""
    return f"""\
[Unit]
Description=vmw: share {share.short} of {instance}
CollectMode=inactive-or-failed

[Service]
Type=exec
# bubblewrap would follow a link that somebody has put in the place of a directory on the way.
ExecStartPre={" ".join(quote(argument) for argument in ("/bin/sh", "-c", NO_LINK, "sh", share.path))}
ExecStart={" ".join(quote(argument) for argument in argv)}
LimitNOFILE={OPEN_FILES}
# A daemon that died cannot be replaced under a running VM: QEMU does not connect again.
Restart=no
"""
