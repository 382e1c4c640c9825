"""The domain XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    TEMPLATE_PORTS,
    Boot,
    Fork,
    HostSide,
    Machine,
    Share,
    Storage,
    domain_xml,
    fork_xml,
    interface_xml,
    marked_record,
    share_xml,
    tap_of,
    template_xml,
    with_tap,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
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
        storage=Storage(disk="/n/disk.qcow2", seed="/n/cloud-init.iso", console="/n/console.log"),
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


def test_the_kernel_trusts_the_timers_under_emulation(record: dict[str, Any]) -> None:
    assert make(record).findtext("os/cmdline") == "root=UUID=1 ro"
    assert make({**record, "virt_type": "qemu"}).findtext("os/cmdline") == "root=UUID=1 ro no_timer_check tsc=reliable"


def test_an_emulated_cpu_lacks_what_makes_it_slow(record: dict[str, Any]) -> None:
    assert make(record).find("cpu/feature") is None
    lacking = make({**record, "virt_type": "qemu"}).findall("cpu/feature[@policy='disable']")
    assert [feature.get("name") for feature in lacking] == ["erms", "fsrm", "svm"]


def test_a_foreign_domain_has_no_mark() -> None:
    assert marked_record("<domain><name>n</name></domain>") == ""
    assert marked_record("<domain><metadata><x xmlns='urn:y'/></metadata></domain>") == ""


ITSELF = Fork(
    "vmw-template-dev-1", "1d4a46bb-4f6b-4e04-b6b9-6a6d2d0f0e5b", "/i/t/template.json", "/i/t/disk.qcow2", "/i/t/console.log"
)
FORK = Fork("n", "0bd16cbf-4c3a-4a46-9aee-0f6aa3e1f2a7", RECORD, "/n/disk.qcow2", "/n/console.log")


def template_text(virt_type: str = "qemu") -> str:
    boot = Boot("/i/kernel", "/i/initrd", "root=UUID=1 rw", "/i/disk.qcow2")
    return template_xml(Machine(virt_type, 4096, 4), ITSELF, boot, "+64055:+64055")


def template() -> ET.Element:
    return ET.fromstring(template_text())  # noqa: S314 - made just now


def test_a_template_has_no_card_no_share_and_no_seed() -> None:
    domain = template()
    assert domain.findall("devices/interface") == []
    assert domain.findall("devices/filesystem") == []
    assert [disk.get("file") for disk in domain.findall("devices/disk/source")] == ["/i/t/disk.qcow2"]
    assert marked_record(template_text()) == "/i/t/template.json"


def test_a_template_has_a_generation_id_and_ports_for_what_comes_later() -> None:
    domain = template()
    assert domain.find("genid") is not None
    controllers = [(each.get("index"), each.get("model")) for each in domain.findall("devices/controller")]
    assert controllers[0] == ("0", "pcie-root")
    assert controllers[1:] == [(None, "pcie-root-port")] * TEMPLATE_PORTS


@pytest.mark.parametrize("path", ["memory", "vcpu", "memoryBacking", "os", "features", "cpu", "clock", "seclabel"])
def test_a_template_is_the_machine_that_its_forks_are(record: dict[str, Any], path: str) -> None:
    mine, theirs = template().find(path), make({**record, "virt_type": "qemu"}).find(path)
    assert mine is not None
    assert theirs is not None
    text, other = (ET.tostring(element, encoding="unicode").replace(" ro", " rw") for element in (mine, theirs))
    assert text == other


def saved() -> str:
    """Return a template's XML as libvirt saves it, with what it adds."""
    text = template_text()
    text = text.replace("<genid />", "<genid>929ded12-c25d-439a-a3f2-9bde04ba92aa</genid>")
    text = text.replace(
        '<target type="virtio" name="org.qemu.guest_agent.0" />',
        '<source mode="bind" path="/run/libvirt/1-vmw-template/agent.0" /><target type="virtio" name="org.qemu.guest_agent.0" />'
        '<address type="virtio-serial" controller="0" bus="0" port="1" />',
    )
    return text.replace('<console type="pty">', '<console type="pty"><log file="/i/t/console.log" append="on" />')


def test_a_fork_differs_in_all_that_tells_two_machines_apart() -> None:
    domain = ET.fromstring(fork_xml(saved(), FORK))  # noqa: S314 - made just now
    assert (domain.findtext("name"), domain.findtext("uuid")) == (FORK.name, FORK.uuid)
    assert domain.findtext("genid") not in {"", "929ded12-c25d-439a-a3f2-9bde04ba92aa"}
    assert marked_record(fork_xml(saved(), FORK)) == RECORD
    assert [each.get("file") for each in domain.findall("devices/disk/source")] == ["/n/disk.qcow2"]
    assert {each.get("file") for each in domain.findall("devices/*/log")} == {"/n/console.log"}
    assert "/i/t/" not in fork_xml(saved(), FORK)
    assert "vmw-template" not in fork_xml(saved(), FORK)


def test_a_fork_has_every_device_where_its_template_has_it() -> None:
    before, after = (ET.fromstring(text) for text in (saved(), fork_xml(saved(), FORK)))  # noqa: S314 - made just now
    for path in ("devices/controller", "devices/channel/address", "devices/disk/target", "devices/disk/backingStore/source"):
        assert [ET.tostring(each) for each in after.findall(path)] == [ET.tostring(each) for each in before.findall(path)]


@pytest.mark.parametrize("part", ["vmw:instance", "<source file=", "<log "])
def test_what_is_no_template_of_ours_is_not_forked(part: str) -> None:
    text = saved().replace(part, part.replace("instance", "other").replace("source", "other").replace("log", "other"))
    with pytest.raises(VmwError, match="not one of vmw's"):
        fork_xml(text, FORK)


def test_two_forks_have_two_generation_ids() -> None:
    one, two = (ET.fromstring(fork_xml(saved(), FORK)).findtext("genid") for _ in range(2))  # noqa: S314 - made just now
    assert one != two


def test_the_place_of_the_templates_agent_is_not_the_forks() -> None:
    assert ET.fromstring(saved()).find("devices/channel/source") is not None  # noqa: S314 - made just now
    domain = ET.fromstring(fork_xml(saved(), FORK))  # noqa: S314 - made just now
    assert domain.find("devices/channel/source") is None
    assert attribute(domain, "devices/channel/target", "name") == "org.qemu.guest_agent.0"


def test_a_fork_is_the_machine_that_its_template_is() -> None:
    before, after = (ET.fromstring(text) for text in (saved(), fork_xml(saved(), FORK)))  # noqa: S314 - made just now
    assert [element.tag for element in after.iter() if element.tag != "source"] == [
        element.tag for element in before.iter() if element.tag != "source"
    ]
    for path in ("memory", "vcpu", "memoryBacking", "os", "features", "cpu", "clock", "seclabel", "devices/rng"):
        assert [ET.tostring(each) for each in after.findall(path)] == [ET.tostring(each) for each in before.findall(path)]


NASTY = "/home/dev/a \"b\" <&> 'c'/disk.qcow2"


def test_a_path_of_any_letters_is_a_forks() -> None:
    fork = Fork("n", FORK.uuid, NASTY, NASTY, NASTY)
    text = fork_xml(saved(), fork)
    domain = ET.fromstring(text)  # noqa: S314 - made just now
    assert marked_record(text) == NASTY
    assert attribute(domain, "devices/disk/source", "file") == NASTY
    assert {each.get("file") for each in domain.findall("devices/*/log")} == {NASTY}


def test_a_console_log_is_appended_to(record: dict[str, Any]) -> None:
    for domain in (make(record), template()):
        assert attribute(domain, "devices/serial/log", "append") == "on"


@pytest.mark.parametrize("virt_type", ["kvm", "qemu"])
def test_what_is_plugged_into_a_fork_is_what_its_definition_has(record: dict[str, Any], virt_type: str) -> None:
    domain = make({**record, "virt_type": virt_type})
    (card,) = domain.findall("devices/interface")
    assert attributes(card) == attributes(interface_xml("52:54:00:01:02:03", "br0", "vmw-1d4a46bb"))
    shares = domain.findall("devices/filesystem")
    assert attributes(shares[0]) == attributes(share_xml(Share("vmw:repo", "/run/vmw/dev/n-repo.sock")))


def attributes(element: ET.Element) -> list[tuple[str, dict[str, str]]]:
    """Return an element and what is in it, without the blanks between them."""
    return [(each.tag, each.attrib) for each in element.iter()]


def test_a_template_ends_where_its_guest_does() -> None:
    assert (template().findtext("on_crash"), template().findtext("on_poweroff")) == ("destroy", "destroy")


@pytest.mark.parametrize("virt_type", ["kvm", "qemu"])
def test_a_template_runs_as_its_forks_will(virt_type: str) -> None:
    assert ET.fromstring(template_text(virt_type)).get("type") == virt_type  # noqa: S314 - made just now


def test_a_card_is_named_in_saved_memory_of_before(record: dict[str, Any]) -> None:
    mac = record["mac"]
    text = ET.tostring(make(record), encoding="unicode")
    assert tap_of(text, mac) == "vmw-1d4a46bb"
    before = text.replace('<target dev="vmw-1d4a46bb" />', "")
    assert tap_of(before, mac) == ""
    assert tap_of(with_tap(before, mac, "vmw-1d4a46bb"), mac) == "vmw-1d4a46bb"
    other = text.replace("vmw-1d4a46bb", "vnet3")
    assert tap_of(with_tap(other, mac, "vmw-1d4a46bb"), mac) == "vmw-1d4a46bb"
    assert tap_of(text, "52:54:00:ff:ff:ff") is None
    assert with_tap(text, "52:54:00:ff:ff:ff", "x") == text
