# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The domain XML of an instance, and the mark by which a domain is known to be ours."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.passt_units import socket_path

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

NAMESPACE = "https://vmw.dev/xmlns/instance/1"
"""XML namespace of our element in a domain's metadata."""

TEMPLATE_PORTS = 14
"""PCIe root ports of a template: five for its own devices, the others for what its forks get, and what a user adds."""

EMULATED_VCPUS = 1
"""Virtual CPUs that run under emulation; the rest can be plugged in with `virsh setvcpus`.

QEMU 10.0's emulation of several CPUs races with changes of the memory map, as made by the guest's PCI probing: the guest stalls
at boot, or QEMU ends with "iotlb_to_section: Assertion `section_index < d->map.sections_nb' failed". One CPU does not race.
"""

SLOW_FEATURES = ("erms", "fsrm", "svm")
"""Features of a CPU that slow an emulated guest down.

With the first two the kernel and the C library copy and clear memory byte by byte, which QEMU repeats as often. For the third
udev loads KVM's driver, and nobody would run a VM there.
"""

EMULATED_CMDLINE = "no_timer_check tsc=reliable"
"""Kernel parameters under emulation.

On a busy host the timer may miss the kernel's test of it, which then panics; under KVM the kernel leaves the test out.

QEMU's CPU is one of AMD's that does not promise a constant rate. With several that can be plugged in, the kernel takes their time
stamp counters for unsynchronized (`unsynchronized_tsc` in arch/x86/kernel/tsc.c), and reads each time from an I/O port. QEMU has
the counters of all emulated CPUs from one clock of the host.
"""

ET.register_namespace("vmw", NAMESPACE)


@dataclass(frozen=True)
class Boot:
    """What a domain boots: a kernel outside the disk, and the disk's backing file."""

    kernel: str
    initrd: str
    cmdline: str
    backing_file: str

    @classmethod
    def of(cls, generation: Path, cmdline: str) -> Boot:
        """Return what the VMs of a golden image boot.

        Args:
            generation: The image's directory.
            cmdline: The kernel's command line, which the image's manifest has.
        """
        return cls(str(generation / "kernel"), str(generation / "initrd"), cmdline, str(generation / "disk.qcow2"))


@dataclass(frozen=True)
class Share:
    """A virtiofs share served by a daemon of ours."""

    tag: str
    socket: str


@dataclass(frozen=True)
class Storage:
    """The files of one VM that QEMU opens."""

    disk: str
    seed: str
    console: str


@dataclass(frozen=True)
class HostSide:
    """What the host contributes to a domain.

    Attributes:
        record: The instance record's path, for the mark.
        boot: What the domain boots.
        storage: The instance's files.
        shares: The virtiofs shares, in the order in which the guest sees them.
        label: ``+uid:+gid`` under which QEMU runs, or an empty string where it runs as the calling user.
    """

    record: str
    boot: Boot
    storage: Storage
    shares: list[Share]
    label: str


def add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    """Add a child element, and return it."""
    child = ET.SubElement(parent, tag, attributes)
    child.text = text or None
    return child


def mark(record: str) -> ET.Element:
    """Return the metadata element that makes a domain ours.

    Args:
        record: Path of the file that describes the domain's owner.
    """
    return ET.Element(f"{{{NAMESPACE}}}instance", {"record": record})


def marked_record(domain_xml: str) -> str:
    """Return the path in a domain's mark, or an empty string for a domain that is not ours."""
    found = ET.fromstring(domain_xml).find(f"metadata/{{{NAMESPACE}}}instance")  # noqa: S314 - libvirt's own output
    return "" if found is None else found.get("record", "")


def add_platform(domain: ET.Element, virt_type: str) -> None:
    """Add what every guest of ours has of a machine: ACPI, its CPU's model, and clocks that do not stall it.

    Args:
        domain: The domain.
        virt_type: ``kvm`` or ``qemu``.
    """
    features = add(domain, "features")
    add(features, "acpi")
    add(features, "apic")
    # The claude binary needs AVX, which TCG offers from QEMU 7.2 on but not in its default model.
    cpu = add(domain, "cpu", mode="host-passthrough" if virt_type == "kvm" else "maximum", check="none")
    if virt_type != "kvm":
        for feature in SLOW_FEATURES:
            add(cpu, "feature", policy="disable", name=feature)
    clock = add(domain, "clock", offset="utc")
    add(clock, "timer", name="rtc", tickpolicy="catchup")
    add(clock, "timer", name="pit", tickpolicy="delay")
    # Under emulation with several CPUs the guest may choose the HPET as its clock, and then stalls at boot.
    add(clock, "timer", name="hpet", present="no")


def _disk(devices: ET.Element, path: str, backing_file: str) -> None:
    disk = add(devices, "disk", type="file", device="disk")
    add(disk, "driver", name="qemu", type="qcow2", discard="unmap")
    add(disk, "source", file=path)
    # Spelled out, because AppArmor's helper cannot read a qcow2 below a hidden directory to find it.
    backing = add(disk, "backingStore", type="file")
    add(backing, "format", type="qcow2")
    add(backing, "source", file=backing_file)
    add(backing, "backingStore")
    add(disk, "target", dev="vda", bus="virtio")


def _seed(devices: ET.Element, path: str) -> None:
    # A virtio disk: Debian 12's cloud kernel does not find the seed on a SATA CD-ROM.
    disk = add(devices, "disk", type="file", device="disk")
    add(disk, "driver", name="qemu", type="raw")
    add(disk, "source", file=path)
    add(disk, "target", dev="vdb", bus="virtio")
    add(disk, "readonly")


def _console(devices: ET.Element, log: str) -> None:
    serial = add(devices, "serial", type="pty")
    # virtlogd makes a file that it truncates anew, as root's own; one that it appends to stays the user's.
    add(serial, "log", file=log, append="on")
    add(serial, "target", type="isa-serial", port="0")
    add(add(devices, "console", type="pty"), "target", type="serial", port="0")


@dataclass(frozen=True)
class Machine:
    """What a VM is before it has disks, shares and a network: a guest cannot tell two equal ones apart.

    Attributes:
        virt_type: ``kvm`` or ``qemu``.
        memory_mib: Memory in MiB.
        vcpus: Virtual CPUs that it can have.
    """

    virt_type: str
    memory_mib: int
    vcpus: int

    @classmethod
    def of(cls, instance: Instance) -> Machine:
        """Return the machine that a VM was asked to be."""
        return cls(instance.virt_type, instance.memory_mib, instance.vcpus)


def _machine_xml(machine: Machine, name: str, identity: str, record: str, boot: Boot) -> ET.Element:
    domain = ET.Element("domain", {"type": machine.virt_type})
    add(domain, "name", name)
    add(domain, "uuid", identity)
    add(domain, "metadata").append(mark(record))
    add(domain, "memory", str(machine.memory_mib), unit="MiB")
    online = {} if machine.virt_type == "kvm" else {"current": str(EMULATED_VCPUS)}
    add(domain, "vcpu", str(machine.vcpus), **online)
    add_shared_memory(domain)
    system = add(domain, "os")
    add(system, "type", "hvm", arch="x86_64", machine="q35")
    add(system, "kernel", boot.kernel)
    add(system, "initrd", boot.initrd)
    add(system, "cmdline", boot.cmdline if machine.virt_type == "kvm" else f"{boot.cmdline} {EMULATED_CMDLINE}")
    add_platform(domain, machine.virt_type)
    add(domain, "on_poweroff", "destroy")
    add(domain, "on_reboot", "restart")
    add(domain, "on_crash", "destroy")
    return domain


def _standard_devices(devices: ET.Element, console: str) -> None:
    _console(devices, console)
    channel = add(devices, "channel", type="unix")
    add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    add(add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    add(devices, "memballoon", model="virtio", freePageReporting="on")


def _text(domain: ET.Element, label: str) -> str:
    if label:
        # libvirt's own chown would leave files behind that the user cannot replace; QEMU gets in by ACL instead.
        static = add(domain, "seclabel", type="static", model="dac", relabel="no")
        add(static, "label", label)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def share_xml(share: Share) -> ET.Element:
    """Return the device of a share."""
    filesystem = ET.Element("filesystem", {"type": "mount", "accessmode": "passthrough"})
    add(filesystem, "driver", type="virtiofs", queue="1024")
    add(filesystem, "source", socket=share.socket)
    add(filesystem, "target", dir=share.tag)
    return filesystem


def interface_xml(mac: str, bridge: str, tap: str) -> ET.Element:
    """Return the network card of a VM.

    Args:
        mac: Its address.
        bridge: The host's bridge.
        tap: The name of the host's end of it, by which the host's packet filter knows the VM.
    """
    interface = ET.Element("interface", {"type": "bridge"})
    add(interface, "mac", address=mac)
    add(interface, "source", bridge=bridge)
    add(interface, "target", dev=tap)
    add(interface, "model", type="virtio")
    return interface


def passt_interface_xml(mac: str, socket: str) -> ET.Element:
    """Return the network card of a VM whose network is passt's.

    Args:
        mac: Its address.
        socket: Where passt is reached.
    """
    interface = ET.Element("interface", {"type": "vhostuser"})
    add(interface, "mac", address=mac)
    source = add(interface, "source", type="unix", path=socket, mode="client")
    # A passt that died is replaced by a fresh one.
    add(source, "reconnect", enabled="yes", timeout="1")
    add(interface, "model", type="virtio")
    return interface


def card_xml(instance: Instance) -> ET.Element:
    """Return the network card of an instance."""
    if instance.is_session:
        return passt_interface_xml(instance.mac, socket_path(instance.name))
    return interface_xml(instance.mac, instance.bridge, instance.tap)


def add_shared_memory(domain: ET.Element) -> None:
    """Let programs beside QEMU read and write a guest's memory: virtiofsd does, and passt."""
    backing = add(domain, "memoryBacking")
    add(backing, "source", type="memfd")
    add(backing, "access", mode="shared")


def tap_of(xml: str, mac: str) -> str | None:
    """Return the name of the host's end of a domain's card: an empty one is for libvirt to choose, ``None`` stands for no card.

    Args:
        xml: The definition, as libvirt has it.
        mac: The card's address.
    """
    card = _card(ET.fromstring(xml), mac)  # noqa: S314 - libvirt's own output
    if card is None:
        return None
    target = card.find("target")
    return "" if target is None else target.get("dev", "")


def with_tap(xml: str, mac: str, tap: str) -> str:
    """Return a domain's definition in which the host's end of a card has another name.

    Args:
        xml: The definition, as libvirt has it.
        mac: The card's address.
        tap: The name.
    """
    domain = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
    card = _card(domain, mac)
    if card is not None:
        target = card.find("target")
        (ET.SubElement(card, "target") if target is None else target).set("dev", tap)
    return ET.tostring(domain, encoding="unicode")


def _card(domain: ET.Element, mac: str) -> ET.Element | None:
    return next((card for card in domain.findall("devices/interface") if card.find(f"mac[@address='{mac}']") is not None), None)


def domain_xml(instance: Instance, host: HostSide) -> str:
    """Return the definition of an instance's domain."""
    domain = _machine_xml(Machine.of(instance), instance.name, instance.uuid, host.record, host.boot)
    devices = add(domain, "devices")
    _disk(devices, host.storage.disk, host.boot.backing_file)
    _seed(devices, host.storage.seed)
    for share in host.shares:
        devices.append(share_xml(share))
    devices.append(card_xml(instance))
    _standard_devices(devices, host.storage.console)
    return _text(domain, host.label)


@dataclass(frozen=True)
class Fork:
    """What tells a fork from its template.

    Attributes:
        name: The fork's name.
        uuid: The fork's UUID.
        record: The fork's record, for its mark.
        disk: The fork's disk.
        console: The fork's console log.
    """

    name: str
    uuid: str
    record: str
    disk: str
    console: str


def template_xml(machine: Machine, itself: Fork, boot: Boot, label: str) -> str:
    """Return the domain of a template: a VM without a network card, shares and seed, and with room to plug these in.

    Args:
        machine: What its forks will be.
        itself: The template's own name, UUID, mark and files.
        boot: What it boots.
        label: See `HostSide`.
    """
    domain = _machine_xml(machine, itself.name, itself.uuid, itself.record, boot)
    # Changes with every restore, for guests whose kernel has a driver for it.
    domain.insert(2, ET.Element("genid"))
    devices = add(domain, "devices")
    add(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(TEMPLATE_PORTS):
        add(devices, "controller", type="pci", model="pcie-root-port")
    _disk(devices, itself.disk, boot.backing_file)
    _standard_devices(devices, itself.console)
    return _text(domain, label)


def fork_xml(saved_xml: str, fork: Fork) -> str:
    """Return the domain of a fork of a saved template.

    Args:
        saved_xml: The template's domain as libvirt saved it, every address in it.
        fork: What tells the fork from it.

    Raises:
        VmwError: This is no template of ours.
    """
    domain = ET.fromstring(saved_xml)  # noqa: S314 - libvirt's own output
    disk, log = domain.find("devices/disk/source"), domain.find("devices/serial/log")
    instance = domain.find(f"metadata/{{{NAMESPACE}}}instance")
    if disk is None or log is None or instance is None:
        message = "the saved template is not one of vmw's"
        raise VmwError(message)
    for tag, text in (("name", fork.name), ("uuid", fork.uuid), ("genid", str(uuid.uuid4()))):
        for element in domain.findall(tag):
            element.text = text
    instance.set("record", fork.record)
    disk.set("file", fork.disk)
    for element in domain.findall("devices/*/log"):
        element.set("file", fork.console)
    for channel in domain.findall("devices/channel"):
        # The place of the template's socket; libvirt chooses the fork's.
        for source in channel.findall("source"):
            channel.remove(source)
    return ET.tostring(domain, encoding="unicode")
