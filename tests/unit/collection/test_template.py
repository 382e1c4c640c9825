"""Which saved VM serves a new one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import template
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Machine
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.module_utils.template import Template, host_cpu, key_of, parts, template_for

if TYPE_CHECKING:
    from pathlib import Path

EMULATED = Machine("qemu", 4096, 4)
KVM = Machine("kvm", 4096, 4)
CPU_INFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Some CPU
stepping\t: 7
microcode\t: 0x5003303
cpu MHz\t\t: 2799.998
flags\t\t: fpu vme avx2

processor\t: 1
flags\t\t: other
"""


VERSIONS = (10_000_000, 11_003_000)


def key(
    machine: Machine = EMULATED, versions: tuple[int, int] = VERSIONS, kernel: str = "6.12", cpu: tuple[str, ...] = ("a",)
) -> str:
    return key_of(machine, versions, kernel, list(cpu))


@pytest.mark.parametrize("other", [Machine("qemu", 4096, 2), Machine("qemu", 2048, 4), KVM])
def test_another_machine_takes_another_template(other: Machine) -> None:
    assert key(other) != key()


@pytest.mark.parametrize("machine", [EMULATED, KVM])
def test_another_qemu_or_libvirt_takes_another_template(machine: Machine) -> None:
    assert (
        len({key(machine), key(machine, versions=(10_001_000, 11_003_000)), key(machine, versions=(10_000_000, 11_004_000))}) == 3
    )


def test_only_under_kvm_the_guest_sees_the_hosts_cpu_and_kernel() -> None:
    assert key(EMULATED, kernel="6.13") == key(EMULATED, cpu=("b",)) == key(EMULATED)
    assert len({key(KVM), key(KVM, kernel="6.13"), key(KVM, cpu=("b",))}) == 3


def test_the_key_is_a_plain_name() -> None:
    assert len(key()) == 12
    assert set(key()) <= set("0123456789abcdef")


def test_of_a_cpu_its_model_and_features_count_and_not_its_clock() -> None:
    assert host_cpu(CPU_INFO) == [
        "vendor_id=GenuineIntel",
        "cpu family=6",
        "model=85",
        "stepping=7",
        "microcode=0x5003303",
        "flags=fpu vme avx2",
    ]
    assert host_cpu(CPU_INFO.replace("2799", "1200")) == host_cpu(CPU_INFO)


def test_a_template_is_there_when_it_is_complete(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    found.directory.mkdir(parents=True)
    own = parts(found.directory)
    for part in (own.memory, own.disk, own.head, own.manifest):
        assert not found.exists()
        part.touch()
    assert found.exists()
    for part in (own.memory, own.disk, own.head, own.manifest):
        part.unlink()
        assert not found.exists()
        part.touch()
    assert not Template(tmp_path, "4567").exists()


@pytest.mark.parametrize(
    ("saved", "words"),
    [(KVM, "kernel or CPU"), (EMULATED, "another accelerator"), (Machine("kvm", 8192, 4), ""), (None, ""), ("x", "")],
    ids=["of that size", "emulated", "of another size", "none", "unreadable"],
)
def test_what_was_saved_elsewhere_is_told(tmp_path: Path, saved: Machine | str | None, words: str) -> None:
    other = Template(tmp_path, "4567")
    other.directory.mkdir(parents=True)
    if saved:
        told = json.dumps({"machine": asdict(saved)}) if isinstance(saved, Machine) else saved
        parts(other.directory).manifest.write_text(told)
    reason = template.unfit(Template(tmp_path, "0123"), KVM)
    assert words in reason
    assert bool(reason) == bool(words)


def test_what_is_being_made_is_no_template_yet(tmp_path: Path) -> None:
    half = Template(tmp_path, "4567")
    half.build_directory.mkdir(parents=True)
    parts(half.build_directory).manifest.write_text(json.dumps({"machine": asdict(KVM)}))
    assert template.saved_in(tmp_path) == []
    assert template.unfit(Template(tmp_path, "0123"), KVM) == ""


def test_a_template_that_lacks_a_part_is_told(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    assert template.unfit(found, KVM) == ""
    found.directory.mkdir(parents=True)
    assert "a part of it is missing" in template.unfit(found, KVM)


def test_a_template_that_was_not_loaded_is_refused(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    found.directory.mkdir(parents=True)
    assert not found.is_refused()
    parts(found.directory).refused.touch()
    assert found.is_refused()


def test_what_is_being_made_is_apart_from_what_is_there(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    assert found.build_directory.parent == found.directory.parent
    assert found.build_directory != found.directory


def test_the_connection_tells_qemus_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Connection:
        def __init__(self, version: int, uri: str = "qemu:///system") -> None:
            self.version = version
            self.uri = uri

        def getURI(self) -> str:  # noqa: N802 - libvirt's name
            return self.uri

        def getVersion(self) -> int:  # noqa: N802 - libvirt's name
            return self.version

        def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
            return 11_003_000

    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(CPU_INFO)
    monkeypatch.setattr(template, "CPU_INFO", cpu_info)
    state = State(tmp_path)
    one, two = (template_for(state, "g", KVM, Connection(version)) for version in (8_002_000, 10_000_000))
    assert one.directory.parent == two.directory.parent == tmp_path / "images/g/templates"
    assert one.key != two.key
    # What one libvirt saved has labels that the other does not know.
    own = template_for(state, "g", KVM, Connection(10_000_000, "qemu:///session"))
    assert own.key != two.key


def test_the_same_machine_takes_the_same_template() -> None:
    assert key(Machine("kvm", 4096, 4)) == key(Machine("kvm", 4096, 4))


def test_another_form_of_templates_makes_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(template, "SCHEMA", template.SCHEMA + 1)
    assert key() != before


@pytest.mark.parametrize("line", ["model\t\t: 85", "stepping\t: 7", "microcode\t: 0x5003303", "flags\t\t: fpu vme avx2"])
def test_another_cpu_takes_another_template(line: str) -> None:
    other = host_cpu(CPU_INFO.replace(line, line + "0"))
    assert key(KVM, cpu=tuple(other)) != key(KVM, cpu=tuple(host_cpu(CPU_INFO)))


@pytest.mark.parametrize("text", ["", "\n\n", "processor\t: 0\n", "no colon\n"])
def test_a_cpu_that_tells_nothing_has_no_features(text: str) -> None:
    assert host_cpu(text) == []


def test_a_value_may_have_colons() -> None:
    assert host_cpu("flags\t: a:b c\n") == ["flags=a:b c"]


def test_a_link_to_nothing_is_no_template(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    found.directory.mkdir(parents=True)
    parts(found.directory).manifest.symlink_to("gone")
    assert not found.exists()


def test_what_is_being_made_is_not_forked(tmp_path: Path) -> None:
    found = Template(tmp_path, "0123")
    found.build_directory.mkdir(parents=True)
    parts(found.build_directory).manifest.touch()
    assert not found.exists()


def test_every_part_has_a_place_of_its_own(tmp_path: Path) -> None:
    found = parts(tmp_path)
    places = [found.disk, found.memory, found.manifest, found.console, found.saved]
    assert len(set(places)) == len(places)
    assert {place.parent for place in places} == {tmp_path}
