"""The entry point: runs a command and turns every expected failure into two lines and an exit code."""

from __future__ import annotations

import shlex
import signal
import sys

import typer

from vmw.display import console
from vmw.errors import ExitCode, InterruptedByUserError, VmwError
from vmw.layout import find_layout


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    from vmw.commands import Invocation, app  # noqa: PLC0415
    from vmw.services.become import take_over_password  # noqa: PLC0415

    invocation = Invocation(shlex.join(["vmw", *arguments]), take_over_password())
    try:
        _hear_interrupts()
        result = app(args=arguments, prog_name="vmw", standalone_mode=False, obj=invocation)
    except VmwError as failure:
        return _failed(failure, debug=invocation.debug)
    except typer.TyperException as mistake:
        return _failed(_usage_error(mistake), debug=invocation.debug)
    except (KeyboardInterrupt, typer.Abort):
        return _failed(InterruptedByUserError(), debug=invocation.debug)
    except OSError as error:
        # A full disk, a directory that is not ours: the system's own words say it best.
        return _failed(_system_error(error), debug=invocation.debug)
    # Ctrl-C while a command runs comes back from typer as this exit code, without a word.
    return (
        _failed(InterruptedByUserError(), debug=invocation.debug)
        if result == ExitCode.INTERRUPTED
        else int(result or ExitCode.DONE)
    )


def _hear_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt from here on; a caller that wants it ignored gets that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _usage_error(mistake: typer.TyperException) -> VmwError:
    context = getattr(mistake, "ctx", None)
    command = context.command_path if context else "vmw"
    message = mistake.format_message().strip().rstrip(".")
    if "\n" in message:
        # A group without a command: the message is its whole help.
        console.say(message)
        return VmwError("no command was given", f"`{command} COMMAND --help` tells more", ExitCode.USAGE)
    return VmwError(message[:1].lower() + message[1:], f"`{command} --help` shows what it takes", ExitCode.USAGE)


def _system_error(error: OSError) -> VmwError:
    failure = VmwError(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    failure.__cause__ = error
    return failure


def _failed(failure: VmwError, *, debug: bool) -> int:
    if debug:
        import traceback  # noqa: PLC0415 - 15 ms for something rare

        traceback.print_exception(failure)
    console.error(failure)
    return failure.exit_code


def main() -> None:
    """Run vmw as a program."""
    find_layout().make_importable()
    sys.exit(run(sys.argv[1:]))
