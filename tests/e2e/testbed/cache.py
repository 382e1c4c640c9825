"""Build results kept under a hash of what shaped them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(os.environ.get("VMW_TEST_CACHE", "/var/cache/vmw-tests"))
STALE_S = 3 * 24 * 3600


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock between processes while the body runs."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / f".{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def built(name: str, inputs: Sequence[str | Path], build: Callable[[Path], None]) -> Path:
    """Return the directory that `build` fills, building it when no complete one is there.

    Args:
        name: what is built; the first part of the directory's name.
        inputs: texts, and files taken by their content, that shape the result.
        build: fills the empty directory that it is given.
    """
    digest = hashlib.sha256()
    for item in inputs:
        content = item.read_bytes() if isinstance(item, Path) else item.encode()
        digest.update(hashlib.sha256(content).digest())
    result = ROOT / f"{name}-{digest.hexdigest()[:16]}"
    with locked(name):
        if not result.is_dir():
            partial = ROOT / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o755)
            build(partial)
            partial.rename(result)
            _prune(name, result)
        os.utime(result)
    return result


def _prune(name: str, newest: Path) -> None:
    """Remove the older builds that nobody asked for in days; a test host may stand on a younger one."""
    now = time.time()
    for older in ROOT.glob(f"{name}-{'[0-9a-f]' * 16}"):
        if older != newest and now - older.stat().st_mtime > STALE_S:
            shutil.rmtree(older)
