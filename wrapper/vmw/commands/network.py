"""`vmw net`: what a VM may reach, and what it was refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmw.commands.program import AsJson, Egress, Name, group_of, join_group, operations_of, user_settings
from vmw.display import console

if TYPE_CHECKING:
    from vmw.services.network import Refused

POLICY = "policy"


net_app = group_of("net", POLICY, "Show or change what a VM may reach in the network: `vmw net NAME [POLICY]`.")

Hosts = Annotated[list[str], typer.Argument(metavar="HOST...", help="A host's name, or *.SUFFIX for all below it.")]


@net_app.command(POLICY)
def net_policy(
    context: typer.Context,
    name: Name,
    policy: Annotated[
        Egress | None, typer.Argument(metavar="[POLICY]", help="internet, allowlist, open or offline.", show_default=False)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show a VM's network policy, or change it at once. `vmw net NAME` does the same."""
    from vmw.services import network, records  # noqa: PLC0415

    settings = user_settings()
    instance, _ = records.find(settings.state_dir, name)
    mode, hosts = instance.egress.mode, instance.egress.allow
    if policy is not None:
        network.check_change(instance, policy)
        join_group(settings)
        outcome = operations_of(settings, context).net(name, mode=policy)
        mode = str(outcome.results["egress"]["mode"])
        console.say(
            f"{name} {'has' if outcome.changed else 'had'} the network policy {mode}{'' if outcome.changed else ' already'}."
        )
    if as_json:
        console.data_json(network.SCHEMA, name=name, policy=mode, allow=hosts)
    elif policy is None:
        console.data(mode)
        for host in hosts:
            console.data(f"  + {host}")


@net_app.command("allow")
def net_allow(context: typer.Context, name: Name, hosts: Hosts) -> None:
    """Add hosts to what a VM may reach with the policy allowlist, at once."""
    _change(context, name, hosts, "allow")


@net_app.command("forbid")
def net_forbid(context: typer.Context, name: Name, hosts: Hosts) -> None:
    """Take hosts off a VM's own list again, at once."""
    _change(context, name, hosts, "forbid")


def _change(context: typer.Context, name: str, hosts: list[str], how: str) -> None:
    from vmw.services import network, records  # noqa: PLC0415

    settings = user_settings()
    names = network.check_hosts(hosts)
    instance, _ = records.find(settings.state_dir, name)
    network.check_change(instance, hosts=names)
    join_group(settings)
    operations = operations_of(settings, context)
    outcome = operations.net(name, allow=names) if how == "allow" else operations.net(name, forbid=names)
    shown = ", ".join(names)
    if how == "allow":
        console.say(f"{name} may reach {shown}{'' if outcome.changed else ' already'}.")
    else:
        console.say(
            f"{shown} {'is' if len(names) == 1 else 'are'} not on the own list of {name}{' any more' if outcome.changed else ''}."
        )
    mode = str(outcome.results["egress"]["mode"])
    if mode != Egress.ALLOWLIST:
        console.hint(f"the list counts with the policy allowlist, and {name} has {mode}: `vmw net {name} allowlist` changes it")


@net_app.command("log")
def net_log(
    name: Name,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is refused from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a VM was refused, the newest last. With --follow and --json, a line of JSON for each."""
    from vmw.services import network  # noqa: PLC0415

    settings = user_settings()
    join_group(settings)
    if follow:
        for each in network.follow(settings, name):
            console.data(json.dumps(asdict(each)) if as_json else "  ".join(_cells(each)))
        return
    rows = network.refused(settings, name)
    if as_json:
        console.data_json(network.SCHEMA, refused=[asdict(row) for row in rows])
    elif rows:
        console.table(["LAST REFUSED", "DESTINATION", "PROTOCOL", "PORT", "TIMES"], [_cells(row) for row in rows])
    else:
        console.say(f"Nothing was refused to {name}.")


def _cells(row: Refused) -> list[str]:
    destination = row.host or row.address or "-"
    return [row.time, destination, row.protocol, str(row.port or "-"), str(row.count)]
