"""The VMs that are recorded on this host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles, files_of
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Recorded:
    """A VM with its files; ``instance`` is None when the record cannot be read."""

    name: str
    files: InstanceFiles
    instance: Instance | None


def all_recorded(state_dir: Path) -> list[Recorded]:
    """Return every directory of a VM, by name, also a half-made one."""
    state = State(state_dir)
    found = []
    directories = sorted(path for path in state.instances.glob("*") if path.is_dir() and not path.name.startswith("."))
    for directory in directories:
        files = InstanceFiles(state, directory.name)
        try:
            instance = Instance.from_dict(json.loads(files.record.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            instance = None
        found.append(Recorded(directory.name, files, instance))
    return found


def has_vm(state_dir: Path, worktree: Path) -> bool:
    """Tell whether a worktree has a VM already.

    Args:
        state_dir: vmw's directory on the host.
        worktree: Its real path.
    """
    return any(each.instance and each.instance.worktree == str(worktree) for each in all_recorded(state_dir))


def unknown(state_dir: Path, name: str) -> VmwError:
    """Return the error for a name that no VM has, with the names that come near."""
    import difflib  # noqa: PLC0415 - needed only here

    names = [recorded.name for recorded in all_recorded(state_dir)]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [each for each in names if name and name in each][:3]
    if near:
        hint = f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
    elif names:
        hint = "`vmw list` shows what there is"
    else:
        hint = "there are no VMs yet; `vmw spawn PATH` makes one"
    return VmwError(f"there is no VM named {name!r}", hint, ExitCode.NOT_FOUND)


def recorded(state_dir: Path, name: str) -> Recorded | None:
    """Return what there is of a VM, also of one whose record cannot be read; None when there is nothing."""
    return next((each for each in all_recorded(state_dir) if each.name == name), None)


def find(state_dir: Path, name: str) -> tuple[Instance, InstanceFiles]:
    """Return a VM's record and its files.

    Raises:
        VmwError: There is none, or it cannot be read.
    """
    try:
        files = files_of(str(state_dir), name)
        return files.load(), files
    except CollectionError as error:
        if error.code == "not_found" and any(recorded.name == name for recorded in all_recorded(state_dir)):
            message = f"VM {name!r} was never finished, or is half removed: its record is missing"
            raise VmwError(message, f"`vmw destroy {name}` removes what is left of it") from error
        if error.code == "not_found":
            raise unknown(state_dir, name) from error
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error
