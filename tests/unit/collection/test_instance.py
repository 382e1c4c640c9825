"""The instance record, and how a worktree finds its VM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import (
    Instance,
    InstanceFiles,
    all_instances,
    files_of,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import instance as module

SIZES = {"memory_mib": 4096, "vcpus": 4, "disk_gib": 20}
PARAMETERS: dict[str, Any] = {
    **SIZES,
    "bridge": "br0",
    "guest_user": "claude",
    "virt_type": "qemu",
    "libvirt_uri": "qemu:///system",
}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """Return a state directory with a golden image, in a home with an SSH key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA dev@host\n")
    state = State(tmp_path / "vmw")
    (state.images / "g1").mkdir(parents=True)
    (state.images / "g1" / "disk.qcow2").touch()
    (state.images / "g1" / "manifest.json").write_text(json.dumps({"virtual_size": 10 << 30}))
    state.golden_image.symlink_to("images/g1/disk.qcow2")
    return state


def saved(state: State, worktree: str, name: str) -> Instance:
    """Record a VM."""
    instance = module.new_record(PARAMETERS, state, Path(worktree), name)
    InstanceFiles(state, name).save(instance)
    return instance


def test_a_record_comes_back_as_it_was_saved(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    assert files.load() == instance
    assert files.record.stat().st_mode & 0o777 == 0o600
    assert files.directory.stat().st_mode & 0o777 == 0o700


def test_fields_of_a_later_version_are_passed_over(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    files.record.write_text(json.dumps({**instance.as_dict(), "schema": 2, "new": 1}))
    assert files.load().name == "w"


def test_a_new_record_has_an_identity_of_its_own(state: State) -> None:
    first, second = (module.new_record(PARAMETERS, state, Path("/w"), "w") for _ in range(2))
    assert first.uuid != second.uuid
    assert first.mac != second.mac
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", first.mac)
    assert first.generation == "g1"
    assert first.authorized_keys == ["ssh-ed25519 AAAA dev@host"]


def test_the_same_worktree_has_one_vm(state: State) -> None:
    instance = saved(state, "/w", "w")
    assert module.existing_record(state, Path("/w"), "") == instance
    assert module.existing_record(state, Path("/w"), "w") == instance
    assert module.existing_record(state, Path("/other"), "") is None


def test_a_second_name_for_a_worktree_is_a_conflict(state: State) -> None:
    saved(state, "/w", "w")
    with pytest.raises(VmwError) as caught:
        module.existing_record(state, Path("/w"), "w2")
    assert caught.value.code == "conflict"


def test_a_name_taken_by_another_worktree_names_both_paths(state: State) -> None:
    saved(state, "/one/w", "w")
    with pytest.raises(VmwError) as caught:
        module.existing_record(state, Path("/two/w"), "")
    assert caught.value.code == "conflict"
    assert "/one/w" in caught.value.message
    assert "/two/w" in caught.value.message
    assert "--name" in caught.value.hint


@pytest.mark.parametrize("size", [{"memory_mib": 100}, {"vcpus": 0}, {"disk_gib": 1}, {"memory_mib": -1}])
def test_sizes_that_no_guest_runs_with_are_refused(state: State, size: dict[str, int]) -> None:
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, **size}, state, Path("/w"), "w")
    assert caught.value.code == "usage"


def test_a_disk_smaller_than_the_image_is_refused(state: State) -> None:
    assert module.new_record({**PARAMETERS, "disk_gib": 10}, state, Path("/w"), "w").disk_gib == 10
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, "disk_gib": 9}, state, Path("/w"), "w")
    assert caught.value.code == "usage"
    assert "10 GiB" in caught.value.message


def test_a_full_disk_is_said_before_anything_is_made(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 62)
    with pytest.raises(VmwError) as caught:
        module.new_record(PARAMETERS, state, Path("/w"), "w")
    assert "free" in caught.value.message
    assert not state.instances.exists()


def test_no_golden_image_is_said(state: State) -> None:
    state.golden_image.unlink()
    with pytest.raises(VmwError) as caught:
        module.current_generation(state)
    assert caught.value.code == "host_not_ready"


def test_a_golden_image_elsewhere_is_not_ours(state: State, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").touch()
    state.golden_image.unlink()
    state.golden_image.symlink_to(tmp_path / "disk.qcow2")
    with pytest.raises(VmwError):
        module.current_generation(state)


def test_no_key_at_all_is_said_with_the_way_out(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (state.root.parent / ".ssh" / "id_ed25519.pub").unlink()
    with pytest.raises(VmwError) as caught:
        module.authorized_keys(state.root.parent / ".ssh")
    assert caught.value.code == "host_not_ready"
    assert "ssh-keygen" in caught.value.hint


def test_what_is_left_of_a_lost_vm_is_not_built_upon(state: State) -> None:
    files = InstanceFiles(state, "w")
    module.refuse_remains(files, has_domain=False)
    files.directory.mkdir(parents=True)
    (files.directory / ".instance.json.x1").touch()
    module.refuse_remains(files, has_domain=False)
    for has_domain, remains in ((True, False), (False, True)):
        if remains:
            files.disk.touch()
        with pytest.raises(VmwError) as caught:
            module.refuse_remains(files, has_domain=has_domain)
        assert caught.value.code == "conflict"
        assert "vmw destroy w" in caught.value.hint


def test_the_host_key_is_made_once_and_pinned(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    assert module.write_identity(files, instance)
    key = files.host_key.read_text()
    assert not module.write_identity(files, instance)
    assert files.host_key.read_text() == key
    public = files.host_key.with_suffix(".pub").read_text().split()
    assert files.known_hosts.read_text().split() == ["w", *public[:2]]
    assert "HostKeyAlias w" in files.ssh_config.read_text()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".", "a\n", "A"])
def test_no_name_leads_out_of_the_instances(state: State, name: str) -> None:
    with pytest.raises(VmwError) as caught:
        files_of(str(state.root), name)
    assert caught.value.code == "not_found"


def test_a_broken_record_is_said_and_passed_over(state: State) -> None:
    saved(state, "/w", "w")
    saved(state, "/x", "x")
    files = files_of(str(state.root), "w")
    files.record.write_text("{")
    with pytest.raises(VmwError) as caught:
        files.load()
    assert "vmw destroy w" in caught.value.hint
    assert [instance.name for instance in all_instances(state)] == ["x"]
