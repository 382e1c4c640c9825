"""libvirt's format of a saved VM."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.save_image import change_xml, head_of, read_text, with_xml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

XML = "<domain>ä</domain>"
COOKIE = b"<cookie/>\n"
MEMORY = bytes(range(256)) * 64
HEADER_BYTES = 92


def image(
    xml: str = XML, cookie: bytes = COOKIE, length: int = 500, *, magic: bytes = b"LibvirtQemudSave", version: int = 2
) -> bytes:
    """Return a saved VM as libvirt 11.3 writes it: a header of 92 bytes, the text, and the memory."""
    body = xml.encode() + b"\0"
    offset = len(body) if cookie else 0
    body += cookie + b"\0" if cookie else b""
    header = struct.pack("=16s19I", magic, version, length, 1, 0, offset, *([0] * 14))
    assert len(header) == HEADER_BYTES
    return header + body.ljust(length, b"\0") + MEMORY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "memory"
    file.write_bytes(image())
    return file


def changed(path: Path, change: Callable[[str], str]) -> None:
    """Change a file's description, with the one that it has for the original."""
    head = path.with_name("head")
    head.write_bytes(head_of(path))
    change_xml(path, head, change)


def test_text_and_cookie_are_read(path: Path) -> None:
    with path.open("rb") as handle:
        text = read_text(handle)
    assert (text.xml, text.cookie) == (XML, COOKIE)
    assert text.numbers[:5] == (2, 500, 1, 0, len(XML.encode()) + 1)


def test_an_image_without_a_cookie_has_none(path: Path) -> None:
    path.write_bytes(image(cookie=b""))
    with path.open("rb") as handle:
        assert read_text(handle).cookie == b""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        image()[:50],
        image(magic=b"LibvirtQemudPart"),
        image(version=3),
        image(length=4 << 20)[:1000],
        image()[: HEADER_BYTES + 100],
        struct.pack("=16s19I", b"LibvirtQemudSave", 2, 8, 1, 0, 0, *([0] * 14)) + b"x" * 8,
        struct.pack("=16s19I", b"LibvirtQemudSave", 2, 8, 1, 0, 9, *([0] * 14)) + b"x\0" * 8,
        struct.pack("=16s19I", b"LibvirtQemudSave", 2, 0, 1, 0, 0, *([0] * 14)),
        struct.pack("=16s19I", b"LibvirtQemudSave", 2, 8, 1, 0, 0, *([0] * 14)) + b"<\xff/>".ljust(8, b"\0"),
    ],
)
def test_another_format_is_refused_in_words(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with path.open("rb") as handle, pytest.raises(VmwError, match="of a format that vmw does not know"):
        read_text(handle)


@pytest.mark.parametrize("xml", ["<a/>", "<domain>" + "ü" * 200 + "</domain>"])
def test_another_text_moves_nothing_but_the_cookie(path: Path, xml: str) -> None:
    changed(path, lambda old: xml if old == XML else "")
    content = path.read_bytes()
    assert content[HEADER_BYTES + 500 :] == MEMORY
    assert len(content) == HEADER_BYTES + 500 + len(MEMORY)
    with path.open("rb") as handle:
        text = read_text(handle)
    assert (text.xml, text.cookie) == (xml, COOKIE)
    assert text.numbers[1:4] == (500, 1, 0)


def test_what_stands_before_the_memory_is_read_to_its_end(path: Path) -> None:
    assert head_of(path) + MEMORY == image()
    path.write_bytes(image(length=8, magic=b"LibvirtQemudPart"))
    with pytest.raises(VmwError, match="of a format that vmw does not know"):
        head_of(path)


@pytest.mark.parametrize("now", [b"", b"LibvirtQemudSave cut off", image("<other/>")])
def test_the_new_text_is_made_of_the_original_whatever_the_file_has_now(path: Path, tmp_path: Path, now: bytes) -> None:
    head = tmp_path / "head"
    head.write_bytes(head_of(path))
    path.write_bytes(now + image()[len(now) :])
    change_xml(path, head, lambda old: old.replace("ä", "b"))
    assert path.read_bytes()[HEADER_BYTES:].startswith(b"<domain>b</domain>\0" + COOKIE + b"\0")
    assert path.read_bytes()[HEADER_BYTES + 500 :] == MEMORY


def test_nothing_of_a_longer_text_is_left(path: Path) -> None:
    changed(path, lambda _old: "<domain>" + "x" * 200 + "secret</domain>")
    changed(path, lambda _old: "<a/>")
    assert b"secret" not in path.read_bytes()


def test_a_text_that_does_not_fit_is_refused_and_changes_nothing(path: Path) -> None:
    with pytest.raises(VmwError, match="longer than its template has room for"):
        changed(path, lambda _old: "x" * 500)
    assert path.read_bytes() == image()


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    def change(_old: str) -> str:
        message = "the saved template is not one of vmw's"
        raise VmwError(message)

    with pytest.raises(VmwError, match="not one of vmw's"):
        changed(path, change)
    assert path.read_bytes() == image()


def test_a_cookie_without_a_word_is_none_afterwards(path: Path) -> None:
    # Its place would be in the middle of the longer text.
    path.write_bytes(image(cookie=b"\0"))
    changed(path, lambda _old: "<domain>" + "x" * 100 + "</domain>")
    with path.open("rb") as handle:
        assert read_text(handle).cookie == b""


@pytest.mark.parametrize("cookie", [COOKIE, b""])
def test_the_same_text_gives_the_same_bytes(path: Path, cookie: bytes) -> None:
    path.write_bytes(image(cookie=cookie))
    changed(path, lambda old: old)
    assert path.read_bytes() == image(cookie=cookie)


def test_where_an_image_is_read_from_does_not_matter(path: Path) -> None:
    with path.open("rb") as handle:
        handle.seek(200)
        assert read_text(handle).xml == XML


def test_holes_of_a_sparse_image_stay_holes(path: Path) -> None:
    with path.open("r+b") as handle:
        handle.truncate(64 << 20)
    changed(path, lambda _old: "<a/>")
    assert path.stat().st_blocks * 512 < 1 << 20


def test_the_text_may_fill_all_its_room(path: Path) -> None:
    with path.open("rb") as handle:
        text = read_text(handle)
    room = 500 - len(COOKIE) - 2
    assert len(with_xml(text, "x" * room)) == HEADER_BYTES + 500
    with pytest.raises(VmwError):
        with_xml(text, "x" * (room + 1))
