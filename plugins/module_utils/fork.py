# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Start a VM as a fork of a saved template: load its memory in the background, then make it a machine of its own.

Loading takes a second and needs nothing but the record, so it goes on while the seed and the units of the shares are written.
`begin` starts it; `complete` hands over the identity through the guest's agent, and plugs in the network card and the shares as
soon as the guest is apart from the template. In between, and whenever either is interrupted, the file ``fork.json`` says that the
VM is no whole one yet.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import tostring

from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.console import begin_console, read_console
from ansible_collections.vmw.worktree.plugins.module_utils.disks import (
    backing_file,
    copy_file,
    create_overlay,
    open_to_qemu,
)
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Fork,
    Machine,
    Share,
    card_xml,
    fork_xml,
    share_xml,
    tap_of,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import load_manifest
from ansible_collections.vmw.worktree.plugins.module_utils.instance import RENDERED
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    has_saved_memory,
    is_running,
    xml_of,
)
from ansible_collections.vmw.worktree.plugins.module_utils.save_image import change_xml
from ansible_collections.vmw.worktree.plugins.module_utils.state import read_exactly, write_json
from ansible_collections.vmw.worktree.plugins.module_utils.template import Parts, Template, hold, parts, template_for, unfit
from ansible_collections.vmw.worktree.plugins.module_utils.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from xml.etree.ElementTree import Element

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock

try:
    import libvirt
except ImportError:
    libvirt = None

IDENTITY = "/usr/lib/vmw/identity"
"""The program in the golden image that gives a machine its identity."""

IDENTITY_SECONDS = {"kvm": 30.0, "qemu": 180.0}
"""How long the guest may take to be apart from the template, and then to be done, before the VM is started cold instead."""

AGENT_SECONDS = 10.0
"""How long libvirt may take to find the agent of a guest that it has restored. It was seen to take some milliseconds too long."""

SAID_APART = re.compile(r"^vmw-identity: apart", re.MULTILINE)
"""What that program prints on the console when the machine has its own name, time and random numbers."""

SAID_DONE = re.compile(r"^vmw-identity: done", re.MULTILINE)
"""What it prints when the machine can be used."""

SAID_FAILED = re.compile(r"^vmw-identity: failed", re.MULTILINE)

POLL_SECONDS = 0.02
ENTROPY_BYTES = 64

LOADING = "loading"
LOADED = "loaded"
COMPLETING = "completing"
FAILED = "failed"
GIVEN_UP = "given up"

# libvirt-python has no type information of its own, hence Any for its objects.


@dataclass(frozen=True)
class Progress:
    """How far a fork has come.

    Attributes:
        phase: ``loading``, ``loaded``, ``completing``, ``failed``, or ``given up`` by who began it.
        reason: Why it failed.
        seconds: How long its memory took to load.
    """

    phase: str
    reason: str = ""
    seconds: float = 0.0


def read_progress(files: InstanceFiles) -> Progress | None:
    """Tell how far a VM's fork has come; ``None`` for a VM that is no fork on its way."""
    try:
        data = json.loads(files.fork.read_text())
        return Progress(str(data["phase"]), str(data["reason"]), float(data["seconds"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Progress(FAILED, "what was written down of it cannot be read")


def write_progress(files: InstanceFiles, progress: Progress) -> None:
    """Write down how far a fork has come."""
    write_json(files.fork, asdict(progress), 0o600)


def find_template(files: InstanceFiles, instance: Instance, connection: Any) -> tuple[Template | None, str]:  # noqa: ANN401
    """Return the template that a VM can be forked of; or ``None``, and why it does not fit where one was saved for such VMs."""
    machine = Machine.of(instance)
    template = template_for(files.state, instance.generation, machine, connection)
    return (template, "") if template.exists() else (None, unfit(template, machine))


def begin(files: InstanceFiles, instance: Instance, template: Template) -> None:
    """Make a VM's disk as a template's, and have its memory loaded by a process that outlives this one.

    The caller holds the lock of the VM's start; the process takes it over.
    """
    write_progress(files, Progress(LOADING))
    saved = parts(template.directory)
    memory = _inode(saved.memory)
    try:
        copy_file(files.disk, saved.disk)
    except BaseException:
        files.fork.unlink()
        raise
    open_to_qemu(files, instance)
    begin_console(files.console)
    if os.fork():
        return
    # From here on a process of its own, which Ansible does not wait for.
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    status = 1
    try:
        _load(files, instance, saved, memory)
        status = 0
    finally:
        os._exit(status)


def _inode(memory: Path) -> int:
    """Return what tells a template's memory from that of another one in its place; 0 where there is none."""
    try:
        return memory.stat().st_ino
    except OSError:
        return 0


def _load(files: InstanceFiles, instance: Instance, template: Parts, memory: int) -> None:
    """Load a template's memory into a VM, and write down how that ended.

    Args:
        files: The VM's files.
        instance: Its record.
        template: The template's.
        memory: Inode of the memory that belongs to the VM's disk.
    """
    try:
        with turn(files.state, instance.virt_type, lambda: _check_wanted(files)):
            began = time.monotonic()
            connection = connect(instance.libvirt_uri)
            itself = Fork(instance.name, instance.uuid, str(files.record), str(files.disk), str(files.console))
            with _memory(files, template, memory) as path:
                _restore(connection, path, itself, template)
            seconds = time.monotonic() - began
            _check_wanted(files)
    except Exception as error:  # noqa: BLE001 - whatever it is, the VM starts cold, and says why
        write_progress(files, Progress(FAILED, str(error)))
        end(files, instance)
    else:
        write_progress(files, Progress(LOADED, seconds=seconds))
    finally:
        files.memory.unlink(missing_ok=True)


def _check_wanted(files: InstanceFiles) -> None:
    """See that a fork is still to be loaded: its VM may be removed meanwhile, or its spawn may have failed elsewhere.

    Raises:
        VmwError: It is not.
    """
    files.load()
    progress = read_progress(files)
    if progress is None or progress.phase != LOADING:
        raise VmwError(GIVEN_UP)


@contextlib.contextmanager
def _memory(files: InstanceFiles, template: Parts, wanted: int) -> Iterator[Path]:
    """Give the file that a fork is loaded from: the template's own, or a copy while another fork is loaded from that one.

    Not every file system makes a copy of some hundred megabytes in no time.

    Args:
        files: The VM's files.
        template: The template's.
        wanted: Its inode.

    Raises:
        VmwError: It is gone, or cannot be copied.
    """
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(hold(template, wait=False))
        except OSError:
            # Somebody else has it, or it is not this user's to write.
            path = files.memory
            path.unlink(missing_ok=True)
            copy_file(path, template.memory)
        else:
            path = template.memory
            # Nothing of a fork stays there.
            stack.callback(own.write, template.head.read_bytes())
        if _inode(template.memory) != wanted:
            message = "its template was made anew meanwhile"
            raise VmwError(message)
        yield path


def _restore(connection: Any, memory: Path, itself: Fork, template: Parts) -> None:  # noqa: ANN401
    """Load the memory, and note at the template whether that works: one that fails is made anew by the next set-up."""
    refused = template.refused
    try:
        change_xml(memory, template.head, lambda saved: fork_xml(saved, itself))
        connection.restoreFlags(str(memory), None, libvirt.VIR_DOMAIN_SAVE_RUNNING)
    except (VmwError, OSError, libvirt.libvirtError) as error:
        with contextlib.suppress(OSError):
            refused.write_text(f"{error}\n")
        raise
    refused.unlink(missing_ok=True)


def end(files: InstanceFiles, instance: Instance) -> None:
    """End what was loaded of a fork that is none, if libvirt got so far."""
    with contextlib.suppress(Exception):
        domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
        if is_running(domain):
            domain.destroy()


def discard(files: InstanceFiles, instance: Instance, domain: Any) -> None:  # noqa: ANN401
    """Take back a fork that did not become a machine of its own: nobody can have used it. The disk is a new one then."""
    _force_off(domain)
    if has_saved_memory(domain):
        # It belongs to the disk that goes now.
        domain.managedSaveRemove(0)
    files.memory.unlink(missing_ok=True)
    create_overlay(files.disk, backing_file(files, instance), instance.disk_gib)
    open_to_qemu(files, instance)
    files.fork.unlink(missing_ok=True)


def abandon(files: InstanceFiles, identity: str) -> None:
    """Take back a fork that lacks something else and so is not going to be completed; the next spawn forks anew.

    What may be a whole VM by now is left to `adopt`: one whose completion has begun, or that somebody has booted meanwhile.

    Args:
        files: The VM's files.
        identity: Its UUID.

    Raises:
        VmwError: It is being removed, or its domain is somebody else's.
        libvirtError: libvirt cannot end it.
    """
    progress = read_progress(files)
    if progress is None or files.load().uuid != identity:
        return
    given_up = progress.phase == LOADING
    if given_up:
        # Whoever loads it, or still waits for its turn, looks at that.
        write_progress(files, Progress(GIVEN_UP))
    with files.start_lock():
        progress, instance = read_progress(files), files.load()
        ours = {LOADED, GIVEN_UP, *([FAILED] if given_up else [])}
        if instance.uuid != identity or progress is None or progress.phase not in ours:
            return
        domain = find_own_domain(connect(instance.libvirt_uri), files.name, str(files.record))
        if has_booted(domain, instance):
            return
        _force_off(domain)
        files.disk.unlink(missing_ok=True)
        files.fork.unlink()


def has_booted(domain: Any, instance: Instance) -> bool:  # noqa: ANN401
    """Tell whether a running domain, or ``None``, was booted from its definition: a loaded fork has no network card."""
    return is_running(domain) and tap_of(xml_of(domain), instance.mac) is not None


def _force_off(domain: Any) -> None:  # noqa: ANN401
    """Force a domain, or ``None``, off. While it runs, nobody touches its disk."""
    try:
        if is_running(domain):
            domain.destroy()
    except libvirt.libvirtError:
        # It may have ended by itself.
        if is_running(domain):
            raise


def adopt(files: InstanceFiles, instance: Instance, domain: Any) -> bool:  # noqa: ANN401
    """Tell whether a fork has become a whole VM though nobody on the host saw it through, and let it be one.

    Args:
        files: The VM's files.
        instance: Its record.
        domain: Its domain, or ``None``.
    """
    progress = read_progress(files)
    if progress is None:
        return False
    whole = bool(SAID_DONE.search(read_console(files.console))) if progress.phase == COMPLETING else has_booted(domain, instance)
    if whole:
        files.fork.unlink()
    return whole


def identity_words(files: InstanceFiles, *, grown: bool) -> str:
    """Return what the guest's identity program reads: the seed's words, what only the host knows, whether the disk has grown."""
    entropy = base64.b64encode(os.urandom(ENTROPY_BYTES)).decode()
    return f"now={time.time():.3f}\nentropy={entropy}\ngrown={str(grown).lower()}\n{read_exactly(files.seed_sources / RENDERED)}"


def run_identity(files: InstanceFiles, instance: Instance, domain: Any, words: str, plug_in: Callable[[], None]) -> None:  # noqa: ANN401
    """Run the guest's identity program.

    Args:
        files: The VM's files.
        instance: Its record.
        domain: Its domain, which runs.
        words: What the program is told.
        plug_in: Gives the machine its devices, as soon as it is apart from the template, while the program goes on.

    Raises:
        VmwError: The program failed, or took too long, or the agent does not answer.
        libvirtError: The agent answers no more, or a device cannot be plugged in.
    """
    guest_agent.await_answer(domain, AGENT_SECONDS)
    deadline = time.monotonic() + IDENTITY_SECONDS[instance.virt_type]
    plugged = False
    try:
        pid = guest_agent.start(domain, IDENTITY, "--fork", stdin=words)
        # The guest says on its console how far it is; to ask it each time would slow it down.
        while not SAID_DONE.search(said := read_console(files.console)):
            if SAID_FAILED.search(said):
                result = guest_agent.ended(domain, pid)
                lines = result.output.strip().splitlines() if result else []
                message = f"the guest did not take its identity: {lines[-1] if lines else 'see its console'}"
                raise VmwError(message)
            if time.monotonic() > deadline or not is_running(domain):
                message = "the guest did not take its identity in time"
                raise VmwError(message)
            if plugged or not SAID_APART.search(said):
                time.sleep(POLL_SECONDS)
            else:
                plug_in()
                plugged = True
                deadline = time.monotonic() + IDENTITY_SECONDS[instance.virt_type]
    except (ValueError, KeyError, TypeError) as error:
        message = f"the guest's agent does not answer as it should: {error}"
        raise VmwError(message) from error
    if not plugged:
        message = "the guest said that it was done before it had its devices"
        raise VmwError(message)


def attach(domain: Any, device: Element) -> None:  # noqa: ANN401
    """Plug a device into a running domain; its definition for later starts has it already."""
    domain.attachDeviceFlags(tostring(device, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def complete(files: InstanceFiles, instance: Instance, domain: Any, shares: list[Share], clock: Clock) -> None:  # noqa: ANN401
    """Make a loaded fork the machine that its record describes; see `run_identity` for what is raised.

    The caller writes down that it is one.

    Args:
        files: The VM's files.
        instance: Its record.
        domain: Its domain, which runs.
        shares: What it gets.
        clock: Takes the time.
    """

    def plug_in() -> None:
        clock.note("identity")
        # The card comes first, as DHCP takes the longest.
        for device in (card_xml(instance), *map(share_xml, shares)):
            attach(domain, device)

    # Whoever is interrupted from here on leaves a machine of which nobody knows how much it is.
    write_progress(files, Progress(COMPLETING))
    grown = _grow(files, instance, domain)
    run_identity(files, instance, domain, identity_words(files, grown=grown), plug_in)
    clock.note("shares")


def _grow(files: InstanceFiles, instance: Instance, domain: Any) -> bool:  # noqa: ANN401
    """Give the disk the size that was asked for, where it is larger than the template's."""
    manifest = load_manifest(files.state.images / instance.generation)
    wanted = instance.disk_gib << 30
    if manifest is None or wanted <= manifest.virtual_size:
        return False
    domain.blockResize("vda", wanted, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    return True
