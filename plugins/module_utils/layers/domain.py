# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Define and start a VM and wait until it can be used, or remove its domain."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ansible_collections.vmw.worktree.plugins.module_utils import fork, guest_agent, packet_filter
from ansible_collections.vmw.worktree.plugins.module_utils.console import begin_console
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import (
    Boot,
    HostSide,
    Share,
    Storage,
    domain_xml,
    tap_of,
    with_tap,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.guest_clock import wake
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.layers.egress import tell_guest
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock, Module
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    has_saved_memory,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.readiness import Guest
from ansible_collections.vmw.worktree.plugins.module_utils.state import qemu_label, qemu_peer, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.turns import turn

try:
    import libvirt
except ImportError:
    libvirt = None

WAIT_SECONDS = {"kvm": 180, "qemu": 900}
"""How long each phase of a start may take; software emulation needs about five times as long."""


def boot_of(files: InstanceFiles, instance: Instance) -> Boot:
    """Return what the VM's generation boots.

    Raises:
        VmwError: The generation is gone or damaged.
    """
    directory = files.state.images / instance.generation
    try:
        cmdline = json.loads((directory / "manifest.json").read_text())["cmdline"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"the golden image {instance.generation} is damaged: {error}"
        raise VmwError(message, "build a new one with `vmw image build`") from error
    return Boot.of(directory, cmdline)


def check_loaded(progress: fork.Progress, domain: Any) -> None:  # noqa: ANN401
    """Refuse to complete a fork whose memory was not loaded.

    Raises:
        VmwError: With the reason.
    """
    if progress.phase != fork.LOADED or not is_running(domain):
        raise VmwError(progress.reason or "it was interrupted")


def finish_fork(files: InstanceFiles, instance: Instance, domain: Any, shares: list[Share], clock: Clock) -> str:  # noqa: ANN401
    """Make a loaded fork a whole VM; or take it back, and return why."""
    progress = fork.read_progress(files) or fork.Progress(fork.FAILED)
    try:
        check_loaded(progress, domain)
        clock.add("restore, in the background", progress.seconds)
        fork.complete(files, instance, domain, shares, clock)
    except (VmwError, OSError, libvirt.libvirtError) as error:
        fork.discard(files, instance, domain)
        return getattr(error, "message", str(error)) or "it failed"
    files.fork.unlink()
    return ""


def start(
    files: InstanceFiles,
    connection: Any,  # noqa: ANN401
    shares: list[Share],
    clock: Clock,
    turns: contextlib.ExitStack,
) -> tuple[str, str]:
    """Have the defined VM run; ``turns`` keeps its turn at starting, until it is closed.

    Returns:
        How it was started, and why it is no fork when it was to be one.
    """
    instance, record = files.load(), str(files.record)
    domain = find_own_domain(connection, files.name, record)
    reason = ""
    forked = fork.read_progress(files) is not None and not fork.adopt(files, instance, domain)
    if forked:
        clock.note("wait for the restore")
    elif is_running(domain):
        return "none", ""
    if turns.enter_context(turn(files.state, instance.virt_type, files.load)):
        clock.note("wait for a turn")
    if is_running(domain) and not forked:
        # Somebody else's `virsh start` came meanwhile.
        return "none", ""
    if forked:
        reason = finish_fork(files, instance, domain, shares, clock)
        if not reason:
            return "warm", ""
        # A domain that is gone leaves nothing behind but its definition.
        domain = find_own_domain(connection, files.name, record)
    suspended = has_saved_memory(domain)
    if suspended:
        name_card(instance, domain)
    else:
        # What goes on from saved memory is the boot that the log tells of.
        begin_console(files.console)
    try:
        domain.create()
    except libvirt.libvirtError as error:
        # Somebody else's `virsh start` may have come first.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not is_running(domain):
            raise
    clock.note("QEMU start")
    return "resumed" if suspended else "cold", reason


def name_card(instance: Instance, domain: Any) -> None:  # noqa: ANN401
    """Have saved memory of the time before there were network policies go on with a card that the packet filter knows."""
    if instance.is_session:
        return
    saved = domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    if tap_of(saved, instance.mac) != instance.tap:
        domain.managedSaveDefineXML(with_tap(saved, instance.mac, instance.tap), 0)


def boot_phases(domain: Any, clock: Clock) -> None:  # noqa: ANN401
    """Add how long the guest's kernel and its services took, as its systemd tells: org.freedesktop.systemd1(5)."""
    names = ("UserspaceTimestampMonotonic", "FinishTimestampMonotonic")
    try:
        told = guest_agent.call(domain, "/bin/systemctl", "show", *(f"--property={name}" for name in names))
        values = dict(line.split("=", 1) for line in told.output.splitlines())
        userspace, finished = (int(values[name]) / 1e6 for name in names)
    except (VmwError, ValueError, KeyError, OverflowError):
        return
    clock.add("kernel", userspace)
    if finished > userspace:
        clock.add("userspace", finished - userspace)


def await_guest(guest: Guest, clock: Clock, mountpoints: list[str]) -> str:
    """Wait until a guest can be used, and return its address. A fork mounts its shares before it says that it is done."""
    guest.address()
    clock.note("network")
    address = guest.ssh()
    clock.note("ssh")
    if mountpoints:
        guest.shares(mountpoints)
        clock.note("shares")
    return address


def running(module: Module, clock: Clock | None = None) -> dict[str, Any]:
    """Define the VM, start it and wait.

    Args:
        module: The task.
        clock: Has taken the time of what came before.
    """
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "xml": "", "path": str(files.domain), "start": "none", "timings": []}
    instance = files.load()
    clock = clock or Clock()
    shares = [Share(tag, socket) for tag, socket in module.params["sockets"].items()]
    host = HostSide(
        record=str(files.record),
        boot=boot_of(files, instance),
        storage=Storage(disk=str(files.disk), seed=str(files.seed), console=str(files.console)),
        shares=shares,
        label=qemu_label(qemu_peer(instance.libvirt_uri)),
    )
    xml = domain_xml(instance, host)
    before = files.domain.read_text() if files.domain.is_file() else ""
    result: dict[str, Any] = {
        "xml": xml,
        "path": str(files.domain),
        "diff": {"before": before, "after": xml, "before_header": str(files.domain), "after_header": str(files.domain)},
    }
    connection = connect(instance.libvirt_uri)
    domain = find_own_domain(connection, files.name, str(files.record))
    if module.check_mode:
        return {"changed": before != xml or not is_running(domain), "start": "none", "timings": [], **result}
    write_file(files.domain, xml, 0o600)
    with contextlib.ExitStack() as turns:
        # Waits for a template's memory that is being loaded, and for another spawn of the same VM.
        with files.start_lock():
            # Its spawn may have been given up meanwhile by another one.
            files.check_complete(files.load())
            connection.defineXML(xml)
            how, reason = start(files, connection, shares, clock, turns)
        if reason:
            module.warn(f"{files.name} could not be forked of the template, and is started cold: {reason}")
        if how == "none":
            running_xml = find_own_domain(connection, files.name, str(files.record)).XMLDesc()
            if warning := packet_filter.card_warning(instance, running_xml):
                module.warn(warning)
        told = {**instance.as_dict(), "start": how, "state": "running"}
        result["changed"] = before != xml or how != "none"
        if module.params["wait"]:
            timeout = module.params["timeout"] or WAIT_SECONDS[instance.virt_type]
            guest = Guest(files, instance, connection, timeout)
            told["address"] = result["address"] = await_guest(guest, clock, module.params["mountpoints"] if how != "warm" else [])
    # Others have their turn from here on.
    domain = find_own_domain(connection, files.name, str(files.record))
    if how == "resumed":
        # Its clock stood still while its memory was on the disk.
        wake(files.name, domain, instance.mac, module.warn)
    if module.params["wait"]:
        tell_guest(module, files, domain, module.params["proxy_port"])
        if module.params["timings"] and how == "cold":
            boot_phases(domain, clock)
    return {"start": how, "instance": told, "timings": clock.phases, **result}


def libvirt_of(files: InstanceFiles, fallback: str) -> str:
    """Return the libvirt at which a VM was made, whatever the settings say today.

    Args:
        files: The VM's files.
        fallback: For a VM whose record is gone or broken.
    """
    try:
        return files.read().libvirt_uri
    except VmwError:
        return fallback


def absent(module: Module) -> dict[str, Any]:
    """Force the domain off and undefine it."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode:
        # Taking the lock would make its file.
        return remove(module, files)
    # A template's memory that is being loaded becomes a domain in a moment.
    with files.start_lock():
        return remove(module, files)


def remove(module: Module, files: InstanceFiles) -> dict[str, Any]:
    """Remove the domain."""
    connection = connect(libvirt_of(files, module.params["libvirt_uri"]))
    try:
        domain = find_own_domain(connection, files.name, str(files.record))
    except VmwError as error:
        if files.directory.is_dir():
            # What is left of ours goes all the same.
            module.warn(error.message)
            return {"changed": False}
        # Another name, the way out of a spawn, is none here.
        raise VmwError(error.message, "vmw leaves it alone; `virsh` removes it if it is yours", error.code) from error
    if domain is not None and not module.check_mode:
        if has_saved_memory(domain):
            module.warn(f"the saved memory of {files.name} goes with it, with whatever ran in it")
        # A fork that is being loaded is transient: libvirt forgets it when it ends.
        persistent = domain.isPersistent()
        if is_running(domain):
            domain.destroy()
        if persistent:
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            )
    return {"changed": domain is not None}
