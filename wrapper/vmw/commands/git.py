"""`vmw git`: carry commits."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from vmw.commands.program import Name, app, join_group, operations_of, user_settings
from vmw.display import console

SHOWN_BRANCHES = 5

git_app = typer.Typer(
    help="Carry commits between your repository and that of a VM made with `--git isolated`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(git_app, name="git")


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

    settings = user_settings()
    records.find(settings.state_dir, name)
    join_group(settings)
    console.say(f"Fetching the commits of {name} ...")
    results = operations_of(settings, context).git_pull(name, branch=branch, force=force).results
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

    settings = user_settings()
    records.find(settings.state_dir, name)
    join_group(settings)
    console.say(f"Sending your branches to {name} ...")
    sent = operations_of(settings, context).git_push(name, branch=branch).results.get("branches", [])
    if sent:
        # ssh joins the words for the guest's shell, so that the host's has to leave it a quoted one.
        merged = shlex.quote(shlex.quote(f"host/{sent[0]}"))
        more = f" and {len(sent) - SHOWN_BRANCHES} more" if len(sent) > SHOWN_BRANCHES else ""
        shown = ", ".join(f"host/{each}" for each in sent[:SHOWN_BRANCHES])
        console.say(f"{name} has {shown}{more}. Merge there, for example with:")
        console.data(console.command(f"vmw ssh {name} -- git -C repo merge {merged}"))
    else:
        console.say(f"{name} has all of them already.")
