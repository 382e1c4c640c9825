"""The command line that reaches a VM."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.session import LOOPBACK
from ansible_collections.vmw.worktree.plugins.module_utils.ssh_command import pinned

from vmw.errors import VmwError
from vmw.services import records, virsh
from vmw.services.agent import FORWARD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmw.services.agent import Lending
    from vmw.settings import Settings


def ssh_argv(  # noqa: PLR0913 - one argument for each thing that ssh is told
    name: str, user: str, address: str, known_hosts: Path, command: Sequence[str], *, lending: Lending = FORWARD, port: int = 0
) -> list[str]:
    """Return ssh's arguments: what becomes of the agent, and the host key that was made for this VM, whatever its address.

    Args:
        name: The VM's name, under which its host key is pinned.
        user: The user in the guest.
        address: Where it is reached.
        known_hosts: The file with the pinned key.
        command: What to run, joined with blanks by ssh itself; empty for a login shell.
        lending: What the guest gets of the user's SSH agent.
        port: The port at which it is reached, or 0 for the usual one.
    """
    return [*lending.words, *pinned(name, known_hosts, port), "-l", user, "--", address, *command]


def connection(settings: Settings, name: str, command: Sequence[str], lending: Lending = FORWARD) -> list[str]:
    """Return the ssh command for a running VM.

    Raises:
        VmwError: There is no such VM, or it does not run.
    """
    instance, files = records.find(settings.state_dir, name)
    query = virsh.Virsh(instance.libvirt_uri)
    state = query.start("domstate", name)
    address = LOOPBACK if instance.is_session else virsh.best_addresses(query, {name: instance.mac}).get(name)
    output, complaint = virsh.finish(state, virsh.QUERY_SECONDS)
    if state.returncode:
        if virsh.NO_DOMAIN in complaint:
            message = f"VM {name!r} is recorded, but libvirt does not know it"
            again = f"vmw spawn {shlex.quote(instance.worktree)} --name {name}"
            raise VmwError(message, f"`{again}` completes it, `vmw destroy {name}` removes what is left of it")
        raise virsh.no_answer(complaint)
    if output.strip() == virsh.SHUT_OFF and query.is_saved(name):
        message = f"VM {name!r} is suspended"
        raise VmwError(message, f"`vmw resume {name}` lets it go on where it was")
    if output.strip() not in virsh.ANSWERING:
        message = f"VM {name!r} is not running ({output.strip()})"
        raise VmwError(message, f"start it with `vmw start {name}`")
    place = address or f"{name}.local"
    return ssh_argv(name, instance.guest_user, place, files.known_hosts, command, lending=lending, port=instance.ssh_port)
