"""The file tree of a freshly installed Debian 13 machine."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Literal, get_args

from testbed import cache, machine

NicManager = Literal["networkd", "networkmanager", "netplan"]
NIC_MANAGERS: tuple[NicManager, ...] = get_args(NicManager)

RELEASE = "trixie"
USER = "dev"
UID = 1234
# Nothing else says this, so that a copy left behind is found.
PASSWORD = "open-7kQz-sesame"
NIC = "enp1s0"
# What an ordinary machine has before vmw: a system, sudo, and git, an SSH client and Python as README's first command
# takes them. Whatever the host set-up installs (curl, polkit, user sessions...) must stay out, for the test is that it does.
# ping, less, nano and bash-completion are for the person who looks into a test host; kmod is for depmod, procps for ps.
PACKAGES = (
    "bash-completion",
    "ca-certificates",
    "dbus",
    "git",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "nano",
    "openssh-client",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
NIC_PACKAGES: dict[NicManager, tuple[str, ...]] = {
    "networkd": ("systemd-resolved",),
    "networkmanager": ("network-manager",),
    "netplan": ("netplan.io", "systemd-resolved"),
}
NIC_FILES: dict[NicManager, tuple[str, int, str]] = {
    "networkd": (
        "etc/systemd/network/10-wired.network",
        0o644,
        f"[Match]\nName={NIC}\n\n[Network]\nDHCP=ipv4\n",
    ),
    "networkmanager": (
        f"etc/NetworkManager/system-connections/{NIC}.nmconnection",
        0o600,
        (
            f"[connection]\nid=Wired connection 1\ntype=ethernet\ninterface-name={NIC}\n\n"
            "[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=link-local\n"
        ),
    ),
    "netplan": (
        "etc/netplan/01-wired.yaml",
        0o600,
        f"network:\n  version: 2\n  ethernets:\n    {NIC}:\n      dhcp4: true\n",
    ),
}
# The drivers that this kernel has built in and that a host's set-up asks for by name.
BUILTIN_DRIVERS = {
    "kvm": "kernel/arch/x86/kvm/kvm.ko",
    "tun": "kernel/drivers/net/tun.ko",
    "bridge": "kernel/net/bridge/bridge.ko",
    "br_netfilter": "kernel/net/bridge/br_netfilter.ko",
    "fuse": "kernel/fs/fuse/fuse.ko",
}


def tree(manager: NicManager) -> Path:
    """Return the cached file tree of a machine whose NIC `manager` runs."""
    inputs: list[str | Path] = [
        Path(__file__),
        "\n".join(machine.mirror().sources(RELEASE)),
        platform.release(),
        manager,
        *machine.ca_files(),
    ]
    return cache.built(f"host-{manager}", inputs, lambda target: _build(target, manager)) / "root"


def _write(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def _build(target: Path, manager: NicManager) -> None:
    root = target / "root"
    machine.run(
        [
            "mmdebstrap",
            "--variant=important",
            f"--include={','.join((*PACKAGES, *NIC_PACKAGES[manager]))}",
            RELEASE,
            root,
            *machine.mirror().sources(RELEASE),
        ]
    )
    _trust(root)
    _configure(root, manager)
    _add_user(root)


def _trust(root: Path) -> None:
    """Let everything in the tree trust the CA files of the build machine."""
    directory = root / "usr/local/share/ca-certificates"
    directory.mkdir(parents=True, exist_ok=True)
    for file in machine.ca_files():
        shutil.copy(file, directory / file.name)
    machine.run(["chroot", root, "update-ca-certificates"])
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    _write(root, "etc/pip.conf", f"[global]\ncert = {bundle}\n")
    variables = ("NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    with (root / "etc/environment").open("a") as environment:
        environment.writelines(f"{name}={bundle}\n" for name in variables)


def _configure(root: Path, manager: NicManager) -> None:
    """Set the machine up as an installer would: name, NIC, drivers."""
    for package in root.glob("var/cache/apt/archives/*.deb"):
        package.unlink()
    _write(root, "etc/hostname", "testhost\n")
    _write(root, "etc/hosts", "127.0.0.1 localhost\n127.0.1.1 testhost\n::1 localhost\n")
    path, mode, text = NIC_FILES[manager]
    _write(root, path, text, mode)
    units = {
        "networkd": ["systemd-networkd", "systemd-resolved"],
        "networkmanager": ["NetworkManager"],
        "netplan": ["systemd-networkd", "systemd-resolved"],
    }[manager]
    machine.run(["systemctl", f"--root={root}", "enable", *units])
    # Debian's NetworkManager leaves veth to others, and the test host's NIC is one.
    if manager == "networkmanager":
        _write(root, "etc/udev/rules.d/00-wired.rules", f'KERNEL=="{NIC}", ENV{{NM_UNMANAGED}}="0"\n')
    machine.run(["systemctl", f"--root={root}", "mask", "systemd-networkd-wait-online.service"])
    drivers = f"lib/modules/{platform.release()}"
    _write(root, f"{drivers}/modules.order", "")
    builtin = "".join(f"{file}\n" for file in BUILTIN_DRIVERS.values())
    _write(root, f"{drivers}/modules.builtin", builtin)
    machine.run(["chroot", root, "depmod", platform.release()])


def _add_user(root: Path) -> None:
    """Add an ordinary user who may use sudo with a password and has an SSH key."""
    machine.run(
        ["chroot", root, "useradd", "--create-home", "--shell=/bin/bash", f"--uid={UID}",
         "--groups=sudo", USER]
    )  # fmt: skip
    # The quickest hash, for sudo asks again at each of Ansible's steps.
    quick = ["--crypt-method=SHA256", "--sha-rounds=1000"]
    machine.run(["chroot", root, "chpasswd", *quick], stdin=f"{USER}:{PASSWORD}\n")
    keygen = "umask 077; mkdir ~/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"
    machine.run(["chroot", root, "runuser", "-l", USER, "-c", keygen])
    password = root / f"home/{USER}/become-password"
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    shutil.chown(password, UID, UID)
