"""The domain XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Boot,
    HostSide,
    Share,
    Storage,
    domain_xml,
    marked_record,
)
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance

RECORD = "/home/dev/.config/vmw/instances/n/instance.json"


@pytest.fixture
def record() -> dict[str, Any]:
    """Return an instance record as plain data."""
    return {
        "schema": 1,
        "name": "n",
        "uuid": "1d4a46bb-4f6b-4e04-b6b9-6a6d2d0f0e5b",
        "mac": "52:54:00:01:02:03",
        "worktree": '/home/dev/a "b" <&>',
        "created": "2026-01-01T00:00:00+00:00",
        "memory_mib": 4096,
        "vcpus": 4,
        "disk_gib": 20,
        "bridge": "br0",
        "guest_user": "claude",
        "uid": 1234,
        "authorized_keys": ["ssh-ed25519 AAAA dev@host"],
        "generation": "g",
        "virt_type": "kvm",
        "libvirt_uri": "qemu:///system",
    }


def make(record: dict[str, Any], label: str = "+64055:+64055") -> ET.Element:
    """Return the parsed definition of a record's domain."""
    host = HostSide(
        record=RECORD,
        boot=Boot("/i/kernel", "/i/initrd", "root=UUID=1 ro", "/i/disk.qcow2"),
        storage=Storage("/n/disk.qcow2", "/n/cloud-init.iso", "/n/console.log"),
        shares=[Share("vmw:repo", "/run/vmw/dev/n-repo.sock"), Share("vmw:secrets", "/run/vmw/dev/n-secrets.sock")],
        label=label,
    )
    text = domain_xml(Instance.from_dict(record), host)
    assert marked_record(text) == RECORD
    return ET.fromstring(text)  # noqa: S314 - made just now


def attribute(domain: ET.Element, path: str, name: str) -> str | None:
    """Return an attribute of the one element at ``path``."""
    found = domain.findall(path)
    assert len(found) == 1, path
    return found[0].get(name)


def test_sizes_and_memory_fit_virtiofs(record: dict[str, Any]) -> None:
    domain = make(record)
    assert domain.findtext("memory") == "4096"
    assert domain.findtext("vcpu") == "4"
    assert attribute(domain, "memoryBacking/source", "type") == "memfd"
    assert attribute(domain, "memoryBacking/access", "mode") == "shared"


def test_shares_name_their_sockets_in_order(record: dict[str, Any]) -> None:
    shares = make(record).findall("devices/filesystem")
    assert [share.find("target").get("dir") for share in shares] == ["vmw:repo", "vmw:secrets"]  # type: ignore[union-attr]
    assert [share.find("source").get("socket") for share in shares] == [  # type: ignore[union-attr]
        "/run/vmw/dev/n-repo.sock",
        "/run/vmw/dev/n-secrets.sock",
    ]


def test_the_backing_file_is_spelled_out_and_the_seed_is_read_only(record: dict[str, Any]) -> None:
    disks = make(record).findall("devices/disk")
    assert disks[0].find("backingStore/source").get("file") == "/i/disk.qcow2"  # type: ignore[union-attr]
    assert disks[0].find("readonly") is None
    assert disks[1].find("readonly") is not None
    assert disks[1].find("target").get("bus") == "virtio"  # type: ignore[union-attr]


def test_libvirt_changes_no_owner(record: dict[str, Any]) -> None:
    domain = make(record)
    assert attribute(domain, "seclabel[@model='dac']", "relabel") == "no"
    assert domain.findtext("seclabel/label") == "+64055:+64055"
    assert make(record, label="").find("seclabel") is None


@pytest.mark.parametrize(("virt_type", "mode"), [("kvm", "host-passthrough"), ("qemu", "maximum")])
def test_the_cpu_fits_the_accelerator(record: dict[str, Any], virt_type: str, mode: str) -> None:
    domain = make({**record, "virt_type": virt_type})
    assert domain.get("type") == virt_type
    assert attribute(domain, "cpu", "mode") == mode


def test_emulation_starts_with_one_cpu_and_room_for_the_rest(record: dict[str, Any]) -> None:
    assert attribute(make({**record, "virt_type": "qemu"}), "vcpu", "current") == "1"
    assert make({**record, "virt_type": "qemu"}).findtext("vcpu") == "4"
    assert attribute(make(record), "vcpu", "current") is None


def test_the_kernels_timer_test_is_left_out_under_emulation(record: dict[str, Any]) -> None:
    assert make(record).findtext("os/cmdline") == "root=UUID=1 ro"
    assert make({**record, "virt_type": "qemu"}).findtext("os/cmdline") == "root=UUID=1 ro no_timer_check"


def test_a_foreign_domain_has_no_mark() -> None:
    assert marked_record("<domain><name>n</name></domain>") == ""
    assert marked_record("<domain><metadata><x xmlns='urn:y'/></metadata></domain>") == ""
