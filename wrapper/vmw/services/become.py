"""The password for sudo: asked for once, checked at once, never in an argument or in the environment."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from vmw.errors import ExitCode, VmwError
from vmw.runner.inputs import PASSWORD_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTOR = "VMW_BECOME_FD"
"""Names the descriptor on which the launcher hands over the password it asked for: its file has no name any more."""

ATTEMPTS = 3

HINT = f"run it on a terminal, allow passwordless sudo, or name a file with the password in {PASSWORD_FILE}"


def take_over_password() -> str | None:
    """Read the password that the launcher hands over, at the very start of the process.

    Returns:
        The password, with bytes that are no UTF-8 escaped as in a path, or None when the launcher asked for none.
    """
    descriptor = os.environ.pop(DESCRIPTOR, "")
    if not descriptor:
        return None
    with os.fdopen(int(descriptor), "rb") as handle:
        return os.fsdecode(handle.read().removesuffix(b"\n"))


def needs_password() -> bool:
    """Tell whether sudo would ask; cached credentials do not count, for Ansible's processes do not share them."""
    return _sudo(["-n", "-k", "true"]) != 0


def password_works(password: str) -> bool:
    """Try a password, without caching it."""
    return _sudo(["-S", "-k", "-p", "", "true"], password + "\n") == 0


def become_password(known: str | None, ask: Callable[[str], str]) -> str | None:
    """Return the password that Ansible needs for `become`, asking on the terminal when there is no other way.

    Args:
        known: A password that was asked for before, by the launcher.
        ask: Reads a password from the terminal after a prompt.

    Returns:
        None when Ansible needs none, or finds it through the caller's own ANSIBLE_BECOME_PASSWORD_FILE.

    Raises:
        VmwError: There is no sudo, no terminal to ask on, or the password was wrong three times.
    """
    if os.geteuid() == 0 or os.environ.get(PASSWORD_FILE):
        return None
    if not shutil.which("sudo"):
        message = "setting up this machine needs root, and sudo is not installed"
        raise VmwError(message, "install sudo and allow it for your user", ExitCode.HOST_NOT_READY)
    if known is not None:
        return known
    if not needs_password():
        return None
    if not sys.stdin.isatty():
        message = "setting up this machine needs root, and sudo asks for a password"
        raise VmwError(message, HINT, ExitCode.HOST_NOT_READY)
    user = pwd.getpwuid(os.getuid()).pw_name
    prompt = f"[sudo] password for {user}: "
    for _ in range(ATTEMPTS):
        password = ask(prompt)
        if password_works(password):
            return password
        prompt = f"Sorry, try again.\n[sudo] password for {user}: "
    message = f"sudo refused the password {ATTEMPTS} times"
    raise VmwError(message, "check with `sudo -v` that your user may use sudo", ExitCode.HOST_NOT_READY)


def _sudo(arguments: list[str], text: str = "") -> int:
    try:
        done = subprocess.run(
            ["sudo", *arguments],
            input=os.fsencode(text),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except FileNotFoundError:
        return 127
    return done.returncode
