# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Read git data that a guest can write: of everything only bytes, within a bound, and no link is followed.

Nothing here runs git. What is returned is checked for its form; whether it is true, nobody but the guest can tell.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import hostile_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

REFS_LIMIT = 32 << 20
LINE_LIMIT = 4096
"""Largest list of packed refs, and file with one value that are read, in bytes."""

ENTRIES_LIMIT = 20_000
DEPTH_LIMIT = 16
"""How many loose refs a guest may have, and how deep."""


class UnknownError(Exception):
    """Something cannot be told, and why."""


@contextlib.contextmanager
def opened(name: str, parent: int | None = None) -> Iterator[int]:
    """Open a directory that is no link.

    Args:
        name: Its name in the parent, or its absolute path.
        parent: Descriptor of the directory that it is in.

    Raises:
        OSError: There is none, it is something else, or it may not be read.
    """
    descriptor = hostile_files.open_directory(name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(directory: int, name: str) -> BinaryIO | None:
    """Open a file in a directory, or return ``None`` when there is none.

    Raises:
        UnknownError: It is a link, or no regular file.
    """
    try:
        return hostile_files.open_file(name, directory)
    except FileNotFoundError:
        return None
    except hostile_files.NotAFileError as error:
        message = f"its {name} is no file"
        raise UnknownError(message) from error
    except OSError as error:
        message = f"its {name} cannot be read: {error.strerror}"
        raise UnknownError(message) from error


def read(directory: int, name: str, limit: int) -> bytes | None:
    """Return the content of a file in a directory, or ``None`` when there is none.

    Args:
        directory: Descriptor of the directory.
        name: The file's name.
        limit: How much it may have, in bytes.

    Raises:
        UnknownError: It is a link, no regular file, or too long.
    """
    handle = _open(directory, name)
    if handle is None:
        return None
    with handle:
        content = handle.read(limit + 1)
    if len(content) > limit:
        message = f"its {name} is too long"
        raise UnknownError(message)
    return content


def _value(content: bytes | None, length: int) -> str:
    """Return an object's name from a file's content, or nothing where it is none."""
    text = (content or b"").decode(errors="replace").strip()
    return text if len(text) == length and set(text) <= set("0123456789abcdef") else ""


def _loose_refs(parent: int, path: str, length: int, found: dict[str, str]) -> None:
    """Add the refs in a directory to those that were found; symbolic ones lead to others, which are found themselves."""
    with opened(path.rpartition("/")[2], parent) as directory:
        entries: list[tuple[str, bool]] = []
        with os.scandir(directory) as listing:
            for entry in listing:
                if len(found) + len(entries) >= ENTRIES_LIMIT or path.count("/") >= DEPTH_LIMIT:
                    message = "it has too many refs"
                    raise UnknownError(message)
                entries.append((entry.name, entry.is_dir(follow_symlinks=False)))
        for entry_name, is_directory in entries:
            if is_directory:
                _loose_refs(directory, f"{path}/{entry_name}", length, found)
            elif not entry_name.endswith(".lock"):
                content = read(directory, entry_name, LINE_LIMIT)
                value = _value(content, length)
                if value:
                    found[f"{path}/{entry_name}"] = value
                elif content is not None and not content.startswith(b"ref: "):
                    message = "it has a broken ref"
                    raise UnknownError(message)


def private_refs(git_dir: Path, length: int) -> dict[str, str]:
    """Return the refs of a guest's private repository.

    Args:
        git_dir: The repository.
        length: That of an object's name.

    Raises:
        UnknownError: There are too many, or one is broken.
    """
    with opened(str(git_dir)) as directory:
        packed = read(directory, "packed-refs", REFS_LIMIT) or b""
        pattern = re.compile(rb"^([0-9a-f]{%d}) (refs/[^\n]+)$" % length, re.MULTILINE)
        refs = {os.fsdecode(name): value.decode() for value, name in pattern.findall(packed)}
        loose: dict[str, str] = {}
        _loose_refs(directory, "refs", length, loose)
    return {**refs, **loose}


def head_of(git_dir: Path, refs: dict[str, str], length: int) -> tuple[str, bool]:
    """Return the commit of a HEAD, or nothing before the first one, and whether it is on no branch.

    Args:
        git_dir: The directory with the HEAD.
        refs: The refs that it may name.
        length: That of an object's name.

    Raises:
        UnknownError: It is broken.
    """
    with opened(str(git_dir)) as directory:
        content = read(directory, "HEAD", LINE_LIMIT)
    if content is not None and content.startswith(b"ref: refs/"):
        return refs.get(os.fsdecode(content[5:].rstrip(b"\n")), ""), False
    value = _value(content, length)
    if not value:
        message = "its HEAD is broken"
        raise UnknownError(message)
    return value, True


def shallow(directories: list[Path], length: int) -> str:
    """Return where history was cut off, for git to look for nothing before it.

    Args:
        directories: The repositories.
        length: That of an object's name.

    Raises:
        UnknownError: A list is a link, no regular file, or too long.
    """
    values: dict[str, None] = {}
    for each in directories:
        with opened(str(each)) as directory:
            lines = (read(directory, "shallow", REFS_LIMIT) or b"").splitlines()
        values.update(dict.fromkeys(value for value in (_value(line, length) for line in lines) if value))
    return "".join(f"{value}\n" for value in values)
