"""`vmw keys`: what a VM does with API keys that stay on the host."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vmw.commands.program import AsJson, Name, group_of, join_group, operations_of, user_settings
from vmw.display import console
from vmw.errors import ExitCode, VmwError

ACCOUNT = "account"

keys_app = group_of("keys", ACCOUNT, "Show or limit what a VM does with API keys that stay on the host: `vmw keys NAME`.")


@keys_app.command(ACCOUNT)
def keys_account(name: Name, *, as_json: AsJson = False) -> None:
    """Show how a VM comes to keys, its limits, and its requests by day. `vmw keys NAME` does the same."""
    from vmw.services import keys  # noqa: PLC0415

    account = keys.account(user_settings(), name)
    if as_json:
        console.data_json(keys.SCHEMA, **asdict(account))
        return
    console.data(f"{account.mode}, profile {account.profile}{', revoked' if account.revoked else ''}")
    for limit, unit in ((account.daily_requests, "requests"), (account.daily_tokens, "tokens")):
        if limit:
            console.data(f"at most {limit} {unit} a day")
    if account.days:
        cells = [[day.day, day.api, str(day.requests), str(day.input_tokens), str(day.output_tokens)] for day in account.days]
        console.table(["DAY", "API", "REQUESTS", "TOKENS IN", "TOKENS OUT"], cells)


@keys_app.command("revoke")
def keys_revoke(context: typer.Context, name: Name) -> None:
    """Put no key into a VM's requests any more, at once."""
    _change(context, name, f"The requests of {name} get no key any more.", revoked=True)


@keys_app.command("restore")
def keys_restore(context: typer.Context, name: Name) -> None:
    """Put keys into a VM's requests again, at once."""
    _change(context, name, f"The requests of {name} get keys again.", revoked=False)


@keys_app.command("limit")
def keys_limit(
    context: typer.Context,
    name: Name,
    *,
    requests: Annotated[int | None, typer.Option(metavar="N", min=0, help="Requests a day; 0 for any number.")] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", min=0, help="Tokens a day; 0 for any number.")] = None,
) -> None:
    """Limit what a VM may spend in a day (UTC), at once."""
    if requests is None and tokens is None:
        message = "which limit?"
        raise VmwError(message, f"`vmw keys limit {name} --requests 500`, or --tokens", ExitCode.USAGE)
    said = f"{name} has these limits from now on; `vmw keys {name}` shows them."
    _change(context, name, said, daily_requests=requests, daily_tokens=tokens)


def _change(context: typer.Context, name: str, said: str, **limits: bool | int | None) -> None:
    from vmw.services import records  # noqa: PLC0415

    settings = user_settings()
    records.find(settings.state_dir, name)
    join_group(settings)
    operations_of(settings, context).keys(name, **limits)
    console.say(said)
