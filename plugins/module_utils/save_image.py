# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""libvirt's format of a saved VM: a header, the domain's XML, and QEMU's memory stream.

The format is that of libvirt's src/qemu/qemu_saveimage.h, version 2: a magic number, five and fourteen 32-bit numbers in the
byte order of the machine, and a text area of ``data_len`` bytes that holds the XML and a cookie, each ended by a zero byte.
libvirt's own calls refuse to change a saved domain's name and UUID, which is what makes a fork.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Callable

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"LibvirtQemudSave"
VERSION = 2
_HEADER = struct.Struct("=16s19I")
_COOKIE_OFFSET = 4
"""Place of ``cookieOffset`` among the header's numbers."""

MAXIMUM_TEXT = 1 << 20


@dataclass(frozen=True)
class SavedText:
    """The part of a saved VM before its memory.

    Attributes:
        numbers: The header's numbers: version, data_len, was_running, compressed, cookieOffset, and what is unused.
        xml: The domain's XML.
        cookie: What else libvirt wants to know of it.
    """

    numbers: tuple[int, ...]
    xml: str
    cookie: bytes


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_text(image: BinaryIO) -> SavedText:
    """Read what stands before the memory of a saved VM.

    Raises:
        VmwError: It is not of the format that is known here.
    """
    image.seek(0)
    header = image.read(_HEADER.size)
    magic, *numbers = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
    version, length, cookie_offset = numbers[0], numbers[1], numbers[_COOKIE_OFFSET]
    known = magic == MAGIC and version == VERSION and 0 < length <= MAXIMUM_TEXT and cookie_offset < length
    data = image.read(length) if known else b""
    xml, ended, _ = data.partition(b"\0")
    if not known or len(data) < length or not ended or not _is_text(xml):
        message = (
            f"libvirt's saved VM is of a format that vmw does not know: {magic!r}, version {version}, {length} bytes of text"
        )
        raise VmwError(message)
    cookie = data[cookie_offset:].partition(b"\0")[0] if cookie_offset else b""
    return SavedText(tuple(numbers), xml.decode(), cookie)


def with_xml(text: SavedText, xml: str) -> bytes:
    """Return the part before the memory with another XML, of the same length.

    Raises:
        VmwError: The XML is too long for that.
    """
    body = xml.encode() + b"\0"
    numbers = list(text.numbers)
    numbers[_COOKIE_OFFSET] = len(body) if text.cookie else 0
    if text.cookie:
        body += text.cookie + b"\0"
    if len(body) > numbers[1]:
        message = "the description of the fork is longer than its template has room for"
        raise VmwError(message)
    return _HEADER.pack(MAGIC, *numbers) + body.ljust(numbers[1], b"\0")


def head_of(path: Path) -> bytes:
    """Return what stands before the memory of a saved VM.

    Raises:
        VmwError: The format is not known here.
    """
    with path.open("rb") as image:
        text = read_text(image)
        image.seek(0)
        return image.read(_HEADER.size + text.numbers[1])


def change_xml(path: Path, head: Path, change: Callable[[str], str]) -> None:
    """Give a saved VM another description; libvirt leaves some 64 KiB of room for one.

    Args:
        path: A file as libvirt saved it, whose description may have been changed since.
        head: A file with what stood before the memory then.
        change: Makes the new XML of the one in ``head``.

    Raises:
        VmwError: The format is not known here, or the description is too long.
    """
    with head.open("rb") as original:
        text = read_text(original)
    changed = with_xml(text, change(text.xml))
    with path.open("r+b") as image:
        image.write(changed)
