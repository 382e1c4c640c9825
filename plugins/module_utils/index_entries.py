# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The nested repositories in an index that somebody hostile may have written, as git itself reads them.

git sees only a copy of it, in a repository of ours without anything else, and may use so much time and memory and no more.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import hostile_files
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import git_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX_BYTES = 256 << 20
"""The largest index that is read; git's own for a million files has about 100 MB."""

INDEX_MEMORY = 2 << 30
"""How much address space git may use for it: the compressed format of a hostile one may unfold to far more than its size."""

INDEX_SECONDS = 30.0
COMPLAINTS_BYTES = 1 << 20
"""How much git may say of an index that it cannot read, before it is ended."""

GITLINK = b"160000 "
"""The mode of a nested repository in the output of git-ls-files(1)."""


def gitlinks(index: Path, object_format: str) -> Iterator[str]:
    """Yield the nested repositories that an index has, as git reads them from a copy of it.

    Args:
        index: The index, which the guest may have written; a missing one has none.
        object_format: The repository's hash.

    Raises:
        VmwError: It is no file, is too large, or git cannot read it.
    """
    with tempfile.TemporaryDirectory(prefix="vmw-audit-") as name:
        directory = Path(name)
        try:
            with hostile_files.open_file(index) as source, (directory / "index").open("xb") as target:
                hostile_files.copy(source, target, INDEX_BYTES)
        except FileNotFoundError:
            return
        except hostile_files.NotAFileError as error:
            message = "it is no file"
            raise VmwError(message) from error
        except hostile_files.TooLargeError as error:
            message = f"it has more than {INDEX_BYTES >> 20} MiB"
            raise VmwError(message) from error
        except OSError as error:
            message = f"it cannot be read: {error.strerror}"
            raise VmwError(message) from error
        for entry in _staged(directory, object_format):
            if entry.startswith(GITLINK):
                yield os.fsdecode(entry.partition(b"\t")[2])


def _staged(directory: Path, object_format: str) -> Iterator[bytes]:
    """Yield the entries of the index in a directory of ours, which becomes a repository without anything in it."""
    for part in ("objects", "refs"):
        (directory / "git" / part).mkdir(parents=True)
    (directory / "git" / "HEAD").write_text("ref: refs/heads/none\n")
    sha256 = "[extensions]\n\tobjectFormat = sha256\n" if object_format == "sha256" else ""
    version = 1 if sha256 else 0
    (directory / "git" / "config").write_text(f"[core]\n\trepositoryFormatVersion = {version}\n\tbare = true\n{sha256}")
    environment = {
        **git_environment(),
        "HOME": str(directory),
        "GIT_DIR": str(directory / "git"),
        "GIT_INDEX_FILE": str(directory / "index"),
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    argv = ["git", "ls-files", "--stage", "-z"]
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                argv, cwd="/", env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
            )
        except FileNotFoundError as error:
            message = "git is not installed"
            raise VmwError(message) from error
        with process:
            try:
                yield from _entries(process)
            finally:
                process.kill()
        complaints.seek(0)
        said = complaints.read(COMPLAINTS_BYTES).decode(errors="replace").splitlines()
        # A directory that a sparse index leaves to the repository's objects is passed over with no more than an error's text.
        errors = [line for line in said if line.startswith(("error:", "fatal:"))]
        if process.returncode or errors:
            message = (
                f"git cannot read it: {hostile_files.printable((errors or said or [f'exit code {process.returncode}'])[-1])}"
            )
            raise VmwError(message)


def _entries(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Yield what git prints, up to each zero byte, and see it end."""
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (INDEX_MEMORY, INDEX_MEMORY))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (COMPLAINTS_BYTES, COMPLAINTS_BYTES))
    deadline = time.monotonic() + INDEX_SECONDS
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(deadline - time.monotonic(), 0)):
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                process.wait(max(deadline - time.monotonic(), 1))
                return
            *whole, rest = (rest + block).split(b"\0")
            yield from whole
    message = "git takes too long to read it"
    raise VmwError(message)
