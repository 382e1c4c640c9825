"""Start, stop, suspend, resume and destroy a VM."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vmw.commands.program import Name, app, join_group, operations_of, user_settings
from vmw.display import console
from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from vmw.settings import Settings


@app.command()
def start(context: typer.Context, name: Name) -> None:
    """Start a VM that is off, a suspended one where it was, and wait until it can be reached."""
    from vmw.services import virsh  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    operations = operations_of(settings, context)
    state = operations.state(name)
    console.say(f"Starting {name} ...")
    operations.start(name)
    if state == virsh.SUSPENDED:
        console.say(f"{name} goes on where it was suspended.")
    else:
        console.say(f"{name} was running already." if state in virsh.ON else f"{name} runs.")


@app.command()
def stop(
    context: typer.Context,
    name: Name,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Pull the plug instead of asking the guest; of a suspended VM, lose its memory.")
    ] = False,
    timeout: Annotated[int, typer.Option(metavar="SECONDS", min=0, help="How long the guest may take.")] = 90,
) -> None:
    """Shut a VM down and wait until it is off."""
    from vmw.services import virsh  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    operations = operations_of(settings, context)
    was_off = operations.state(name) not in virsh.ON | {virsh.SUSPENDED}
    console.say(f"Stopping {name} ...")
    operations.stop(name, force=force, timeout=timeout)
    console.say(f"{name} was off already." if was_off else f"{name} is off.")


@app.command()
def suspend(
    context: typer.Context,
    name: Name,
    *,
    timeout: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="How long saving the memory may take.")] = 900,
) -> None:
    """Save a VM's memory to the disk and switch it off, to go on later with everything that runs in it."""
    from vmw.services import virsh  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    operations = operations_of(settings, context)
    state = operations.state(name)
    console.say(f"Suspending {name} ...")
    operations.suspend(name, timeout=timeout)
    if state == virsh.SUSPENDED:
        console.say(f"{name} was suspended already.")
    elif state in virsh.ON:
        console.say(f"{name} is suspended. `vmw resume {name}` lets it go on.")
    else:
        console.say(f"{name} was off already, and has no memory to save.")


@app.command()
def resume(context: typer.Context, name: Name) -> None:
    """Start a suspended VM where it was, and wait until it can be reached."""
    from vmw.services import virsh  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    operations = operations_of(settings, context)
    was_on = operations.state(name) in virsh.ON
    console.say(f"Resuming {name} ...")
    operations.resume(name)
    console.say(f"{name} was running already." if was_on else f"{name} goes on where it was suspended.")


def _show_audit(settings: Settings, name: str) -> None:
    """Say in a line what a VM left in its worktree, if that can be found out."""
    from vmw.services import audit as audit_service  # noqa: PLC0415
    from vmw.services import records  # noqa: PLC0415

    try:
        found = audit_service.examine(settings, name)
    except VmwError as error:
        # Of a half-made VM, or a worktree that is gone, there is nothing to come back to.
        left = records.recorded(settings.state_dir, name)
        if left and left.instance and os.path.isdir(left.instance.worktree):  # noqa: PTH112 - Path is not imported for that
            console.warn(error.message, error.hint)
        return
    if found.summary:
        console.warn(found.summary, f"`vmw audit {name}` lists it, as long as the VM is there")


@app.command()
def destroy(
    context: typer.Context,
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a VM with its disk, also a half-made one. The worktree is never touched."""
    from ansible_collections.vmw.worktree.plugins.module_utils.naming import is_name  # noqa: PLC0415

    from vmw.services import operations, records  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    if not is_name(name):
        raise records.unknown(settings.state_dir, name)
    if not operations.left_of(settings, name):
        # What was asked for is so already.
        unknown = records.unknown(settings.state_dir, name)
        console.warn(f"{unknown.message}, so nothing was done", unknown.hint)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise operations.refuse_without_terminal(name)
        _show_audit(settings, name)
        for line in operations.work_warnings(settings, name):
            console.warn(line)
        memory = ", its saved memory" if operations.is_suspended(settings, name) else ""
        if not console.confirm(f"Destroy {name}{memory} and everything on its disk? The worktree stays."):
            console.say("Nothing was done.")
            raise typer.Exit(ExitCode.FAILED)
    console.say(f"Destroying {name} ...")
    operations_of(settings, context).destroy(name, told=not yes)
    console.say(f"{name} is gone.")
