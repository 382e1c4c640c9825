"""A stand-in for Debian 12's genericcloud image: the same packages, the same way to boot."""

from __future__ import annotations

import hashlib
import shutil
import struct
import uuid
from pathlib import Path

from testbed import cache, machine

RELEASE = "bookworm"
FILE = "debian-12-genericcloud-amd64.qcow2"
OTHER_FILES = (
    "debian-12-generic-amd64.qcow2",
    "debian-12-genericcloud-amd64.json",
    "debian-12-genericcloud-amd64.qcow2.zst",
    "debian-12-genericcloud-amd64.tar.xz",
    "debian-12-genericcloud-arm64.qcow2",
    "debian-12-nocloud-amd64.qcow2",
)
SIZE_MIB = 3072
ROOT_START_MIB = 128
BOOT_START_MIB = 1
BOOT_SIZE_MIB = 3
SECTOR = 512
SECTORS_PER_MIB = 2048
LINUX_ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
# Debian's image has no ifupdown: with it, cloud-init would not take netplan.
PACKAGES = (
    "bash-completion",
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "cron",
    "dbus",
    "dmidecode",
    "e2fsprogs",
    "fdisk",
    "grub-pc-bin",
    "grub2-common",
    "init",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "locales",
    "logrotate",
    "nano",
    "netbase",
    "netplan.io",
    "openssh-client",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "systemd-timesyncd",
    "tzdata",
    "udev",
    "unattended-upgrades",
)
COMMAND_LINE = "console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
CLOUD_CONFIG = """\
# Debian's cloud image differs from cloud-init's defaults in these.
apt:
  generate_mirrorlists: true
locale: C.UTF-8
manage_etc_hosts: true
system_info:
  default_user:
    name: debian
    sudo: ALL=(ALL) NOPASSWD:ALL
    shell: /bin/bash
    lock_passwd: true
    gecos: Debian
    groups: [adm, audio, cdrom, dialout, dip, floppy, plugdev, sudo, video]
"""


NETPLAN = """\
network:
  version: 2
  ethernets:
    all-en:
      match: {name: "en*"}
      dhcp4: true
      dhcp6: true
    all-eth:
      match: {name: "eth*"}
      dhcp4: true
      dhcp6: true
"""


def directory() -> Path:
    """Return the cached directory with the image and its SHA512SUMS."""
    inputs: list[str | Path] = [Path(__file__), "\n".join(machine.mirror().sources(RELEASE))]
    return cache.built("cloudimage", inputs, _build)


def _build(target: Path) -> None:
    root = target / "root"
    machine.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            f"--include={','.join(PACKAGES)}",
            RELEASE,
            root,
            *machine.mirror().sources(RELEASE),
        ]
    )
    filesystem = str(uuid.uuid4())
    _configure(root, filesystem)
    disk = target / "disk.raw"
    _write_disk(root, disk, filesystem)
    shutil.rmtree(root)
    image = target / FILE
    machine.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", disk, image])
    disk.unlink()
    with image.open("rb") as content:
        digest = hashlib.file_digest(content, "sha512").hexdigest()
    # The real file lists every format and kind of image.
    others = {name: hashlib.sha512(name.encode()).hexdigest() for name in OTHER_FILES}
    sums = "".join(f"{value}  {name}\n" for name, value in sorted({**others, FILE: digest}.items()))
    (target / "SHA512SUMS").write_text(sums)


def _configure(root: Path, filesystem: str) -> None:
    """Write the files that Debian's image has beyond its packages."""
    files = {
        "etc/fstab": f"UUID={filesystem} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n",
        "etc/hostname": "localhost\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/machine-id": "uninitialized\n",
        "etc/cloud/cloud.cfg.d/01_debian_cloud.cfg": CLOUD_CONFIG,
        "etc/netplan/90-default.yaml": NETPLAN,
        "etc/default/grub": (
            "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=\n"
            f'GRUB_CMDLINE_LINUX="{COMMAND_LINE}"\nGRUB_TERMINAL="console serial"\n'
            'GRUB_SERIAL_COMMAND="serial --speed=115200"\n'
        ),
        "boot/grub/grub.cfg": (
            "serial --speed=115200\nterminal_input console serial\nterminal_output console serial\n"
            f"search --no-floppy --fs-uuid --set=root {filesystem}\n"
            f"linux /vmlinuz root=UUID={filesystem} ro {COMMAND_LINE}\ninitrd /initrd.img\nboot\n"
        ),
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(root / "usr/lib/grub/i386-pc", root / "boot/grub/i386-pc")
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    machine.run(["systemctl", f"--root={root}", "enable", "systemd-networkd", "systemd-resolved"])
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for package in root.glob("var/cache/apt/archives/*.deb"):
        package.unlink()


def _write_disk(root: Path, disk: Path, filesystem: str) -> None:
    """Write a GPT disk with GRUB for BIOS in front of the root file system.

    No loop device is used: containers and small virtual machines often give them no partitions.
    """
    table = (
        f"label: gpt\nunit: sectors\n"
        f"1: start={ROOT_START_MIB * SECTORS_PER_MIB}, type={LINUX_ROOT_X86_64}\n"
        f"14: start={BOOT_START_MIB * SECTORS_PER_MIB}, size={BOOT_SIZE_MIB * SECTORS_PER_MIB}, type={BIOS_BOOT}\n"
    )
    with disk.open("wb") as file:
        file.truncate(SIZE_MIB << 20)
    machine.run(["sfdisk", "--quiet", disk], stdin=table)
    # One MiB stays free at the end for the backup of the partition table.
    size = SIZE_MIB - ROOT_START_MIB - 1
    offset = f"offset={ROOT_START_MIB << 20}"
    machine.run(["mkfs.ext4", "-q", "-F", "-U", filesystem, "-E", offset, "-d", root, disk, f"{size}M"])
    _install_grub(root, disk, filesystem)


def _install_grub(root: Path, disk: Path, filesystem: str) -> None:
    """Put GRUB's boot sector and core image where grub-install would put them."""
    modules = root / "usr/lib/grub/i386-pc"
    early = root / "early.cfg"
    early.write_text(
        f"search --no-floppy --fs-uuid --set=root {filesystem}\nset prefix=($root)/boot/grub\n"
        "configfile ($root)/boot/grub/grub.cfg\n"
    )
    machine.run(
        ["chroot", root, "grub-mkimage", "--format=i386-pc", "--output=/core.img", "--config=/early.cfg",
         "--prefix=/boot/grub", "biosdisk", "part_gpt", "ext2", "search", "search_fs_uuid", "configfile",
         "normal", "linux", "serial", "terminal", "echo", "boot"]
    )  # fmt: skip
    core = bytearray((root / "core.img").read_bytes())
    start = BOOT_START_MIB * SECTORS_PER_MIB
    # The last entry of the first sector's block list says where the rest of the core image is.
    struct.pack_into("<Q", core, SECTOR - 12, start + 1)
    boot = bytearray((modules / "boot.img").read_bytes())
    with disk.open("r+b") as file:
        sector = bytearray(file.read(SECTOR))
        boot[0x1B8:] = sector[0x1B8:]
        struct.pack_into("<Q", boot, 0x5C, start)
        file.seek(0)
        file.write(boot)
        file.seek(start * SECTOR)
        file.write(core)
