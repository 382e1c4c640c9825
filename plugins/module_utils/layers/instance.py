# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Decide everything about one VM and write it down as its record, or remove that."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shlex
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils.accelerator import virt_type
from ansible_collections.vmw.worktree.plugins.module_utils.audit import take as take_fingerprint
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import EMULATED_VCPUS
from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import read_layout
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import choose, prepare, release
from ansible_collections.vmw.worktree.plugins.module_utils.image import Manifest, current_generation
from ansible_collections.vmw.worktree.plugins.module_utils.instance import (
    PROXY,
    SCHEMA,
    Instance,
    InstanceFiles,
    Keys,
    all_instances,
    files_of,
)
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect, find_own_domain
from ansible_collections.vmw.worktree.plugins.module_utils.naming import check_name, check_profile, name_for
from ansible_collections.vmw.worktree.plugins.module_utils.network_card import mac_address, taken_addresses
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import all_published, can_bind
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import find_profile, find_proxy
from ansible_collections.vmw.worktree.plugins.module_utils.session import (
    LOOPBACK,
    check_keys,
    check_policy,
    choose_ssh_port,
    is_session,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, State, command, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory
from ansible_collections.vmw.worktree.plugins.module_utils.worktree import check_worktree, overlap

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Module

SIZES = ("memory_mib", "vcpus", "disk_gib")
SPARE_BYTES = 1 << 30
"""Free space below which no VM is made: a fresh guest writes a few hundred MB in its first minutes."""

PUBLIC_KEY = re.compile(r"(ssh|ecdsa|sk-ssh|sk-ecdsa)-(?!\S*-cert-)\S+ [A-Za-z0-9+/]+=*( |$)")
"""A line of a public key file, sshd(8): certificates have a type of their own, and are no keys to log in with."""

USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
"""What useradd(8) takes without --badname."""

MINIMUM = {"memory_mib": 512, "vcpus": 1, "disk_gib": 4}


def authorized_keys(ssh_directory: Path) -> list[str]:
    """Return the public keys that may log in to a new VM: the user's key files, and what the SSH agent holds.

    Raises:
        VmwError: There is no key at all.
    """
    texts = [path.read_text(errors="replace") for path in sorted(ssh_directory.glob("id_*.pub"))]
    agent = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, errors="replace", check=False)
    texts += [agent.stdout] if agent.returncode == 0 else []
    lines = [line.strip() for text in texts for line in text.splitlines()]
    keys = list(dict.fromkeys(line for line in lines if PUBLIC_KEY.match(line)))
    if not keys:
        message = f"there is no SSH public key in {ssh_directory} and none in an SSH agent"
        raise VmwError(message, "make one with `ssh-keygen -t ed25519`", "host_not_ready")
    return keys


def golden_image(state: State, guest_user: str) -> Manifest:
    """Return the golden image's current generation.

    Args:
        state: The state directory's layout.
        guest_user: The user that the guest is to have.

    Raises:
        VmwError: There is none yet, or it was made for another user.
    """
    if guest_user == "root" or not USER_NAME.fullmatch(guest_user):
        message = f"{guest_user!r} cannot be the guest's user"
        raise VmwError(message, "vmw_guest_user has lower-case letters, digits, - and _, and is not root", "usage")
    manifest = current_generation(state)
    if manifest is None:
        message = "there is no golden image yet"
        raise VmwError(message, "build it with `vmw image build`, or set up everything with `vmw host`", "host_not_ready")
    if manifest.guest_user != guest_user:
        message = f"the golden image was made for the user {manifest.guest_user!r}, and vmw_guest_user is {guest_user!r}"
        raise VmwError(message, "`vmw image build` makes one for that user", "host_not_ready")
    return manifest


def check_disk(state: State, manifest: Manifest, disk_gib: int) -> None:
    """Refuse a disk that has no room on the host, or would cut off the golden image's file system.

    Raises:
        VmwError: Less than `SPARE_BYTES` are free, or the disk is smaller than the image's.
    """
    place = state.instances if state.instances.is_dir() else state.images
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if free < SPARE_BYTES:
        message = f"only {free >> 20} MiB are free on the file system of {place}, and a new VM needs 1 GiB"
        raise VmwError(message, "make room: `vmw list` shows the VMs' disks, `vmw image prune` removes old images")
    image_gib = manifest.virtual_size >> 30
    if disk_gib < image_gib:
        message = f"a disk of {disk_gib} GiB is smaller than the golden image's, which has {image_gib} GiB"
        raise VmwError(message, "ask for more, or build a smaller image: `vmw_disk_gib` is its size", "usage")


def ssh_port(state: State, parameters: dict[str, Any], name: str) -> int:
    """Return the port of the host's loopback at which a new VM is reached, or 0 for one that gets an address of its own."""
    if not is_session(parameters["libvirt_uri"]):
        return 0
    taken = {instance.ssh_port for instance in all_instances(state)} | {
        each.port.host for each in all_published(unit_directory())
    }
    return choose_ssh_port(name, taken, lambda port: can_bind(LOOPBACK, port))


def new_record(parameters: dict[str, Any], state: State, worktree: Path, name: str) -> Instance:
    """Decide everything about a VM that does not exist yet."""
    for size in SIZES:
        if parameters[size] < MINIMUM[size]:
            message = f"{size} is {parameters[size]}, and at least {MINIMUM[size]} are needed"
            raise VmwError(message, "ask for a larger VM", "usage")
    if is_session(parameters["libvirt_uri"]):
        check_policy(parameters["egress"])
        check_keys(parameters["keys"])
    profile = parameters["secrets"] or parameters["secrets_profile"]
    # The one of the time before profiles is moved when the VM is started.
    if profile != DEFAULT_PROFILE or (parameters["keys"] == PROXY and state.secrets_of(profile).is_dir()):
        find_profile(state, profile)
    if parameters["keys"] == PROXY:
        # Later, there would be a VM that keeps a way to keys which it cannot have.
        find_proxy(state)
    manifest = golden_image(state, parameters["guest_user"])
    check_disk(state, manifest, parameters["disk_gib"])
    git = choose(worktree, read_layout(worktree), parameters["git_mode"], parameters["guest_user"], state)
    return Instance(
        schema=SCHEMA,
        name=name,
        uuid=str(uuid.uuid4()),
        mac=mac_address(name, taken_addresses(state)),
        worktree=str(worktree),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        memory_mib=parameters["memory_mib"],
        vcpus=parameters["vcpus"],
        disk_gib=parameters["disk_gib"],
        bridge=parameters["bridge"],
        guest_user=parameters["guest_user"],
        uid=os.getuid(),
        authorized_keys=authorized_keys(Path("~/.ssh").expanduser()),
        generation=manifest.generation,
        virt_type=virt_type(parameters["virt_type"]),
        libvirt_uri=parameters["libvirt_uri"],
        git=git,
        secrets_profile=profile,
        egress=Egress(parameters["egress"]),
        keys=Keys(parameters["keys"]),
        ssh_port=ssh_port(state, parameters, name),
    )


def existing_record(state: State, worktree: Path, name: str) -> Instance | None:
    """Return the VM that this worktree has already.

    Args:
        state: The state directory's layout.
        worktree: The worktree's real path.
        name: The name that the user asked for, or an empty string.

    Raises:
        VmwError: The worktree's VM has another name than the one asked for, or the name is another worktree's.
    """
    instances = all_instances(state)
    for instance in instances:
        if instance.worktree == str(worktree):
            if name and name != instance.name:
                message = f"{worktree} already has the VM {instance.name!r}"
                raise VmwError(message, f"use it, or remove it first with `vmw destroy {instance.name}`", "conflict")
            return instance
    wanted = name or name_for(worktree.name)
    for instance in instances:
        if instance.name == wanted:
            message = f"the VM {wanted!r} belongs to {instance.worktree}, so {worktree} cannot use that name"
            raise VmwError(message, f"choose another: `vmw spawn {shlex.quote(str(worktree))} --name {wanted}-2`", "conflict")
        if overlap(Path(instance.worktree), worktree):
            # Whoever can write the outer one could put a link in the place of the inner one.
            message = f"{worktree} overlaps {instance.worktree}, which the VM {instance.name!r} can change"
            raise VmwError(message, f"worktrees beside each other work; `vmw destroy {instance.name}` frees it", "conflict")
    return None


def check_profile_kept(instance: Instance, asked: str) -> None:
    """Refuse to take a VM for one with other secrets: what ran in it has seen those it was made with.

    Args:
        instance: The VM.
        asked: The profile that the user asked for, or an empty string.

    Raises:
        VmwError: The VM has another one.
    """
    if asked and asked != instance.secrets_profile:
        message = f"{instance.name} was made with the secrets profile {instance.secrets_profile!r}, and keeps it: not {asked!r}"
        hint = f"`vmw start {instance.name}` starts it as it is; `vmw destroy {instance.name}` makes room for one with others"
        raise VmwError(message, hint, "conflict")


def can_write(instance: Instance, directory: Path) -> bool:
    """Tell whether a VM can write a git directory because it lies in its worktree; a ``.git`` of its own is covered there."""
    worktree = Path(instance.worktree)
    if worktree not in (directory, *directory.parents):
        return False
    own = worktree / ".git"
    return instance.git.kind != "main" or own not in (directory, *directory.parents)


def check_repositories(state: State, new: Instance) -> None:
    """Refuse a VM whose repository another one can write, and the other way round.

    Raises:
        VmwError: With the other's name.
    """
    for other in all_instances(state):
        for owner, writer in ((new, other), (other, new)):
            for directory in {owner.git.common_dir, owner.git.git_dir} - {""}:
                if can_write(writer, Path(directory)):
                    message = (
                        f"{directory}, the repository of {owner.name!r}, lies in {writer.worktree}, a worktree of {writer.name!r}"
                    )
                    raise VmwError(message, f"`vmw destroy {other.name}` frees it", "conflict")


def refuse_remains(files: InstanceFiles, *, has_domain: bool) -> None:
    """Refuse to build a new VM upon what is left of one whose record is lost: its disk and its domain have another identity.

    Raises:
        VmwError: There is a domain, or a file.
    """
    left = [path.name for path in files.directory.glob("[!.]*")] if files.directory.is_dir() else []
    if has_domain or left:
        message = f"parts of an earlier VM {files.name!r} are there, and its record is lost"
        raise VmwError(message, f"remove them with `vmw destroy {files.name}`, and spawn again", "conflict")


def write_identity(files: InstanceFiles, instance: Instance, *, forward_agent: bool = True) -> bool:
    """Make the SSH host key, pin it, and write the SSH stanza.

    Args:
        files: The VM's files.
        instance: Its record.
        forward_agent: Whether plain ssh lends it the user's SSH agent.

    Returns:
        Whether anything changed.
    """
    changed = False
    public_key = files.host_key.with_suffix(".pub")
    if not files.host_key.is_file() or not public_key.is_file():
        partial = files.host_key.with_suffix(".partial")
        for path in (partial, partial.with_suffix(".partial.pub")):
            path.unlink(missing_ok=True)
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{instance.name} host key", "-f", str(partial))
        partial.with_suffix(".partial.pub").chmod(0o600)
        # The private one comes last: a run that is interrupted before leaves none, and the next one makes both anew.
        partial.with_suffix(".partial.pub").replace(public_key)
        partial.replace(files.host_key)
        changed = True
    public = public_key.read_text().split()
    changed |= write_file(files.known_hosts, f"{instance.name} {public[0]} {public[1]}\n", 0o600)
    place = (f"HostName {LOOPBACK}", f"Port {instance.ssh_port}") if instance.is_session else (f"HostName {instance.name}.local",)
    stanza = (
        f"Host {instance.name} {instance.name}.local",
        *(f"  {line}" for line in place),
        f"  User {instance.guest_user}",
        f"  HostKeyAlias {instance.name}",
        f'  UserKnownHostsFile "{files.known_hosts}"',
        f"  ForwardAgent {'yes' if forward_agent else 'no'}",
    )
    return changed | write_file(files.ssh_config, "\n".join(stanza) + "\n", 0o600)


def tell_kept(module: Module, instance: Instance) -> None:
    """Warn of what an existing VM keeps, whatever new ones get."""
    parameters = module.params
    for size in SIZES:
        if parameters[size] != getattr(instance, size):
            made = f"{size} {getattr(instance, size)}"
            module.warn(f"{instance.name} was made with {made} and keeps it; {parameters[size]} applies to new VMs")
    if instance.git.kind != "none" and parameters["git_mode"] != instance.git.mode:
        module.warn(f"{instance.name} was made with git {instance.git.mode} and keeps it; destroy it to change that")
    if instance.is_session and parameters["egress"] != instance.egress.mode:
        module.warn(
            f"{instance.name} reaches what you reach: it was made with {instance.libvirt_uri}, which has no other network policy"
        )
    # With the user's own libvirt the settings cannot have other values, and these are no wish for this VM.
    foreign = is_session(parameters["libvirt_uri"]) and not instance.is_session
    if not instance.is_session and not foreign and parameters["egress"] != instance.egress.mode:
        module.warn(
            f"{instance.name} keeps its network policy {instance.egress.mode}; "
            f"`vmw net {instance.name} {parameters['egress']}` changes it"
        )
    if not foreign and parameters["keys"] != instance.keys.mode:
        module.warn(f"{instance.name} was made with keys by {instance.keys.mode} and keeps that; destroy it to change it")
    if not parameters["secrets"] and parameters["secrets_profile"] != instance.secrets_profile:
        module.warn(
            f"{instance.name} was made with the secrets profile {instance.secrets_profile} and keeps it; "
            f"{parameters['secrets_profile']} applies to new VMs"
        )


def present(module: Module) -> dict[str, Any]:
    """Find or make the record."""
    parameters = module.params
    state = State.at(parameters["state_dir"])
    worktree = check_worktree(parameters["worktree"], state.root)
    name = check_name(parameters["name"]) if parameters["name"] else ""
    asked = check_profile(parameters["secrets"]) if parameters["secrets"] else ""
    with contextlib.nullcontext() if module.check_mode else state.lock("instances"):
        instance = existing_record(state, worktree, name)
        files = InstanceFiles(state, instance.name if instance else name or name_for(worktree.name))
        if files.leaving.exists():
            # Says so.
            files.load()
        connection = connect(instance.libvirt_uri if instance else parameters["libvirt_uri"])
        domain = find_own_domain(connection, files.name, str(files.record))
        if instance is None:
            refuse_remains(files, has_domain=domain is not None)
            instance = new_record(parameters, state, worktree, files.name)
            check_repositories(state, instance)
            if instance.virt_type == "qemu" and instance.vcpus > EMULATED_VCPUS:
                module.warn(
                    f"without KVM, {instance.name} runs on {EMULATED_VCPUS} of its {instance.vcpus} virtual CPUs, "
                    f"as QEMU does not emulate several of them reliably"
                )
            changed = True
            if not module.check_mode:
                files.save(instance)
        else:
            changed = False
            if instance.is_session and not instance.ssh_port:
                message = f"{instance.name} is of an earlier release, whose VMs of {instance.libvirt_uri} had no network"
                raise VmwError(message, f"`vmw destroy {instance.name}` makes room for a new one; its worktree stays", "conflict")
            check_profile_kept(instance, asked)
            tell_kept(module, instance)
        if not module.check_mode:
            if not files.disk.exists() and not files.fingerprint.exists():
                # No guest has had the worktree yet.
                prepare(instance, files)
                take_fingerprint(files, instance)
                changed = True
            changed |= write_identity(files, instance, forward_agent=parameters["ssh_agent"] == "forward")
    return {"changed": changed, "instance": instance.as_dict()}


def check_ours(files: InstanceFiles) -> None:
    """Refuse to remove what is not ours.

    Raises:
        VmwError: The directory is a link, or somebody else's files are in it.
    """
    hint = f"move it away, then run `vmw destroy {files.name}` again"
    if files.directory.is_symlink():
        message = f"{files.directory} is a link, and vmw removes only what it made"
        raise VmwError(message, hint, "conflict")
    strange = sorted(entry.name for entry in files.directory.glob("*") if not files.made_here(entry.name))
    if strange:
        message = f"{files.directory} holds what vmw did not make: {', '.join(strange)}"
        raise VmwError(message, hint, "conflict")


def leaving(module: Module) -> dict[str, Any]:
    """Have nobody start or complete a VM that is about to be removed."""
    files = files_of(module.params["state_dir"], module.params["name"])
    check_ours(files)
    changed = files.directory.is_dir() and not files.leaving.exists()
    if changed and not module.check_mode:
        with files.state.lock("instances"):
            files.leaving.touch()
    return {"changed": changed}


def remove_tree(directory: Path) -> None:
    """Remove a directory in which a guest may have closed others even to their owner, and nested them beyond Python's depth."""
    command("chmod", "-R", "u+rwx", "--", str(directory))
    command("rm", "-rf", "--", str(directory))


def absent(module: Module) -> dict[str, Any]:
    """Remove the record and its directory."""
    files = files_of(module.params["state_dir"], module.params["name"])
    check_ours(files)
    changed = files.directory.is_dir()
    if changed and not module.check_mode:
        try:
            if files.exists():
                release(files.read())
        except VmwError as error:
            # A commit that stays kept costs some space, and must not keep the VM.
            module.warn(f"{files.name}'s commit stays kept in your repository: {error.message}")
        # The record goes last, so that an interrupted removal is still known to `vmw list` and `vmw destroy`.
        last = (files.record, files.leaving)
        for entry in files.directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            elif entry not in last:
                entry.unlink()
        for path in last:
            path.unlink(missing_ok=True)
        files.directory.rmdir()
    return {"changed": changed}
