# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Have a whole VM, layer upon layer."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ansible_collections.vmw.worktree.plugins.module_utils import fork
from ansible_collections.vmw.worktree.plugins.module_utils.instance import files_of
from ansible_collections.vmw.worktree.plugins.module_utils.layers import cloud_init, disk, domain, egress, instance, virtiofsd
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock, Module, Part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles


def recorded(module: Module) -> dict[str, Any]:
    """Return the record of a VM that was made earlier, when it has all that it starts from."""
    files = files_of(module.params["state_dir"], module.params["name"] or "")
    known = files.load()
    files.check_complete(known)
    return {"changed": False, "instance": known.as_dict()}


@contextlib.contextmanager
def _no_half_fork(files: InstanceFiles, identity: str) -> Iterator[None]:
    """Leave nothing of a fork running that is loaded in vain, as a layer above its disk fails.

    Args:
        files: The VM's files.
        identity: Its UUID.
    """
    try:
        yield
    except Exception:
        # What failed first is what the user is told.
        with contextlib.suppress(Exception):
            fork.abandon(files, identity)
        raise


def running(module: Module) -> dict[str, Any]:
    """Have every layer of the VM, one upon the other."""
    clock = Clock()
    made = instance.present(module) if module.params["worktree"] else recorded(module)
    clock.note("instance")
    if module.check_mode:
        return _layers(module, made, clock)
    with _no_half_fork(files_of(module.params["state_dir"], made["instance"]["name"]), made["instance"]["uuid"]):
        return _layers(module, made, clock)


def _layers(module: Module, made: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Have what stands upon a VM's record."""
    parameters = module.params
    done = [made]

    def part(**more: object) -> Part:
        return Part({**parameters, "name": made["instance"]["name"], **more}, module.check_mode, module.warn)

    if parameters["worktree"]:
        # From here on the memory of a fork is loaded in the background. Before it has a card, its policy is enforced.
        done.append(disk.make(part()))
        clock.note("disk")
    # A host's reboot, or a new version of vmw, may have come since the VM was made.
    done.append(egress.present(part(mode="", allow=[], forbid=[])))
    clock.note("egress")
    if parameters["worktree"]:
        done.append(cloud_init.make(part()))
        clock.note("cloud_init")
    served = virtiofsd.present(part(runtime_dir=""))
    done.append(served)
    clock.note("virtiofsd")
    started = domain.running(part(sockets=served["sockets"], mountpoints=served["mountpoints"]), clock)
    done.append(started)
    return {
        "changed": any(each["changed"] for each in done),
        "instance": {**made["instance"], **started.get("instance", {})},
        "start": started["start"],
        "timings": clock.phases,
        "diff": started.get("diff", {}),
    }
