"""Disks of VMs: complete or not at all, for their owner alone, and open to QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import disks
from ansible_collections.vmw.worktree.plugins.module_utils.disks import backing_file, copy_file, create_overlay, open_to_qemu
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import record

SYSTEM = record()
SESSION = replace(SYSTEM, libvirt_uri="qemu:///session")


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path), "one")
    files.save(SYSTEM)
    return files


@pytest.fixture
def backing(files: InstanceFiles) -> Path:
    path = files.state.images / SYSTEM.generation / "disk.qcow2"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_backing_file_is_the_generations_own(files: InstanceFiles, backing: Path) -> None:
    files.state.golden_image.symlink_to("images/another/disk.qcow2")
    assert backing_file(files, SYSTEM) == backing


def test_a_vm_whose_golden_image_is_gone_is_lost(files: InstanceFiles) -> None:
    with pytest.raises(VmwError, match=f"{SYSTEM.generation}, which one is a clone of, is gone") as caught:
        backing_file(files, SYSTEM)
    assert "`vmw destroy one`" in caught.value.hint


def test_a_directory_is_no_backing_file(files: InstanceFiles, backing: Path) -> None:
    backing.unlink()
    backing.mkdir()
    with pytest.raises(VmwError, match="is gone"):
        backing_file(files, SYSTEM)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the commands; each makes the file that it would make."""
    asked: list[list[str]] = []

    def command(*argv: str) -> str:
        asked.append(list(argv))
        path = Path(argv[-2] if argv[0] == "qemu-img" else argv[-1])
        path.write_text("new")
        path.chmod(0o644)
        return ""

    monkeypatch.setattr(disks, "command", command)
    return asked


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every command end in the middle of its file, as on a full disk."""

    def command(*argv: str) -> str:
        Path(argv[-2] if argv[0] == "qemu-img" else argv[-1]).write_text("half")
        message = f"`{argv[0]}` failed: No space left on device"
        raise VmwError(message)

    monkeypatch.setattr(disks, "command", command)


def test_an_overlay_names_its_backing_file_and_both_formats(asked: list[list[str]], tmp_path: Path) -> None:
    create_overlay(tmp_path / "disk.qcow2", Path("/i/disk.qcow2"), 20)
    assert asked == [
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "/i/disk.qcow2", f"{tmp_path}/disk.partial", "20G"]
    ]


def test_an_overlay_is_its_owners_alone_and_leaves_nothing_beside_it(asked: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_overlay(path, Path("/i/disk.qcow2"), 20)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_overlay_replaces_the_disk_before_it(asked: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_text("old")
    create_overlay(path, Path("/i/disk.qcow2"), 20)
    assert path.read_text() == "new"


def test_an_overlay_that_cannot_be_made_leaves_all_as_it_was(full: None, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_text("old")
    with pytest.raises(VmwError, match="No space left"):
        create_overlay(path, Path("/i/disk.qcow2"), 20)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_has_the_same_bytes_and_another_mode(tmp_path: Path) -> None:
    source, path = tmp_path / "-source", tmp_path / "memory"
    source.write_bytes(bytes(range(256)))
    source.chmod(0o644)
    copy_file(path, source)
    assert path.read_bytes() == bytes(range(256))
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [source, path]


def test_a_copy_shares_blocks_and_keeps_holes_where_that_can_be(asked: list[list[str]], tmp_path: Path) -> None:
    copy_file(tmp_path / "memory", tmp_path / "source")
    assert asked[0][:3] == ["cp", "--reflink=auto", "--sparse=auto"]


def test_a_copy_is_no_link(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "memory"
    source.write_text("template")
    copy_file(path, source)
    path.write_text("fork")
    assert source.read_text() == "template"


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "memory"
    source.touch()
    with source.open("r+b") as handle:
        handle.truncate(64 << 20)
    copy_file(path, source)
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks * 512 < 1 << 20


def test_what_an_interrupted_copy_left_is_no_hindrance(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "memory"
    source.write_text("template")
    left = tmp_path / "memory.partial"
    left.symlink_to(source)
    copy_file(path, source)
    assert path.read_text() == "template"
    assert not path.is_symlink()


def test_a_copy_that_does_not_fit_gives_the_room_back(full: None, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_text("old")
    with pytest.raises(VmwError, match="No space left"):
        copy_file(path, tmp_path / "source")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_of_what_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match="No such file"):
        copy_file(tmp_path / "memory", tmp_path / "source")
    assert list(tmp_path.iterdir()) == []


class Access:
    """Stand for the file system's access lists."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, open_already: bool) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.changes = not open_already
        monkeypatch.setattr(disks, "qemu_peer", lambda uri: "" if uri.endswith("/session") else "libvirt-qemu")
        monkeypatch.setattr(disks, "open_way", lambda path, user: self.note("way", str(path), user))
        monkeypatch.setattr(disks, "grant", lambda path, user, rights: self.note("grant", str(path), user, rights))

    def note(self, *what: str) -> bool:
        self.asked.append(what)
        return self.changes


@pytest.mark.parametrize("open_already", [True, False])
def test_qemu_reaches_the_disk_and_its_backing_file_and_writes_the_disk_alone(
    files: InstanceFiles, backing: Path, monkeypatch: pytest.MonkeyPatch, *, open_already: bool
) -> None:
    access = Access(monkeypatch, open_already=open_already)
    assert open_to_qemu(files, SYSTEM) is not open_already
    assert access.asked == [
        ("way", str(files.disk), "libvirt-qemu"),
        ("way", str(backing), "libvirt-qemu"),
        ("grant", str(files.disk), "libvirt-qemu", "rw-"),
    ]


def test_a_qemu_of_ones_own_needs_no_access(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(monkeypatch, open_already=False)
    assert not open_to_qemu(files, SESSION)
    assert access.asked == []
