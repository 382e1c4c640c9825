# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Have a VM's network policy enforced, or forgotten."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent, packet_filter, passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.bridge_address import bridge_address
from ansible_collections.vmw.worktree.plugins.module_utils.egress import (
    ALLOWLIST,
    Egress,
    guest_script,
    proxy_port,
    proxy_url,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    connect,
    find_own_domain,
    is_running,
)
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import can_bind
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import find_proxy
from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK, check_lists, check_policy

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Module
    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

TELL_SECONDS = 30.0
"""How long the guest may take to write two files."""

SAID_LENGTH = 200
"""Characters of the guest's complaint that are shown."""


def described(egress: Egress) -> str:
    """Return a policy for a diff."""
    return "".join(f"{line}\n" for line in (egress.mode, *egress.allow))


def port_of_proxy(state: State, setting: int) -> int:
    """Return the port of the user's proxy: the one that was asked for, or that it was set up with, or the one of this user."""
    if not setting:
        with contextlib.suppress(VmwError):
            setting = int(find_proxy(state).rpartition(":")[2])
    return proxy_port(setting, os.getuid())


def guest_url(instance: Instance, port: int) -> str:
    """Return the URL of the proxy that a guest is to use, or an empty string for one that needs none."""
    allowed = not instance.is_session and instance.egress.mode == ALLOWLIST
    return proxy_url(bridge_address(instance.bridge), port) if allowed else ""


def tell_guest(module: Module, files: InstanceFiles, domain: Any, asked_port: int) -> None:  # noqa: ANN401
    """Have the programs in a running guest use the proxy of its policy, or none any more, unless they know that already.

    Nothing is enforced by that, so a guest that does not listen is only warned of.

    Args:
        module: The task.
        files: The VM's files.
        domain: Its domain, which runs.
        asked_port: The proxy's port, or 0 for this user's own.
    """
    instance = files.load()
    try:
        url = guest_url(instance, port_of_proxy(files.state, asked_port))
        if instance.egress.told == url:
            return
        # Without a lock: a guest may take its time, and others have theirs to do.
        ended = guest_agent.call(domain, "/bin/sh", stdin=guest_script(url), timeout=TELL_SECONDS)
        reason = printable(ended.output.strip()[:SAID_LENGTH]) if ended.status else ""
    except VmwError as error:
        reason = error.message
    if reason:
        module.warn(f"the programs in {files.name} do not know their way to the network: {reason}")
        return
    with files.state.lock("instances"):
        now = files.load()
        files.save(dataclasses.replace(now, egress=dataclasses.replace(now.egress, told=url)))


def serve(module: Module, instance: Instance) -> dict[str, Any]:
    """Have passt be the network of a VM of the user's own libvirt.

    Raises:
        VmwError: Another policy is asked for, or somebody else has the VM's port.
    """
    check_policy(module.params["mode"])
    check_lists([*module.params["allow"], *module.params["forbid"]])
    if not module.check_mode and not passt_units.is_connected(instance.name) and not can_bind(LOOPBACK, instance.ssh_port):
        # QEMU would try again and again to get a network, and never start.
        message = f"port {instance.ssh_port} of this host, at which {instance.name} is reached, is taken by another program"
        raise VmwError(message, f"`ss -tlnp sport = :{instance.ssh_port}` shows which; end it, and try again", "conflict")
    changed = passt_units.present(instance.name, instance.ssh_port, check_mode=module.check_mode)
    return {"changed": changed, "egress": dataclasses.asdict(instance.egress)}


def present(module: Module) -> dict[str, Any]:
    """Change the policy and have it enforced."""
    parameters = module.params
    files = files_of(parameters["state_dir"], parameters["name"])
    if module.check_mode and not files.exists():
        return {"changed": True, "egress": dataclasses.asdict(Egress())}
    recorded = files.load()
    if recorded.is_session:
        return serve(module, recorded)
    port = port_of_proxy(files.state, parameters["proxy_port"])
    with contextlib.nullcontext() if module.check_mode else files.state.lock("instances"):
        before = files.load()
        egress = before.egress.changed(parameters["mode"], parameters["allow"], parameters["forbid"])
        after = dataclasses.replace(before, egress=egress)
        # Says so when a guest could not be led to the proxy.
        guest_url(after, port)
        changed = after != before
        if not module.check_mode:
            changed |= enforce(files, before, after, port)
    asked = egress != before.egress or bool(parameters["mode"])
    if asked and not module.check_mode:
        domain = find_own_domain(connect(after.libvirt_uri), files.name, str(files.record))
        if is_running(domain):
            if warning := packet_filter.card_warning(after, domain.XMLDesc()):
                module.warn(warning)
            tell_guest(module, files, domain, port)
    return {
        "changed": changed,
        "egress": dataclasses.asdict(egress),
        "diff": {"before": described(before.egress), "after": described(egress)},
    }


def enforce(files: InstanceFiles, before: Instance, after: Instance, port: int) -> bool:
    """Have a policy enforced and write it down; return whether that is new to the packet filter.

    One that cannot be written down is taken back, unless it lets less through: filling the disk shall be no way to keep that off.
    """
    changed = packet_filter.enforce(after, port)
    if after != before:
        try:
            files.save(after)
        except OSError as error:
            if not after.egress.is_wider(before.egress):
                message = f"{after.name} is {after.egress.mode} now, which could not be written down: {error.strerror or error}"
                hint = f"make room and run it again, or the next start of {after.name} brings {before.egress.mode} back"
                raise VmwError(message, hint) from error
            packet_filter.enforce(before, port)
            raise
    return changed


def absent(module: Module) -> dict[str, Any]:
    """Have the filter forget the VM, and passt be no network of it; which of them it had, a lost record does not tell."""
    files = files_of(module.params["state_dir"], module.params["name"])
    if module.check_mode:
        return {"changed": files.exists()}
    served = passt_units.absent(files.name)
    try:
        released = packet_filter.release(files.name)
    except VmwError as error:
        # What is left of a policy lets nobody through, and must not keep the VM. passt's users may have no word with the filter.
        if not served:
            module.warn(f"the packet filter may still know {files.name}: {error.message}")
        released = False
    return {"changed": served or released}
