"""A test host: systemd in a container, with its own file tree, network and cgroups."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import cache, hostimage, machine, standins
from testbed.machine import TestbedError
from testbed.network import SERVER, Network, end, start
from testbed.story import COLD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.hostimage import NicManager

INSTANCES = cache.ROOT / "instances"
BOOT_TIMEOUT_S = 120
ROUTE_TIMEOUT_S = 60
# nspawn needs a cgroup2 hierarchy; the build machine may have v1 mounted, which libvirt cannot use.
LAUNCH = """
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$1"
echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
shift
exec "$@"
"""


@dataclass(frozen=True)
class Container:
    """A running test host."""

    name: str
    index: int
    manager: NicManager
    pid: int
    server_pid: int

    @property
    def directory(self) -> Path:
        """Where the instance's files are, on the build machine."""
        return INSTANCES / self.name

    @property
    def root(self) -> Path:
        """The container's file tree, seen from the build machine."""
        return self.directory / "root"

    @property
    def network(self) -> Network:
        """The container's LAN."""
        return Network(self.index, hostimage.NIC)

    @property
    def url(self) -> str:
        """Address of the stand-ins' web server, for the container and its guests."""
        return f"http://{SERVER}"

    @property
    def public_url(self) -> str:
        """Address of the same server outside of the LAN, where the guests may go."""
        return f"http://{self.network.public}"

    @property
    def leader(self) -> int:
        """Process id of the container's init.

        Raises:
            TestbedError: the container does not run.
        """
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            for child in children:
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
        except OSError:
            pass
        message = f"the container {self.name} does not run; see {self.directory}/console.log"
        raise TestbedError(message)

    def command(
        self,
        command: str,
        *,
        user: str = "root",
        tty: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> list[str]:
        """Return the argv that runs a shell command in a login session of `user`; root has none without a terminal.

        Args:
            command: text for ``bash -l -c``.
            user: whose session it is; each call is a fresh one, with the groups of the moment.
            tty: whether the command gets the terminal of the caller.
            env: variables to set in addition to the session's own.
            timeout: seconds after which the command is killed.
        """
        enter = ["nsenter", f"--target={self.leader}", "--all", "--"]
        limit = ["timeout", *(["--foreground"] if tty else []), "--kill-after=10", str(timeout)] if timeout else []
        shell = [*limit, "bash", "-l", "-c", command]
        if user == "root" and not tty:
            # A session takes the host longer to begin and to end than most of root's looks take.
            variables = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", **(env or {})}
            words = (f"{name}={value}" for name, value in variables.items())
            return [*enter, "env", "--ignore-environment", "--chdir=/root", *words, *shell]
        return [
            *enter,
            "systemd-run", "--quiet", "--wait", "--collect", "--service-type=exec",
            "--pty" if tty else "--pipe",
            f"--property=User={user}", "--property=PAMName=login", "--property=WorkingDirectory=~",
            *(f"--setenv={name}={value}" for name, value in (env or {}).items()),
            *shell,
        ]  # fmt: skip

    def run(
        self,
        command: str,
        *,
        user: str = "root",
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in a login session and return its streams.

        Raises:
            TestbedError: the command failed and `check` is set.
        """
        done = subprocess.run(
            self.command(command, user=user, env=env, timeout=timeout),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout + 60,
        )
        if check and done.returncode:
            message = f"{user}@{self.name}: {command}\nexit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            raise TestbedError(message)
        return done

    def configure(self, **settings: object) -> None:
        """Write the user's config.yml: the stand-ins' addresses, CA files, how VMs start, and `settings`."""
        boot = {"vmw_warm_start": False} if COLD else {}
        values: dict[str, object] = {**standins.settings(self.url), **boot, **settings}
        text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
        self.run(
            "umask 077; mkdir -p ~/.config/vmw; cat > ~/.config/vmw/config.yml",
            user=hostimage.USER,
            stdin=text,
        )

    def checkout(self, source: Path) -> None:
        """Put a clone of the git work tree `source`, with its uncommitted files, at ~/vmw."""
        # Root may be at work in somebody else's clone, of which git is wary.
        trusting = ["git", "-c", f"safe.directory={source.resolve()}"]
        files = machine.run([*trusting, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=source)
        present = "\0".join(name for name in files.split("\0") if name and os.path.lexists(source / name))
        archive = self.directory / "checkout.tar"
        machine.run(
            ["tar", "-cf", archive, "--null", "--files-from=-", "--owner=0", "--group=0"],
            stdin=present,
            cwd=source,
        )
        with archive.open("rb") as stream:
            subprocess.run(
                self.command(
                    "rm -rf vmw && mkdir vmw && tar -C vmw -xf - && cd vmw && git init -q && git add -A"
                    " && git -c user.name=dev -c user.email=dev@localhost commit -q -m Checkout",
                    user=hostimage.USER,
                ),
                stdin=stream,
                check=True,
            )
        archive.unlink()

    def checkout_again(self, source: Path) -> None:
        """Put a clone of `source` in the place of the one at ~/vmw, whose Python environment stays."""
        home = self.root / "home" / hostimage.USER
        environment, kept = home / "vmw/.venv", home / ".venv.kept"
        if environment.is_dir():
            environment.rename(kept)
        self.checkout(source)
        if kept.is_dir():
            kept.rename(environment)

    def snapshot(self) -> list[str]:
        """Return what a set-up could change: packages, addresses, the user's groups, files with their contents.

        The user's checkout and what Ansible keeps for itself are left out.
        """
        names = ("vmw", ".ansible", ".sudo_as_admin_successful")
        left_out = " -o ".join(f"-path /home/{hostimage.USER}/{name}" for name in names)
        files = rf"find /etc /usr/local /home /var/lib/systemd/linger \( {left_out} \) -prune -o"
        return self.run(
            f"dpkg-query --show; ip -br address; id {hostimage.USER}; ls -A /run/vmw 2>&1;"
            rf" {files} -printf '%p %y %m %U %G %l\n' | sort; {files} -type f -exec sha256sum {{}} + | sort"
        ).stdout.splitlines()

    def wait_until_running(self) -> None:
        """Wait for the end of the boot.

        Raises:
            TestbedError: it did not come, or units failed.
        """
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        state = "no init yet"
        while time.monotonic() < deadline:
            try:
                enter = ["nsenter", f"--target={self.leader}", "--all", "--"]
                state = machine.run([*enter, "systemctl", "is-system-running"], check=False).strip()
                if state == "running":
                    state = "running, without a route to the world"
                    wait = "until ip -4 route get 9.9.9.9; do sleep 0.2; done"
                    machine.run([*enter, "timeout", str(ROUTE_TIMEOUT_S), "sh", "-c", wait])
                    return
                if state == "degraded":
                    state += "\n" + machine.run([*enter, "systemctl", "--failed", "--no-pager"])
                    break
            except TestbedError:
                if not Path(f"/proc/{self.pid}").exists():
                    break
            time.sleep(0.2)
        message = f"the container {self.name} did not boot ({state}); see {self.directory}/console.log"
        raise TestbedError(message)


def names() -> list[str]:
    """Return the names of the test hosts that exist."""
    return sorted(file.parent.name for file in INSTANCES.glob("*/container.json"))


def find(name: str) -> Container:
    """Return a test host that exists.

    Raises:
        TestbedError: there is none of this name.
    """
    try:
        values = json.loads((INSTANCES / name / "container.json").read_text())
    except FileNotFoundError:
        message = f"there is no test host {name}; make it with: up {name}"
        raise TestbedError(message) from None
    return Container(**values)


def up(name: str, manager: NicManager = "networkd") -> Container:
    """Start a fresh test host.

    Raises:
        TestbedError: one of this name exists, or it did not boot.
    """
    tree = hostimage.tree(manager)
    site = standins.site()
    directory = INSTANCES / name
    with cache.locked("instances"):
        if (directory / "container.json").exists():
            message = f"the test host {name} exists; remove it with: down {name}"
            raise TestbedError(message)
        taken = {find(other).index for other in names()}
        index = next(number for number in range(1, 255) if number not in taken)
        (directory / "root").mkdir(parents=True, exist_ok=True)
        network = Network(index, hostimage.NIC)
        network.create(directory)
        _mount(tree, directory)
        server_pid = start(
            [sys.executable, str(Path(standins.__file__).with_name("server.py")), "80", network.gateway, network.public],
            directory / "server.log",
            site,
        )
        pid = start(_argv(name, network, directory), directory / "console.log", directory)
        container = Container(name, index, manager, pid, server_pid)
        (directory / "container.json").write_text(json.dumps(asdict(container)))
    container.wait_until_running()
    return container


def down(name: str) -> None:
    """Remove a test host with everything it has, guests included; one that is gone is no error."""
    directory = INSTANCES / name
    if not directory.exists():
        return
    with cache.locked("instances"):
        try:
            container = find(name)
        except TestbedError:
            container = None
        if container:
            _kill(container)
            end(container.server_pid)
            container.network.remove(directory)
        machine.run(["umount", "--lazy", "--recursive", directory / "root"], check=False)
        shutil.rmtree(directory)


def _mount(tree: Path, directory: Path) -> None:
    """Give the instance a tree of its own: an overlay, or a copy where overlays do not stack."""
    layers = {"upperdir": directory / "upper", "workdir": directory / "work"}
    for layer in layers.values():
        layer.mkdir(exist_ok=True)
    options = ",".join(f"{key}={value}" for key, value in {"lowerdir": tree, **layers}.items())
    try:
        machine.run(["mount", "-t", "overlay", "overlay", "-o", options, directory / "root"])
    except TestbedError:
        machine.run(["cp", "-a", "--reflink=auto", f"{tree}/.", directory / "root"])


def _argv(name: str, network: Network, directory: Path) -> list[str]:
    """Return the argv that becomes the container's nspawn."""
    devices = [device for device in ("/dev/net/tun", "/dev/kvm", "/dev/fuse") if Path(device).exists()]
    return [
        "env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network",
        "unshare", "--mount", "sh", "-eu", "-c", LAUNCH, "sh", f"vmw-test-{name}",
        "systemd-nspawn", "--quiet", "--boot", f"--directory={directory / 'root'}",
        "--register=no", "--keep-unit", "--link-journal=no", "--hostname=testhost",
        "--console=pipe", "--resolv-conf=off", "--timezone=off", "--capability=all",
        f"--network-namespace-path=/run/netns/{network.namespace}",
        *(f"--bind={device}" for device in devices),
    ]  # fmt: skip


def _kill(container: Container) -> None:
    """End the container at once, as a power cut would."""
    with contextlib.suppress(TestbedError, ProcessLookupError):
        os.kill(container.leader, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{container.pid}").exists() and time.monotonic() < deadline:
        try:
            if os.waitpid(container.pid, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            pass
        time.sleep(0.1)
