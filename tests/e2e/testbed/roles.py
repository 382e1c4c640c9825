"""Roles played on a test host over ssh: the machine that holds the VMs need not be the one that Ansible runs on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import container, hostimage
from testbed.machine import TestbedError
from testbed.network import start

if TYPE_CHECKING:
    from testbed.container import Container

REPOSITORY = Path(__file__).parents[3]
POWER_OFF_S = 150
PLAYBOOK = """
- name: Play roles
  hosts: testhost
  gather_facts: false
  vars_files: [{settings}]
  roles: {roles}
"""


@dataclass(frozen=True)
class Play:
    """What a run of Ansible said about the test host.

    Attributes:
        exit_code: Ansible's own.
        output: All that it printed.
        tasks: Results by the task's name; of a task that ran more than once, the last.
        stats: How many tasks were ok, changed, failed...
    """

    exit_code: int
    output: str
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> list[str]:
        """Names of the tasks that changed something."""
        return [name for name, result in self.tasks.items() if result.get("changed")]

    @property
    def failure(self) -> str:
        """What the failed task said."""
        return " ".join(result["msg"] for result in self.tasks.values() if result.get("failed"))


@dataclass
class RoleHost:
    """A fresh machine that roles are played on."""

    container: Container
    directory: Path

    @property
    def key(self) -> Path:
        """The private key of the user at the keyboard."""
        return self.directory / "key"

    def address(self, device: str = hostimage.NIC) -> str:
        """Return the IPv4 address of one of the host's interfaces, with its prefix length, or nothing."""
        for line in self.outside("ip", "-oneline", "-4", "address", "show").splitlines():
            words = line.split()
            if words[1] == device:
                return words[3]
        return ""

    def outside(self, *argv: str) -> str:
        """Run a program of the build machine in the host's network, which also works while the host has none."""
        namespace = ["ip", "netns", "exec", self.container.network.namespace]
        return subprocess.run([*namespace, *argv], capture_output=True, text=True, check=True).stdout

    def run(self, command: str, *, user: str = "root", check: bool = True) -> str:
        """Run a shell command on the host and return what it printed."""
        return self.container.run(command, user=user, check=check).stdout.strip()

    def argv(self, roles: tuple[str, ...], *words: str, address: str, **settings: object) -> list[str]:
        """Return the command line that plays roles."""
        inventory = self.directory / "inventory.json"
        known_hosts = self.directory / "known_hosts"
        ssh = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={known_hosts} -o ServerAliveInterval=5 -o ServerAliveCountMax=2"
        variables = {
            "ansible_host": address,
            "ansible_user": hostimage.USER,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": ssh,
            "ansible_become_password": hostimage.PASSWORD,
        }
        inventory.write_text(json.dumps({"all": {"hosts": {"testhost": variables}}}))
        playbook = self.directory / "playbook.yml"
        names = json.dumps([f"vmw.worktree.{role}" for role in roles])
        playbook.write_text(PLAYBOOK.format(settings=REPOSITORY / "inventory/group_vars/all.yml", roles=names))
        ansible = Path(sys.executable).with_name("ansible-playbook")
        return [str(ansible), "-i", str(inventory), "-e", json.dumps(settings), *words, str(playbook)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that Ansible runs with."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / "collections"),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "cp"),
        }

    def play(self, *roles: str, check: bool = False, **settings: object) -> Play:
        """Play roles as the ordinary user, whose sudo wants a password.

        Args:
            roles: Names of roles of the collection.
            check: Whether only to tell what would change.
            settings: Public settings.
        """
        device = "br0" if self.address("br0") and not self.address() else hostimage.NIC
        words = ["--check", "--diff"] if check else ["--diff"]
        argv = self.argv(roles, *words, address=self.address(device).split("/")[0], **settings)
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False, timeout=600)
        start = done.stdout.find("{\n")
        report = json.loads(done.stdout[start:]) if start >= 0 else {"plays": [], "stats": {}}
        tasks = {
            task["task"]["name"].rpartition(" : ")[2]: task["hosts"]["testhost"]
            for play in report["plays"]
            for task in play["tasks"]
            if "testhost" in task["hosts"]
        }
        return Play(done.returncode, done.stdout + done.stderr, tasks, report["stats"].get("testhost", {}))

    def reboot(self) -> None:
        """Restart the host as its user would, and take from its network what only a running kernel has."""
        old = self.container
        old.run("systemctl poweroff", check=False)
        deadline = time.monotonic() + POWER_OFF_S
        while Path(f"/proc/{old.pid}").exists() and not _ended(old.pid):
            if time.monotonic() > deadline:
                message = f"the test host {old.name} did not power off in {POWER_OFF_S} s"
                raise TestbedError(message)
            time.sleep(0.1)
        for name in (line.split(":")[1].strip() for line in self.outside("ip", "-oneline", "link").splitlines()):
            if name.partition("@")[0] not in {"lo", hostimage.NIC}:
                self.outside("ip", "link", "delete", name.partition("@")[0])
        self.outside("ip", "address", "flush", "dev", hostimage.NIC)
        self.outside("ip", "link", "set", hostimage.NIC, "nomaster", "down")
        argv = container._argv(old.name, old.network, old.directory)
        pid = start(argv, old.directory / "console.log", old.directory)
        self.container = replace(old, pid=pid)
        (old.directory / "container.json").write_text(json.dumps(asdict(self.container)))
        self.container.wait_until_running()


def _ended(pid: int) -> bool:
    """Tell whether a child of this process has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False
