"""The program itself: its options, and what every command starts with."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vmw import __version__
from vmw.display import console

if TYPE_CHECKING:
    from vmw.services.operations import Operations
    from vmw.settings import Settings

app = typer.Typer(
    name="vmw",
    help="Run a coding agent in its own virtual machine, one per git worktree.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The VM's name, as `vmw list` shows it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Egress(StrEnum):
    """What a VM may reach in the network."""

    INTERNET = "internet"
    ALLOWLIST = "allowlist"
    OPEN = "open"
    OFFLINE = "offline"


def group_of(name: str, usual: str, about: str) -> typer.Typer:
    """Add a group of commands to the program in which a word that is no command of its own is a VM's name.

    Args:
        name: The group's name.
        usual: The command that is meant without a command.
        about: The group's help.
    """

    class Group(TyperGroup):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's own types are not public
            if args and args[0] not in self.commands and not args[0].startswith("-"):
                args = [usual, *args]
            return super().resolve_command(ctx, args)

    group = typer.Typer(cls=Group, help=about, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name=name)
    return group


@dataclass
class Invocation:
    """What holds for the whole run of the program, whatever the command.

    Args:
        command: What the user typed, as a line to copy.
        password: The password for sudo, when the launcher has asked for it.
        debug: Whether errors show where they come from.
    """

    command: str
    password: str | None = None
    debug: bool = False


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer passes it so
    if value:
        console.data(f"vmw {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
) -> None:
    """Run a coding agent in its own virtual machine, one per git worktree."""
    context.obj.debug = debug


def user_settings() -> Settings:
    """Read the user's settings; see `load_settings` for what is raised here."""
    from vmw.settings import load_settings  # noqa: PLC0415

    return load_settings()


def operations_of(settings: Settings, context: typer.Context, *, show_changes: bool = False) -> Operations:
    """Return what is done with playbooks, with their progress shown.

    Args:
        settings: The user's settings.
        context: What typer knows of this run.
        show_changes: Whether each change is told.
    """
    from vmw.display.progress import make_progress  # noqa: PLC0415
    from vmw.layout import find_layout  # noqa: PLC0415
    from vmw.services.operations import Operations  # noqa: PLC0415

    observer = make_progress(settings.state_dir, show_changes=show_changes)
    return Operations(find_layout(), settings, observer, context.obj.command)


def join_group(settings: Settings, carried: dict[str, str] | None = None) -> None:
    """Start this command anew with libvirt's group, when the user is in it and this process is older than that.

    Args:
        settings: Which libvirt is used.
        carried: What to add to the environment of the new process.
    """
    if not settings.system_libvirt:
        return
    from vmw.services import group  # noqa: PLC0415

    argv = group.reexec_argv([sys.executable, *sys.orig_argv[1:]])
    if argv:
        sys.stdout.flush()
        sys.stderr.flush()
        environment = {**os.environ, **(carried or {}), group.MARKER: str(os.getpid())}
        os.execvpe(argv[0], argv, environment)  # noqa: S606 - replaces this process on purpose
