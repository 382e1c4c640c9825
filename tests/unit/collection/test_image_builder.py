"""The builder: its domain, its seed, what it says on the console and hands over."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image_builder import (
    HANDOVER_LIMITS,
    Builder,
    Console,
    Facts,
    Step,
    command_line,
    domain_xml,
    is_builder,
    mac_address,
    parse_facts,
    printable,
    seed_files,
    settings_file,
    unpack_handover,
)

if TYPE_CHECKING:
    from pathlib import Path

FACTS = {
    "debian": "12.12",
    "kernel": "6.1.0-41-cloud-amd64",
    "node": "24.11.1",
    "claude_code": "2.1.330",
    "root_uuid": "b7f0f8f4-32ad-4a6f-8f44-7d4f9c0b7d11",
}
BUILDER = Builder(
    name="vmw-bake-dev-20261124-093012-5f0c1a9e",
    virt_type="qemu",
    bridge="br0",
    memory_mib=2048,
    vcpus=2,
    disk="/home/a b/<&>/overlay.qcow2",
    base_image="/images/base",
    base_format="qcow2",
    seed="/images/seed.iso",
    handover="/images/handover.raw",
    console="/images/console.log",
    label="+64055:+64055",
)


def parsed(builder: Builder) -> ET.Element:
    """Return a builder's domain as a tree."""
    return ET.fromstring(domain_xml(builder))  # noqa: S314 - our own output


def archive(**files: bytes) -> io.BytesIO:
    """Return a tar archive with some files, on a disk that is larger than the archive."""
    disk = io.BytesIO()
    with tarfile.open(fileobj=disk, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    disk.seek(0, io.SEEK_END)
    disk.write(bytes(1 << 16))
    disk.seek(0)
    return disk


def special(name: str, kind: bytes) -> io.BytesIO:
    """Return a tar archive with one member that is no regular file."""
    disk = io.BytesIO()
    with tarfile.open(fileobj=disk, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        tar.addfile(member)
    disk.seek(0)
    return disk


def handed(**changes: bytes) -> io.BytesIO:
    """Return what a builder hands over, with some files changed."""
    return archive(**{"kernel": b"kernel", "initrd": b"initrd", "facts__json": json.dumps(FACTS).encode(), **changes})


def test_the_domain_carries_our_mark_and_others_do_not() -> None:
    assert is_builder(domain_xml(BUILDER))
    assert not is_builder("<domain><name>vmw-bake-dev-x</name></domain>")
    assert not is_builder("<domain><metadata><builder/></metadata></domain>")


def test_the_domain_leaves_the_files_the_users_and_names_the_backing_file() -> None:
    domain = parsed(BUILDER)
    assert domain.findtext("seclabel[@model='dac'][@relabel='no']/label") == "+64055:+64055"
    first = domain.findall("devices/disk")[0]
    assert first.find("source").get("file") == BUILDER.disk  # type: ignore[union-attr]
    assert first.find("backingStore/source").get("file") == "/images/base"  # type: ignore[union-attr]
    assert first.find("backingStore/backingStore") is not None


def test_the_domain_runs_as_the_user_in_session_mode() -> None:
    domain = parsed(dataclasses.replace(BUILDER, label=""))
    assert domain.find("seclabel") is None


@pytest.mark.parametrize(("virt_type", "mode"), [("kvm", "host-passthrough"), ("qemu", "maximum")])
def test_the_cpu_has_avx(virt_type: str, mode: str) -> None:
    domain = parsed(dataclasses.replace(BUILDER, virt_type=virt_type))
    assert domain.get("type") == virt_type
    assert domain.find("cpu").get("mode") == mode  # type: ignore[union-attr]


def test_mac_addresses_are_qemus_and_differ() -> None:
    assert mac_address("a").startswith("52:54:00:")
    assert mac_address("a") == mac_address("a") != mac_address("b")


def test_the_settings_mean_the_same_to_bash(tmp_path: Path) -> None:
    values = {"URL": "https://x/?a=b&c='d'", "EMPTY": "", "TRICK": '$(touch /tmp/x) `id` "\\'}
    steps = [Step("one", "First, the $HOME"), Step("two", "It's two")]
    path = tmp_path / "settings"
    path.write_text(settings_file(values, steps))
    script = '. "$1"; printf "%s\\0" "$URL" "$EMPTY" "$TRICK" "${steps[@]}"'
    done = subprocess.run(["bash", "-euc", script, "bash", path], check=True, capture_output=True, text=True)
    assert done.stdout.split("\0")[:-1] == [*values.values(), "one", "First, the $HOME", "two", "It's two"]


def test_the_seed_has_script_settings_and_certificates() -> None:
    files = seed_files("name", {"bake.sh": "#!/bin/bash\n", "settings": "A=1\n", "init.sh": "exec\n"}, ["first", "second"])
    head, _, body = files["user-data"].partition("\n")
    assert head == "#cloud-config"
    written = {item["path"]: item["content"] for item in json.loads(body)["write_files"]}
    assert written == {
        "/run/vmw-bake/bake.sh": "#!/bin/bash\n",
        "/run/vmw-bake/settings": "A=1\n",
        "/run/vmw-bake/init.sh": "exec\n",
        "/run/vmw-bake/ca/vmw-1.crt": "first",
        "/run/vmw-bake/ca/vmw-2.crt": "second",
    }
    assert json.loads(files["network-config"])["ethernets"]["uplink"]["match"]["macaddress"] == mac_address("name")


def test_the_console_tells_steps_output_and_end() -> None:
    console = Console()
    console.feed("[    1.0] boot\r\n\r\nvmw-bake: step 1/2 Install\r\nvmw-bake| Reading...\r\nvmw-ba")
    assert (console.step, list(console.output)) == (1, ["Reading..."])
    console.feed("ke| done\r\n")
    assert list(console.output) == ["Reading...", "done"]
    console.feed("\nvmw-bake: step 2/2 Clean\n")
    assert (console.step, list(console.output), console.done) == (2, [], False)
    console.feed("\nvmw-bake: done\n[  9.0] sysrq\n")
    assert (console.done, console.failed) == (True, "")


def test_the_console_tells_what_failed_with_its_last_words() -> None:
    console = Console()
    console.feed("vmw-bake: step 4/9 Install Node.js\n")
    console.feed("".join(f"vmw-bake| line {number}\n" for number in range(20)))
    console.feed("vmw-bake| \nvmw-bake: failed: node: exit status 100\n")
    assert (console.failed, console.reason) == ("node", "exit status 100")
    assert list(console.output) == [f"line {number}" for number in range(12, 20)]


def test_output_is_never_taken_for_a_message() -> None:
    console = Console()
    console.feed("vmw-bake| vmw-bake: done\nvmw-bake| vmw-bake: failed: x: y\nvmw-bake| vmw-bake: step 7/9 x\n")
    assert (console.done, console.failed, console.step) == (False, "", 0)


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    console = Console()
    for _ in range(100):
        console.feed("x" * 100_000)
    console.feed("\nvmw-bake: done\n")
    assert console.done


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("\x1b[0;32m  OK  \x1b[0m Started\r", "  OK   Started"),
        ("\x1b]0;title\x07x", "0;titlex"),
        ("a\x00b\x08c\x9b31m", "abc31m"),
        ("é — ok", "é — ok"),
    ],
)
def test_guests_cannot_play_tricks_on_a_terminal(line: str, plain: str) -> None:
    assert printable(line) == plain


def test_the_handover_is_taken_over(tmp_path: Path) -> None:
    facts = unpack_handover(handed(), tmp_path)
    assert facts == Facts(**FACTS)
    assert (tmp_path / "kernel").read_bytes() == b"kernel"
    assert (tmp_path / "initrd").read_bytes() == b"initrd"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initrd", "kernel"]


@pytest.mark.parametrize(
    "disk",
    [
        archive(kernel=b"k", initrd=b"i", extra=b"e"),
        archive(**{"../kernel": b"k"}),
        archive(**{"/etc/kernel": b"k"}),
        archive(**{"./kernel": b"k"}),
        special("kernel", tarfile.SYMTYPE),
        special("kernel", tarfile.LNKTYPE),
        special("kernel", tarfile.CHRTYPE),
        special("kernel", tarfile.DIRTYPE),
    ],
)
def test_unexpected_members_are_refused(tmp_path: Path, disk: io.BytesIO) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(VmwError, match="something unexpected"):
        unpack_handover(disk, target)
    assert not list(tmp_path.glob("kernel"))


def test_a_file_handed_over_twice_is_refused(tmp_path: Path) -> None:
    disk = io.BytesIO()
    with tarfile.open(fileobj=disk, mode="w") as tar:
        for content in (b"one", b"two"):
            member = tarfile.TarInfo("kernel")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    disk.seek(0)
    with pytest.raises(VmwError, match="something unexpected"):
        unpack_handover(disk, tmp_path)


@pytest.mark.parametrize("size", [0, HANDOVER_LIMITS["kernel"] + 1, 1 << 40])
def test_sizes_are_bounded(tmp_path: Path, size: int) -> None:
    disk = io.BytesIO()
    member = tarfile.TarInfo("kernel")
    member.size = size
    disk.write(member.tobuf(tarfile.GNU_FORMAT))
    disk.write(bytes(1 << 16))
    disk.seek(0)
    with pytest.raises(VmwError, match="handed over a kernel of"):
        unpack_handover(disk, tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(1 << 16), b"\xff" * 4096, b"no archive at all" * 100])
def test_garbage_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(VmwError, match=r"hand(ed)? over|tar archive"):
        unpack_handover(io.BytesIO(content), tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match=r"did not hand over: facts\.json, initrd"):
        unpack_handover(archive(kernel=b"k"), tmp_path)


def test_a_truncated_archive_is_an_error_in_words(tmp_path: Path) -> None:
    whole = handed(kernel=bytes(100_000)).getvalue()
    with pytest.raises(VmwError):
        unpack_handover(io.BytesIO(whole[:50_000]), tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel", "6.1 init=/bin/sh"),
        ("kernel", ""),
        ("node", "v24.1.0"),
        ("claude_code", "2.1"),
        ("root_uuid", "b7f0f8f4-32ad-4a6f-8f44-7d4f9c0b7d11 init=/bin/sh"),
        ("root_uuid", "b7f0f8f4-32ad-4a6f-8f44-7d4f9c0b7d11\n"),
        ("debian", "12\x1b[31m"),
        ("node", 24),
    ],
)
def test_impossible_facts_are_refused(name: str, value: object) -> None:
    with pytest.raises(VmwError, match=f"impossible {name}"):
        parse_facts(json.dumps({**FACTS, name: value}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"kernel": "x"}'])
def test_unreadable_facts_are_refused(text: str) -> None:
    with pytest.raises(VmwError, match="cannot be read"):
        parse_facts(text)


def test_prereleases_of_the_agent_are_fine() -> None:
    assert parse_facts(json.dumps({**FACTS, "claude_code": "2.2.0-beta.1"})).claude_code == "2.2.0-beta.1"


def test_clones_boot_by_the_roots_uuid() -> None:
    words = command_line(Facts(**FACTS)).split()
    assert "root=UUID=b7f0f8f4-32ad-4a6f-8f44-7d4f9c0b7d11" in words


def test_clones_get_their_identity_before_systemd_on_a_root_that_can_be_written() -> None:
    words = command_line(Facts(**FACTS)).split()
    assert "init=/usr/lib/vmw/init" in words
    assert "rw" in words


def test_a_builder_of_the_users_own_libvirt_has_passt_and_memory_that_it_reads() -> None:
    xml = ET.fromstring(domain_xml(dataclasses.replace(BUILDER, network_socket="/run/user/1/vmw/_bake-net.sock")))  # noqa: S314 - our own
    source = xml.find("devices/interface[@type='vhostuser']/source")
    assert source is not None
    assert source.get("path") == "/run/user/1/vmw/_bake-net.sock"
    assert xml.find("devices/interface[@type='bridge']") is None
    access = xml.find("memoryBacking/access")
    assert access is not None
    assert access.get("mode") == "shared"
    assert "memoryBacking" not in domain_xml(BUILDER)
