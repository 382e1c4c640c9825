"""Set up this machine, and make a VM."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vmw.commands.program import AsJson, Egress, app, join_group, operations_of, user_settings
from vmw.display import console
from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from vmw.runner.playbook import Outcome
    from vmw.runner.timings import Timing
    from vmw.settings import Settings

SPAWN_SCHEMA = 1

SET_UP_SECONDS = "VMW_SET_UP_SECONDS"
"""Tells a process that was started anew with the group how long the set-up of the machine took before."""


class GitMode(StrEnum):
    """What of a worktree's git data its VM gets."""

    PROTECTED = "protected"
    ISOLATED = "isolated"
    NONE = "none"


class KeyMode(StrEnum):
    """How a VM comes to the API keys of its secrets profile."""

    FILE = "file"
    PROXY = "proxy"


def _set_up_if_needed(settings: Settings, context: typer.Context) -> float:
    """Set up this machine unless it is so already, and return how long that took, in seconds; 0 when there was nothing to do."""
    from vmw.services import group  # noqa: PLC0415
    from vmw.services import host as host_service  # noqa: PLC0415

    if os.environ.get(group.MARKER):
        # A process that was started anew with the group comes from here, where the machine was looked at.
        with contextlib.suppress(ValueError):
            return float(os.environ.get(SET_UP_SECONDS, "0"))
        return 0.0
    missing = host_service.missing(settings)
    if not missing:
        return 0.0
    began = time.monotonic()
    console.say(f"This machine is not set up yet ({', '.join(missing)}). Setting it up first ...")
    _set_up_host(settings, context)
    return time.monotonic() - began


def _set_up_host(settings: Settings, context: typer.Context) -> Outcome:
    from vmw.services.become import become_password  # noqa: PLC0415

    password = become_password(context.obj.password, console.ask_password)
    return operations_of(settings, context, show_changes=True).host(password)


@app.command()
def host(context: typer.Context) -> None:
    """Set up this machine: packages, libvirt, bridge, mDNS, golden image. Asks once for the sudo password."""
    console.say("Setting up this machine ...")
    outcome = _set_up_host(user_settings(), context)
    console.say(f"This machine is ready ({outcome.changed} changed).")


@app.command("secrets")
def secrets_(
    context: typer.Context,
    profile: Annotated[str, typer.Argument(metavar="[PROFILE]", help="The profile's name.", show_default=False)] = "default",
) -> None:
    """Make the file of a secrets profile, unless it is there, and print its path: the API keys of the VMs of that profile."""
    from vmw.services import worktree  # noqa: PLC0415

    name = worktree.profile_name(profile)
    outcome = operations_of(user_settings(), context).secrets(name)
    console.say(f"The API keys of the profile {name} are in:")
    console.data(str(outcome.results["secrets_file"]))


@app.command()
def spawn(  # noqa: PLR0913 - one argument for each option
    context: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH", help="The worktree's directory.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="The VM's name, by default made from the directory's.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory: 4G, 512M, or a number of MiB.")] = None,
    cpus: Annotated[int | None, typer.Option(metavar="N", min=1, help="Virtual CPUs.")] = None,
    disk: Annotated[str | None, typer.Option(metavar="SIZE", help="Disk size in GiB, taken up only as it fills.")] = None,
    git: Annotated[
        GitMode | None,
        typer.Option(help="What the VM gets of git data: protected, unless vmw_git_mode says otherwise."),
    ] = None,
    secrets: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="Whose API keys the VM has: default, unless vmw_secrets_profile says otherwise."),
    ] = None,
    egress: Annotated[
        Egress | None,
        typer.Option(help="What the VM may reach in the network: internet, unless vmw_egress says otherwise."),
    ] = None,
    keys: Annotated[
        KeyMode | None,
        typer.Option(
            help="Whether API keys stay on the host, whose proxy puts them in, or the VM reads them; vmw_keys is the setting."
        ),
    ] = None,
    cold: Annotated[bool, typer.Option("--cold", help="Boot the VM, and do not fork it of the saved one.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return before the VM can be reached.")] = False,
    show_timings: Annotated[
        bool, typer.Option("--timings", help="Show on stderr how long each phase took, in the guest too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make and start a VM for a worktree; one that is there already is started. Sets up this machine first if need be."""
    from vmw.services import records, worktree  # noqa: PLC0415

    chosen = {"git": git, "secrets": secrets, "egress": egress, "keys": keys}
    values = worktree.spawn_vars(path, name=name, memory=memory, cpus=cpus, disk=disk, wait=not no_wait, **chosen)
    if cold:
        values["vmw_warm_start"] = False
    if show_timings:
        values["vmw_timings"] = True
    settings = user_settings()
    shared = worktree.check_worktree(str(values["worktree"]), settings.state_dir, named=name is not None)
    if not records.has_vm(settings.state_dir, shared):
        worktree.check_choices(settings, egress, keys)
    if secrets is not None:
        worktree.check_secrets(secrets, settings.state_dir)
    _offer_ssh_key()
    set_up_seconds = _set_up_if_needed(settings, context)
    join_group(settings, {SET_UP_SECONDS: f"{set_up_seconds:.3f}"})
    console.say(f"Spawning a VM for {shared} ...")
    outcome = operations_of(settings, context).spawn(values)
    instance = outcome.results.get("instance", {})
    timings = _timings(outcome, set_up_seconds, shown=show_timings)
    vm = str(instance.get("name", name or ""))
    if as_json:
        measured = {"timings": [timing.as_dict() for timing in timings], "resources": asdict(outcome.resources)}
        console.data_json(SPAWN_SCHEMA, instance=instance, connect=[console.program(), "ssh", vm], **measured)
    else:
        verb = "is being started" if no_wait else "is ready"
        console.say(f"{vm} {verb}. Connect with:")
        console.data(console.command(f"vmw ssh {vm}"))


def _timings(outcome: Outcome, set_up_seconds: float, *, shown: bool) -> tuple[Timing, ...]:
    """Return how long each phase of a spawn took, and show it when the user wants to see it."""
    from vmw.runner.timings import with_host_set_up  # noqa: PLC0415

    timings = with_host_set_up(outcome.timings, set_up_seconds)
    if shown:
        from vmw.display.timings import show  # noqa: PLC0415

        show(timings, outcome.resources)
    return timings


def _offer_ssh_key() -> None:
    from vmw.services import worktree  # noqa: PLC0415

    if worktree.has_ssh_key():
        return
    if not sys.stdin.isatty():
        message = "you have no SSH key, and the VM would have none to trust"
        raise VmwError(message, "make one with `ssh-keygen -t ed25519`", ExitCode.HOST_NOT_READY)
    console.say("You have no SSH key, and the VM would have none to trust.")
    if not console.confirm(f"Make one now ({worktree.SSH_KEY})?"):
        message = "no SSH key was made"
        raise VmwError(message, "make one with `ssh-keygen -t ed25519`", ExitCode.HOST_NOT_READY)
    worktree.make_ssh_key()
