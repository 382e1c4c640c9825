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

SCRATCH_BYTES = 64 << 20
"""Memory that a guest can fill in the root of a scratch share, with git's locks and a new packed-refs: 60 bytes for each ref."""

OPEN_FILES = 524288
"""Descriptor limit of a daemon, which holds one per inode the guest remembers: systemd's default hard limit."""


@dataclass(frozen=True)
class Bind:
    """A file or directory of the host that stands in a share, over what the share's own directory has there.

    Attributes:
        source: Its path on the host.
        target: Where it stands, relative to the share; something of its kind is there.
        read_only: Whether the guest, root included, may only read.
    """

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Mirror:
    """A file of the host that is replaced by each of its changes, and a copy of ours that a share can show all the time.

    A bind shows the file that was there when it was made, whatever takes the name later.

    Attributes:
        source: The file's path on the host; it may come and go.
        copy: The copy's path, which is written in place.
    """

    source: str
    copy: str


@dataclass(frozen=True)
class ShareSpec:
    """A directory of the host and the name by which the guest mounts it.

    Attributes:
        tag: The name by which the guest mounts it.
        path: The directory on the host.
        read_only: Whether the guest, root included, may only read.
        binds: What stands over parts of it, in the order in which it is put there.
        plain: Whether the guest may make files and directories only: neither links that lead out of the share, which the
            host's programs would follow, nor FIFOs and devices.
        scratch: Whether the share shows of the directory only what the binds name, and keeps the rest in memory until it ends.
        mirrors: Copies that follow the host's files while the share is served.
        fresh: Whether the guest sees each change at once, for which it asks the host each time, instead of within a second.
        follower: The user's unit that keeps the directory up to date while it is served, or an empty string.
    """

    tag: str
    path: str
    read_only: bool
    binds: tuple[Bind, ...] = ()
    plain: bool = False
    scratch: bool = False
    mirrors: tuple[Mirror, ...] = ()
    fresh: bool = False
    follower: str = ""

    @property
    def mirrored_paths(self) -> list[str]:
        """Return source and copy of each mirror, one after the other."""
        return [path for each in self.mirrors for path in (each.source, each.copy)]

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
    cache = "never" if share.fresh else "auto"
    options = ["--fd=3", "--shared-dir=/share", "--sandbox=none", f"--cache={cache}"]
    if "translate-uid" in daemon.options:
        # Every id the guest uses becomes the user's own, so that also `sudo npm install` and chown work in the share.
        options += [f"--translate-uid=squash-guest:0:{uid}:{ALL_IDS}", f"--translate-gid=squash-guest:0:{gid}:{ALL_IDS}"]
    if share.read_only and "readonly" in daemon.options:
        options.append("--readonly")
    if "migration-on-error" in daemon.options:
        # A suspended VM whose guest knew a file that is gone by now could never be resumed otherwise.
        options.append("--migration-on-error=guest-error")
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
    # Directories, where the host has links: a plain share's daemon, and so bubblewrap, can make no link.
    system = [part for name in ("usr", "bin", "lib", "lib64", "sbin") for part in ("--ro-bind-try", f"/{name}", f"/{name}")]
    root = ["--size", str(SCRATCH_BYTES), "--tmpfs", "/share"] if share.scratch else []
    binds = share.binds if share.scratch else (Bind(share.path, "", share.read_only), *share.binds)
    shown = root + [
        part
        for each in binds
        for part in ("--ro-bind" if each.read_only else "--bind", each.source, f"/share/{each.target}".rstrip("/"))
    ]
    return [
        "/usr/bin/bwrap", "--unshare-all", "--new-session", "--cap-drop", "ALL", *system, "--proc", "/proc", *shown,
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


NO_LINK = 'for path; do [ "$(realpath -e -- "$path")" = "$path" ] || exit 1; done'
"""Shell command that fails when one of some paths leads over a link, or nowhere."""


MEMORY = "MemoryMax=1G\n"
"""Bounds the empty files of a root in memory, which its size does not count; what the daemon reads can be dropped."""

PLAIN_FILTER = """\
NoNewPrivileges=yes
SystemCallArchitectures=native
SystemCallFilter=~symlink symlinkat mknod mknodat
SystemCallErrorNumber=EPERM
"""
"""Keeps a daemon from making links, FIFOs and devices, whatever the guest asks for: systemd.exec(5)."""


MIRROR = (
    "copy() { while [ $# -gt 1 ]; do"
    ' if [ -f "$1" ] && [ ! -L "$1" ]; then cmp -s -- "$1" "$2" || cat -- "$1" > "$2"; else : > "$2"; fi;'
    " shift 2; done; }; "
)
"""Shell function that brings copies up to date, in place, as a bind shows the file itself and not its name."""

COPY = 'copy "$@"'

FOLLOW = (
    MIRROR + 'place=$1; names=$2; shift 2; inotifywait --monitor --event moved_to,close_write,delete --include "$names"'
    ' --format %f -- "$place" 2>&1 | while read -r _; do copy "$@"; done; exit 1'
)
"""Shell command that does so with each change, and first when inotifywait says in a line that it has begun."""


def command_words(*argv: str) -> str:
    """Return a command as a unit has it."""
    return " ".join(quote(argument) for argument in argv)


def mirror_name(instance: str) -> str:
    """Return the name of the unit of a VM's copies; a VM has them for one share."""
    return f"vmw-{instance}-mirror.service"


def mirror_unit(instance: str, share: ShareSpec) -> str:
    """Return the unit that keeps a share's copies up to date while it is served."""
    names = "|".join(re.escape(Path(each.source).name) for each in share.mirrors)
    return f"""\
[Unit]
Description=vmw: copies of the git data of {instance}
BindsTo={unit_name(instance, share)}.service
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command_words("/bin/sh", "-c", FOLLOW, "sh", share.path, f"/({names})$", *share.mirrored_paths)}
Restart=always
RestartSec=1
"""


def service_unit(instance: str, share: ShareSpec, argv: list[str]) -> str:
    """Return the unit of the daemon: a fresh one at each start of the VM, as it serves one connection and exits."""
    paths = (share.path, *(bind.source for bind in share.binds))
    wanted = [*([mirror_name(instance)] if share.mirrors else []), *([share.follower] if share.follower else [])]
    wants = "".join(f"Wants={unit}\n" for unit in wanted)
    mirror = (
        f"ExecStartPre={command_words('/bin/sh', '-c', MIRROR + COPY, 'sh', *share.mirrored_paths)}\n" if share.mirrors else ""
    )
    limits = (MEMORY if share.scratch else "") + (PLAIN_FILTER if share.plain else "")
    return f"""\
[Unit]
Description=vmw: share {share.short} of {instance}
CollectMode=inactive-or-failed
{wants}
[Service]
Type=exec
# bubblewrap would follow a link that somebody has put in the place of a directory on the way.
ExecStartPre={command_words("/bin/sh", "-c", NO_LINK, "sh", *paths)}
{mirror}ExecStart={command_words(*argv)}
LimitNOFILE={OPEN_FILES}
{limits}# A daemon that died cannot be replaced under a running VM: QEMU does not connect again.
Restart=no
"""
