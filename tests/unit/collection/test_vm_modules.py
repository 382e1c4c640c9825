"""What the modules do to a VM of which only a part is there, with a libvirt that only notes what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers import domain as domain_module
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import instance_info

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Domain:
    """A domain of libvirt's."""

    active: bool
    saved: bool = False

    def isActive(self) -> bool:  # noqa: N802 - libvirt's name
        return self.active

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802 - libvirt's name
        return self.saved


@dataclass
class Libvirt:
    """Stands for the connections to libvirt."""

    domain: Domain | None = None
    uris: list[str] = field(default_factory=list)

    def connect(self, uri: str) -> str:
        self.uris.append(uri)
        return uri

    def find(self, _connection: str, _name: str, _record: str) -> Domain | None:
        return self.domain


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    """Put the stand-in where the modules look for libvirt."""
    stand_in = Libvirt()
    for module in (domain_module, instance_info):
        monkeypatch.setattr(module, "connect", stand_in.connect)
        monkeypatch.setattr(module, "find_own_domain", stand_in.find)
    return stand_in


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    """Record a VM of which nothing else is there."""
    files = InstanceFiles(State(tmp_path), "one")
    files.save(
        Instance(
            schema=1,
            name="one",
            uuid="0c3a1f3e-4e0b-4c53-8a0e-3f6f7f0f7d11",
            mac="52:54:00:aa:bb:cc",
            worktree="/home/dev/the one",
            created="2026-11-20T10:00:00+00:00",
            memory_mib=4096,
            vcpus=4,
            disk_gib=20,
            bridge="br0",
            guest_user="claude",
            uid=1000,
            authorized_keys=[],
            generation="g1",
            virt_type="kvm",
            libvirt_uri="qemu:///session",
        )
    )
    return files


def module(files: InstanceFiles, **parameters: object) -> Any:  # noqa: ANN401 - stands for an AnsibleModule
    values = {"state_dir": str(files.state.root), "name": "one", "libvirt_uri": "qemu:///system"}
    return SimpleNamespace(params={**values, **parameters}, check_mode=True)


def test_a_foreign_domain_stays_and_keeps_nothing_of_ours_from_being_removed(
    files: InstanceFiles, libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(*_arguments: str) -> None:
        message = "libvirt already has a domain named 'one', which was not made by vmw"
        raise VmwError(message, "choose another name", "conflict")

    monkeypatch.setattr(domain_module, "find_own_domain", foreign)
    warnings: list[str] = []
    call = module(files)
    call.warn = warnings.append
    assert domain_module.absent(call) == {"changed": False}
    assert "not made by vmw" in warnings[0]
    files.record.unlink()
    files.directory.rmdir()
    with pytest.raises(VmwError) as caught:
        domain_module.absent(call)
    assert caught.value.code == "conflict"
    assert "another name" not in caught.value.hint


def test_a_domain_is_removed_where_it_was_made(files: InstanceFiles, libvirt: Libvirt) -> None:
    files.leaving.touch()
    domain_module.absent(module(files))
    assert libvirt.uris == ["qemu:///session"]


@pytest.mark.parametrize("record", [None, "{"])
def test_without_a_record_the_setting_tells_where(files: InstanceFiles, libvirt: Libvirt, record: str | None) -> None:
    files.record.unlink()
    if record:
        files.record.write_text(record)
    assert domain_module.absent(module(files)) == {"changed": False}
    assert libvirt.uris == ["qemu:///system"]


@pytest.mark.parametrize(
    ("domain", "state"),
    [
        (None, "undefined"),
        (Domain(active=False), "shut off"),
        (Domain(active=False, saved=True), "suspended"),
        (Domain(active=True), "running"),
    ],
)
def test_the_state_is_libvirts(files: InstanceFiles, libvirt: Libvirt, domain: Domain | None, state: str) -> None:
    libvirt.domain = domain
    result = instance_info.read(module(files))
    assert result["state"] == state
    assert result["instance"]["name"] == "one"
    assert libvirt.uris == ["qemu:///session"]


def test_a_half_made_vm_is_not_started(files: InstanceFiles) -> None:
    files.disk.touch()
    with pytest.raises(VmwError) as caught:
        files.check_complete(files.load())
    assert caught.value.message.endswith("it lacks cloud-init.iso, ssh_host_ed25519_key.pub")
    assert caught.value.hint.startswith("`vmw spawn '/home/dev/the one' --name one` completes it, `vmw destroy one`")
    files.seed.touch()
    files.host_key.with_suffix(".pub").touch()
    files.check_complete(files.load())
