#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Bake a golden image in a one-off VM, and publish it as a generation."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_bake
short_description: Bake a golden image and publish it
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Boots a base image in a one-off VM, the builder, has it run a script, takes over the kernel and the initial ramdisk,
    flattens the disk and publishes all of it as an immutable generation, which becomes the current one.
  - A build that fails or is interrupted leaves nothing that looks complete. The builder ends with the module, whatever ends it,
    because libvirt destroys the domain when the module's connection closes. (C(community.libvirt.virt) has no such mode.)
  - Tells how far it is through C(progress.json) in O(state_dir).
attributes:
  check_mode:
    support: full
    description: Says that it would bake.
  diff_mode:
    support: none
    description: The result is one binary file.
options:
  state_dir:
    description:
      - vmw's directory on the host, as an absolute path.
      - All files are made as its owner, also when the module runs as root to talk to libvirt.
    type: path
    required: true
  libvirt_uri:
    description: The connection to libvirt.
    type: str
    required: true
  virt_type:
    description: How the builder runs.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  bridge:
    description: The bridge through which the builder reaches the network.
    type: str
    required: true
  base_image:
    description: Path of the verified base image, qcow2 or raw.
    type: path
    required: true
  base_image_url:
    description: Where the base image came from, for the manifest.
    type: str
    required: true
  base_image_sha512:
    description: Its digest.
    type: str
    required: true
  files:
    description: The files that the builder gets, by name. It runs C(bake.sh).
    type: dict
    required: true
  steps:
    description: The script's steps in their order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The step's name in the script.
        type: str
        required: true
      title:
        description: The step in words.
        type: str
        required: true
  settings:
    description: Variables that the script reads, by name.
    type: dict
    required: true
  certificates:
    description: CA certificate files of the host that the image must trust.
    type: list
    elements: path
    default: []
  inputs:
    description: What shapes the image; the manifest keeps a hash of it.
    type: dict
    required: true
  disk_gib:
    description: The image's virtual size in GiB. A clone cannot be smaller.
    type: int
    required: true
  silence:
    description: Seconds for which the builder may print nothing before it is given up.
    type: int
    default: 1200
  force:
    description: Bake also when there is a current generation.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Bake the golden image
  vmw.worktree.image_bake:
    state_dir: /home/me/.config/vmw
    libvirt_uri: qemu:///system
    bridge: br0
    base_image: /home/me/.config/vmw/images/.download/0d1f
    base_image_url: https://images.example.org/debian-12.qcow2
    base_image_sha512: 0d1f
    files:
      bake.sh: "{{ lookup('ansible.builtin.file', 'bake.sh') }}"
    steps:
      - name: packages
        title: Install the packages
    settings:
      GUEST_USER: claude
    inputs:
      guest_user: claude
    disk_gib: 20
"""

RETURN = r"""
generation:
  description: Name of the current generation.
  returned: success, outside check mode
  type: str
  sample: 20261124-093012-5f0c1a9e
manifest:
  description: What it is.
  returned: success, outside check mode
  type: dict
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils import passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.accelerator import virt_type
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import EMULATED_VCPUS
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.image import (
    BUILD_PREFIX,
    DOWNLOADS,
    GENERATION,
    LOCK,
    SCHEMA,
    BaseImage,
    CallerWatch,
    InterruptedByUserError,
    Manifest,
    Progress,
    acting_as,
    current_generation,
    generation_name,
    inputs_hash,
)
from ansible_collections.vmw.worktree.plugins.module_utils.image_builder import (
    Builder,
    Console,
    Facts,
    Step,
    command_line,
    domain_xml,
    is_builder,
    seed_files,
    settings_file,
    unpack_handover,
)
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import connect, is_out_of_space
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session
from ansible_collections.vmw.worktree.plugins.module_utils.state import (
    State,
    command,
    grant,
    open_way,
    qemu_label,
    qemu_peer,
    write_file,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import libvirt
except ImportError:
    # `connect` says so in words.
    libvirt = None

FAILED = ".failed"
"""Directory below ``images`` for the console's log of a build that failed."""

MEMORY_MIB = 2048
MAX_VCPUS = 4
HANDOVER_BYTES = 600 << 20
"""Size of the sparse disk that the builder writes kernel, initial ramdisk and facts to."""

NEEDED_BYTES = 5 << 30
"""Free space that a build needs: about 1.5 GiB each were seen for changed blocks and flattened image, and packages grow."""

NETWORK = "_bake"
"""Name of the builder's network where passt is that; no VM can have it."""

NETWORK_HINT = "look at the whole console in the log; is the network of the host up?"
FULL_DISK_HINT = "make room on the file system of the golden images, then run the same command again"
POLL_SECONDS = 1.0
POWER_OFF_SECONDS = 60.0
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Build:
    """One build: its generation's name and the files in its working directory."""

    state: State
    generation: str

    @property
    def directory(self) -> Path:
        """Hold everything until the generation is complete."""
        return self.state.images / f"{BUILD_PREFIX}{self.generation}"

    @property
    def overlay(self) -> Path:
        """Hold the blocks that the builder changes."""
        return self.directory / "overlay.qcow2"

    @property
    def seed(self) -> Path:
        """Hold the builder's NoCloud seed."""
        return self.directory / "seed.iso"

    @property
    def handover(self) -> Path:
        """Hold what the builder hands over."""
        return self.directory / "handover.raw"

    @property
    def console(self) -> Path:
        """Hold what the builder prints on its serial console."""
        return self.directory / "console.log"

    @property
    def result(self) -> Path:
        """Become the generation."""
        return self.directory / "generation"

    @property
    def domain_prefix(self) -> str:
        """Start the name of each of this user's builders."""
        return f"vmw-bake-{pwd.getpwuid(self.state.root.stat().st_uid).pw_name}-"


class Baker:
    """Bakes one generation."""

    def __init__(self, params: dict[str, Any], state: State) -> None:
        """Prepare, without touching anything.

        Args:
            params: The module's parameters.
            state: Where vmw keeps its things.
        """
        self.params = params
        self.steps = [Step(step["name"], step["title"]) for step in params["steps"]]
        self.inputs = inputs_hash(params["inputs"])
        begun = datetime.now(UTC)
        self.created = begun.isoformat(timespec="seconds")
        self.build = Build(state, generation_name(begun, self.inputs, params["base_image_sha512"]))
        self.virt_type = virt_type(params["virt_type"])
        self.progress = Progress(state, "Bake the golden image", "steps")
        self.caller = CallerWatch()

    def tell(self, done: int, detail: str) -> None:
        """Tell how far the build is; the host's own steps are one before and two after the builder's."""
        self.progress.update(done, len(self.steps) + 3, detail)

    def prepare(self, peer: str) -> Builder:
        """Make the builder's files and return its description.

        Args:
            peer: The user under which QEMU runs, or an empty string when that is the calling user.
        """
        build = self.build
        for leftover in build.state.images.glob(f"{BUILD_PREFIX}*"):
            shutil.rmtree(leftover)
        check_space(build.state.images)
        base = self.params["base_image"]
        base_format = image_format(base, self.params["disk_gib"])
        build.directory.mkdir()
        command(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format, "-b", base,
            str(build.overlay), f"{self.params['disk_gib']}G",
        )  # fmt: skip
        name = build.domain_prefix + build.generation
        self._make_seed(name)
        with build.handover.open("wb") as handle:
            handle.truncate(HANDOVER_BYTES)
        build.console.touch(mode=0o644)
        if peer:
            open_way(build.overlay, peer)
            open_way(Path(base), peer)
            grant(build.overlay, peer, "rw-")
            grant(build.handover, peer, "rw-")
        return Builder(
            name=name,
            virt_type=self.virt_type,
            bridge=self.params["bridge"],
            memory_mib=MEMORY_MIB,
            vcpus=min(MAX_VCPUS, os.cpu_count() or 1) if self.virt_type == "kvm" else EMULATED_VCPUS,
            disk=str(build.overlay),
            base_image=base,
            base_format=base_format,
            seed=str(build.seed),
            handover=str(build.handover),
            console=str(build.console),
            label=qemu_label(peer),
            network_socket=passt_units.socket_path(NETWORK) if is_session(self.params["libvirt_uri"]) else "",
        )

    def _make_seed(self, name: str) -> None:
        certificates = [read_certificate(path) for path in self.params["certificates"]]
        sources = self.build.directory / "seed"
        sources.mkdir()
        settings = {key: str(value) for key, value in self.params["settings"].items()}
        # The uid of whoever the VMs will belong to, also where root bakes.
        settings["GUEST_UID"] = str(self.build.state.root.stat().st_uid)
        files = {key: str(value) for key, value in self.params["files"].items()}
        texts = seed_files(name, {**files, "settings": settings_file(settings, self.steps)}, certificates)
        for file, text in texts.items():
            write_file(sources / file, text)
        command(
            "xorriso", "-as", "mkisofs", "-quiet", "-output", str(self.build.seed),
            "-volid", "cidata", "-joliet", "-rock", str(sources),
        )  # fmt: skip

    def watch(self, domain: Any) -> None:  # noqa: ANN401
        """Follow the builder until it has powered itself off.

        Raises:
            VmwError: A step failed, or the builder fell silent or ended before its last step.
        """
        console = Console()
        offset = 0
        last_words = time.monotonic()
        told = -1
        while True:
            # Asked before the console is read, so that a builder that ends has had its say.
            alive = is_active(domain)
            with self.build.console.open("rb") as handle:
                handle.seek(offset)
                chunk = handle.read(CHUNK_BYTES)
            if chunk:
                offset += len(chunk)
                last_words = time.monotonic()
                console.feed(chunk.decode(errors="replace"))
            if console.step != told:
                told = console.step
                self.tell(told, self.title(told))
            if console.failed:
                raise self.failure(console, console.reason)
            if alive and is_out_of_space(domain):
                raise self.failure(console, "the builder was paused, as QEMU does when it cannot write", FULL_DISK_HINT)
            if not alive and not chunk:
                if console.done:
                    return
                raise self.failure(console, "the builder stopped")
            silent = time.monotonic() - last_words
            if console.done and silent > POWER_OFF_SECONDS:
                raise self.failure(console, "the builder does not power off")
            if silent > self.params["silence"]:
                raise self.failure(console, f"the builder has printed nothing for {silent:.0f} seconds")
            self.caller.check()
            time.sleep(POLL_SECONDS)

    def title(self, number: int) -> str:
        """Name the builder's step `number`, counted from 1; 0 is before the first."""
        return self.steps[number - 1].title if 0 < number <= len(self.steps) else "Boot the builder"

    def failure(self, console: Console, reason: str, hint: str = NETWORK_HINT) -> VmwError:
        """Word a failed build, with the last that the builder printed."""
        message = f"baking the golden image failed in the step {self.title(console.step)!r}: {reason}"
        words = "".join(f"\n  {line}" for line in console.output)
        return VmwError(message + (f"; the builder's last words:{words}" if words else ""), hint)

    def collect(self) -> Facts:
        """Take over kernel, initial ramdisk and facts, and flatten the disk."""
        build = self.build
        build.result.mkdir()
        with build.handover.open("rb") as archive:
            facts = unpack_handover(archive, build.result)
        self.tell(len(self.steps) + 1, "Flatten the disk")
        disk = str(build.result / "disk.qcow2")
        # Not compressed: every clone reads through it.
        self.call("qemu-img", "convert", "-q", "-W", "-f", "qcow2", "-O", "qcow2", str(build.overlay), disk)
        return facts

    def call(self, *argv: str) -> None:
        """Run a program for as long as somebody waits for it.

        Raises:
            VmwError: It failed.
        """
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            while process.poll() is None:
                self.caller.check()
                time.sleep(POLL_SECONDS / 10)
        finally:
            process.kill()
            _, words = process.communicate()
        if process.returncode:
            message = f"`{argv[0]}` failed: {words.strip()}"
            raise VmwError(message, "is the disk full?")

    def publish(self, facts: Facts, peer: str) -> Manifest:
        """Make the generation the current one."""
        build = self.build
        self.tell(len(self.steps) + 2, "Publish the generation")
        manifest = Manifest(
            schema=SCHEMA,
            generation=build.generation,
            created=self.created,
            base_image=BaseImage(self.params["base_image_url"], self.params["base_image_sha512"]),
            debian=facts.debian,
            kernel=facts.kernel,
            cmdline=command_line(facts),
            node=facts.node,
            claude_code=facts.claude_code,
            virtual_size=self.params["disk_gib"] << 30,
            guest_user=str(self.params["settings"].get("GUEST_USER", "")),
            inputs=self.inputs,
        )
        write_json(build.result / "manifest.json", manifest.as_dict(), 0o444)
        for name in ("disk.qcow2", "kernel", "initrd"):
            path = build.result / name
            path.chmod(0o444)
            sync(path)
        sync(build.result)
        final = build.state.images / build.generation
        build.result.rename(final)
        sync(build.state.images)
        link = build.state.golden_image.with_name(".golden-image.qcow2")
        link.unlink(missing_ok=True)
        link.symlink_to(Path("images", build.generation, "disk.qcow2"))
        link.replace(build.state.golden_image)
        sync(build.state.root)
        if peer:
            open_way(final / "disk.qcow2", peer)
        return manifest

    def keep_console(self) -> str:
        """Save the console's log of a failed build and return its new path; an empty string when there is none."""
        if not self.build.console.exists() or not self.build.console.stat().st_size:
            return ""
        directory = self.build.state.images / FAILED
        directory.mkdir(exist_ok=True)
        return str(self.build.console.replace(directory / "console.log"))

    def forget_earlier_builds(self) -> None:
        """Remove the console's log of an earlier build that failed, and base images that this build did not use."""
        images = self.build.state.images
        shutil.rmtree(images / FAILED, ignore_errors=True)
        for path in (images / DOWNLOADS).iterdir():
            if path != Path(self.params["base_image"]):
                path.unlink()


def check_space(directory: Path) -> None:
    """Refuse to start what a full disk would end.

    Raises:
        VmwError: Less than `NEEDED_BYTES` are free.
    """
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < NEEDED_BYTES:
        message = (
            f"only {free >> 20} MiB are free on the file system of {directory},"
            f" and building a golden image needs {NEEDED_BYTES >> 20} MiB"
        )
        raise VmwError(message, "make room: `vmw image prune` removes images that nothing uses")


def image_format(path: str, disk_gib: int) -> str:
    """Return the format of a base image.

    Args:
        path: The base image.
        disk_gib: The golden image's virtual size in GiB.

    Raises:
        VmwError: It cannot be the root disk of a VM of that size.
    """
    info = json.loads(command("qemu-img", "info", "--output=json", path))
    if info["virtual-size"] > disk_gib << 30:
        message = f"a disk of {disk_gib} GiB is smaller than the base image, which has {info['virtual-size'] / (1 << 30):.1f} GiB"
        raise VmwError(message, "give vmw_disk_gib a larger value", "usage")
    if info["format"] not in {"qcow2", "raw"} or "backing-filename" in info:
        message = f"the base image is neither a complete qcow2 nor a raw disk image, but {info['format']}"
        raise VmwError(message, "check vmw_base_image_url", "usage")
    return str(info["format"])


def read_certificate(path: str) -> str:
    """Return a CA certificate of the host.

    Raises:
        VmwError: The file is unreadable or no certificate in PEM.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        message = f"the CA certificate {path} cannot be read: {error}"
        raise VmwError(message, "check vmw_ca_certificates", "usage") from error
    if "-----BEGIN CERTIFICATE-----" not in text:
        message = f"{path} is no CA certificate in PEM"
        raise VmwError(message, "check vmw_ca_certificates", "usage")
    return text


def sync(path: Path) -> None:
    """Have a file's or directory's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_active(domain: Any) -> bool:  # noqa: ANN401
    """Tell whether a transient domain still runs.

    Raises:
        VmwError: libvirt does not answer.
    """
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        message = f"libvirt was lost while the golden image was baked: {error}"
        raise VmwError(message, "run the same command again") from error


def start(connection: Any, xml: str, prefix: str) -> Any:  # noqa: ANN401
    """Start a builder that ends with the connection.

    Args:
        connection: The connection to libvirt.
        xml: The domain.
        prefix: Start of the names of builders that an earlier build may have left behind; a generation's name follows.

    Raises:
        VmwError: libvirt cannot start it.
    """
    for domain in connection.listAllDomains():
        own = domain.name().startswith(prefix) and GENERATION.fullmatch(domain.name().removeprefix(prefix))
        if own and is_builder(domain.XMLDesc()):
            destroy(domain)
    try:
        return connection.createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    except libvirt.libvirtError as error:
        message = f"libvirt cannot start the builder: {error}"
        raise VmwError(message, "`vmw doctor` shows what is wrong on this host", "host_not_ready") from error


def destroy(domain: Any) -> None:  # noqa: ANN401
    """End a builder, if it has not ended by itself."""
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()


@contextlib.contextmanager
def network_of(builder: Builder) -> Iterator[None]:
    """Serve the network of a builder of the user's own libvirt while it is there; a bridge serves the others."""
    if not builder.network_socket:
        yield
        return
    passt_units.present(NETWORK, 0)
    try:
        yield
    finally:
        passt_units.absent(NETWORK)


def make(baker: Baker) -> Manifest:
    """Bake and publish one generation, in a process that is root where libvirt asks for that."""
    params = baker.params
    owner = baker.build.state.root.stat().st_uid
    connection = connect(params["libvirt_uri"])
    try:
        with acting_as(owner):
            peer = qemu_peer(params["libvirt_uri"])
            baker.tell(0, "Prepare the builder")
            builder = baker.prepare(peer)
        with network_of(builder):
            domain = start(connection, domain_xml(builder), baker.build.domain_prefix)
            try:
                with acting_as(owner):
                    baker.watch(domain)
            finally:
                destroy(domain)
    finally:
        connection.close()
    with acting_as(owner):
        facts = baker.collect()
        return baker.publish(facts, peer)


def bake(module: AnsibleModule) -> dict[str, Any]:
    """Bake unless there is a golden image already."""
    if module.check_mode:
        return {"changed": True}
    state = State(Path(module.params["state_dir"]))
    owner = state.root.stat().st_uid
    with contextlib.ExitStack() as stack:
        with acting_as(owner):
            stack.enter_context(state.lock(LOCK))
        current = current_generation(state)
        if current and not module.params["force"]:
            return {"changed": False, "generation": current.generation, "manifest": current.as_dict()}
        baker = Baker(module.params, state)
        if baker.virt_type == "qemu":
            module.warn("the golden image is baked in software emulation, which takes ten times as long as with KVM")
        try:
            manifest = make(baker)
        except InterruptedByUserError:
            raise
        except VmwError as error:
            with acting_as(owner):
                log = baker.keep_console()
            raise VmwError(error.message, error.hint, error.code, error.log or log) from error
        finally:
            with acting_as(owner):
                baker.progress.close()
                shutil.rmtree(baker.build.directory, ignore_errors=True)
        with acting_as(owner):
            baker.forget_earlier_builds()
    return {"changed": True, "generation": manifest.generation, "manifest": manifest.as_dict()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "path", "required": True},
            "libvirt_uri": {"type": "str", "required": True},
            "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
            "bridge": {"type": "str", "required": True},
            "base_image": {"type": "path", "required": True},
            "base_image_url": {"type": "str", "required": True},
            "base_image_sha512": {"type": "str", "required": True},
            "files": {"type": "dict", "required": True},
            "steps": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "title": {"type": "str", "required": True}},
            },
            "settings": {"type": "dict", "required": True},
            "certificates": {"type": "list", "elements": "path", "default": []},
            "inputs": {"type": "dict", "required": True},
            "disk_gib": {"type": "int", "required": True},
            "silence": {"type": "int", "default": 1200},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, bake)


if __name__ == "__main__":
    main()
