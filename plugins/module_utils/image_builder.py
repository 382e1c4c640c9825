# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The builder, a VM that turns a base image into a golden image: its domain, its seed, what it says and hands over."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import tarfile
import xml.etree.ElementTree as ET
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    add,
    add_platform,
    add_shared_memory,
    passt_interface_xml,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMESPACE = "https://vmw.dev/xmlns/builder/1"
"""XML namespace of the element that marks a domain as a builder of ours."""

HANDOVER_SERIAL = "vmw-out"
"""Serial number by which the builder finds the disk for what it hands over."""

GUEST_DIRECTORY = "/run/vmw-bake"
"""Where the builder keeps the script and its settings: in memory, so that no trace gets into the image."""

INIT = "/usr/lib/vmw/init"
"""What a clone's kernel starts first, before the system's own init."""

HANDOVER_LIMITS = {"kernel": 64 << 20, "initrd": 512 << 20, "facts.json": 64 << 10}
"""The files that the builder hands over and the most bytes that each may have."""

_FACTS = {
    "debian": r"[0-9A-Za-z./ ()+-]{1,40}",
    "kernel": r"[0-9A-Za-z.+~_-]{1,80}",
    "node": r"\d{1,4}\.\d{1,4}\.\d{1,4}",
    "claude_code": r"\d{1,4}\.\d{1,4}\.\d{1,6}(-[0-9A-Za-z.-]{1,40})?",
    "root_uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_STEP = re.compile(r"vmw-bake: step (\d{1,3})/\d{1,3} ")
_FAILED = re.compile(r"vmw-bake: failed: (\S+): (.*)")
_OUTPUT = re.compile(r"vmw-bake\| (.*)")
_DONE = "vmw-bake: done"
_TAIL_LINES = 8
_LINE_LENGTH = 400

ET.register_namespace("builder", NAMESPACE)


@dataclass(frozen=True)
class Step:
    """One step of the script in the builder: its function and the words for it."""

    name: str
    title: str


@dataclass(frozen=True)
class Builder:
    """A builder's domain. Paths are absolute, memory is in MiB; with a network socket, passt is there in place of a bridge."""

    name: str
    virt_type: str
    bridge: str
    memory_mib: int
    vcpus: int
    disk: str
    base_image: str
    base_format: str
    seed: str
    handover: str
    console: str
    label: str
    network_socket: str = ""


@dataclass(frozen=True)
class Facts:
    """What the builder found in the image that it made."""

    debian: str
    kernel: str
    node: str
    claude_code: str
    root_uuid: str


def _disk(devices: ET.Element, path: str, target: str, **driver: str) -> ET.Element:
    disk = add(devices, "disk", type="file", device="disk")
    add(disk, "driver", name="qemu", **driver)
    add(disk, "source", file=path)
    add(disk, "target", dev=target, bus="virtio")
    return disk


def domain_xml(builder: Builder) -> str:
    """Return the builder's domain."""
    domain = ET.Element("domain", {"type": builder.virt_type})
    add(domain, "name", builder.name)
    add(add(domain, "metadata"), f"{{{NAMESPACE}}}builder")
    add(domain, "memory", str(builder.memory_mib), unit="MiB")
    add(domain, "vcpu", str(builder.vcpus))
    if builder.network_socket:
        add_shared_memory(domain)
    add(add(domain, "os"), "type", "hvm", arch="x86_64", machine="q35")
    add_platform(domain, builder.virt_type)
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        add(domain, event, "destroy")
    devices = add(domain, "devices")
    # A build that the host does not survive is thrown away, so nobody needs its data on the platter.
    disk = _disk(devices, builder.disk, "vda", type="qcow2", cache="unsafe", discard="unmap")
    # Spelled out, because AppArmor's helper cannot read a qcow2 below a hidden directory to find it.
    backing = add(disk, "backingStore", type="file")
    add(backing, "format", type=builder.base_format)
    add(backing, "source", file=builder.base_image)
    add(backing, "backingStore")
    # A virtio disk: Debian 12's cloud kernel does not find the seed on a SATA CD-ROM.
    add(_disk(devices, builder.seed, "vdb", type="raw"), "readonly")
    add(_disk(devices, builder.handover, "vdc", type="raw", cache="unsafe"), "serial", HANDOVER_SERIAL)
    if builder.network_socket:
        devices.append(passt_interface_xml(mac_address(builder.name), builder.network_socket))
    else:
        interface = add(devices, "interface", type="bridge")
        add(interface, "mac", address=mac_address(builder.name))
        add(interface, "source", bridge=builder.bridge)
        add(interface, "model", type="virtio")
    serial = add(devices, "serial", type="pty")
    # virtlogd makes a file that it truncates anew, as root's own; one that it appends to stays the user's.
    add(serial, "log", file=builder.console, append="on")
    add(serial, "target", type="isa-serial", port="0")
    add(add(devices, "console", type="pty"), "target", type="serial", port="0")
    add(add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    add(devices, "memballoon", model="none")
    if builder.label:
        # libvirt's own chown would leave files behind that the user cannot replace; QEMU gets in by ACL instead.
        static = add(domain, "seclabel", type="static", model="dac", relabel="no")
        add(static, "label", builder.label)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def is_builder(domain_xml_text: str) -> bool:
    """Tell whether a domain carries the mark of our builders."""
    root = ET.fromstring(domain_xml_text)  # noqa: S314 - libvirt's own output
    return root.find(f"metadata/{{{NAMESPACE}}}builder") is not None


def mac_address(name: str) -> str:
    """Return a MAC address in QEMU's range, the same for the same domain name."""
    tail = hashlib.sha256(name.encode()).digest()[:3]
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)


def settings_file(settings: dict[str, str], steps: Sequence[Step]) -> str:
    """Return the settings as the script in the builder reads them, a shell fragment."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    pairs = " ".join(f"{shlex.quote(step.name)} {shlex.quote(step.title)}" for step in steps)
    return "\n".join([*lines, f"steps=({pairs})", ""])


def seed_files(name: str, files: dict[str, str], certificates: Sequence[str]) -> dict[str, str]:
    """Return the files of the builder's NoCloud seed. JSON is YAML, as cloud-init reads it, without YAML's surprises.

    Args:
        name: The domain's name.
        files: What the builder finds in its directory: the script that it runs, its settings and what it installs.
        certificates: CA certificates that the image must trust, in PEM.
    """
    contents = dict(files)
    contents.update({f"ca/vmw-{number}.crt": text for number, text in enumerate(certificates, 1)})
    user_data = {
        # The stock lists spend most of the boot on modules that the builder does not need.
        "cloud_init_modules": ["write-files"],
        "cloud_config_modules": ["runcmd"],
        "cloud_final_modules": ["scripts-user"],
        "write_files": [{"path": f"{GUEST_DIRECTORY}/{path}", "content": content} for path, content in contents.items()],
        # A unit of its own: masking cloud-init's units ends whatever runs in them.
        "runcmd": [["systemd-run", "--unit=vmw-bake", "--no-block", "bash", f"{GUEST_DIRECTORY}/bake.sh"]],
    }
    network = {"match": {"macaddress": mac_address(name)}, "dhcp4": True}
    return {
        "user-data": "#cloud-config\n" + json.dumps(user_data, indent=2) + "\n",
        "meta-data": json.dumps({"instance-id": name}) + "\n",
        "network-config": json.dumps({"version": 2, "ethernets": {"uplink": network}}) + "\n",
    }


@dataclass
class Console:
    """What the script in the builder has said so far on the serial console."""

    step: int = 0
    failed: str = ""
    reason: str = ""
    done: bool = False
    output: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    _rest: str = ""

    def feed(self, text: str) -> None:
        """Take in what was printed since the last time."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[-_LINE_LENGTH:]
        for line in lines:
            self._take(printable(line))

    def _take(self, line: str) -> None:
        step, failed, output = _STEP.search(line), _FAILED.search(line), _OUTPUT.search(line)
        if output:
            if output.group(1).strip():
                self.output.append(output.group(1))
        elif failed:
            self.failed, self.reason = failed.groups()
        elif step:
            self.step = int(step.group(1))
            self.output.clear()
        elif _DONE in line:
            self.done = True


def printable(line: str) -> str:
    """Return a line from a guest without what could play tricks on a terminal, and of bounded length."""
    plain = _ESCAPES.sub("", line[: 4 * _LINE_LENGTH])
    return "".join(char for char in plain if char.isprintable())[:_LINE_LENGTH].rstrip()


def parse_facts(text: str) -> Facts:
    """Read the facts that the builder handed over.

    Raises:
        VmwError: They are not what the script writes.
    """
    try:
        data = json.loads(text)
        values = {name: data[name] for name in _FACTS}
    except (ValueError, KeyError, TypeError) as error:
        message = "the builder's facts cannot be read"
        raise VmwError(message) from error
    for name, value in values.items():
        if not isinstance(value, str) or not re.fullmatch(_FACTS[name], value):
            message = f"the builder reports an impossible {name}"
            raise VmwError(message)
    return Facts(**values)


def unpack_handover(archive: IO[bytes], target: Path) -> Facts:
    """Take over what the builder wrote onto its extra disk, which is not trusted.

    Args:
        archive: The disk, with a tar archive at its beginning.
        target: Directory for `kernel` and `initrd`.

    Raises:
        VmwError: The archive has other files than agreed, or too much.
    """
    facts: Facts | None = None
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for member in tar:
                _check_member(member, seen)
                seen.add(member.name)
                content: Any = tar.extractfile(member)
                if member.name == "facts.json":
                    facts = parse_facts(content.read().decode(errors="replace"))
                else:
                    with (target / member.name).open("xb") as handle:
                        shutil.copyfileobj(content, handle)
    except (tarfile.TarError, EOFError) as error:
        message = "what the builder handed over is no tar archive"
        raise VmwError(message) from error
    missing = set(HANDOVER_LIMITS) - seen
    if facts is None or missing:
        message = f"the builder did not hand over: {', '.join(sorted(missing))}"
        raise VmwError(message)
    return facts


def _check_member(member: tarfile.TarInfo, seen: set[str]) -> None:
    limit = HANDOVER_LIMITS.get(member.name, 0)
    if not limit or not member.isreg() or member.issparse() or member.name in seen:
        message = f"the builder handed over something unexpected: {printable(member.name)}"
        raise VmwError(message)
    if not 0 < member.size <= limit:
        message = f"the builder handed over a {member.name} of {member.size} bytes"
        raise VmwError(message)


def command_line(facts: Facts) -> str:
    """Return the kernel command line for clones, which boot the kernel without a boot loader.

    The first program gives the clone its identity, for which the root must be writable at once.
    """
    # The self-tests of the kernel's ciphers take an emulated guest half a second.
    return f"root=UUID={facts.root_uuid} rw console=ttyS0 quiet cryptomgr.notests init={INIT}"
