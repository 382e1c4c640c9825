# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Look at files that somebody hostile may be changing: no link is followed, nothing blocks, nothing is read without a bound."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

CONTENT_BYTES = 1 << 20
"""Up to which size a file is compared by its content."""

LINK_HOPS = 40
"""How many links Linux follows for one path, see path_resolution(7)."""

ABSENT = "absent"
"""The state of what is not there."""

FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

BLOCK = 1 << 20
"""How much of a file is copied at a time, in bytes."""

_BYTE = 0xDC00
"""What Python adds to a byte that is no UTF-8, see PEP 383."""


def printable(text: str) -> str:
    r"""Return a name as text for terminals and JSON: a backslash and whatever cannot be printed are escaped, like ``\x1b``.

    Two different names stay different, so that what this returns can stand for the name.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    code = ord(character)
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    if _BYTE < code < _BYTE + 0x100:
        return f"\\x{code - _BYTE:02x}"
    if code < 0x80:  # noqa: PLR2004 - the end of ASCII
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004 - what four digits hold


@dataclass(frozen=True)
class Content:
    """What is in a file.

    Args:
        state: Differs when the content or the right to execute does. Of a large file it has size and time of change, which a
            guest cannot set.
        data: The bytes, or None when there are too many or it is no file.
    """

    state: str
    data: bytes | None = None


def read(name: str, directory: int | None) -> Content:
    """Read a file.

    Args:
        name: Its name in the directory, or its absolute path.
        directory: Descriptor of the directory.

    Raises:
        OSError: There is none, it is a link, or it may not be read.
    """
    descriptor = os.open(name, FLAGS, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Content("no file")
        execute = " +x" if status.st_mode & 0o111 else ""
        with open(descriptor, "rb", closefd=False) as handle:
            # One more than allowed, for a file that grows meanwhile.
            data = handle.read(CONTENT_BYTES + 1) if status.st_size <= CONTENT_BYTES else b""
    finally:
        os.close(descriptor)
    if status.st_size > CONTENT_BYTES or len(data) > CONTENT_BYTES:
        return Content(f"{status.st_size} bytes, changed {status.st_ctime_ns}{execute}")
    return Content(f"sha256:{hashlib.sha256(data).hexdigest()}{execute}", data)


class NotAFileError(Exception):
    """It is a directory, a device, or whatever else is no regular file."""


class TooLargeError(Exception):
    """A file has more than may be read of it."""


def open_file(name: str | os.PathLike[str], directory: int | None = None) -> BinaryIO:
    """Open a regular file that is no link, for reading.

    Args:
        name: Its name in the directory, or its absolute path.
        directory: Descriptor of the directory.

    Raises:
        NotAFileError: It is something else.
        OSError: There is none, it is a link, or it may not be read.
    """
    descriptor = os.open(name, FLAGS, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError
    return os.fdopen(descriptor, "rb")


def copy(source: BinaryIO, target: BinaryIO, limit: int) -> None:
    """Copy what is left of a file, which may grow meanwhile.

    Args:
        source: The file.
        target: Gets no more than the limit.
        limit: How much there may be, in bytes.

    Raises:
        TooLargeError: There is more.
        OSError: The file cannot be read, or the copy not be written.
    """
    left = limit
    while block := source.read(BLOCK):
        left -= len(block)
        if left < 0:
            raise TooLargeError
        target.write(block)


def state_of(name: str, directory: int | None = None) -> str:
    """Return what to compare of a file, whatever it is: its content's digest, a link's target, or why it cannot be read."""
    try:
        return f"link to {printable(os.readlink(name, dir_fd=directory))}"
    except FileNotFoundError:
        return ABSENT
    except OSError as error:
        if error.errno != errno.EINVAL:
            return "in a place that is no directory" if error.errno == errno.ENOTDIR else f"unreadable: {error.strerror}"
    try:
        return read(name, directory).state
    except FileNotFoundError:
        return ABSENT
    except OSError as error:
        return f"unreadable: {error.strerror}"


def open_directory(name: str | os.PathLike[str], directory: int | None = None) -> int:
    """Open a directory that is no link.

    Raises:
        OSError: It is something else, or may not be read.
    """
    return os.open(name, FLAGS | os.O_DIRECTORY, dir_fd=directory)


def open_below(root: int, parts: Sequence[str]) -> int:
    """Open a directory below another one without following a link on the way.

    Raises:
        OSError: A part of the way is missing, or no directory.
    """
    descriptor = os.dup(root)
    for part in parts:
        try:
            below = open_directory(part, descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def state_below(root: int, parts: Sequence[str]) -> str:
    """Return ``state_of`` a file some directories below another one."""
    try:
        directory = open_below(root, parts[:-1])
    except OSError as error:
        return ABSENT if error.errno == errno.ENOENT else f"behind a link or a file: {error.strerror}"
    try:
        return state_of(parts[-1], directory)
    finally:
        os.close(directory)


def resolve(root: int, start: Sequence[str], target: str) -> list[str] | None:
    """Return where a link leads, as names from the root, or None when it leaves the tree on its way.

    Args:
        root: Descriptor of the tree's directory.
        start: The names of the directories from there to the link.
        target: What the link says.
    """
    if target.startswith("/"):
        return None
    done, todo, hops = list(start), target.split("/")[::-1], LINK_HOPS
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            if not done:
                return None
            done.pop()
            continue
        done.append(part)
        try:
            link = os.readlink("/".join(done), dir_fd=root)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            # No link, or nothing yet: what counts is the name.
            continue
        hops -= 1
        if hops < 0:
            # A loop, which the kernel does not follow either.
            return done
        if link.startswith("/"):
            return None
        done.pop()
        todo.extend(link.split("/")[::-1])
    return done
