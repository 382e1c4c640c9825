"""The user of a test host: types commands, and looks at what came of them without asking vmw."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed import hostimage
from testbed.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.container import Container

HOME = f"/home/{hostimage.USER}"
STATE = f"{HOME}/.config/vmw"
PASSWORD_FILE = {"ANSIBLE_BECOME_PASSWORD_FILE": f"{HOME}/become-password"}
PROMPT = rf"\[sudo\] password for {hostimage.USER}: "
PLAYBOOK = f"{HOME}/vmw/.venv/bin/ansible-playbook"
GUEST_USER = "claude"
LOOKUPS = 4
LEFTOVERS_S = 30
SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=20"

Done = subprocess.CompletedProcess[str]


def report(done: Done) -> str:
    """Return what a command did, for the message of a failed assertion."""
    return f"exit code {done.returncode}\n--- stdout\n{done.stdout[-6000:]}\n--- stderr\n{done.stderr[-6000:]}"


@dataclass(frozen=True)
class Person:
    """The ordinary user of a test host, and root where a look from outside takes root."""

    host: Container

    def sh(self, command: str, *, env: Mapping[str, str] | None = None, timeout: float = 180, check: bool = False) -> Done:
        """Run a shell command as the user, in a fresh login session without a terminal."""
        return self.host.run(command, user=hostimage.USER, env=env, timeout=timeout, check=check)

    def root(self, command: str, *, timeout: float = 120, check: bool = True) -> str:
        """Run a shell command as root and return what it printed."""
        return self.host.run(command, timeout=timeout, check=check).stdout

    def terminal(self, command: str, *, env: Mapping[str, str] | None = None) -> Terminal:
        """Run a shell command as the user, at a terminal."""
        return Terminal(self.host.command(command, user=hostimage.USER, env=env, tty=True))

    def vmw(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> Done:
        """Run a vmw command without a terminal, from the home directory."""
        return self.sh(f"~/vmw/vmw {shlex.join(words)}", env=env, timeout=timeout)

    def playbook(
        self, name: str, *words: str, cwd: str = "~", env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> Done:
        """Run one of the playbooks by hand, with the Ansible of vmw's environment."""
        return self.sh(f"cd {cwd} && {PLAYBOOK} {HOME}/vmw/{name} {shlex.join(words)}", env=env, timeout=timeout)

    def virsh(self, *words: str, check: bool = True) -> str:
        """Ask libvirt, as root."""
        return self.root(f"virsh -q -c qemu:///system {shlex.join(words)}", check=check).strip()

    def domain_state(self, name: str) -> str:
        """Return a domain's state in libvirt's words; an empty string for one that libvirt does not know."""
        return self.virsh("domstate", name, check=False)

    def domains(self) -> list[str]:
        """Return the names of all domains."""
        return sorted(self.virsh("list", "--all", "--name").split())

    def address(self, name: str) -> str:
        """Return a guest's IPv4 address as its agent tells it."""
        for line in self.virsh("domifaddr", name, "--source", "agent").splitlines():
            fields = line.split()
            if fields[0] != "lo" and "ipv4" in fields:
                return fields[-1].partition("/")[0]
        return ""

    def lookup(self, name: str) -> str:
        """Return the address that the host finds for a guest by mDNS, whose question or answer may get lost once or twice."""
        for _ in range(LOOKUPS):
            found = self.root(f"getent ahostsv4 {name}.local", check=False).split()
            if found:
                return found[0]
        return ""

    def ssh(self, name: str, command: str, *, options: str = "", timeout: float = 120) -> Done:
        """Run a command in a guest by plain ssh, with the key that vmw pinned for it."""
        assert self.lookup(name), f"{name}.local is not found"
        config = f"-F {STATE}/instances/{name}/ssh_config"
        return self.sh(f"ssh {config} {SSH_OPTIONS} {options} {name}.local {shlex.quote(command)}", timeout=timeout)

    def exists(self, path: str) -> bool:
        """Tell whether a file is there, a link that leads nowhere too."""
        return self.host.run(f"test -e {shlex.quote(path)} -o -L {shlex.quote(path)}", check=False).returncode == 0

    def await_path(self, path: str, seconds: int = 120) -> None:
        """Wait until a file is there."""
        self.root(
            f"timeout {seconds} sh -c 'until test -e \"$1\"; do sleep 0.05; done' sh {shlex.quote(path)}", timeout=seconds + 10
        )

    def read(self, path: str) -> str:
        """Return a file's text."""
        return self.root(f"cat {shlex.quote(path)}")

    def read_json(self, path: str) -> Any:  # noqa: ANN401 - whatever is in the file
        """Return a JSON file's content."""
        return json.loads(self.read(path))

    def record(self, name: str) -> dict[str, Any]:
        """Return a VM's instance record."""
        content: dict[str, Any] = self.read_json(f"{STATE}/instances/{name}/instance.json")
        return content

    def stat(self, path: str) -> str:
        """Return mode, owner and group of a file, as in ``640 dev libvirt-qemu``."""
        return self.root(f"stat --format='%a %U %G' {shlex.quote(path)}").strip()

    def traces(self, name: str) -> list[str]:
        """Return everything on the host that belongs to the VM `name`."""
        found = [f"domain {name}"] if name in self.domains() else []
        places = (
            f"{STATE}/instances/{name}",
            f"/run/vmw/{hostimage.USER}/{name}-*",
            f"{HOME}/.config/systemd/user/vmw-{name}-*",
            f"{HOME}/.config/systemd/user/*.wants/vmw-{name}-*",
        )
        listing = self.root(f"ls -d {' '.join(places)} 2>/dev/null; pgrep -af '[i]nstances/{name}/'", check=False)
        return found + listing.splitlines()

    def fingerprint(self, directory: str) -> str:
        """Return a hash over a tree: names, types, modes, owners, times of the files, contents."""
        quoted = shlex.quote(directory)
        # The quicker hash of the two, for a saved memory is gigabytes.
        return self.root(
            f"cd {quoted} && (find . -printf '%p %y %m %U %G %s %T@ %l\\n' | sort; "
            "find . -type f -print0 | sort -z | xargs -0 b2sum) | sha256sum"
        )

    def leftovers(self) -> str:
        """Return the processes of interrupted runs that do not end by themselves: Ansible's, and those that it starts."""
        pattern = "ansible|AnsiballZ|[v]mw/wrapper|apt-get|dpkg|curl |/usr/bin/sudo"
        deadline = time.monotonic() + LEFTOVERS_S
        while True:
            found = self.root(f"ps -eo pid,user,args | grep -E '{pattern}' | grep -v grep", check=False)
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.5)
