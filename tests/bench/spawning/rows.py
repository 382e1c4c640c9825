"""What is compared: vmw, the least that a boot takes, and a plain cloud image. Each row makes a VM, and removes it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from spawning import machine
from spawning.figures import LIMIT, Run
from spawning.machine import PROGRAMS, BenchError, Ended, Login, run

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = ROOT / "vmw"
PREFIX = "vmw-bench-"
GUEST_USER = "debian"
"""The user that Debian's cloud image makes."""
SHARES = ("~/repo", "~/.secrets")


@dataclass(frozen=True)
class Bench:
    """What all rows have in common.

    Attributes:
        directory: Where everything is made, below the home directory.
        token: Start of every name of ours: of domains, networks, worktrees.
        memory_mib: A VM's memory.
        cpus: A VM's virtual CPUs, as asked for.
        disk_gib: A VM's disk.
        seconds: How long a VM may take until ssh answers.
        venv: The environment with the other tools.
    """

    directory: Path
    token: str
    memory_mib: int
    cpus: int
    disk_gib: int
    seconds: float
    venv: Path

    @property
    def repository(self) -> Path:
        """A git repository of our own."""
        return self.directory / "repository"

    @property
    def key(self) -> Path:
        """A private SSH key of our own, for guests that are not vmw's."""
        return self.directory / "key"

    @property
    def base(self) -> Path:
        """A copy of the base image: libvirt changes the owner of what it opens, and the user's image is not ours to change."""
        return self.directory / "base.qcow2"

    def name(self, row: str) -> str:
        """Return the name of a row's VM."""
        return f"{self.token}-{row}"

    def mac(self, row: str) -> str:
        """Return the MAC address of a row's VM, in QEMU's range."""
        digest = hashlib.sha256(self.name(row).encode()).hexdigest()
        return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"

    def worktree(self, name: str) -> Path:
        """Return a worktree of our repository, made if it is not there."""
        path = self.directory / name
        if not path.is_dir():
            run("git", "-C", self.repository, "worktree", "add", "-q", "-b", name, path)
        return path

    def login(self, user: str = GUEST_USER) -> Login:
        """Return how to log in to a guest with our own key."""
        return Login(user, (*machine.STRANGER, "-i", str(self.key)))

    def make(self) -> None:
        """Make what all rows need, apart from the base image."""
        # QEMU's user must reach the disks in it.
        self.directory.chmod(0o711)
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.token, "-f", self.key)
        run("git", "init", "-q", self.repository)
        (self.repository / "hello.py").write_text('print("hello")\n')
        run("git", "-C", self.repository, "add", ".")
        run("git", "-C", self.repository, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "Start")


@dataclass(frozen=True)
class Reference:
    """A VM that vmw made, and what it tells about vmw's VMs here.

    Attributes:
        name: Its name.
        state_dir: vmw's state directory.
        record: Its instance record.
        address: Its address.
        seconds: What its spawning took, with nothing warmed up.
    """

    name: str
    state_dir: Path
    record: dict[str, Any]
    address: str
    seconds: float

    @property
    def uri(self) -> str:
        """The libvirt that vmw uses."""
        return str(self.record["libvirt_uri"])

    @property
    def bridge(self) -> str:
        """The bridge that vmw's VMs are on."""
        return str(self.record["bridge"])

    @property
    def virt_type(self) -> str:
        """The accelerator that works here: `kvm` or `qemu`."""
        return str(self.record["virt_type"])

    @property
    def emulated(self) -> bool:
        """Whether QEMU emulates the CPU; vmw's VMs then have one of theirs online, and the others get one."""
        return self.virt_type == "qemu"

    @property
    def base_image(self) -> Path:
        """The cloud image that vmw downloaded.

        Raises:
            BenchError: It is gone.
        """
        found = [path for path in (self.state_dir / "images/.download").glob("*") if path.suffix != ".partial"]
        if not found:
            message = "vmw keeps no base image; `vmw image build` downloads one"
            raise BenchError(message)
        return max(found, key=lambda path: path.stat().st_mtime)

    def directory(self, name: str) -> Path:
        """Return the directory of one of vmw's VMs."""
        return self.state_dir / "instances" / name

    def login(self, name: str) -> Login:
        """Return how to log in to one of vmw's VMs, with the user's own key and the host key that vmw pinned."""
        options = ("-o", f"HostKeyAlias={name}", "-o", f"UserKnownHostsFile={self.directory(name) / 'known_hosts'}")
        return Login(str(self.record["guest_user"]), options)


# --- vmw -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vmw:
    """vmw's commands, as the bench gives them."""

    bench: Bench
    options: tuple[str, ...] = ()

    def spawn(self, name: str) -> tuple[Ended, dict[str, Any]]:
        """Spawn a VM for the worktree of this name; return the command's end and the instance that it printed.

        Raises:
            BenchError: It failed, or the VM was not started in the way that is measured.
        """
        size = ("--memory", f"{self.bench.memory_mib}M", "--cpus", str(self.bench.cpus), "--disk", str(self.bench.disk_gib))
        words: list[str | Path] = [LAUNCHER, "spawn", "--json", *self.options, *size, self.bench.directory / name]
        ended = PROGRAMS.run(words, seconds=self.bench.seconds).checked("vmw spawn")
        instance: dict[str, Any] = json.loads(ended.output)["instance"]
        wanted = "cold" if "--cold" in self.options else "warm"
        if instance.get("start", wanted) != wanted:
            why = ended.complaint.strip()[-300:]
            message = f"{name} was started {instance['start']} and not {wanted}; `vmw doctor` may tell why: {why}"
            raise BenchError(message)
        return ended, instance

    @staticmethod
    def destroy(name: str) -> None:
        """Remove a VM; one that is not there is no error."""
        run(LAUNCHER, "destroy", "--yes", name)


def offers_cold() -> bool:
    """Tell whether this vmw can fork templates, and so offers to boot instead."""
    return "--cold" in run(LAUNCHER, "spawn", "--help", env={"COLUMNS": "200"})


def make_reference(bench: Bench) -> Reference:
    """Spawn the VM that is started again and again for the limit.

    Raises:
        BenchError: That failed, so that there is nothing to measure.
    """
    name = bench.name("limit")
    bench.worktree(name)
    began = time.monotonic()
    _, instance = Vmw(bench, ("--cold",) if offers_cold() else ()).spawn(name)
    seconds = time.monotonic() - began
    definition = run("virsh", "-c", str(instance["libvirt_uri"]), "dumpxml", name)
    # libvirt keeps the record's path as vmw's mark of its domains.
    found = re.search(r"record=[\"'](.+?)/instances/[^/]+/instance\.json[\"']", definition)
    if not found:
        message = "the new VM's domain does not name its record"
        raise BenchError(message)
    return Reference(name, Path(found[1]), instance, str(instance["address"]), seconds)


def missing_shares(login: Login, address: str) -> str:
    """Return what is wrong with a guest's shares, or nothing.

    Args:
        login: How to log in.
        address: The guest's address.
    """
    ended = login.run(address, " && ".join(f"mountpoint {share}" for share in SHARES))
    return f"a share is not mounted: {(ended.output + ended.complaint).strip()}" if ended.code else ""


class Row(ABC):
    """One way to a VM in which ssh works.

    Attributes:
        name: The word for `--tools`.
        title: The row's title in the table.
    """

    name: str
    title: str

    def __init__(self, bench: Bench, reference: Reference) -> None:
        """Keep what the rows have in common."""
        self.bench = bench
        self.reference = reference

    @property
    def vm(self) -> str:
        """The name of the row's VM."""
        return self.bench.name(self.name)

    def obstacle(self) -> str:
        """Say why the row cannot be measured here, or nothing."""
        return ""

    def prepare(self) -> None:  # noqa: B027 - many rows need nothing
        """Make what the row needs once; this is not measured."""

    @abstractmethod
    def take(self, measured: Run) -> None:
        """Make the VM, wait for ssh and note what that took.

        Raises:
            BenchError: That failed.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the VM; one that is not there, or only in part, is no error."""

    def finish(self) -> None:  # noqa: B027 - many rows need nothing
        """Remove what `prepare` made."""


class VmwRow(Row):
    """A spawn with vmw, of one kind."""

    options: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Make the worktree."""
        self.bench.worktree(self.vm)

    def take(self, measured: Run) -> None:
        """Spawn, log in once, and then look whether the shares are there."""
        began = time.monotonic()
        ended, instance = Vmw(self.bench, self.options).spawn(self.vm)
        spawned = time.monotonic() - began
        login, address = self.reference.login(self.vm), str(instance["address"])
        login.run(address, "true").checked("ssh right after vmw spawn")
        measured.seconds = time.monotonic() - began
        measured.cpu_seconds, measured.peak_kib = ended.cpu_seconds, ended.peak_kib
        measured.notes = {
            "spawn_seconds": spawned,
            "disk_bytes": machine.used_bytes(self.reference.directory(self.vm)),
            "instance": {key: value for key, value in instance.items() if key != "authorized_keys"},
            "complaint": ended.complaint,
        }
        measured.failure = missing_shares(login, address)

    def remove(self) -> None:
        """Remove the VM; the worktree stays for the next round."""
        Vmw.destroy(self.vm)


class VmwCold(VmwRow):
    """A spawn that boots."""

    name = "vmw-cold"
    title = "`vmw spawn`, booted"

    def prepare(self) -> None:
        """Find out how to ask for a boot."""
        super().prepare()
        self.options = ("--cold",) if offers_cold() else ()


class VmwWarm(VmwRow):
    """A spawn that forks a saved template."""

    name = "vmw-warm"
    title = "`vmw spawn`, forked from a template"

    def obstacle(self) -> str:
        """Ask for a vmw that has templates."""
        return "" if offers_cold() else "this vmw has no templates (`vmw spawn` knows no `--cold`)"

    def prepare(self) -> None:
        """Spawn once, so that the template is there."""
        super().prepare()
        Vmw(self.bench).spawn(self.vm)
        self.remove()


class Limit(Row):
    """The start of a VM that has its identity already: kernel, initrd, disk and shares are vmw's, and nothing is made."""

    name = LIMIT
    title = "the limit: `virsh start` of a finished VM"

    def prepare(self) -> None:
        """Shut the VM down in order."""
        self.remove()

    def take(self, measured: Run) -> None:
        """Start the domain and wait for ssh at the address that it had."""
        began = time.monotonic()
        run("virsh", "-q", "-c", self.reference.uri, "start", self.reference.name)
        login = self.reference.login(self.reference.name)
        address = machine.wait_for_ssh(lambda: [self.reference.address], login, self.bench.seconds)
        measured.seconds = time.monotonic() - began
        # The guest mounts them by itself, and here nobody waits for that.
        measured.notes = {"address": address, "shares": missing_shares(login, address) or "mounted"}

    def remove(self) -> None:
        """Shut the VM down in order, so that its file system is clean for the next start."""
        if not is_off(self.reference.uri, self.reference.name):
            PROGRAMS.run([LAUNCHER, "stop", self.reference.name])
        if not is_off(self.reference.uri, self.reference.name):
            run(LAUNCHER, "stop", "--force", self.reference.name)


def is_off(uri: str, domain: str) -> bool:
    """Tell whether a domain is off, or does not exist."""
    ended = PROGRAMS.run(["virsh", "-q", "-c", uri, "domstate", domain])
    return bool(ended.code) or ended.output.strip() == "shut off"


def destroy_domain(uri: str, domain: str) -> None:
    """Switch a domain off and undefine it; one that is not there is no error."""
    for words in (("destroy", domain), ("undefine", "--nvram", domain)):
        PROGRAMS.run(["virsh", "-q", "-c", uri, *words])
    if PROGRAMS.run(["virsh", "-q", "-c", uri, "dominfo", domain]).code == 0:
        message = f"the domain {domain} could not be removed"
        raise BenchError(message)


# --- a plain cloud image -------------------------------------------------------------------------------------------

STOCK = """\
<domain type={virt_type}>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu{online}>{cpus}</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode={cpu} check='none'/>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/>
  </clock>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/><source file={disk}/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file={seed}/><target dev='vdb' bus='virtio'/><readonly/>
    </disk>
    <interface type='bridge'><mac address='{mac}'/><source bridge={bridge}/><model type='virtio'/></interface>
    <serial type='pty'/><console type='pty'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""
"""What virt-install would define, with vmw's CPU and clocks. The seed is no CD-ROM: Debian 12's cloud kernel has no AHCI."""


def overlay(bench: Bench, path: Path) -> None:
    """Make a thin clone of the base image."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", bench.base, "-F", "qcow2", path, f"{bench.disk_gib}G")


def user_data(bench: Bench, hostname: str) -> str:
    """Return an ordinary cloud-config: a name, and a key for the image's own user. JSON is YAML."""
    public = bench.key.with_suffix(".pub").read_text().strip()
    content = {"hostname": hostname, "users": ["default"], "ssh_authorized_keys": [public]}
    return "#cloud-config\n" + json.dumps(content, indent=2) + "\n"


class Stock(Row):
    """The base image with an ordinary seed in an ordinary domain, by hand."""

    name = "stock"
    title = "the cloud image with cloud-init, by hand"

    def _files(self) -> tuple[Path, Path, Path]:
        directory = self.bench.directory
        return directory / f"{self.vm}.qcow2", directory / f"{self.vm}.iso", directory / f"{self.vm}.d"

    def take(self, measured: Run) -> None:
        """Make overlay and seed, start a transient domain, and wait."""
        disk, seed, sources = self._files()
        mac, bridge = self.bench.mac(self.name), self.reference.bridge
        began = time.monotonic()
        overlay(self.bench, disk)
        sources.mkdir(exist_ok=True)
        (sources / "user-data").write_text(user_data(self.bench, self.vm))
        (sources / "meta-data").write_text(f"instance-id: {self.vm}-{measured.round}\nlocal-hostname: {self.vm}\n")
        run("xorriso", "-as", "mkisofs", "-quiet", "-o", seed, "-volid", "cidata", "-joliet", "-rational-rock", sources)
        definition = disk.with_suffix(".xml")
        definition.write_text(self.definition(disk, seed, mac))
        run("virsh", "-q", "-c", self.reference.uri, "create", definition)
        login = self.bench.login()
        address = machine.wait_for_ssh(lambda: machine.addresses_of(mac, bridge), login, self.bench.seconds)
        measured.seconds = time.monotonic() - began
        measured.notes = {"address": address}

    def definition(self, disk: Path, seed: Path, mac: str) -> str:
        """Return the domain's XML."""
        emulated = self.reference.emulated
        return STOCK.format(
            virt_type=quoteattr(self.reference.virt_type),
            name=escape(self.vm),
            memory=self.bench.memory_mib,
            cpus=self.bench.cpus,
            online=" current='1'" if emulated else "",
            cpu=quoteattr("maximum" if emulated else "host-passthrough"),
            disk=quoteattr(str(disk)),
            seed=quoteattr(str(seed)),
            mac=mac,
            bridge=quoteattr(self.reference.bridge),
        )

    def remove(self) -> None:
        """Remove domain and files."""
        destroy_domain(self.reference.uri, self.vm)
        disk, seed, _ = self._files()
        with contextlib.suppress(OSError):
            for path in (disk, seed):
                path.unlink(missing_ok=True)
