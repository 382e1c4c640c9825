"""One test host and its story: each stage is a fixture, and a stage that failed fails its tests at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testbed import container, handover, hostimage, machine
from testbed.lab import GUARDED, GUARDED_NAME, make_guarded
from testbed.person import HOME, PASSWORD_FILE, STATE, Person, report
from testbed.story import CLONE, FEATURE_X, MAKE_PROJECT, PROJECT, FirstSpawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.container import Container

REPOSITORY = Path(__file__).parents[2]
ARTEFACTS = REPOSITORY / "tests" / "artefacts" / "e2e"
KEEP = os.environ.get("VMW_E2E_HOST", "")
"""Name of a test host to use again and to leave, for work on the tests themselves."""
GIVE_IMAGE = os.environ.get("VMW_E2E_GIVE_IMAGE", "")
TAKE_IMAGE = os.environ.get("VMW_E2E_TAKE_IMAGE", "")
"""Descriptors of pipes from the lane that bakes the golden image to each that takes it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="the test host takes root"))


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Keep what the test hosts can tell, at the first failure of a module."""
    if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
        return
    module = Path(str(item.path)).stem
    for name in container.names():
        target = ARTEFACTS / module / name
        if name in item.session.stash.get(HOSTS, set()) and not target.exists():
            try:
                collect_evidence(container.find(name), target)
            except (machine.TestbedError, OSError, subprocess.SubprocessError) as error:
                target.mkdir(parents=True, exist_ok=True)
                (target / "incomplete.txt").write_text(f"{error}\n")


HOSTS = pytest.StashKey[set[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    session.stash[HOSTS] = set()


def pytest_collection_finish(session: pytest.Session) -> None:
    # Another lane may have kept something of its own modules.
    for module in {Path(str(item.path)).stem for item in session.items}:
        shutil.rmtree(ARTEFACTS / module, ignore_errors=True)


def collect_evidence(host: Container, target: Path) -> None:
    """Copy logs and states of a test host to where a person finds them after it is gone."""
    target.mkdir(parents=True)
    commands = {
        "journal.txt": "journalctl --no-pager -b -o short-precise | tail -n 4000",
        "processes.txt": "ps -eo pid,ppid,user,etimes,args --forest",
        "domains.txt": "virsh -c qemu:///system list --all; for d in $(virsh -c qemu:///system list --all --name); do"
        " virsh -c qemu:///system dumpxml $d; done",
        "network.txt": "ip address; ip route; bridge link; networkctl --no-pager; ss -tulpn",
        "state.txt": f"ls -laR {STATE} {HOME}/.config/systemd/user /run/vmw; df -h",
        "libvirt.txt": "tail -n 200 /var/log/libvirt/qemu/*.log",
    }
    for name, command in commands.items():
        (target / name).write_text(host.run(command, check=False, timeout=60).stdout)
    for file in (host.directory / "console.log", host.directory / "server.log", host.directory / "dnsmasq.log"):
        shutil.copy(file, target / f"testbed-{file.name}")
    state = host.root / STATE.lstrip("/")
    for log in [*state.glob("instances/*/console.log"), *state.glob("images/*/console.log"), *state.glob("*.log")]:
        shutil.copy(log, target / f"{log.parent.name}-{log.name}")
    logs = host.root / HOME.lstrip("/") / ".local/state/vmw"
    if logs.is_dir():
        shutil.copytree(logs, target / "vmw", dirs_exist_ok=True)


@pytest.fixture(scope="session")
def make_host(request: pytest.FixtureRequest) -> Callable[[str], Container]:
    """Start a fresh test host with the checkout, the settings for the stand-ins, and a project with worktrees."""

    def make(name: str) -> Container:
        machine.install_packages()
        request.session.stash[HOSTS].add(name)
        host = container.up(name)
        host.checkout(REPOSITORY)
        host.configure()
        host.run(MAKE_PROJECT, user=hostimage.USER)
        return host

    return make


@pytest.fixture(scope="session")
def dev(request: pytest.FixtureRequest, make_host: Callable[[str], Container]) -> Iterator[Person]:
    """Give the user of the story's host."""
    if KEEP and KEEP in container.names():
        request.session.stash[HOSTS].add(KEEP)
        host = container.find(KEEP)
        host.checkout_again(REPOSITORY)
        yield Person(host)
        return
    name = KEEP or f"e2e-{os.getpid()}"
    try:
        yield Person(make_host(name))
    finally:
        if not KEEP:
            container.down(name)


@pytest.fixture(scope="session")
def first_spawn(dev: Person) -> Iterator[FirstSpawn]:
    """Type the README's command on the fresh host, with the password, and do not wait for its end."""
    if TAKE_IMAGE:
        handover.take(dev.host, int(TAKE_IMAGE))
    spawn = FirstSpawn(dev)
    yield spawn
    if spawn.terminal:
        spawn.terminal.close()


@pytest.fixture(scope="session")
def ready(first_spawn: FirstSpawn, dev: Person) -> Person:
    """Give the user once the host is set up and the first VM was made; fail at once when that failed."""
    spawned = first_spawn.finish()
    assert spawned.exit_code == 0, "\n".join(spawned.lines[-60:])
    if GIVE_IMAGE:
        handover.give(dev.host, map(int, GIVE_IMAGE.split()))
    return dev


@pytest.fixture(scope="module")
def feature_x(ready: Person) -> Person:
    """Give the user with the first VM running, started again when another test module left it off or removed it."""
    if ready.domain_state("feature-x") != "running":
        done = ready.vmw("spawn", FEATURE_X, timeout=400)
        assert done.returncode == 0, done.stderr
    return ready


@pytest.fixture
def feature_x_off(ready: Person) -> Person:
    """Give the user with the first VM there and switched off."""
    if ready.domain_state("feature-x") == "running":
        ready.virsh("destroy", "feature-x")
    return ready


@pytest.fixture(scope="session")
def guarded(ready: Person) -> Iterator[Person]:
    """Give the user with a VM of its own for attacks on git, as they leave a mess."""
    make_guarded(ready, GUARDED)
    done = ready.vmw("spawn", f"{GUARDED}/{GUARDED_NAME}", "--memory", "1024", "--cpus", "1", timeout=400)
    assert done.returncode == 0, report(done)
    yield ready
    if GUARDED_NAME in ready.domains():
        ready.vmw("destroy", "--yes", GUARDED_NAME)


@pytest.fixture(scope="session")
def nat(ready: Person) -> Person:
    """Give the user once the bridge has no uplink; no VM may run while it is taken away."""
    for name in ready.domains():
        assert ready.vmw("destroy", name, "--yes").returncode == 0
    done = ready.playbook("host.yml", "-e", "vmw_bridge_uplink=none", cwd="~/vmw", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    return ready


@pytest.fixture(scope="session")
def nat_guest(nat: Person) -> Person:
    """Give the user with a VM behind NAT, whose worktree is a clone with a `.git` directory of its own."""
    nat.sh(f"test -d {CLONE} || git clone -q {PROJECT} {CLONE}", check=True)
    done = nat.vmw("spawn", CLONE, timeout=400)
    assert done.returncode == 0, report(done)
    return nat
