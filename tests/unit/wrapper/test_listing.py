from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import image

from vmw.errors import ExitCode, VmwError
from vmw.services import listing, records
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VIRSH = """case "$*" in
*domstats*) printf "saved\\n\\nDomain: 'on'\\n  state.state=1\\nDomain: 'off'\\n  state.state=5\\n"
printf "Domain: 'saved'\\n  state.state=5\\nDomain: 'foreign'\\n  state.state=1\\n";;
*lease*) printf ' vnet0 52:54:00:00:00:01 ipv4 10.0.0.5/24\\n';;
esac"""


def test_running_stopped_and_broken_ones(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", VIRSH)
    (make_vm("on", mac="52:54:00:00:00:01") / "disk.qcow2").write_bytes(b"x" * 8192)
    make_vm("off")
    make_vm("saved")
    make_vm("gone")
    (make_vm("torn") / "instance.json").write_text("{")
    found = listing.list_vms(load_settings())
    assert found.warning is None
    rows = {row.name: row for row in found.rows}
    assert {name: row.state for name, row in rows.items()} == {
        "gone": "undefined",
        "off": "shut off",
        "on": "running",
        "saved": "suspended",
        "torn": "broken",
    }
    assert rows["on"].address == "10.0.0.5"
    assert rows["on"].disk_used_bytes >= 8192
    assert rows["off"].address is None
    assert rows["torn"].worktree is None


def test_profiles_are_told(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", VIRSH)
    make_vm("old")
    make_vm("on", secrets_profile="work")
    (make_vm("torn") / "instance.json").write_text("{")
    found = listing.list_vms(load_settings())
    assert {row.name: row.secrets_profile for row in found.rows} == {"old": "default", "on": "work", "torn": None}


def test_libvirt_being_down_fails_nothing(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "exit 1")
    make_vm("one")
    found = listing.list_vms(load_settings())
    assert found.rows[0].state == "unknown"
    assert found.warning is not None


def test_each_vm_is_looked_for_where_it_was_made(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    answer = "printf \"Domain: '%s'\\n  state.state=1\\n\""
    fake_program(
        "virsh",
        f'case "$*" in "-q -c qemu:///session "*domstats*) {answer} one;; "-q -c qemu:///system "*domstats*) exit 1;; esac',
    )
    make_vm("one", libvirt_uri="qemu:///session")
    make_vm("two", libvirt_uri="qemu:///system")
    found = listing.list_vms(load_settings())
    assert {row.name: row.state for row in found.rows} == {"one": "running", "two": "unknown"}
    assert found.warning is not None


def test_no_vm_asks_nothing(fake_program: Callable[[str, str], Path]) -> None:
    calls = fake_program("virsh", "exit 1")
    assert listing.list_vms(load_settings()) == listing.Listing([], None)
    assert not calls.exists()


def test_a_later_record_may_have_more_fields(make_vm: Callable[..., Path]) -> None:
    make_vm("new", schema=2, gpu="yes")
    instance, _ = records.find(load_settings().state_dir, "new")
    assert instance.name == "new"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("featre-x", "did you mean `feature-x`?"),
        ("feature", "did you mean `feature-x`?"),
        ("zzz", "`vmw list` shows what there is"),
        ("../etc", "`vmw list` shows what there is"),
    ],
)
def test_unknown_names_get_the_near_ones(make_vm: Callable[..., Path], asked: str, hint: str) -> None:
    make_vm("feature-x")
    with pytest.raises(VmwError) as caught:
        records.find(load_settings().state_dir, asked)
    assert caught.value.exit_code is ExitCode.NOT_FOUND
    assert caught.value.hint == hint


def test_half_made(make_vm: Callable[..., Path]) -> None:
    (make_vm("torn") / "instance.json").unlink()
    with pytest.raises(VmwError) as caught:
        records.find(load_settings().state_dir, "torn")
    assert caught.value.exit_code is ExitCode.FAILED
    assert "`vmw destroy torn`" in caught.value.hint


def test_unknown_name_without_any_vm() -> None:
    with pytest.raises(VmwError) as caught:
        records.find(load_settings().state_dir, "x")
    assert "vmw spawn" in caught.value.hint


def test_ages() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    assert listing.seconds_since("2026-11-23T00:00:00+00:00", now) == 86400
    assert listing.seconds_since("2026-11-23T00:00:00Z", now) == 86400
    assert listing.seconds_since("2026-11-23T00:00:00", now) == 86400
    assert listing.seconds_since("yesterday", now) is None
    assert listing.seconds_since(None, now) is None


def test_images(home: Path, make_vm: Callable[..., Path]) -> None:
    images = home / ".config" / "vmw" / "images"
    old, new = "20261121-100000-0123abcd", "20261122-100000-0123abcd"
    for name in (new, old, ".build-x"):
        directory = images / name
        directory.mkdir(parents=True)
        (directory / "disk.qcow2").write_bytes(b"x" * 4096)
        manifest = image.Manifest(
            schema=1,
            generation=name,
            created="2026-11-22T10:00:00+00:00",
            base_image=image.BaseImage("https://example.org/debian.qcow2", "0"),
            debian="12.8",
            kernel="6.1",
            cmdline="",
            node="24.1.0",
            claude_code="2.0.1",
            virtual_size=3 << 30,
            guest_user="claude",
            inputs="",
        )
        (directory / "manifest.json").write_text(json.dumps(manifest.as_dict()))
    (images / "20261123-100000-0123abcd").mkdir()
    template = images / new / "templates/0123"
    template.mkdir(parents=True)
    (template / "memory").write_bytes(b"x" * 65536)
    (home / ".config" / "vmw" / "golden-image.qcow2").symlink_to(f"images/{new}/disk.qcow2")
    make_vm("one", generation=old)
    found = listing.list_images(load_settings())
    assert [(each.generation, each.current, each.used_by) for each in found] == [(old, False, ["one"]), (new, True, [])]
    assert found[1].node == "24.1.0"
    assert found[1].size_bytes >= 4096
    assert found[1].template_bytes >= 65536 > found[1].size_bytes
    assert found[0].template_bytes == 0


def test_a_vm_of_the_users_own_libvirt_has_an_address_of_the_loopback(
    make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]
) -> None:
    calls = fake_program("virsh", VIRSH)
    make_vm("on", libvirt_uri="qemu:///session", ssh_port=22017)
    make_vm("off", libvirt_uri="qemu:///session", ssh_port=22018)
    rows = {row.name: row for row in listing.list_vms(load_settings()).rows}
    assert (rows["on"].address, rows["on"].ssh_port) == ("127.0.0.1", 22017)
    assert (rows["off"].address, rows["off"].ssh_port) == (None, 22018)
    assert "domifaddr" not in calls.read_text()
