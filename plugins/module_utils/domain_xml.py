# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The domain XML of an instance, and the mark by which a domain is known to be ours."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

NAMESPACE = "https://vmw.dev/xmlns/instance/1"
"""XML namespace of our element in a domain's metadata."""

EMULATED_VCPUS = 1
"""Virtual CPUs that run under emulation; the rest can be plugged in with `virsh setvcpus`.

QEMU 10.0's emulation of several CPUs races with changes of the memory map, as made by the guest's PCI probing: the guest stalls
at boot, or QEMU ends with "iotlb_to_section: Assertion `section_index < d->map.sections_nb' failed". One CPU does not race.
"""

ET.register_namespace("vmw", NAMESPACE)


@dataclass(frozen=True)
class Boot:
    """What a domain boots: a kernel outside the disk, and the disk's backing file."""

    kernel: str
    initrd: str
    cmdline: str
    backing_file: str


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
    add(domain, "cpu", mode="host-passthrough" if virt_type == "kvm" else "maximum", check="none")
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


def _share(devices: ET.Element, share: Share) -> None:
    filesystem = add(devices, "filesystem", type="mount", accessmode="passthrough")
    add(filesystem, "driver", type="virtiofs", queue="1024")
    add(filesystem, "source", socket=share.socket)
    add(filesystem, "target", dir=share.tag)


def domain_xml(instance: Instance, host: HostSide) -> str:
    """Return the definition of an instance's domain."""
    domain = ET.Element("domain", {"type": instance.virt_type})
    add(domain, "name", instance.name)
    add(domain, "uuid", instance.uuid)
    add(domain, "metadata").append(mark(host.record))
    add(domain, "memory", str(instance.memory_mib), unit="MiB")
    online = {} if instance.virt_type == "kvm" else {"current": str(EMULATED_VCPUS)}
    add(domain, "vcpu", str(instance.vcpus), **online)
    # virtiofsd reads and writes the guest's memory, so it must be shared.
    backing = add(domain, "memoryBacking")
    add(backing, "source", type="memfd")
    add(backing, "access", mode="shared")
    system = add(domain, "os")
    add(system, "type", "hvm", arch="x86_64", machine="q35")
    add(system, "kernel", host.boot.kernel)
    add(system, "initrd", host.boot.initrd)
    # Emulated on a busy host, the timer may miss the kernel's test of it, which then panics; under KVM the kernel leaves it out.
    add(system, "cmdline", host.boot.cmdline + ("" if instance.virt_type == "kvm" else " no_timer_check"))
    add_platform(domain, instance.virt_type)
    add(domain, "on_poweroff", "destroy")
    add(domain, "on_reboot", "restart")
    add(domain, "on_crash", "destroy")
    devices = add(domain, "devices")
    _disk(devices, host.storage.disk, host.boot.backing_file)
    _seed(devices, host.storage.seed)
    for share in host.shares:
        _share(devices, share)
    interface = add(devices, "interface", type="bridge")
    add(interface, "mac", address=instance.mac)
    add(interface, "source", bridge=instance.bridge)
    add(interface, "model", type="virtio")
    _console(devices, host.storage.console)
    channel = add(devices, "channel", type="unix")
    add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    add(add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    add(devices, "memballoon", model="virtio", freePageReporting="on")
    if host.label:
        # libvirt's own chown would leave files behind that the user cannot replace; QEMU gets in by ACL instead.
        static = add(domain, "seclabel", type="static", model="dac", relabel="no")
        add(static, "label", host.label)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"
