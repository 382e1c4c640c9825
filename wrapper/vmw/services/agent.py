"""What a guest is lent of the user's SSH agent."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmw.errors import ExitCode, VmwError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmw.settings import Settings

FILTER = "ssh-agent-filter"
ASKPASS = "ssh-askpass"

LEND_FILTERED = """\
options=$1 agent=$SSH_AUTH_SOCK
shift
unset SSH_AGENT_PID
directory=$(TMPDIR=/tmp mktemp -d) || exit
trap '[ -z "$SSH_AGENT_PID" ] || kill "$SSH_AGENT_PID"; rm -rf "$directory"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
filter=$(cd "$directory" && ssh-agent-filter $options) || exit
eval "$filter" >/dev/null
filter=$SSH_AUTH_SOCK
SSH_AUTH_SOCK=$agent ssh -o ControlPath=none -o "ForwardAgent=$filter" "$@"
"""
"""Shell program that runs ssh, whose arguments follow the filter's options, and lends what the filter lets through.

The filter's own wrapper, afssh, gives its socket to ssh as the agent: ssh would ask at each login, could not log in with any
other key, and an `IdentityAgent` in the user's configuration would be forwarded in its place, unfiltered. ForwardAgent names
the socket that is forwarded and no other, and a connection that is shared would forward what it began with: ssh_config(5).
"""


@dataclass(frozen=True)
class Lending:
    """How ssh is begun, so that a guest gets of the agent what it is to get.

    Attributes:
        words: The command line up to ssh's further options.
        warning: What is not lent that was to be.
    """

    words: tuple[str, ...]
    warning: str = ""


FORWARD = Lending(("ssh", "-A"))
OFF = Lending(("ssh", "-a"))
"""Said in so many words: the user's own configuration may forward everywhere."""


@dataclass(frozen=True)
class Key:
    """A key in the agent: its public part in base64, and its comment."""

    public: str
    comment: str

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint as `ssh-add -l` shows it."""
        import base64  # noqa: PLC0415 - needed for the filter only
        import hashlib  # noqa: PLC0415

        digest = hashlib.sha256(base64.b64decode(self.public)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    def is_one_of(self, names: Iterable[str]) -> bool:
        """Tell whether one of some comments and fingerprints is this key's."""
        return any(name in {self.comment, self.fingerprint} for name in names)


def lending_of(settings: Settings, name: str, *, no_agent: bool = False) -> Lending:
    """Return what a VM is lent of the agent.

    Args:
        settings: The user's settings.
        name: The VM's name, which the filter shows when it asks.
        no_agent: Whether the user wants nothing lent this time.

    Raises:
        VmwError: Something is to be filtered, and cannot be.
    """
    if no_agent or settings.vmw_ssh_agent == "off":
        return OFF
    if settings.vmw_ssh_agent == "forward":
        return FORWARD
    askpass = check_filter(settings)
    keys = _held_keys()
    chosen = [key for key in keys if key.is_one_of(settings.vmw_ssh_agent_keys)]
    if not chosen:
        # Without an agent nobody expects one there.
        warning = f"your SSH agent holds none of vmw_ssh_agent_keys, so {name} is lent none" if keys else ""
        return Lending(OFF.words, warning)
    # By their public parts, for a comment could be another key's too. None of these words has a blank in it.
    options = [f"--name={name}", *(f"--key-confirmed={key.public}" for key in chosen)]
    return Lending(("env", f"SSH_ASKPASS={askpass}", "sh", "-c", LEND_FILTERED, "vmw-ssh", " ".join(options)))


def check_filter(settings: Settings) -> str:
    """See that keys can be filtered, and return the path of the program that asks the user.

    Raises:
        VmwError: No key was chosen, or a program is missing.
    """
    if not settings.vmw_ssh_agent_keys:
        message = "vmw_ssh_agent is filter, and vmw_ssh_agent_keys names no key"
        hint = "name comments or fingerprints in ~/.config/vmw/config.yml, as `ssh-add -l` shows them"
        raise VmwError(message, hint, ExitCode.USAGE)
    if not shutil.which(FILTER):
        message = f"vmw_ssh_agent is filter, and {FILTER} is not installed"
        raise VmwError(message, f"`sudo apt install {FILTER}` on Debian and Ubuntu", ExitCode.HOST_NOT_READY)
    # The filter takes a program that cannot be started for a yes, and starts it from another directory.
    found = shutil.which(os.environ.get("SSH_ASKPASS") or ASKPASS)
    if not found:
        message = "vmw_ssh_agent is filter, and there is no program that could ask you before a key is used"
        hint = f"`sudo apt install {ASKPASS}`, or name one in SSH_ASKPASS"
        raise VmwError(message, hint, ExitCode.HOST_NOT_READY)
    return os.path.abspath(found)  # noqa: PTH100 - a link is to stay one


def _held_keys() -> list[Key]:
    """Return the keys in the user's agent; none where there is no agent."""
    if not os.environ.get("SSH_AUTH_SOCK"):
        return []
    try:
        done = subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        return []
    rows = [line.split(" ", 2) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [Key(row[1], row[2] if row[2:] else "") for row in rows if row[1:]]
