# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Saved, running VMs of which new ones are forked: where they are, and which of them serves a VM."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from ansible_collections.vmw.worktree.plugins.module_utils.accelerator import CPU_INFO
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Machine
    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

SCHEMA = 4
"""Version of what a template is: one of another version is not used."""

DIRECTORY = "templates"
"""Directory of a generation that holds its templates."""

BUILD_PREFIX = ".build-"
"""Start of the names of directories in which a template is made."""

DOMAIN_PREFIX = "vmw-template-"
"""Start of the names of the domains of templates that are made."""


@dataclass(frozen=True)
class Template:
    """The place of one template."""

    generation: Path
    key: str

    @property
    def directory(self) -> Path:
        """Hold the template; complete or absent."""
        return self.generation / DIRECTORY / self.key

    @property
    def build_directory(self) -> Path:
        """Hold what is being made."""
        return self.generation / DIRECTORY / f"{BUILD_PREFIX}{self.key}"

    def exists(self) -> bool:
        """Tell whether the template can be forked."""
        own = parts(self.directory)
        return all(path.is_file() for path in (own.disk, own.memory, own.head, own.manifest))

    def is_refused(self) -> bool:
        """Tell whether the last attempt to load it failed, so that it should be made anew."""
        return parts(self.directory).refused.is_file()


@dataclass(frozen=True)
class Parts:
    """The files of a template."""

    disk: Path
    memory: Path
    head: Path
    manifest: Path
    console: Path
    saved: Path
    refused: Path


def parts(directory: Path) -> Parts:
    """Return a template's files.

    Disk, memory, and what libvirt wrote before the memory, where each fork's own description takes its place; what the template
    is; two more while it is made; and why it could not be loaded.
    """
    return Parts(
        disk=directory / "disk.qcow2",
        memory=directory / "memory",
        head=directory / "head",
        manifest=directory / "template.json",
        console=directory / "console.log",
        saved=directory / "saved",
        refused=directory / "refused",
    )


@contextlib.contextmanager
def hold(template: Parts, *, wait: bool) -> Iterator[BinaryIO]:
    """Have the memory of a template for oneself, open for writing; a fork is loaded from it, or another template replaces it.

    Args:
        template: The files.
        wait: Whether to wait for who has it.

    Raises:
        OSError: It cannot be opened, or somebody else has it.
    """
    with template.memory.open("r+b") as memory:
        fcntl.flock(memory, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield memory


def host_cpu(cpu_info: str) -> list[str]:
    """Return what a saved VM may depend on of the host's CPU: its model and its features.

    Args:
        cpu_info: The text of ``/proc/cpuinfo``.
    """
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags")
    first = cpu_info.split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    return [f"{name.strip()}={value.strip()}" for name, _, value in lines if name.strip() in wanted]


def key_of(machine: Machine, versions: tuple[int, int], kernel: str, cpu: list[str], *, session: bool = False) -> str:
    """Name the template that fits a VM on this host: what differs in any of these is not loaded.

    Args:
        machine: The VM.
        versions: QEMU's and libvirt's, as libvirt counts them.
        kernel: The host's kernel; under KVM the guest sees what that offers.
        cpu: See `host_cpu`.
        session: Whether it was saved by the user's own libvirt, which knows none of the labels of the system's.
    """
    host = [kernel, *cpu] if machine.virt_type == "kvm" else []
    what = {"schema": SCHEMA, "machine": asdict(machine), "versions": versions, "host": host}
    if session:
        what["session"] = True
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def versions_of(connection: Any) -> tuple[int, int]:  # noqa: ANN401
    """Return QEMU's and libvirt's version, as libvirt counts them: 1,000,000 * major + 1,000 * minor + release."""
    return connection.getVersion(), connection.getLibVersion()


def template_for(state: State, generation: str, machine: Machine, connection: Any) -> Template:  # noqa: ANN401
    """Return the template that a VM could be forked of, made or not.

    Args:
        state: The state directory's layout.
        generation: The golden image's generation.
        machine: The VM.
        connection: The connection to libvirt.
    """
    session = is_session(connection.getURI())
    key = key_of(machine, versions_of(connection), os.uname().release, host_cpu(CPU_INFO.read_text()), session=session)
    return Template(state.images / generation, key)


def saved_in(generation: Path) -> list[Path]:
    """Return the manifests of a generation's templates, without what is being made."""
    found = (generation / DIRECTORY).glob("*/template.json")
    return sorted(path for path in found if not path.parent.name.startswith(BUILD_PREFIX))


def _is_of(manifest: Path, machine: Machine) -> bool:
    """Tell whether a template was saved for a VM of such a size."""
    try:
        return bool({**json.loads(manifest.read_text())["machine"], "virt_type": machine.virt_type} == asdict(machine))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unfit(template: Template, machine: Machine) -> str:
    """Say why VMs cannot be forked of what was saved for them; an empty string where nothing was.

    Args:
        template: The template of which they could be forked, which is not there.
        machine: Such a VM.
    """
    if template.directory.is_dir():
        return "a part of it is missing; `vmw host` saves a new one"
    if any(_is_of(manifest, machine) for manifest in saved_in(template.generation)):
        return (
            "it was saved with another accelerator, QEMU, libvirt, kernel or CPU, or by another vmw; `vmw host` saves a new one"
        )
    return ""
