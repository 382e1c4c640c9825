"""`vmw image`: the golden image."""

from __future__ import annotations

from dataclasses import asdict

import typer

from vmw.commands.program import AsJson, app, join_group, operations_of, user_settings
from vmw.display import console
from vmw.errors import ExitCode, VmwError

IMAGES_SCHEMA = 1

image_app = typer.Typer(help="The golden image that all VMs are cloned from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(image_app, name="image")


@image_app.command("build")
def image_build(context: typer.Context) -> None:
    """Build a new generation of the golden image. VMs that exist keep theirs."""
    from vmw.services import host as host_service  # noqa: PLC0415

    settings = user_settings()
    missing = host_service.missing_for_builds(settings)
    if missing:
        # Or minutes of download would come before the failure.
        message = f"this machine is not set up yet ({', '.join(missing)})"
        raise VmwError(message, "run `vmw host`", ExitCode.HOST_NOT_READY)
    join_group(settings)
    console.say("Building a golden image ...")
    outcome = operations_of(settings, context).build_image()
    console.say(f"New VMs use generation {outcome.results.get('generation', '')}.".replace(" .", "."))


@image_app.command("list")
def image_list(*, as_json: AsJson = False) -> None:
    """Show the generations of the golden image."""
    from vmw.services import listing  # noqa: PLC0415

    images = listing.list_images(user_settings())
    if as_json:
        console.data_json(IMAGES_SCHEMA, images=[asdict(image) for image in images])
        return
    if not images:
        console.say("There is no golden image; `vmw host` or `vmw image build` makes one.")
        return
    header = ["GENERATION", "CREATED", "NODE", "CLAUDE", "SIZE", "TEMPLATE", "USED BY"]
    rows = [
        [
            f"{image.generation}{' (current)' if image.current else ''}",
            image.created,
            image.node,
            image.claude_code,
            console.size(image.size_bytes),
            console.size(image.template_bytes) if image.template_bytes else "-",
            ", ".join(image.used_by) or "-",
        ]
        for image in images
    ]
    console.table(header, rows)


@image_app.command("prune")
def image_prune(context: typer.Context) -> None:
    """Remove the generations that no VM uses, and templates of which nothing is forked any more."""
    settings = user_settings()
    join_group(settings)
    console.say("Removing unused golden images ...")
    outcome = operations_of(settings, context).prune_images()
    removed = outcome.results.get("removed", [])
    if removed:
        console.say(f"Removed {', '.join(removed)} and freed {console.size(outcome.results.get('freed_bytes', 0))}.")
    else:
        console.say("There is none.")
