"""The launcher, with a Python that only notes what it is asked to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from wrapper_support import ROOT

FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$CALLS"
case "$*" in
"-c "*ensurepip*) [ -z "${NO_ENSUREPIP-}" ] || [ -e "$CALLS.installed" ];;
"-c "*) echo "$0";;
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python";;
"-m pip "*)
    echo "pip says: $PIP_STATUS"
    [ -z "${PIP_SLEEP-}" ] || sleep "$PIP_SLEEP"
    exit "${PIP_STATUS:-0}";;
"-I "*)
    [ -z "${RUN_SLEEP-}" ] || sleep "$RUN_SLEEP"
    echo "vmw runs as $VMW_PROGRAM"
    [ -z "${VMW_BECOME_FD-}" ] || cat <&"$VMW_BECOME_FD";;
esac
"""

FAKE_SUDO = """#!/bin/sh
echo "sudo $*" >>"$CALLS"
case "$1" in
-n) exit 1;;
-S) shift 4; read -r word; [ "$word" = secret ] || exit 1; exec "$@";;
esac
"""


class Checkout:
    """A checkout with the launcher, and a PATH on which Python is a fake."""

    def __init__(self, root: Path) -> None:
        self.root = root / "check out"
        self.bin = root / "bin"
        self.calls = root / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        shutil.copy(ROOT / "vmw", self.root / "vmw")
        (self.root / "requirements.lock").write_text("typer==1\n")
        self.program("python3", FAKE_PYTHON)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(root),
            "TMPDIR": str(root),
            "CALLS": str(self.calls),
            "PIP_STATUS": "0",
        }

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *words: str, command: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command or str(self.root / "vmw"), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**self.environment, **changes},
        )

    def noted(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_first_run(checkout: Checkout) -> None:
    done = checkout.run("list", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Preparing vmw's Python environment (once) ...\n"
    assert done.stdout == f"vmw runs as {checkout.root}/vmw\n"
    noted = checkout.noted().splitlines()
    assert noted[-1] == f"-I {checkout.root}/wrapper list --json"
    pip = next(line for line in noted if line.startswith("-m pip"))
    assert "--no-compile" in pip
    assert "--require-hashes" in pip
    assert pip.endswith(f"--requirement {checkout.root}/requirements.lock")


def test_later_runs_only_start_python(checkout: Checkout) -> None:
    checkout.run("list")
    checkout.calls.unlink()
    done = checkout.run("ssh", "a", "--", "two words")
    assert done.stderr == ""
    assert checkout.noted() == f"-I {checkout.root}/wrapper ssh a -- two words\n"


def test_a_changed_lock_installs_anew(checkout: Checkout) -> None:
    checkout.run("list")
    (checkout.root / "requirements.lock").write_text("typer==2\n")
    assert "Preparing" in checkout.run("list").stderr
    assert checkout.run("list").stderr == ""


def test_a_moved_checkout_installs_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.run("list")
    checkout.root = checkout.root.rename(tmp_path / "moved")
    assert "Preparing" in checkout.run("list").stderr


def test_a_link_on_path(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "vmw").symlink_to(checkout.root / "vmw")
    assert checkout.run("list", command=str(tmp_path / "vmw")).returncode == 0
    assert (checkout.root / ".venv" / ".complete").is_file()


def test_failed_install_shows_why_and_leaves_nothing_complete(checkout: Checkout) -> None:
    done = checkout.run("list", PIP_STATUS="7")
    assert done.returncode == 3
    assert "pip says: 7" in done.stderr
    assert done.stderr.splitlines()[-1] == f"log: {checkout.root}/.venv/setup.log"
    assert not (checkout.root / ".venv" / ".complete").exists()
    assert checkout.run("list").returncode == 0


def test_interrupt_leaves_nothing_complete(checkout: Checkout) -> None:
    process = subprocess.Popen(
        [checkout.root / "vmw", "list"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**checkout.environment, "PIP_SLEEP": "30"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 10
    while "-m pip" not in checkout.noted() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Interrupted" in complaint
    assert not (checkout.root / ".venv" / ".complete").exists()
    assert checkout.run("list").returncode == 0


def test_two_at_once_install_once(checkout: Checkout) -> None:
    command = [str(checkout.root / "vmw"), "list"]
    environment = {**checkout.environment, "PIP_SLEEP": "0.5"}
    both = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in "ab"
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert checkout.noted().count("-m pip") == 1
    assert sum("waiting" in text for text in said) == 1


def test_an_environment_in_use_is_not_taken_away(checkout: Checkout) -> None:
    checkout.run("list")
    checkout.calls.unlink()
    with subprocess.Popen(
        [checkout.root / "vmw", "spawn"], env={**checkout.environment, "RUN_SLEEP": "1"}, stdout=subprocess.DEVNULL
    ) as user:
        while not checkout.noted():
            time.sleep(0.02)
        (checkout.root / "requirements.lock").write_text("typer==2\n")
        done = checkout.run("list")
        assert user.poll() == 0, "the environment was made anew under a vmw that used it"
    assert done.returncode == 0
    assert "waiting" in done.stderr


def test_those_that_use_the_environment_do_not_wait_for_each_other(checkout: Checkout) -> None:
    checkout.run("list")
    checkout.calls.unlink()
    with subprocess.Popen(
        [checkout.root / "vmw", "spawn"], env={**checkout.environment, "RUN_SLEEP": "1"}, stdout=subprocess.DEVNULL
    ) as user:
        while not checkout.noted():
            time.sleep(0.02)
        assert checkout.run("list").stderr == ""
        assert user.poll() is None


def test_a_checkout_that_cannot_be_written(checkout: Checkout) -> None:
    # Root, as whom the tests may run, can write anywhere.
    checkout.program("mkdir", "#!/bin/sh\nexit 1\n")
    done = checkout.run("list")
    assert done.returncode == 3
    assert f"error: the Python environment cannot be made in {checkout.root}\nhint: " in done.stderr


def _ask_for_the_password(checkout: Checkout, **changes: str) -> subprocess.CompletedProcess[str]:
    checkout.program("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo dev\n')
    checkout.program("sudo", FAKE_SUDO)
    return subprocess.run(
        ["script", "-qec", f"'{checkout.root}/vmw' host", "/dev/null"],
        input="wrong\n" * 3,
        capture_output=True,
        text=True,
        check=False,
        env={**checkout.environment, "NO_ENSUREPIP": "1", **changes},
    )


@pytest.mark.skipif(not shutil.which("script"), reason="needs script(1)")
def test_a_runtime_directory_that_is_none(checkout: Checkout) -> None:
    done = _ask_for_the_password(checkout, XDG_RUNTIME_DIR="/nonexistent")
    assert "error: sudo refused the password 3 times" in done.stdout
    assert not list(checkout.root.parent.glob("vmw.*"))
    done = _ask_for_the_password(checkout, XDG_RUNTIME_DIR="/nonexistent", TMPDIR="/nonexistent")
    assert done.returncode == 3
    assert "error: no file can be made in /nonexistent" in done.stdout
    assert "hint: " in done.stdout


def test_missing_venv_module_is_installed_with_one_password(checkout: Checkout) -> None:
    if not shutil.which("script") or os.geteuid() != 0:
        pytest.skip("needs script(1), and root to stand for the package manager")
    # id is asked whether root is at work; here it is not.
    checkout.program("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo dev\n')
    checkout.program("sudo", FAKE_SUDO)
    checkout.program("apt-get", '#!/bin/sh\necho "apt-get $*" >>"$CALLS"\n[ "$1" != install ] || touch "$CALLS.installed"\n')
    done = subprocess.run(
        ["script", "-qec", f"'{checkout.root}/vmw' host", "/dev/null"],
        input="wrong\nsecret\n",
        capture_output=True,
        text=True,
        check=False,
        env={**checkout.environment, "NO_ENSUREPIP": "1"},
    )
    assert done.returncode == 0, done.stdout
    noted = checkout.noted()
    assert "apt-get install --yes python3 python3-venv" in noted
    assert "secret" not in noted
    assert done.stdout.count("[sudo] password for dev") == 2
    assert "Sorry, try again." in done.stdout
    assert done.stdout.replace("\r", "").endswith("\nsecret\n")
    assert not list(checkout.root.parent.glob("vmw.*"))


def test_no_terminal_for_the_password(checkout: Checkout) -> None:
    checkout.program("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo dev\n')
    checkout.program("sudo", FAKE_SUDO)
    done = checkout.run("host", NO_ENSUREPIP="1")
    assert done.returncode == 3
    assert "error: installing Python needs root" in done.stderr
    assert "hint: " in done.stderr
    assert not list(Path(checkout.environment["TMPDIR"]).glob("vmw.*"))


def test_password_file_of_the_user(checkout: Checkout, tmp_path: Path) -> None:
    checkout.program("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo dev\n')
    checkout.program("sudo", FAKE_SUDO)
    checkout.program("apt-get", '#!/bin/sh\n[ "$1" != install ] || touch "$CALLS.installed"\n')
    (tmp_path / "password").write_text("secret\n")
    done = checkout.run("host", NO_ENSUREPIP="1", ANSIBLE_BECOME_PASSWORD_FILE=str(tmp_path / "password"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "password").exists()
