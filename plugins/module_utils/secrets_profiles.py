# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The secrets profiles: directories with one file of API keys each, of which a VM is shown one.

The profile ``default`` stood in the secrets' directory itself before there were others, and VMs of that time are served that
directory as a whole. It has a directory of its own now, as no mask would keep a VM that runs from a profile that is made later.
"""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.key_proxy import NoProxyError, proxy_place
from ansible_collections.vmw.worktree.plugins.module_utils.naming import is_name
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import quote
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, write_file
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import manager_runs, systemctl, unit_directory

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

FILE = "secrets.env"
"""The one file of a profile."""

TAKEN_OUT = ".taken-out"
"""End of the name of a directory while it is copied to its place."""

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


def profile_names(state: State) -> list[str]:
    """Return the profiles' names."""
    return sorted(path.name for path in state.secrets.glob("*") if is_name(path.name) and path.is_dir())


def profile_files(state: State) -> dict[str, Path]:
    """Return the file of each profile by name, whether it is there or not."""
    files = {name: state.secrets_of(name) / FILE for name in sorted({DEFAULT_PROFILE, *profile_names(state)})}
    if not state.secrets_of(DEFAULT_PROFILE).is_dir():
        # As long as `settle` has had nothing to do.
        files[DEFAULT_PROFILE] = state.secrets / FILE
    return files


def opened(path: Path, wanted: int) -> bool:
    """Tell whether others than its owner can do more with a path than its mode should let them."""
    return bool(path.stat().st_mode & 0o777 & ~wanted)


def find_proxy(state: State) -> str:
    """Return the address and the port at which guests reach the proxy that has the keys.

    Raises:
        VmwError: There is none that they could reach.
    """
    try:
        return proxy_place(state.root)
    except NoProxyError as error:
        hint = "run `vmw host` to set it up; a VM made with `--keys file` reads its keys itself and needs none"
        raise VmwError(str(error), hint, "host_not_ready") from error


def find_profile(state: State, profile: str) -> Path:
    """Return the file of a profile that is to be shown to a VM.

    Raises:
        VmwError: There is no such profile, or others than the user can read it.
    """
    directory = state.secrets_of(profile)
    path = directory / FILE
    if not path.is_file():
        message = f"there is no secrets profile {profile!r}: {path} does not exist"
        raise VmwError(message, f"`vmw secrets {profile}` makes that file, for you to fill in", "usage")
    for each, wanted in ((directory, DIRECTORY_MODE), (path, FILE_MODE)):
        if opened(each, wanted):
            message = f"{each} is open to others"
            raise VmwError(message, f"`chmod {wanted:o} {shlex.quote(str(each))}`", "usage")
    return path


def make_profile(state: State, profile: str, template: str) -> bool:
    """Make the file of a profile, and of the default one; an existing file is never touched.

    Args:
        state: The state directory's layout.
        profile: The profile's name.
        template: What a new file says.

    Returns:
        Whether anything changed.

    Raises:
        VmwError: The name is none, or see `settle`.
    """
    directories = [state.secrets_of(each) for each in dict.fromkeys((DEFAULT_PROFILE, profile))]
    changed = not state.secrets.is_dir()
    state.secrets.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    changed |= settle(state)
    for directory in directories:
        changed |= not directory.is_dir()
        directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        for each in (state.secrets, directory):
            if opened(each, DIRECTORY_MODE):
                each.chmod(DIRECTORY_MODE)
                changed = True
        if not os.path.lexists(directory / FILE):
            changed |= write_file(directory / FILE, template, FILE_MODE)
    return changed


def is_made(state: State, profile: str) -> bool:
    """Tell whether `make_profile` would change nothing."""
    directories = [state.secrets_of(each) for each in (DEFAULT_PROFILE, profile)]
    return (
        _is_settled(state.secrets.resolve())
        and all(os.path.lexists(each / FILE) for each in directories)
        and not any(opened(each, DIRECTORY_MODE) for each in (state.secrets, *directories))
    )


def settle(state: State) -> bool:
    """Give the default profile a directory of its own, also where its file stood in the secrets' directory before.

    That directory itself becomes the default profile's, below a new one in its place. So the daemon of a VM that runs since
    before, which holds the directory and not its name, goes on showing the file with every edit, and never another profile. The
    units of such VMs are led there too, for libvirt may start them without us. The file's old path becomes a link, and what
    replaces that link is the file of the default profile, as it always was.

    Returns:
        Whether anything changed.

    Raises:
        VmwError: The directory cannot be moved.
    """
    root = state.secrets.resolve()
    if not root.is_dir() and not _partial(root).is_dir():
        return False
    with state.lock("secrets"):
        changed = False
        if not (root / DEFAULT_PROFILE).is_dir():
            _move_default(root)
            changed = True
        default, link = root / DEFAULT_PROFILE, root / FILE
        complete = os.path.lexists(link)
        changed |= _lead_units(root, again=not complete)
        if not complete:
            _take_out_profiles(default, root)
        if link.is_file() and not link.is_symlink():
            _adopt(link, default / FILE)
        if not os.path.lexists(link):
            # The last step: without the link, all of them are done again.
            link.symlink_to(f"{DEFAULT_PROFILE}/{FILE}")
            changed = True
    return changed


def _adopt(path: Path, target: Path) -> None:
    """Let a file that an editor, or a copy from elsewhere, has put in the place of the link be the default profile's.

    Args:
        path: That file.
        target: The default profile's one; what it was is kept beside ``path``, where no VM sees it.
    """
    kept = path.with_name(f"{FILE}.old")
    if target.is_file():
        kept.unlink(missing_ok=True)
        kept.hardlink_to(target)
    path.replace(target)


def _partial(root: Path) -> Path:
    """Return the directory that is about to take the place of the secrets' one."""
    return root.with_name(f".{root.name}.partial")


def _move_default(root: Path) -> None:
    """Have the secrets' directory be the default profile's in a new one; a run that was interrupted half-way is completed."""
    partial = _partial(root)
    try:
        partial.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        if root.is_dir():
            root.rename(partial / DEFAULT_PROFILE)
        partial.rename(root)
    except OSError as error:
        message = f"{root} cannot be made a directory of profiles: {error.strerror}"
        place = shlex.quote(str(root))
        hint = f"stop the VMs, then `cd {place} && mkdir -m 700 {DEFAULT_PROFILE} && mv {FILE} {DEFAULT_PROFILE}/`, and try again"
        raise VmwError(message, hint) from error


def _take_out_profiles(default: Path, root: Path) -> None:
    """Take profiles made by hand out of what VMs of before are shown, as copies: a guest may hold what it has seen."""
    for entry in list(default.iterdir()):
        if is_name(entry.name) and entry.is_dir() and not os.path.lexists(root / entry.name):
            entry.rename(root / f"{entry.name}{TAKEN_OUT}")
    for taken in root.glob(f"*{TAKEN_OUT}"):
        target = root / taken.name.removesuffix(TAKEN_OUT)
        partial = root / f"{target.name}.partial"
        if not os.path.lexists(target):
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(taken, partial, symlinks=True)
            partial.rename(target)
        if taken.is_symlink():
            taken.unlink()
        else:
            shutil.rmtree(taken)


def _led(text: str, root: Path) -> str:
    """Return the text of a unit with the default profile's directory where it has the secrets' directory as a whole."""
    old, new = quote(str(root)), quote(str(root / DEFAULT_PROFILE))
    return text.replace(f" {old} /share ", f" {new} /share ").replace(f" sh {old}\n", f" sh {new}\n")


def _units() -> list[Path]:
    return sorted(unit_directory().glob("vmw-*-secrets.service"))


def _lead_units(root: Path, *, again: bool) -> bool:
    """Have every unit of the time before profiles show the default profile alone.

    Args:
        root: The secrets' directory.
        again: Whether an earlier run may have written units of which the service manager does not know yet.
    """
    changed = False
    for unit in _units():
        text = unit.read_text()
        if _led(text, root) != text:
            changed |= write_file(unit, _led(text, root))
    if (changed or (again and _units())) and manager_runs():
        systemctl("daemon-reload")
    return changed


def _is_settled(root: Path) -> bool:
    """Tell whether `settle` would change nothing."""
    if not (root / DEFAULT_PROFILE).is_dir() or not (root / FILE).is_symlink():
        return False
    texts = [unit.read_text() for unit in _units()]
    return all(_led(text, root) == text for text in texts)
