"""The commands: options and help in, a service's work, a line or two out. Whatever is slow is imported where it is needed."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from vmw import __version__
from vmw.display import console
from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from vmw.runner.playbook import Outcome
    from vmw.services.listing import Row
    from vmw.services.operations import Operations
    from vmw.settings import Settings

SPAWN_SCHEMA = 1
IMAGES_SCHEMA = 1
SHOWN_BRANCHES = 5

app = typer.Typer(
    name="vmw",
    help="Run a coding agent in its own virtual machine, one per git worktree.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
image_app = typer.Typer(help="The golden image that all VMs are cloned from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(image_app, name="image")
git_app = typer.Typer(
    help="Carry commits between your repository and that of a VM made with `--git isolated`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(git_app, name="git")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The VM's name, as `vmw list` shows it.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class GitMode(StrEnum):
    """What of a worktree's git data its VM gets."""

    PROTECTED = "protected"
    ISOLATED = "isolated"
    NONE = "none"


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


def _settings() -> Settings:
    from vmw.settings import load_settings  # noqa: PLC0415

    return load_settings()


def _operations(settings: Settings, context: typer.Context, *, show_changes: bool = False) -> Operations:
    from vmw.display.progress import make_progress  # noqa: PLC0415
    from vmw.layout import find_layout  # noqa: PLC0415
    from vmw.services.operations import Operations  # noqa: PLC0415

    observer = make_progress(settings.state_dir, show_changes=show_changes)
    return Operations(find_layout(), settings, observer, context.obj.command)


def _join_group(settings: Settings) -> None:
    """Start this command anew with libvirt's group, when the user is in it and this process is older than that."""
    if not settings.system_libvirt:
        return
    from vmw.services import group  # noqa: PLC0415

    argv = group.reexec_argv([sys.executable, *sys.orig_argv[1:]])
    if argv:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(argv[0], argv, {**os.environ, group.MARKER: str(os.getpid())})  # noqa: S606 - replaces this process on purpose


def _set_up_host(settings: Settings, context: typer.Context) -> Outcome:
    from vmw.services.become import become_password  # noqa: PLC0415

    password = become_password(context.obj.password, console.ask_password)
    return _operations(settings, context, show_changes=True).host(password)


@app.command()
def host(context: typer.Context) -> None:
    """Set up this machine: packages, libvirt, bridge, mDNS, golden image. Asks once for the sudo password."""
    console.say("Setting up this machine ...")
    outcome = _set_up_host(_settings(), context)
    console.say(f"This machine is ready ({outcome.changed} changed).")


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
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return before the VM can be reached.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make and start a VM for a worktree; one that is there already is started. Sets up this machine first if need be."""
    from vmw.services import group, worktree  # noqa: PLC0415
    from vmw.services import host as host_service  # noqa: PLC0415

    values = worktree.spawn_vars(path, name=name, memory=memory, cpus=cpus, disk=disk, git=git, wait=not no_wait)
    settings = _settings()
    shared = worktree.check_worktree(str(values["worktree"]), settings.state_dir, named=name is not None)
    _offer_ssh_key()
    # A process that was started anew with the group comes from here, where the machine was looked at.
    missing = [] if os.environ.get(group.MARKER) else host_service.missing(settings)
    if missing:
        console.say(f"This machine is not set up yet ({', '.join(missing)}). Setting it up first ...")
        _set_up_host(settings, context)
    _join_group(settings)
    console.say(f"Spawning a VM for {shared} ...")
    instance = _operations(settings, context).spawn(values).results.get("instance", {})
    vm = str(instance.get("name", name or ""))
    if as_json:
        console.data_json(SPAWN_SCHEMA, instance=instance, connect=[console.program(), "ssh", vm])
    else:
        verb = "is being started" if no_wait else "is ready"
        console.say(f"{vm} {verb}. Connect with:")
        console.data(console.command(f"vmw ssh {vm}"))


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
) -> None:
    """Log in to a VM, or run a command in it, with agent forwarding. The exit code is the remote command's."""
    from vmw.services.ssh import connection  # noqa: PLC0415

    settings = _settings()
    _join_group(settings)
    words = list(command or [])
    if words[:1] == ["--"]:
        del words[0]
    argv = connection(settings, name, words)
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

    settings = _settings()
    _join_group(settings)
    found = listing.list_vms(settings)
    if found.warning:
        console.warn(found.warning.message, found.warning.hint)
    if as_json:
        console.data_json(listing.SCHEMA, vms=[asdict(row) for row in found.rows])
        return
    if not found.rows:
        console.say("There are no VMs; `vmw spawn PATH` makes one.")
        return
    header = ["NAME", "STATE", "ADDRESS", "MEMORY/VCPU", "DISK USED", "AGE", "IMAGE", "GIT", "BRANCH", "WORKTREE"]
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
        row.address or "-",
        f"{row.memory_mib} MiB/{row.vcpus}" if row.memory_mib else "-",
        f"{console.size(row.disk_used_bytes)} of {row.disk_gib} GiB" if row.disk_gib else "-",
        console.age(seconds) if seconds is not None else "-",
        row.generation or "-",
        _git_cell(row),
        row.branch or "-",
        row.worktree or "-",
    ]


@app.command()
def start(context: typer.Context, name: Name) -> None:
    """Start a stopped VM and wait until it can be reached."""
    settings = _settings()
    _join_group(settings)
    operations = _operations(settings, context)
    was_off = not operations.is_on(name)
    console.say(f"Starting {name} ...")
    operations.start(name)
    console.say(f"{name} runs." if was_off else f"{name} was running already.")


@app.command()
def stop(
    context: typer.Context,
    name: Name,
    *,
    force: Annotated[bool, typer.Option("--force", help="Pull the plug instead of asking the guest.")] = False,
    timeout: Annotated[int, typer.Option(metavar="SECONDS", min=0, help="How long the guest may take.")] = 90,
) -> None:
    """Shut a VM down and wait until it is off."""
    settings = _settings()
    _join_group(settings)
    operations = _operations(settings, context)
    was_on = operations.is_on(name)
    console.say(f"Stopping {name} ...")
    operations.stop(name, force=force, timeout=timeout)
    console.say(f"{name} is off." if was_on else f"{name} was off already.")


@app.command()
def audit(name: Name, *, as_json: AsJson = False) -> None:
    """Show what a VM left in its worktree that would run on this machine. Exit code 1 when there is something."""
    from vmw.services import audit as audit_service  # noqa: PLC0415

    found = audit_service.examine(_settings(), name)
    if as_json:
        listed = [finding.as_dict() for finding in found.findings]
        about = {"name": name, "worktree": found.worktree, "clean": found.clean}
        console.data_json(audit_service.SCHEMA, **about, counts=found.counts, findings=listed)
    elif found.clean:
        console.say(f"Nothing new in {found.worktree} would run on this machine by itself. Review the code before you run it.")
    else:
        for kind, number, meaning, findings in found.groups():
            console.data(f"{console.paint(kind, console.BOLD, sys.stdout)} ({number}): {meaning}")
            for finding in findings:
                words = f"  {finding.change:<7}  {finding.path}  {finding.detail}" if finding.path else f"  {finding.detail}"
                console.data(words.rstrip())
        console.hint(
            "look at these files before you run git, an editor or a build in the worktree; review the work from the main "
            "checkout, or of a plain clone from a second one, with `git diff main...BRANCH`"
        )
    if not found.clean:
        raise typer.Exit(ExitCode.FAILED)


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

    settings = _settings()
    _join_group(settings)
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
        if not console.confirm(f"Destroy {name} and everything on its disk? The worktree stays."):
            console.say("Nothing was done.")
            raise typer.Exit(ExitCode.FAILED)
    console.say(f"Destroying {name} ...")
    _operations(settings, context).destroy(name, told=not yes)
    console.say(f"{name} is gone.")


@git_app.command("pull")
def git_pull(
    context: typer.Context,
    name: Name,
    *,
    branch: Annotated[str, typer.Option(metavar="BRANCH", help="The VM's branch, by default the one it is on.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also when the VM's commits do not follow those that came before.")
    ] = False,
) -> None:
    """Fetch a VM's commits into your branch vmw/NAME. Nothing of yours is merged or checked out."""
    from vmw.services import records  # noqa: PLC0415

    settings = _settings()
    records.find(settings.state_dir, name)
    _join_group(settings)
    console.say(f"Fetching the commits of {name} ...")
    results = _operations(settings, context).git_pull(name, branch=branch, force=force).results
    target, commits = results.get("branch", ""), results.get("commits", 0)
    if commits:
        console.say(f"{commits} new {'commit is' if commits == 1 else 'commits are'} in your branch {target}. See them with:")
        console.data(str(results.get("look", "")))
    else:
        console.say(f"Your branch {target} has all of them already.")


@git_app.command("push")
def git_push(
    context: typer.Context,
    name: Name,
    *,
    branch: Annotated[str, typer.Option(metavar="BRANCH", help="Your branch, by default all but vmw/*.")] = "",
) -> None:
    """Send your branches to a VM, where they are host/BRANCH. None of its own is changed."""
    from vmw.services import records  # noqa: PLC0415

    settings = _settings()
    records.find(settings.state_dir, name)
    _join_group(settings)
    console.say(f"Sending your branches to {name} ...")
    sent = _operations(settings, context).git_push(name, branch=branch).results.get("branches", [])
    if sent:
        # ssh joins the words for the guest's shell, so that the host's has to leave it a quoted one.
        merged = shlex.quote(shlex.quote(f"host/{sent[0]}"))
        more = f" and {len(sent) - SHOWN_BRANCHES} more" if len(sent) > SHOWN_BRANCHES else ""
        shown = ", ".join(f"host/{each}" for each in sent[:SHOWN_BRANCHES])
        console.say(f"{name} has {shown}{more}. Merge there, for example with:")
        console.data(console.command(f"vmw ssh {name} -- git -C repo merge {merged}"))
    else:
        console.say(f"{name} has all of them already.")


@image_app.command("build")
def image_build(context: typer.Context) -> None:
    """Build a new generation of the golden image. VMs that exist keep theirs."""
    from vmw.services import host as host_service  # noqa: PLC0415

    settings = _settings()
    missing = host_service.missing_for_builds(settings)
    if missing:
        # Or minutes of download would come before the failure.
        message = f"this machine is not set up yet ({', '.join(missing)})"
        raise VmwError(message, "run `vmw host`", ExitCode.HOST_NOT_READY)
    _join_group(settings)
    console.say("Building a golden image ...")
    outcome = _operations(settings, context).build_image()
    console.say(f"New VMs use generation {outcome.results.get('generation', '')}.".replace(" .", "."))


@image_app.command("list")
def image_list(*, as_json: AsJson = False) -> None:
    """Show the generations of the golden image."""
    from vmw.services import listing  # noqa: PLC0415

    images = listing.list_images(_settings())
    if as_json:
        console.data_json(IMAGES_SCHEMA, images=[asdict(image) for image in images])
        return
    if not images:
        console.say("There is no golden image; `vmw host` or `vmw image build` makes one.")
        return
    header = ["GENERATION", "CREATED", "NODE", "CLAUDE", "SIZE", "USED BY"]
    rows = [
        [
            f"{image.generation}{' (current)' if image.current else ''}",
            image.created,
            image.node,
            image.claude_code,
            console.size(image.size_bytes),
            ", ".join(image.used_by) or "-",
        ]
        for image in images
    ]
    console.table(header, rows)


@image_app.command("prune")
def image_prune(context: typer.Context) -> None:
    """Remove the generations that no VM uses."""
    settings = _settings()
    _join_group(settings)
    console.say("Removing unused golden images ...")
    outcome = _operations(settings, context).prune_images()
    removed = outcome.results.get("removed", [])
    if removed:
        console.say(f"Removed {', '.join(removed)} and freed {console.size(outcome.results.get('freed_bytes', 0))}.")
    else:
        console.say("There is none.")


@app.command()
def logs(
    name: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show a VM's console and the journal of its share daemons."""
    from vmw.display.follow import show  # noqa: PLC0415
    from vmw.services import logs as logs_service  # noqa: PLC0415

    sources = logs_service.sources(_settings(), name, follow=follow)
    if not show(sources):
        raise logs_service.nothing_to_show(name)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check this machine and say what mends what is broken. Exit code 3 when something is."""
    from vmw.services import doctor as doctor_service  # noqa: PLC0415

    settings = _settings()
    _join_group(settings)
    findings = doctor_service.examine(settings)
    if as_json:
        checks = [{"name": name, **asdict(finding), "fix": console.command(finding.fix)} for name, finding in findings]
        console.data_json(doctor_service.SCHEMA, checks=checks)
    else:
        colours = {"ok": console.GREEN, "warn": console.YELLOW, "fail": console.RED}
        for name, finding in findings:
            status = console.paint(f"{finding.status:<4}", colours[finding.status], sys.stdout)
            console.data(f"{status}  {name}: {console.copyable(finding.message)}")
            if finding.fix:
                console.data(f"      {console.paint('mend:', console.CYAN, sys.stdout)} {console.command(finding.fix)}")
    if any(finding.status is doctor_service.Status.FAIL for _, finding in findings):
        raise typer.Exit(ExitCode.HOST_NOT_READY)
