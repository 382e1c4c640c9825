"""Log in to VMs, publish their ports, and see which there are."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmw.commands.program import AsJson, Name, app, join_group, operations_of, user_settings
from vmw.display import console
from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from vmw.services.listing import Row
    from vmw.settings import Settings


NO_AGENT = "--no-agent"


def _release_environment() -> None:
    """Let go of the launcher's lock on the Python environment before this process becomes a program that needs none."""
    descriptor = os.environ.pop("VMW_LOCK_FD", "")
    if descriptor:
        # A program between the launcher and here may have closed it.
        with contextlib.suppress(OSError):
            os.close(int(descriptor))


@app.command(context_settings={"allow_interspersed_args": False})
def ssh(
    name: Name,
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- CMD...]", help="What to run in the VM.")] = None,
    *,
    no_agent: Annotated[
        bool, typer.Option(NO_AGENT, help="Do not forward your SSH agent; vmw_ssh_agent is the setting for it.")
    ] = False,
) -> None:
    """Log in to a VM, or run a command in it, with agent forwarding. The exit code is the remote command's."""
    from vmw.services.agent import lending_of  # noqa: PLC0415
    from vmw.services.ssh import connection  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    words = list(command or [])
    if words[:1] == [NO_AGENT]:
        # Behind the name it would be the remote command's, and the agent forwarded all the same.
        no_agent = True
        del words[0]
    if words[:1] == ["--"]:
        del words[0]
    lending = lending_of(settings, name, no_agent=no_agent)
    argv = connection(settings, name, words, lending)
    if lending.warning:
        console.warn(lending.warning, "`ssh-add -l` shows what it holds")
    _release_environment()
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - becomes ssh, so that signals and the exit code are its own
    except FileNotFoundError as error:
        message = "ssh is not installed"
        raise VmwError(message, "install your distribution's OpenSSH client", ExitCode.HOST_NOT_READY) from error


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """Show all VMs, running and stopped."""
    from vmw.services import listing  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    found = listing.list_vms(settings)
    if found.warning:
        console.warn(found.warning.message, found.warning.hint)
    if as_json:
        console.data_json(listing.SCHEMA, vms=[asdict(row) for row in found.rows])
        return
    if not found.rows:
        console.say("There are no VMs; `vmw spawn PATH` makes one.")
        return
    header = ["NAME", "STATE", "ADDRESS", "MEMORY/VCPU", "DISK USED", "AGE", "IMAGE", "SECRETS", "GIT", "BRANCH", "WORKTREE"]
    console.table(header, [_cells(row) for row in found.rows])


def _git_cell(row: Row) -> str:
    usual = row.git_mode == "protected" or row.git == "none"
    return (row.git or "-") if usual else f"{row.git}, {'not shared' if row.git_mode == 'none' else row.git_mode}"


def _cells(row: Row) -> list[str]:
    from vmw.services.listing import seconds_since  # noqa: PLC0415

    seconds = seconds_since(row.created)
    return [
        row.name,
        row.state,
        (f"{row.address}:{row.ssh_port}" if row.ssh_port else row.address) if row.address else "-",
        f"{row.memory_mib} MiB/{row.vcpus}" if row.memory_mib else "-",
        f"{console.size(row.disk_used_bytes)} of {row.disk_gib} GiB" if row.disk_gib else "-",
        console.age(seconds) if seconds is not None else "-",
        row.generation or "-",
        row.secrets_profile or "-",
        _git_cell(row),
        row.branch or "-",
        row.worktree or "-",
    ]


@app.command()
def port(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The VM's name.", show_default=False)] = None,
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[PORT[:HOST_PORT]]", help="The VM's port and, after a colon, this machine's.", show_default=False
        ),
    ] = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Publish the port no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a VM's port on this machine, at 127.0.0.1 alone. Without a port, list what is published."""
    settings = user_settings()
    if name is None or spec is None:
        if remove:
            message = "which port of which VM is to be removed?"
            raise VmwError(message, "`vmw port NAME PORT --remove`; `vmw port` lists them", ExitCode.USAGE)
        _list_ports(settings, name, as_json=as_json)
        return
    if as_json:
        message = "`--json` is for the list"
        raise VmwError(message, f"`vmw port {name} --json` lists the published ports", ExitCode.USAGE)
    from vmw.services import ports, records  # noqa: PLC0415

    ports.check(spec, remove=remove)
    records.find(settings.state_dir, name)
    operations = operations_of(settings, context)
    if remove:
        removed = operations.port(name, spec, remove=True).results.get("removed", [])
        console.say(f"{removed[0]} of {name} is published no more." if removed else f"{spec} of {name} was not published.")
        return
    outcome = operations.port(name, spec, remove=False)
    results = outcome.results
    what = f"Port {results.get('guest_port', '')} of {name} {'is' if outcome.changed else 'was'} published"
    if not results.get("running"):
        console.say(f"{what}{'' if outcome.changed else ' already'}, and opens when {name} runs, at:")
    elif not results.get("listening"):
        console.say(f"{what}{'' if outcome.changed else ' already'}, and opens when {name} can be reached, at:")
    else:
        console.say(f"{what} at:" if outcome.changed else f"{what} already, at:")
    console.data(f"127.0.0.1:{results.get('host_port', '')}")


def _list_ports(settings: Settings, name: str | None, *, as_json: bool) -> None:
    from vmw.services import ports  # noqa: PLC0415

    rows = ports.list_ports(settings, name)
    if as_json:
        console.data_json(ports.SCHEMA, ports=[asdict(row) for row in rows])
    elif rows:
        cells = [[row.name, str(row.guest_port), f"{row.address}:{row.host_port}", row.state] for row in rows]
        console.table(["NAME", "PORT", "PUBLISHED AT", "STATE"], cells)
    else:
        console.say(f"No port {f'of {name} ' if name else ''}is published; `vmw port {name or 'NAME'} 3000` publishes one.")
