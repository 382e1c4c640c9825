"""The build machine: its commands, its package sources, the CA files it trusts."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CA_DIRECTORY = Path("/usr/local/share/ca-certificates")
PACKAGES = (
    "apt-utils",
    "debian-archive-keyring",
    "dnsmasq-base",
    "e2fsprogs",
    "fdisk",
    "git",
    "gnupg",
    "iproute2",
    "mmdebstrap",
    "nftables",
    "openssh-client",
    "procps",
    "qemu-utils",
    "systemd-container",
    "util-linux",
)
# One program of each package, and npm.
PROGRAMS = (
    "apt-ftparchive",
    "dnsmasq",
    "git",
    "gpg",
    "ip",
    "mkfs.ext4",
    "mmdebstrap",
    "nft",
    "npm",
    "nsenter",
    "qemu-img",
    "sfdisk",
    "ssh",
    "ssh-keygen",
    "sysctl",
    "systemd-nspawn",
)
# An ordinary login's PATH, which sudo or su may keep, has not root's programs.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class TestbedError(Exception):
    """The test bed could not be made; the message says which step failed and why."""

    __test__ = False


@dataclass(frozen=True)
class Mirror:
    """A part of the Debian archive as the build machine reaches it."""

    archive: str
    security: str | None

    def sources(self, release: str) -> list[str]:
        """Return the one-line apt sources of a Debian release."""
        lines = [f"deb {self.archive} {release} main", f"deb {self.archive} {release}-updates main"]
        if self.security:
            lines.append(f"deb {self.security} {release}-security main")
        return lines


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command on the build machine and return what it wrote.

    Raises:
        TestbedError: the command failed; the message ends with its output.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=cwd,
            env={**os.environ, "PATH": PATH, **(env or {})},
        )
    except FileNotFoundError as error:
        message = f"{error.filename} is missing; run: python3 -m testbed prepare"
        raise TestbedError(message) from error
    if check and done.returncode:
        message = f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        raise TestbedError(message)
    return done.stdout


@functools.cache
def mirror() -> Mirror:
    """Return the Debian archive that the build machine's own apt uses."""
    targets = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"])
    found: dict[str, str] = {}
    for line in targets.splitlines():
        uri, _, label = line.partition(" ")
        found.setdefault(label, uri.rstrip("/"))
    if "Debian" not in found:
        message = "apt knows no Debian archive; run apt-get update on a Debian machine"
        raise TestbedError(message)
    return Mirror(found["Debian"], found.get("Debian-Security"))


def has_kvm() -> bool:
    """Tell whether this machine runs guests at full speed, as its own CPU flags and device say."""
    flags = {
        flag
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("flags")
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & {"vmx", "svm"}) and Path("/dev/kvm").exists()


def ca_files() -> list[Path]:
    """Return the CA files that were added to the build machine by hand."""
    return sorted(CA_DIRECTORY.glob("**/*.crt"))


def install_packages() -> None:
    """Install with apt what the test bed needs on the build machine, unless all of it is there."""
    if all(shutil.which(program, path=PATH) for program in PROGRAMS):
        return
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    packages = [*PACKAGES, *([] if shutil.which("npm") else ["npm"])]
    run(["apt-get", "update", "-q"], env=environment)
    run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
        env=environment,
    )
