"""Look at what a VM left, at its logs, and at this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from vmw.commands.program import AsJson, Name, app, join_group, user_settings
from vmw.display import console
from vmw.errors import ExitCode


@app.command()
def audit(name: Name, *, as_json: AsJson = False) -> None:
    """Show what a VM left in its worktree that would run on this machine. Exit code 1 when there is something."""
    from vmw.services import audit as audit_service  # noqa: PLC0415

    found = audit_service.examine(user_settings(), name)
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


@app.command()
def logs(
    name: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on showing what is added.")] = False,
) -> None:
    """Show a VM's console and the journal of its share daemons and ports."""
    from vmw.display.follow import show  # noqa: PLC0415
    from vmw.services import logs as logs_service  # noqa: PLC0415

    sources = logs_service.sources(user_settings(), name, follow=follow)
    if not show(sources):
        raise logs_service.nothing_to_show(name)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check this machine and say what mends what is broken. Exit code 3 when something is."""
    from vmw.services import doctor as doctor_service  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
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
