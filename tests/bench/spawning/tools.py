"""Other tools that make VMs of cloud images, each driven as its manual says, with the base image that vmw has on this host."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spawning import machine
from spawning.machine import PROGRAMS, BenchError, run
from spawning.rows import Row, destroy_domain, overlay, user_data

if TYPE_CHECKING:
    from spawning.figures import Run

SYSTEM = "qemu:///system"
SCRATCH = "boot-scratch"
"""virt-install's pool for seeds."""
VL_SUBNET = "192.168.223.0/24"
"""virt-lightning's own is 192.168.123.0/24, where a user's VMs may be."""
VL_DIRECTORY = Path("/var/lib/virt-lightning/pool/upstream")
"""virt-lightning looks for this directory also when its pool is elsewhere."""


def missing_programs(*names: str) -> str:
    """Name the programs that are not installed, or return nothing."""
    missing = [name for name in names if not shutil.which(name)]
    return f"not installed: {', '.join(missing)} (docs/benchmarks.md says how)" if missing else ""


class VirtInstall(Row):
    """virt-install of Debian's virtinst."""

    name = "virt-install"
    title = "virt-install --import --cloud-init"
    had_scratch = True

    def obstacle(self) -> str:
        """Ask for the program."""
        return missing_programs("virt-install")

    def prepare(self) -> None:
        """See whether virt-install was used before: it makes a pool for what it uploads, and leaves it."""
        self.had_scratch = SCRATCH in run("virsh", "-q", "-c", self.reference.uri, "pool-list", "--all", "--name").split()

    def _disk(self) -> Path:
        return self.bench.directory / f"{self.vm}.qcow2"

    def take(self, measured: Run) -> None:
        """Clone the image and import it."""
        mac, bridge = self.bench.mac(self.name), self.reference.bridge
        # Its log and what it needs for a moment are then not among the user's own files.
        environment = {"XDG_CACHE_HOME": str(self.bench.directory / "cache")}
        seed = self.bench.directory / f"{self.vm}.user-data"
        began = time.monotonic()
        overlay(self.bench, self._disk())
        seed.write_text(user_data(self.bench, self.vm))
        run(
            "virt-install", "--connect", self.reference.uri, "--name", self.vm, "--osinfo", "debian12", "--import",
            "--memory", str(self.bench.memory_mib), "--vcpus", "1" if self.reference.emulated else str(self.bench.cpus),
            "--virt-type", self.reference.virt_type,
            # The default, q35, has the seed on AHCI, for which the cloud kernel of Debian 12 has no driver; it has one for IDE.
            "--machine", "pc",
            "--disk", f"path={self._disk()},format=qcow2", "--network", f"bridge={bridge},mac={mac}",
            "--cloud-init", f"user-data={seed}", "--graphics", "none", "--noautoconsole",
            env=environment,
        )  # fmt: skip
        address = machine.wait_for_ssh(lambda: machine.addresses_of(mac, bridge), self.bench.login(), self.bench.seconds)
        measured.seconds = time.monotonic() - began
        measured.notes = {"address": address}

    def remove(self) -> None:
        """Remove domain and disk."""
        destroy_domain(self.reference.uri, self.vm)
        self._disk().unlink(missing_ok=True)

    def finish(self) -> None:
        """Remove the pools that it made for its own use."""
        machine.remove_pools(self.reference.uri, self.bench.directory)
        if not self.had_scratch:
            for command in ("pool-destroy", "pool-undefine"):
                PROGRAMS.run(["virsh", "-q", "-c", self.reference.uri, command, SCRATCH])


class Tool(Row):
    """A tool from the bench's own environment, with a home directory of its own."""

    program: str

    @property
    def home(self) -> Path:
        """The tool's home directory."""
        return self.bench.directory / f"home-{self.name}"

    def obstacle(self) -> str:
        """Ask for the program, and for an accelerator that it chooses rightly."""
        if self.reference.uri != SYSTEM:
            return f"works with {SYSTEM} only, and vmw is at {self.reference.uri}"
        if not (self.bench.venv / "bin" / self.program).exists():
            return f"not installed in {self.bench.venv} (docs/benchmarks.md says how)"
        if self.reference.emulated and Path("/dev/kvm").exists():
            return (
                f"{self.program} has no option against KVM and chooses it because /dev/kvm exists, though it does not work here"
            )
        return missing_programs("genisoimage")

    def tool(self, *words: str | Path, seconds: float = 600) -> str:
        """Run the tool."""
        return run(self.bench.venv / "bin" / self.program, *words, env={"HOME": str(self.home)}, seconds=seconds)

    def finish(self) -> None:
        """Remove the home directory."""
        shutil.rmtree(self.home, ignore_errors=True)


class VirtLightning(Tool):
    """virt-lightning of PyPI, in a pool and a network of our own."""

    name = "virt-lightning"
    title = "virt-lightning (`vl up`)"
    program = "vl"

    def obstacle(self) -> str:
        """Ask for the directory, too, that only root can make."""
        missing = "" if VL_DIRECTORY.is_dir() else f"{VL_DIRECTORY} is missing (docs/benchmarks.md says how to make it)"
        return super().obstacle() or missing

    @property
    def _network(self) -> str:
        # The bridge has the same name, which may have 15 characters: IFNAMSIZ of if.h.
        return f"vmwb-{self.bench.token[-6:]}"

    @property
    def _pool(self) -> Path:
        return self.home / "pool"

    @property
    def _plan(self) -> Path:
        return self.home / "virt-lightning.yaml"

    def prepare(self) -> None:
        """Make the pool with the image, and say in its files what is wanted."""
        (self._pool / "upstream").mkdir(parents=True)
        shutil.copy(self.bench.base, self._pool / "upstream" / f"{self.bench.token}.qcow2")
        run("virsh", "-q", "-c", SYSTEM, "pool-define-as", self.bench.token, "dir", "--target", self._pool)
        settings = {
            "network_name": self._network,
            "network_cidr": VL_SUBNET,
            "storage_pool": self.bench.token,
            "ssh_key_file": self.bench.key.with_suffix(".pub"),
        }
        configuration = self.home / ".config/virt-lightning/config.ini"
        configuration.parent.mkdir(parents=True)
        configuration.write_text("[main]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        cpus = 1 if self.reference.emulated else self.bench.cpus
        self._plan.write_text(
            f"- name: {self.vm}\n  distro: {self.bench.token}\n  memory: {self.bench.memory_mib}\n  vcpus: {cpus}\n"
            f"  username: bench\n  disks: [{{size: {self.bench.disk_gib}}}]\n"
        )

    def take(self, measured: Run) -> None:
        """Bring it up, which waits until something listens on SSH's port, and log in at the address that the tool chose."""
        began = time.monotonic()
        self.tool("up", "--virt-lightning-yaml", self._plan, "--context", self.bench.token, seconds=self.bench.seconds)
        up = time.monotonic() - began
        found = re.search(r"HostName +(\S+)", self.tool("ssh_config", "--context", self.bench.token), re.IGNORECASE)
        if not found:
            message = "virt-lightning tells no address"
            raise BenchError(message)
        address = found[1]
        machine.wait_for_ssh(lambda: [address], self.bench.login("bench"), self.bench.seconds)
        measured.seconds = time.monotonic() - began
        measured.notes = {"address": address, "up_seconds": up}

    def remove(self) -> None:
        """Remove the VM with its disks."""
        if PROGRAMS.run(["virsh", "-q", "-c", SYSTEM, "dominfo", self.vm]).code == 0:
            self.tool("stop", self.vm)
        for volume in self._pool.glob(f"{self.vm}*"):
            PROGRAMS.run(["virsh", "-q", "-c", SYSTEM, "vol-delete", volume])

    def finish(self) -> None:
        """Remove network and pool."""
        PROGRAMS.run(["virsh", "-q", "-c", SYSTEM, "net-destroy", self._network])
        machine.remove_pools(SYSTEM, self.home)
        super().finish()


TESTCLOUD = """\
DATA_DIR = {directory!r}
STORE_DIR = {store!r}
CONSOLE_LOG_DIR = {directory!r}
USER_DATA = {user_data!r}
"""
"""testcloud's settings: where its files are, and a cloud-config that has a key beside what its own says."""


class Testcloud(Tool):
    """testcloud of PyPI, on libvirt's network `default`, as it has no other."""

    name = "testcloud"
    title = "testcloud"
    program = "testcloud"
    started_network = False

    def obstacle(self) -> str:
        """Ask for the network, too."""
        known = PROGRAMS.run(["virsh", "-q", "-c", SYSTEM, "net-info", "default"]).code == 0
        return super().obstacle() or ("" if known else "libvirt has no network `default`")

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def prepare(self) -> None:
        """Write the settings, lay the image where a download would be, and start the network."""
        store = self._data / "backingstores"
        store.mkdir(parents=True)
        (self._data / "instances").mkdir()
        shutil.copy(self.bench.base, store / self.bench.base.name)
        public = self.bench.key.with_suffix(".pub").read_text().strip()
        content = (
            "#cloud-config\nssh_pwauth: true\npassword: ${password}\nchpasswd:\n  expire: false\nusers:\n  - default\n"
            "  - name: cloud-user\n    plain_text_passwd: ${password}\n    sudo: ALL=(ALL) NOPASSWD:ALL\n    lock_passwd: false\n"
            f"    ssh_authorized_keys: [{public}]\nruncmd:\n${{runcommands}}\n"
        )
        settings = self.home / ".config/testcloud/settings.py"
        settings.parent.mkdir(parents=True)
        settings.write_text(TESTCLOUD.format(directory=str(self._data), store=str(store), user_data=content))
        if "default" not in run("virsh", "-q", "-c", SYSTEM, "net-list", "--name").split():
            run("virsh", "-q", "-c", SYSTEM, "net-start", "default")
            self.started_network = True

    def take(self, measured: Run) -> None:
        """Create the instance, which waits for a lease, and log in at the address that the tool tells."""
        began = time.monotonic()
        output = self.tool(
            "create", "-n", self.vm, "--no-graphic",
            "--ram", str(self.bench.memory_mib), "--vcpus", "1" if self.reference.emulated else str(self.bench.cpus),
            "--disksize", str(self.bench.disk_gib), "--timeout", f"{self.bench.seconds:.0f}", f"file://{self.bench.base}",
            seconds=self.bench.seconds,
        )  # fmt: skip
        created = time.monotonic() - began
        found = re.search(r"The IP of vm \S+: +(\S+)", output)
        if not found:
            message = f"testcloud tells no address: {output[-500:]}"
            raise BenchError(message)
        address = found[1]
        machine.wait_for_ssh(lambda: [address], self.bench.login("cloud-user"), self.bench.seconds)
        measured.seconds = time.monotonic() - began
        measured.notes = {"address": address, "create_seconds": created}

    def remove(self) -> None:
        """Remove the instance."""
        PROGRAMS.run([self.bench.venv / "bin" / self.program, "remove", "-f", self.vm], env={"HOME": str(self.home)})
        destroy_domain(SYSTEM, self.vm)
        shutil.rmtree(self._data / "instances" / self.vm, ignore_errors=True)

    def finish(self) -> None:
        """Stop the network, if it was not running before."""
        if self.started_network:
            with contextlib.suppress(BenchError):
                run("virsh", "-q", "-c", SYSTEM, "net-destroy", "default")
        super().finish()
