"""The environment of the tests: what they need of this machine and of the package index, and where it is found."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runner.lanes import say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
VENV = TESTS / ".venv"
LOCK = ROOT / "requirements-dev.lock"

SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where root's programs are; an ordinary login's PATH, which sudo or su may keep, has not these."""
PROGRAMS = {
    "git": "git",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "curl": "curl",
    "inotifywait": "inotify-tools",
    "pgrep": "procps",
    "sysctl": "procps",
    "/usr/bin/python3": "python3",
}
"""What stages run beyond the tools of tests/.venv and a minimal Debian, and the package that has it."""


class SetupError(Exception):
    """The environment could not be made."""


def wanted_stamp() -> str:
    """Return what a complete environment is stamped with: a changed lock or Python, or a moved checkout, needs a new one."""
    return f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {sys.version_info[:3]} {ROOT}"


def make_environment() -> None:
    """Make tests/.venv from the lock, unless it is there.

    Raises:
        SetupError: It could not be made; the message says why.
    """
    stamp = VENV / ".complete"
    with open_locked(TESTS):
        if stamp.is_file() and stamp.read_text() == wanted_stamp() and (VENV / "bin/python").exists():
            return
        say(f"Making {VENV.relative_to(ROOT)} ...")
        shutil.rmtree(VENV, ignore_errors=True)
        must_run([sys.executable, "-m", "venv", str(VENV)], "the environment could not be made")
        # Compiling all of Ansible takes minutes, and Python compiles what is used anyway.
        pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
        pip += ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes", "--requirement", str(LOCK)]
        must_run(pip, "the tools could not be installed")
        stamp.write_text(wanted_stamp())


@contextlib.contextmanager
def open_locked(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory, which leaves no file."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def missing_packages() -> list[str]:
    """Return Debian's names of what the stages need and this machine has not."""
    path = search_path()
    packages = {package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)}
    if subprocess.run([sys.executable, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL, check=False).returncode:
        packages.add("python3-venv")
    return sorted(packages)


def install_packages() -> None:
    """Install what is missing, as root on Debian or a relative; elsewhere name it and go on with what there is.

    Raises:
        SetupError: It could not be installed, or the environment cannot be made without it.
    """
    packages = missing_packages()
    if not packages:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        if "python3-venv" in packages:
            message = "Python's venv module is missing; `./vmw --version` installs it, or `sudo apt install python3-venv`"
            raise SetupError(message)
        say(f"Missing, so that some tests will fail: {' '.join(packages)}")
        return
    say(f"Installing {' '.join(packages)} ...")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    must_run(install, f"{' '.join(packages)} could not be installed", environment)


def must_run(argv: Sequence[str], complaint: str, environment: dict[str, str] | None = None) -> None:
    """Run a program that only speaks when it fails.

    Raises:
        SetupError: It failed; the message has the end of its output.
    """
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode:
        message = f"{complaint}:\n{done.stdout[-3000:]}"
        raise SetupError(message)


def search_path() -> str:
    """Return where the stages find programs: the tools of tests/.venv first, root's own last."""
    return os.pathsep.join((str(VENV / "bin"), os.environ.get("PATH", os.defpath), SYSTEM_PATH))


def environment() -> dict[str, str]:
    """Return the stages' environment: the tools of tests/.venv, and nothing of the caller's Ansible or Python settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON", "VIRTUAL_ENV"))}
    return {
        **kept,
        "PATH": search_path(),
        # Whatever root would leave in the tree stays in the environment.
        "PYTHONPYCACHEPREFIX": str(VENV / "cache/python"),
        "MYPY_CACHE_DIR": str(VENV / "cache/mypy"),
        "LC_ALL": "C.UTF-8",
        # As root in a checkout of somebody else, git would refuse to list its files.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": str(ROOT),
    }
