"""What `vmw spawn` hands to the playbook, and what must be there before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import worktree as collection_worktree
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.naming import check_name, check_profile, name_for
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import find_profile
from ansible_collections.vmw.worktree.plugins.module_utils.session import check_keys, check_policy, is_session
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, State

from vmw.errors import ExitCode, VmwError
from vmw.services.sizes import gibibytes, mebibytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmw.runner.inputs import ExtraVars
    from vmw.settings import Settings


def absolute(path: str, directory: str | None = None) -> str:
    """Return a path that starts at the root; the collection follows its links, and only the system knows where `..` leads then.

    The empty path stays empty, for the check to refuse.

    Args:
        path: The user's word; a leading `~` that the shell left is the home directory.
        directory: Where a relative path starts, by default the current directory.

    Raises:
        VmwError: There is no current directory.
    """
    if not path:
        return ""
    try:
        start = directory or str(Path.cwd())
    except FileNotFoundError as error:
        message = "the current directory does not exist any more"
        raise VmwError(message, "change to another one", ExitCode.USAGE) from error
    # Path.expanduser would fail on a `~name` that is no user's and so just a directory's name.
    return str(Path(start, os.path.expanduser(path)))  # noqa: PTH111


def spawn_vars(  # noqa: PLR0913 - one argument for each of the command's options
    path: str,
    *,
    name: str | None = None,
    memory: str | None = None,
    cpus: int | None = None,
    disk: str | None = None,
    git: str | None = None,
    secrets: str | None = None,
    egress: str | None = None,
    keys: str | None = None,
    wait: bool = True,
) -> ExtraVars:
    """Return the playbook's inputs; what the user did not say is left out, for config.yml to say.

    Raises:
        VmwError: A size is none, or the name could not be a VM's or a profile's.
    """
    values: ExtraVars = {"worktree": absolute(path), "vmw_wait": wait}
    if name is not None:
        values["vmw_name"] = _checked(check_name, name)
    if memory is not None:
        values["vmw_memory_mib"] = mebibytes(memory)
    if cpus is not None:
        values["vmw_vcpus"] = cpus
    if git is not None:
        values["vmw_git_mode"] = git
    if egress is not None:
        values["vmw_egress"] = egress
    if keys is not None:
        values["vmw_keys"] = keys
    if secrets is not None:
        values["vmw_secrets"] = profile_name(secrets)
    if disk is not None:
        values["vmw_disk_gib"] = gibibytes(disk)
    return values


def profile_name(profile: str) -> str:
    """Return the name of a secrets profile.

    Raises:
        VmwError: It is no plain label.
    """
    return _checked(check_profile, profile)


def check_secrets(profile: str, state_dir: Path) -> None:
    """Refuse by the collection's own rules a secrets profile that cannot be shown to a VM, before minutes are spent on the host.

    Raises:
        VmwError: There is none of that name, or others can read it.
    """
    if profile != DEFAULT_PROFILE:
        _checked(lambda name: str(find_profile(State(state_dir), name)), profile)


def check_choices(settings: Settings, egress: str | None, keys: str | None) -> None:
    """Refuse by the collection's own rules what does not go with the user's own libvirt, before minutes are spent on the host.

    Raises:
        VmwError: Something that was asked for does not.
    """
    if is_session(settings.vmw_libvirt_uri):
        try:
            check_policy(egress or "")
            check_keys(keys or "")
        except CollectionError as error:
            raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error


def _checked(check: Callable[[str], str], name: str) -> str:
    try:
        return check(name)
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error


def check_worktree(path: str, state_dir: Path, *, named: bool) -> Path:
    """Refuse by the collection's own rules what cannot be a worktree, before minutes are spent on the host.

    Args:
        path: The absolute path.
        state_dir: vmw's directory on the host.
        named: Whether the user gave a name; otherwise one must come out of the path.

    Returns:
        The real path, which is what is shared.

    Raises:
        VmwError: The path is missing, not readable, or more than a guest may see.
    """
    try:
        real = collection_worktree.check_worktree(path, state_dir)
        if not named:
            name_for(real.name)
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error
    except OSError as error:
        message = f"{path} cannot be reached: {error.strerror}"
        raise VmwError(message, "name the directory of a git worktree", ExitCode.USAGE) from error
    return real


def has_ssh_key() -> bool:
    """Tell whether the user has a public key that the guest can trust."""
    if any(Path("~/.ssh").expanduser().glob("id_*.pub")):
        return True
    if not shutil.which("ssh-add"):
        return False
    done = subprocess.run(["ssh-add", "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


SSH_KEY = "~/.ssh/id_ed25519"
STDERR = 2
"""The descriptor: the stream in Python may be none that a program can write to."""


def make_ssh_key() -> None:
    """Make an SSH key for the user, asking for its passphrase in ssh-keygen's own words.

    Raises:
        VmwError: ssh-keygen is missing or failed.
    """
    path = Path(SSH_KEY).expanduser()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        # What it says is no result of ours.
        done = subprocess.run(["ssh-keygen", "-t", "ed25519", "-f", str(path)], stdout=STDERR, check=False)
    except FileNotFoundError as error:
        message = "ssh-keygen is not installed"
        raise VmwError(message, "install your distribution's OpenSSH client", ExitCode.HOST_NOT_READY) from error
    if done.returncode:
        message = "no SSH key was made"
        raise VmwError(message, "make one with `ssh-keygen -t ed25519`", ExitCode.HOST_NOT_READY)
