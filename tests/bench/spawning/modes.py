"""Further figures: several spawns at once, a long `vmw list`, and the golden image."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spawning import machine
from spawning.machine import PROGRAMS, BenchError
from spawning.rows import LAUNCHER, Bench, Reference, Vmw, missing_shares

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
LIST_RUNS = 9
IMAGE_SECONDS = 3600


def _spawn(bench: Bench, reference: Reference, options: tuple[str, ...], name: str) -> tuple[float, str]:
    """Spawn and log in once; return when that was done and what was wrong with it."""
    try:
        _, instance = Vmw(bench, options).spawn(name)
        login, address = reference.login(name), str(instance["address"])
        login.run(address, "true").checked("ssh right after vmw spawn")
        done = time.monotonic()
        return done, missing_shares(login, address)
    except BenchError as error:
        return time.monotonic(), str(error)


def parallel_names(bench: Bench, count: int) -> list[str]:
    """Return the names of VMs that are spawned at once."""
    return [bench.name(f"p{number}") for number in range(1, count + 1)]


def parallel(bench: Bench, reference: Reference, kind: str, options: tuple[str, ...], count: int) -> dict[str, Any]:
    """Spawn VMs at once, and say how long the last one took and what they use.

    Args:
        bench: What all rows have in common.
        reference: What is known of vmw's VMs here.
        kind: What is spawned, for the report.
        options: vmw's options for that.
        count: How many.

    Returns:
        Seconds until ssh answered in the last, memory in KiB, disk in bytes, and the failures.
    """
    names = parallel_names(bench, count)
    for name in names:
        bench.worktree(name)
    free = machine.available_kib()
    with ThreadPoolExecutor(count) as pool:
        began = time.monotonic()
        waiting = [pool.submit(_spawn, bench, reference, options, name) for name in names]
        try:
            results = [future.result() for future in waiting]
        except BaseException:
            # The pool waits for its threads, and they for what they started.
            PROGRAMS.end_all()
            raise
    failures = [failure for _, failure in results if failure]
    pids = [pid for name in names if (pid := machine.qemu_process(name))]
    return {
        "kind": kind,
        "count": count,
        "seconds": max(done for done, _ in results) - began,
        "each_seconds": [done - began for done, _ in results],
        "failures": failures,
        "qemus": len(pids),
        "qemu_memory": machine.memory_of(pids) if pids else {},
        "host_memory_kib": free - machine.available_kib(),
        "disk_bytes": [machine.used_bytes(reference.directory(name)) for name in names],
    }


def remove_parallel(bench: Bench, reference: Reference, count: int) -> None:
    """Remove what `parallel` made, as far as it is there."""
    for name in parallel_names(bench, count):
        if reference.directory(name).exists():
            Vmw.destroy(name)


PARALLEL_HEADER = [
    "Spawns at once",
    "Until the last ssh",
    "QEMUs' memory (PSS)",
    "(RSS)",
    "Host's memory",
    "Disk per VM",
    "Failed",
]


def parallel_rows(taken: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the table of parallel spawns."""

    def mib(kib: int | None) -> str:
        return "-" if kib is None else f"{kib / 1024:.0f} MiB"

    return [
        [
            f"{one['count']}, {one['kind']}",
            f"{one['seconds']:.1f} s",
            mib(one["qemu_memory"].get("pss_kib")),
            mib(one["qemu_memory"].get("rss_kib")),
            mib(one["host_memory_kib"]),
            f"{statistics.mean(one['disk_bytes']) / MIB:.0f} MiB",
            f"{len(one['failures'])} of {one['count']}",
        ]
        for one in taken
    ]


# --- a home of its own ---------------------------------------------------------------------------------------------


def scratch_home(bench: Bench, kind: str, settings: str) -> tuple[Path, Path]:
    """Make a home directory whose vmw keeps its state in another place; return both.

    Args:
        bench: What all rows have in common.
        kind: Name of the directory.
        settings: The user's `config.yml`, to which the place is added.
    """
    home, state = bench.directory / f"home-{kind}", bench.directory / f"state-{kind}"
    configuration = home / ".config/vmw/config.yml"
    configuration.parent.mkdir(parents=True)
    state.mkdir(mode=0o700)
    kept = "".join(line for line in settings.splitlines(keepends=True) if not line.startswith("vmw_state_dir:"))
    configuration.write_text(f"{kept}vmw_state_dir: {json.dumps(str(state))}\n")
    return home, state


def environment(home: Path) -> dict[str, str]:
    """Return the variables by which a program takes a directory for the home."""
    return {"HOME": str(home), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}


def user_settings() -> str:
    """Return the user's `config.yml`."""
    with contextlib.suppress(FileNotFoundError):
        return (Path.home() / ".config/vmw/config.yml").read_text()
    return ""


def copies(record: dict[str, Any], token: str, count: int) -> list[dict[str, Any]]:
    """Return records that are like one, under names, UUIDs and MAC addresses of their own.

    Args:
        record: An instance record.
        token: Start of the names.
        count: How many.
    """
    return [
        {
            **record,
            "name": f"{token}-{number:03}",
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{token}-{number}")),
            "mac": f"52:54:00:00:{number >> 8 & 0xFF:02x}:{number & 0xFF:02x}",
        }
        for number in range(count)
    ]


def long_list(bench: Bench, reference: Reference, count: int) -> dict[str, Any]:
    """Measure `vmw list` with copies of a record, in a state directory of our own.

    Args:
        bench: What all rows have in common.
        reference: The VM whose record is copied.
        count: How many records there are.

    Raises:
        BenchError: It fails, or shows another number.
    """
    home, state = scratch_home(bench, f"list-{count}", "")
    record = json.loads((reference.directory(reference.name) / "instance.json").read_text())
    for copy in copies(record, bench.token, count):
        directory = state / "instances" / copy["name"]
        directory.mkdir(parents=True)
        (directory / "instance.json").write_text(json.dumps(copy))
    shown = json.loads(PROGRAMS.run([LAUNCHER, "list", "--json"], env=environment(home)).checked("vmw list").output)["vms"]
    if len(shown) != count:
        message = f"vmw list shows {len(shown)} VMs of {count}"
        raise BenchError(message)
    seconds = []
    for _ in range(LIST_RUNS):
        began = time.monotonic()
        PROGRAMS.run([LAUNCHER, "list"], env=environment(home)).checked("vmw list")
        seconds.append(time.monotonic() - began)
    return {"count": count, "seconds": seconds}


def image_of_record(reference: Reference) -> dict[str, Any]:
    """Return how long the golden image in use took: its manifest says when the build began, and is written at the end."""
    manifest = reference.state_dir / "images" / str(reference.record["generation"]) / "manifest.json"
    began = datetime.fromisoformat(json.loads(manifest.read_text())["created"]).timestamp()
    return {"from": "manifest", "generation": reference.record["generation"], "seconds": manifest.stat().st_mtime - began}


def build_image(bench: Bench, reference: Reference) -> dict[str, Any]:
    """Build a golden image in a state directory of our own, without the download of the base image."""
    home, state = scratch_home(bench, "image", user_settings())
    # QEMU's user must pass through both.
    for directory in (home, state):
        directory.chmod(0o711)
    downloads = reference.base_image.parent
    shutil.copytree(downloads, state / "images" / downloads.name)
    began = time.monotonic()
    PROGRAMS.run([LAUNCHER, "image", "build"], env=environment(home), seconds=IMAGE_SECONDS).checked("vmw image build")
    seconds = time.monotonic() - began
    return {"from": "measured", "seconds": seconds, "load": os.getloadavg()[0]}
