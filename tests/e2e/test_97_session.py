"""VMs without root and without libvirt's group, on a host of its own: the user's own libvirt, and passt for their network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from testbed import container, handover, hostimage, standins
from testbed.person import HOME, PASSWORD_FILE, SSH_OPTIONS, STATE, Person, report
from testbed.story import COLD, FEATURE_X, PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.container import Container
    from testbed.person import Done

REPOSITORY = Path(__file__).parents[2]
KEEP = os.environ.get("VMW_E2E_HOST", "")
TAKE_IMAGE = os.environ.get("VMW_E2E_TAKE_IMAGE", "")
URI = "qemu:///session"
RUNTIME = f"/run/user/{hostimage.UID}"
UNITS = f"{HOME}/.config/systemd/user"
HOST_S = 1700
BOOT_S = 400
NAME = "feature-x"
PLAIN = "third"
WEB_PORT = 8098
SECRET_PAGE = "for-this-host-alone"
RESOLVER = "169.254.1.1"
KEY = "sk-ant-of-the-session"
REFUSED = 2
CONFLICT = 5


class SessionPerson(Person):
    """A user whose VMs run under their own libvirt, which root's does not know."""

    def virsh(self, *words: str, check: bool = True) -> str:
        """Ask the user's libvirt, as the user."""
        return self.sh(f"virsh -q -c {URI} {' '.join(words)}", check=check).stdout.strip()

    def lookup(self, name: str) -> str:  # noqa: ARG002 - as the others are looked up
        """Return where the host reaches every such guest."""
        return "127.0.0.1"


@pytest.fixture(scope="module")
def host(make_host: Callable[[str], Container]) -> Iterator[Container]:
    """Give a host of its own, as nothing of the system's libvirt and network may be on it."""
    name = f"{KEEP or f'e2e-{os.getpid()}'}-session"
    if KEEP and name in container.names():
        host = container.find(name)
        host.checkout_again(REPOSITORY)
    else:
        host = make_host(name)
        if TAKE_IMAGE:
            handover.take(host, int(TAKE_IMAGE))
    host.configure(vmw_libvirt_uri=URI)
    yield host
    if not KEEP:
        container.down(name)


@pytest.fixture(scope="module")
def session(host: Container) -> Person:
    """Give the user once the host is set up for it, who may not use sudo any more."""
    person = SessionPerson(host)
    host.run(f"usermod --append --groups sudo {hostimage.USER}")
    # The command prepares its environment, with the Ansible that the playbook takes.
    assert person.vmw("--version", env=PASSWORD_FILE).returncode == 0
    looked = person.playbook("host.yml", "--check", "-e", f"vmw_libvirt_uri={URI}", cwd="~/vmw", env=PASSWORD_FILE)
    assert looked.returncode == 0, report(looked)
    done = person.vmw("host", env=PASSWORD_FILE, timeout=HOST_S)
    assert done.returncode == 0, report(done)
    again = person.vmw("host", env=PASSWORD_FILE, timeout=HOST_S)
    assert "This machine is ready (0 changed)." in again.stderr, report(again)
    host.run(f"gpasswd --delete {hostimage.USER} sudo")
    return person


@pytest.fixture(scope="module")
def vm(session: Person) -> Person:
    """Give the user with a VM."""
    session.sh(f"echo ANTHROPIC_API_KEY={KEY} > {STATE}/secrets/default/secrets.env", check=True)
    done = session.vmw("spawn", FEATURE_X, "--json", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert json.loads(done.stdout)["instance"]["start"] == ("cold" if COLD else "warm"), report(done)
    session.host.run(f"rm -f {HOME}/spawned && cat > {HOME}/spawned", stdin=done.stdout)
    return session


def port_of(person: Person, name: str = NAME) -> int:
    return int(person.record(name)["ssh_port"])


def listening(person: Person) -> set[str]:
    """Return where passt listens."""
    rows = person.root("ss -Htlnp").splitlines()
    return {row.split()[3] for row in rows if "passt" in row}


def test_the_host_has_nothing_of_roots_libvirt(session: Person) -> None:
    groups = session.sh("id -nG").stdout.split()
    assert not {"libvirt", "sudo"} & set(groups)
    assert session.sh("sudo -n true").returncode != 0
    for path in ("/etc/systemd/system/vmw-filter.service", "/run/vmw", "/sys/class/net/br0", f"{UNITS}/vmw-proxy.socket"):
        assert not session.exists(path), path
    assert session.exists(f"/var/lib/systemd/linger/{hostimage.USER}")
    packages = {line.split()[0].partition(":")[0] for line in session.root("dpkg --get-selections").splitlines()}
    assert "passt" in packages
    assert not {"avahi-daemon", "libvirt-daemon-system"} & packages


def test_a_vm_is_ready_and_the_systems_libvirt_knows_none(vm: Person) -> None:
    spawned = json.loads(vm.read(f"{HOME}/spawned"))
    assert spawned["instance"]["egress"]["mode"] == "open"
    assert vm.domain_state(NAME) == "running"
    refused = vm.sh("virsh -q -c qemu:///system list --all --name")
    assert refused.returncode != 0, report(refused)
    assert vm.root("virsh -q -c qemu:///system list --all --name").strip() == ""


@pytest.mark.parametrize("program", ["qemu-system-x86", "passt", "virtiofsd", "libvirtd"])
def test_what_serves_it_is_the_users_and_of_no_login(vm: Person, program: str) -> None:
    pids = vm.root(f"pgrep -u {hostimage.USER} {program}").split()
    assert pids
    for pid in pids:
        assert f"/user@{hostimage.UID}.service/" in vm.read(f"/proc/{pid}/cgroup")


def test_the_list_tells_where_it_is_reached(vm: Person) -> None:
    (row,) = [row for row in json.loads(vm.vmw("list", "--json").stdout)["vms"] if row["name"] == NAME]
    assert (row["state"], row["address"], row["ssh_port"]) == ("running", "127.0.0.1", port_of(vm))
    assert f"127.0.0.1:{port_of(vm)}" in vm.vmw("list").stdout


def test_one_port_of_the_loopback_leads_in(vm: Person) -> None:
    assert listening(vm) == {f"127.0.0.1:{port_of(vm)}"}
    assert "passt" not in vm.root("ss -Hulnp")


def test_ways_to_log_in(vm: Person) -> None:
    done = vm.vmw("ssh", NAME, "--", "hostname && cat repo/hello.py && printenv ANTHROPIC_API_KEY")
    assert done.stdout == f'{NAME}\nprint("hello")\n{KEY}\n', report(done)
    assert vm.ssh(NAME, "hostname").stdout == f"{NAME}\n"
    assert vm.ssh(NAME, "touch .secrets/x").returncode != 0


def test_a_commit_of_the_guest_is_in_the_repository(vm: Person) -> None:
    done = vm.ssh(NAME, "cd repo && date >> of-the-guest && git add . && git commit -qm 'From the guest' && git rev-parse HEAD")
    assert done.returncode == 0, report(done)
    assert vm.sh(f"git -C {FEATURE_X} log -1 --format='%H %s'").stdout == f"{done.stdout.strip()} From the guest\n"
    assert vm.root(f"find {FEATURE_X} ! -user {hostimage.USER}") == ""


def test_the_guest_reaches_the_outside_by_name(vm: Person) -> None:
    done = vm.ssh(NAME, f"curl -sI {vm.host.url}/{standins.IMAGE_PATH}/SHA512SUMS")
    assert done.stdout.startswith("HTTP/1.1 200"), report(done)


@pytest.fixture
def secret_page(vm: Person) -> Iterator[Person]:
    """Give the user with a web server at the host's loopback."""
    vm.sh(f"mkdir -p {HOME}/web && echo {SECRET_PAGE} > {HOME}/web/page", check=True)
    serve = f"python3 -m http.server {WEB_PORT} --bind 127.0.0.1 --directory {HOME}/web"
    vm.sh(f"systemd-run --user --quiet --collect --unit=e2e-web {serve}", check=True)
    yield vm
    vm.sh("systemctl --user stop e2e-web.service", check=True)


def test_the_hosts_loopback_is_not_reached(secret_page: Person) -> None:
    vm = secret_page

    def fetch(place: str) -> str:
        return f"curl -s --max-time 8 http://{place}:{WEB_PORT}/page"

    # It is there, for the host itself.
    assert vm.sh(f"sleep 1; {fetch('127.0.0.1')}").stdout == f"{SECRET_PAGE}\n"
    gateway = vm.ssh(NAME, "ip -4 route show default").stdout.split()[2]
    places = ("127.0.0.1", gateway, RESOLVER, "169.254.2.2")
    answers = vm.ssh(NAME, "; ".join(map(fetch, places)) + "; echo asked")
    assert answers.stdout.endswith("asked\n"), report(answers)
    assert SECRET_PAGE not in answers.stdout
    # The control: by passt's default the gateway's address leads there.
    unit = f"{UNITS}/vmw-{NAME}-net@.service"
    own = vm.read(unit)
    assert "--map-host-loopback none" in own
    change = f"sed -i 's/--map-host-loopback none//' {unit} && systemctl --user daemon-reload"
    vm.sh(f"{change} && systemctl --user stop 'vmw-{NAME}-net@*'", check=True)
    await_ssh(vm)
    opened = vm.ssh(NAME, fetch(gateway))
    assert opened.stdout == f"{SECRET_PAGE}\n", report(opened)
    # A start brings back what vmw wrote, for the next passt.
    assert vm.vmw("start", NAME).returncode == 0
    assert vm.read(unit) == own
    vm.sh(f"systemctl --user stop 'vmw-{NAME}-net@*'", check=True)
    await_ssh(vm)
    assert listening(vm) == {f"127.0.0.1:{port_of(vm)}"}


def await_ssh(person: Person) -> None:
    """Wait until QEMU has connected to the passt that stands in for one that ended: a guest keeps its network."""
    command = f"ssh -F {STATE}/instances/{NAME}/ssh_config {SSH_OPTIONS} {NAME} true"
    done = person.sh(f"for _ in $(seq 20); do {command} && exit 0; sleep 1; done; exit 1")
    assert done.returncode == 0, report(done)


def test_a_port_is_published(vm: Person) -> None:
    vm.ssh(NAME, "systemd-run --user --quiet --collect --unit=web python3 -m http.server 3000 --bind 127.0.0.1")
    assert vm.vmw("port", NAME, "3000:8097").returncode == 0
    look = (
        "curl -s -o /dev/null --retry 20 --retry-connrefused --retry-delay 1 --retry-all-errors http://127.0.0.1:8097/; echo $?"
    )
    assert vm.sh(look).stdout == "0\n"
    taken = vm.vmw("port", NAME, f"3000:{port_of(vm)}")
    assert taken.returncode == CONFLICT, report(taken)
    assert "is reached there by SSH" in taken.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("spawn", f"{PROJECT}/worktrees/third", "--egress", "internet"),
        ("spawn", f"{PROJECT}/worktrees/third", "--keys", "proxy"),
        ("net", NAME, "offline"),
        ("net", "allow", NAME, "example.org"),
        ("net", "log", NAME),
    ],
)
def test_what_nobody_would_enforce_is_refused(vm: Person, words: tuple[str, ...]) -> None:
    done = vm.vmw(*words)
    assert done.returncode == REFUSED, report(done)
    assert URI in done.stderr
    assert "hint: " in done.stderr
    assert not vm.exists(f"{STATE}/instances/{PLAIN}")


def test_the_playbooks_refuse_the_same(vm: Person) -> None:
    for playbook, *words in (
        ("playbooks/spawn.yml", "-e", f"worktree={PROJECT}/worktrees/third", "-e", "vmw_egress=offline"),
        ("playbooks/net.yml", "-e", f"vmw_name={NAME}", "-e", "vmw_net_mode=offline"),
    ):
        done = vm.playbook(playbook, *words)
        assert done.returncode != 0, report(done)
        assert f"does not go with {URI}" in done.stdout, report(done)
    assert not vm.exists(f"{STATE}/instances/{PLAIN}")


def test_doctor_looks_at_what_matters_here(vm: Person) -> None:
    done = vm.vmw("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, report(done)
    assert not {"libvirt group", "bridge", "packet filter", "proxy", "avahi"} & set(checks)
    assert {checks[name]["status"] for name in ("passt", "libvirt", "linger", "share sockets", "warm start")} == {"ok"}


def test_the_vm_survives_the_logout(vm: Person) -> None:
    """Each command of this file is a login of its own; here all of them end, as with a reboot of the desktop."""
    looking = "cat /proc/sys/kernel/random/boot_id /proc/uptime"
    boot, up_s, *_ = vm.ssh(NAME, looking).stdout.split()
    vm.root(f"loginctl --no-legend list-sessions | awk '$3 == \"{hostimage.USER}\" && $6 != \"manager\" {{print $1}}'"
            " | xargs -r loginctl terminate-session")  # fmt: skip
    assert vm.domain_state(NAME) == "running"
    still, later_s, *_ = vm.ssh(NAME, looking).stdout.split()
    # Not the time of the boot: it moves by a second when the guest's clock is set right.
    assert still == boot
    assert float(later_s) > float(up_s)


def test_the_vm_starts_again_after_a_reboot_of_the_host(vm: Person) -> None:
    """All that is the user's ends in the middle of its work, and what is in /run is lost."""
    vm.ssh(NAME, "sync")
    vm.root(f"systemctl stop user@{hostimage.UID}.service user-runtime-dir@{hostimage.UID}.service")
    assert not vm.exists(RUNTIME)
    assert vm.root(f"pgrep -u {hostimage.USER} 'qemu|passt|virtiofsd|libvirtd|virtqemud'", check=False) == ""
    vm.root(f"systemctl start user@{hostimage.UID}.service")
    assert vm.domain_state(NAME) == "shut off"
    assert listening(vm) == set()
    done = vm.vmw("start", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    mounted = vm.vmw("ssh", NAME, "--", "cat repo/hello.py && ls .secrets && sudo id -u")
    assert mounted.stdout == 'print("hello")\nsecrets.env\n0\n', report(mounted)
    # The published port follows in a moment; its server in the guest is gone.
    retry = "--retry 30 --retry-connrefused --retry-delay 1"
    assert vm.sh(f"curl -s -o /dev/null {retry} http://127.0.0.1:8097/; echo $?").stdout in {"52\n", "56\n"}


def test_suspend_and_resume(vm: Person) -> None:
    assert vm.ssh(NAME, "systemd-run --user --quiet --unit=kept sleep 1h").returncode == 0
    done = vm.vmw("suspend", NAME)
    assert done.returncode == 0, report(done)
    assert vm.domain_state(NAME) == "shut off"
    assert listening(vm) == set()
    done = vm.vmw("resume", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert vm.ssh(NAME, "systemctl --user is-active kept").stdout == "active\n"
    assert vm.ssh(NAME, f"curl -sI {vm.host.url}/{standins.IMAGE_PATH}/SHA512SUMS").stdout.startswith("HTTP/1.1 200")


def test_stop(vm: Person) -> None:
    done = vm.vmw("stop", NAME)
    assert done.returncode == 0, report(done)
    assert vm.domain_state(NAME) == "shut off"
    assert listening(vm) == set()


def test_a_port_that_was_taken_is_told(vm: Person) -> None:
    vm.sh(
        f"systemd-run --user --quiet --collect --unit=e2e-taker python3 -m http.server {port_of(vm)} --bind 127.0.0.1", check=True
    )
    vm.sh(f"until curl -s -o /dev/null http://127.0.0.1:{port_of(vm)}; do sleep 0.2; done", check=True)
    done = vm.vmw("start", NAME)
    assert done.returncode == CONFLICT, report(done)
    assert f"port {port_of(vm)}" in done.stderr
    vm.sh("systemctl --user stop e2e-taker.service", check=True)
    # It is free again.
    done = vm.vmw("start", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert vm.vmw("stop", NAME, "--force").returncode == 0


def spawn_plain(person: Person) -> Done:
    """Make a VM with a git directory of its own by the playbook, with the settings from the command line."""
    values = {"worktree": f"{PROJECT}/worktrees/third", "vmw_libvirt_uri": URI, "vmw_git_mode": "isolated"}
    person.host.configure()
    done = person.playbook("playbooks/spawn.yml", "-e", json.dumps(values), timeout=BOOT_S)
    person.host.configure(vmw_libvirt_uri=URI)
    return done


def test_the_playbook_makes_the_same_vm_beside_the_first(vm: Person) -> None:
    done = spawn_plain(vm)
    assert done.returncode == 0, report(done)
    assert port_of(vm, PLAIN) != port_of(vm)
    # The first one is off.
    assert listening(vm) == {f"127.0.0.1:{port_of(vm, PLAIN)}"}
    config = f"-F {STATE}/instances/{PLAIN}/ssh_config {SSH_OPTIONS}"
    assert vm.sh(f"ssh {config} {PLAIN} hostname").stdout == f"{PLAIN}\n"
    commit = "cd repo && touch isolated && git add . && git commit -qm 'From the isolated guest' && git rev-parse HEAD"
    made = vm.sh(f'ssh {config} {PLAIN} "{commit}"')
    assert made.returncode == 0, report(made)
    pulled = vm.vmw("git", "pull", PLAIN)
    assert pulled.returncode == 0, report(pulled)
    subject = vm.sh(f"git -C {PROJECT}/worktrees/third log -1 --format=%s {made.stdout.strip()}")
    assert subject.stdout == "From the isolated guest\n", report(subject)
    done = vm.playbook("playbooks/destroy.yml", "-e", f"vmw_name={PLAIN}")
    assert done.returncode == 0, report(done)
    assert listening(vm) == set()


def test_destroy_leaves_nothing(vm: Person) -> None:
    done = vm.vmw("destroy", "--yes", NAME)
    assert done.returncode == 0, report(done)
    assert vm.domains() == []
    assert listening(vm) == set()
    left = vm.root(
        f"ls -d {STATE}/instances/* {UNITS}/vmw-{NAME}* {UNITS}/vmw-{PLAIN}* {UNITS}/*.wants/vmw-{NAME}* {RUNTIME}/vmw/*"
        " 2>/dev/null; pgrep -l passt; pgrep -l qemu-system",
        check=False,
    )
    assert left == ""
    known = vm.sh(f"systemctl --user --all --plain --no-legend list-units 'vmw-{NAME}*' 'vmw-{PLAIN}*'").stdout
    assert known == ""
