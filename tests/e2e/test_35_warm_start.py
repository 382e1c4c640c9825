"""VMs that are forked of a saved one: that they are machines of their own, and what happens when a fork fails."""

from __future__ import annotations

import json
import re
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest
from testbed.person import HOME, PASSWORD_FILE, PLAYBOOK, STATE, Person, report
from testbed.story import COLD
from testbed.terminal import INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(COLD, reason="every VM boots in this run")

WORK = f"{HOME}/Code/forks"
FORKS = ("fork-a", "fork-b", "fork-c")
START_S = 600
CLOCK_S = 5
PLANTED = "planted-key-of-a-test"
VIRTIOFSD = "/usr/libexec/virtiofsd"

FACTS = """
while pgrep -f '/usr/lib/vmw/[i]dentity' >/dev/null; do sleep 0.2; done
journal_ids() {
    logger -t own hello
    sudo journalctl --sync
    sudo journalctl -t own -n 1 -o json | grep -oE '_(BOOT|MACHINE)_ID" *: *"[0-9a-f]*' | sort
}
fact() { name=$1; shift; printf '%s=%s\\n' "$name" "$("$@" 2>&1 | tr '\\n' ' ')"; }
fact machine_id cat /etc/machine-id
fact systemd_machine_id busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer GetMachineId
fact logind_machine_id busctl call org.freedesktop.login1 / org.freedesktop.DBus.Peer GetMachineId
fact network_machine_id busctl call org.freedesktop.network1 / org.freedesktop.DBus.Peer GetMachineId
fact boot_id cat /proc/sys/kernel/random/boot_id
fact systemd_boot_id systemd-id128 boot-id
fact journal_ids journal_ids
fact hostname hostname
fact static hostnamectl --static
fact mac cat /sys/class/net/e*/address
fact address hostname -I
fact host_key cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub
fact random sh -c 'head -c 32 /dev/urandom | base64'
fact seed sudo sha256sum /var/lib/systemd/random-seed
fact now date +%s
fact shares findmnt -n -t virtiofs -o TARGET
fact read cat repo/own
fact failed systemctl --failed --no-legend --plain
fact boots sh -c 'sudo journalctl --quiet --list-boots | wc -l'
fact lease sudo journalctl --quiet --unit systemd-networkd --grep 'acquired from' --output cat
fact standing_still sh -c 'ps -eo stat=,comm= | grep ^T'
"""
"""What must differ between two machines, as files and as services see it."""

OWN = (
    "machine_id", "systemd_machine_id", "logind_machine_id", "network_machine_id", "boot_id", "systemd_boot_id", "journal_ids",
    "hostname", "static", "mac", "address", "host_key", "random", "seed",
)  # fmt: skip


def make_worktree(person: Person, name: str) -> str:
    """Make a repository of its own for a VM, and return its path."""
    path = f"{WORK}/{name}"
    person.sh(
        f"rm -rf {path} && git init -q {path} && echo {name} > {path}/own && git -C {path} add . && git -C {path} commit -qm own",
        check=True,
    )
    return path


def spawned(person: Person, path: str, *options: str) -> dict[str, Any]:
    """Spawn a VM and return its record as the command tells it."""
    done = person.vmw("spawn", path, "--json", *options, timeout=START_S)
    assert done.returncode == 0, report(done)
    instance: dict[str, Any] = json.loads(done.stdout)["instance"]
    return {**instance, "said": done.stderr}


def destroy(person: Person, *names: str) -> None:
    for name in names:
        if person.exists(f"{STATE}/instances/{name}"):
            done = person.vmw("destroy", "--yes", name)
            assert done.returncode == 0, report(done)


def template(person: Person) -> str:
    (path,) = person.root(f"echo {STATE}/images/*/templates/*").split()
    return path


def look(person: Person, name: str) -> dict[str, Any]:
    """Return what a fork says of itself, with what its spawn said."""
    assert person.read(f"{HOME}/{name}.rc").strip() == "0", person.read(f"{HOME}/{name}.err")
    told = person.read_json(f"{HOME}/{name}.json")
    assert told["instance"]["start"] == "warm", person.read(f"{HOME}/{name}.err")
    began = int(time.time())
    done = person.ssh(name, FACTS)
    assert done.returncode == 0, report(done)
    facts = {key: value.strip() for key, _, value in (line.partition("=") for line in done.stdout.splitlines())}
    return {**facts, "began": began, "ended": int(time.time()), "instance": told["instance"], "timings": told["timings"]}


@pytest.fixture(scope="module")
def forks(ready: Person) -> Iterator[dict[str, dict[str, Any]]]:
    """Give three forks that were spawned at once, with what each says of itself."""
    paths = {name: make_worktree(ready, name) for name in FORKS}
    ready.sh(f"printf 'PLANTED={PLANTED}\\n' >> {STATE}/secrets.env", check=True)
    spawn = "; ".join(
        f"(~/vmw/vmw spawn {path} --json >~/{name}.json 2>~/{name}.err; echo $? >~/{name}.rc) & " for name, path in paths.items()
    )
    ready.sh(spawn.replace("& ;", "&") + "wait", timeout=START_S, check=True)
    try:
        yield {name: look(ready, name) for name in FORKS}
    finally:
        destroy(ready, *FORKS)
        ready.sh(f"sed -i --follow-symlinks /PLANTED/d {STATE}/secrets.env", check=True)


def test_first_vm_was_forked_too(ready: Person) -> None:
    # What the user saw of it is the same as of a cold one.
    console = ready.read(f"{STATE}/instances/feature-x/console.log")
    assert "vmw-identity: done" in console


@pytest.mark.parametrize("fact", OWN)
def test_forks_differ_in(fact: str, forks: dict[str, dict[str, Any]]) -> None:
    values = [fork[fact] for fork in forks.values()]
    assert all(values)
    assert len(set(values)) == len(FORKS), values


def test_services_see_the_ids_that_files_have(forks: dict[str, dict[str, Any]]) -> None:
    for name, fork in forks.items():
        plain = fork["instance"]["uuid"].replace("-", "")
        boot = fork["boot_id"].replace("-", "")
        assert fork["machine_id"] == plain
        for service in ("systemd", "logind", "network"):
            assert fork[f"{service}_machine_id"] == f's "{plain}"'
        assert fork["systemd_boot_id"] == boot
        assert re.findall(r'ID" *: *"([0-9a-f]*)', fork["journal_ids"]) == [boot, plain], name
        assert fork["hostname"] == fork["static"] == name


def test_journal_has_all_since_the_restore_and_nothing_of_the_template(forks: dict[str, dict[str, Any]]) -> None:
    for name, fork in forks.items():
        assert fork["boots"] == "1", name
        # It came while the journal's service stood still.
        assert fork["instance"]["address"] in fork["lease"], name
        assert fork["standing_still"] == "", name


def test_leases_are_each_forks_own(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    # Address, name and client id, as the LAN's DHCP server has them.
    leases = [line.split() for line in (ready.host.directory / "dnsmasq.leases").read_text().splitlines()]
    mine = [lease for lease in leases if lease[1] in {fork["mac"] for fork in forks.values()}]
    assert len(mine) == len(FORKS)
    assert {lease[3] for lease in mine} == set(FORKS)
    assert {lease[4] for lease in mine} == {f"01:{fork['mac']}" for fork in forks.values()}


def test_timings_add_up_and_show_the_way(forks: dict[str, dict[str, Any]]) -> None:
    for fork in forks.values():
        *rows, total = fork["timings"]
        assert total["phase"] == "total"
        assert abs(sum(row["seconds"] for row in rows) - total["seconds"]) < 0.1
        details = {row["phase"]: [detail["phase"] for detail in row.get("details", [])] for row in rows}
        assert {"wrapper", "Ansible start", "spawn", "Ansible end"} <= set(details)
        assert {"instance", "egress", "disk", "cloud_init", "virtiofsd"} <= set(details["spawn"])
        assert {"restore, in the background", "identity", "shares", "network", "ssh"} <= set(details["spawn"])


def test_clock_is_right(forks: dict[str, dict[str, Any]]) -> None:
    for fork in forks.values():
        assert fork["began"] - CLOCK_S <= int(fork["now"]) <= fork["ended"] + CLOCK_S


def test_guests_are_told_that_they_are_others(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    # By the VM generation id, at which the guest's kernel makes its random numbers anew.
    told = [re.findall(r"<genid>([0-9a-f-]{36})</genid>", ready.virsh("dumpxml", name)) for name in forks]
    assert len({identity for (identity,) in told}) == len(FORKS)


def test_shares_are_each_forks_own(forks: dict[str, dict[str, Any]]) -> None:
    for name, fork in forks.items():
        assert fork["read"] == name
        assert {"/home/claude/repo", "/home/claude/.secrets", "/home/claude/repo/.git"} & set(fork["shares"].split()) >= {
            "/home/claude/repo",
            "/home/claude/.secrets",
        }
        assert fork["failed"] == ""


def test_secrets_are_loaded_and_read_only(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    # Of its profile a VM by default reads what is no key that the host's proxy knows.
    assert {fork["instance"]["keys"]["mode"] for fork in forks.values()} == {"proxy"}
    assert ready.ssh("fork-a", "echo $PLANTED").stdout.strip() == PLANTED
    done = ready.ssh("fork-a", "sudo mount -o remount,rw .secrets; sudo touch .secrets/x")
    assert "Read-only file system" in done.stderr


def test_name_is_known_by_mdns(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    for name, fork in forks.items():
        assert ready.lookup(name) in fork["address"].split()


def test_disk_does_not_need_the_template(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    generation = forks["fork-a"]["instance"]["generation"]
    info = json.loads(ready.root(f"qemu-img info -U --output=json {STATE}/instances/fork-a/disk.qcow2"))
    assert info["backing-filename"] == f"{STATE}/images/{generation}/disk.qcow2"


def test_nothing_of_the_way_is_left(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    names = ready.root(f"ls {STATE}/instances/fork-a").split()
    assert "memory" not in names
    assert "fork.json" not in names
    assert [name for name in ready.domains() if "template" in name] == []
    assert ready.root(f"find {STATE} ! -user dev") == ""
    assert forks


def test_template_is_private_and_holds_nothing_of_the_user(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    directory = template(ready)
    assert ready.stat(f"{directory}/memory").startswith("600 dev")
    assert ready.stat(f"{directory}/head").startswith("400 dev")
    assert ready.stat(f"{directory}/disk.qcow2").split()[0] in {"400", "440"}
    key = ready.read(f"{HOME}/.ssh/id_ed25519.pub").split()[1]
    host_key = ready.read(f"{STATE}/instances/fork-a/ssh_host_ed25519_key.pub").split()[1]
    # What it does hold, as a control. All in one go and as bytes, for the memory is large; its holes are left out.
    held = "vmw-grow-root"
    words = " ".join(f"-e '{word}'" for word in (PLANTED, key, host_key, held))
    found = ready.root(f"tar -C {directory} --create --sparse . | LC_ALL=C grep -aoF {words}", timeout=300)
    assert set(found.split()) == {held}
    assert forks


def test_fork_reboots(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    before = forks["fork-a"]["boot_id"]
    ready.ssh("fork-a", "sudo systemctl reboot")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        # vmw's own ssh: while it is off, nobody knows its name by mDNS.
        done = ready.vmw("ssh", "fork-a", "--", "cat /proc/sys/kernel/random/boot_id; cat repo/own")
        if done.returncode == 0 and before not in done.stdout and "fork-a" in done.stdout:
            return
        time.sleep(2)
    pytest.fail("fork-a did not come back")


def test_stopped_fork_starts_cold_as_the_same_machine(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    assert ready.ssh("fork-b", "echo kept > kept").returncode == 0
    for verb in ("stop", "start"):
        done = ready.vmw(verb, "fork-b", timeout=START_S)
        assert done.returncode == 0, report(done)
    done = ready.ssh("fork-b", FACTS + "cat kept; cat /sys/class/dmi/id/product_uuid 2>/dev/null || true")
    assert done.returncode == 0, report(done)
    now = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    for same in ("machine_id", "hostname", "mac", "host_key"):
        assert now[same].strip() == forks["fork-b"][same]
    assert now["boot_id"].strip() != forks["fork-b"]["boot_id"]
    assert now["read"].strip() == "fork-b"
    assert now["failed"].strip() == ""
    assert "kept" in done.stdout.splitlines()


def test_fork_is_suspended_and_resumed(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    assert forks
    assert ready.ssh("fork-c", "nohup sleep 7777 >/dev/null 2>&1 &").returncode == 0
    for verb in ("suspend", "resume"):
        done = ready.vmw(verb, "fork-c", timeout=START_S)
        assert done.returncode == 0, report(done)
    done = ready.ssh("fork-c", "pgrep -x sleep && cat repo/own")
    assert done.returncode == 0, report(done)
    assert "fork-c" in done.stdout


LAYERS = """
- hosts: localhost
  gather_facts: false
  vars_files: [~/.config/vmw/config.yml]
  roles:
    - vmw.worktree.instance
    - vmw.worktree.egress
    - vmw.worktree.disk
    - vmw.worktree.cloud_init
    - vmw.worktree.virtiofsd
    - vmw.worktree.domain
"""


def test_the_layers_one_by_one_are_the_same_vm(forks: dict[str, dict[str, Any]], ready: Person) -> None:
    assert forks
    destroy(ready, *FORKS)
    words = ("-e", f"worktree={make_worktree(ready, 'layers')}")
    ready.sh(f"cat > ~/layers.yml <<'E'\n{LAYERS}E", check=True)
    try:
        done = ready.sh(f"cd ~/vmw && {PLAYBOOK} ~/layers.yml {shlex.join(words)}", timeout=START_S)
        assert done.returncode == 0, report(done)
        assert ready.ssh("layers", "cat repo/own; hostname").stdout == "layers\nlayers\n"
        again = ready.playbook("playbooks/spawn.yml", *words, timeout=START_S)
        assert re.search(r"ok=\d+ +changed=0 +unreachable=0 +failed=0", again.stdout), report(again)
    finally:
        destroy(ready, "layers")


def test_larger_disk_grows(ready: Person, forks: dict[str, dict[str, Any]]) -> None:
    assert forks
    try:
        instance = spawned(ready, make_worktree(ready, "large"), "--disk", "24G")
        assert instance["start"] == "warm", instance["said"]
        deadline = time.monotonic() + 120
        size = 0
        while size < 22 and time.monotonic() < deadline:
            size = int(ready.ssh("large", "df --output=size -BG / | tail -1").stdout.strip().rstrip("G") or 0)
            time.sleep(1)
        assert size >= 22
    finally:
        destroy(ready, "large")


def test_fork_that_is_stopped_at_once_is_itself_at_its_next_start(ready: Person) -> None:
    path = make_worktree(ready, "hasty")
    try:
        # Before it has settled.
        done = ready.sh(f"cd ~/vmw && ./vmw spawn {path} && ./vmw stop hasty && ./vmw start hasty", timeout=START_S)
        assert done.returncode == 0, report(done)
        done = ready.ssh("hasty", FACTS + "sudo journalctl --flush; echo journals=$(ls /var/log/journal)")
        assert done.returncode == 0, report(done)
        now = {key: value.strip() for key, _, value in (line.partition("=") for line in done.stdout.splitlines())}
        record = ready.record("hasty")
        assert now["machine_id"] == now["journals"] == record["uuid"].replace("-", "")
        assert now["hostname"] == now["read"] == "hasty"
        assert now["host_key"] == ready.read(f"{STATE}/instances/hasty/ssh_host_ed25519_key.pub").split()[1]
        assert now["failed"] == now["standing_still"] == ""
    finally:
        destroy(ready, "hasty")


def test_another_size_starts_cold(ready: Person) -> None:
    path = make_worktree(ready, "cold")
    try:
        instance = spawned(ready, path, "--memory", "1024", "--no-wait")
        assert instance["start"] == "cold"
        assert "could not be forked" not in instance["said"]
    finally:
        destroy(ready, "cold")


def test_cold_on_request_and_the_guest_tells_how_long_it_took(ready: Person) -> None:
    path = make_worktree(ready, "cold")
    try:
        done = ready.vmw("spawn", path, "--cold", "--timings", "--json", timeout=START_S)
        assert done.returncode == 0, report(done)
        told = json.loads(done.stdout)
        assert told["instance"]["start"] == "cold"
        (role,) = (row for row in told["timings"] if row["phase"] == "spawn")
        seconds = {row["phase"]: row["seconds"] for row in role["details"]}
        assert {"QEMU start", "network", "ssh", "shares", "kernel"} <= set(seconds)
        assert seconds["kernel"] > 0
        assert re.search(r"^  kernel +\d", done.stderr, re.MULTILINE), report(done)
    finally:
        destroy(ready, "cold")


def test_fork_whose_shares_cannot_be_served_is_not_left_half(ready: Person) -> None:
    path = make_worktree(ready, "half")
    try:
        ready.root(f"mv {VIRTIOFSD} {VIRTIOFSD}.away")
        try:
            done = ready.vmw("spawn", path, timeout=START_S)
        finally:
            ready.root(f"mv {VIRTIOFSD}.away {VIRTIOFSD}")
        assert done.returncode != 0
        assert "virtiofsd" in done.stderr, report(done)
        assert "half" not in ready.domains()
        assert not ready.exists(f"{STATE}/instances/half/disk.qcow2")
        assert spawned(ready, path)["start"] == "warm"
        assert ready.ssh("half", "cat repo/own").stdout == "half\n"
    finally:
        destroy(ready, "half")


def test_template_of_another_host_is_told(ready: Person) -> None:
    directory = template(ready)
    other = f"{directory.rpartition('/')[0]}/0123456789ab"
    path = make_worktree(ready, "other")
    ready.sh(f"mv {directory} {other}", check=True)
    try:
        instance = spawned(ready, path, "--no-wait")
        assert instance["start"] == "cold"
        assert "another accelerator, QEMU, libvirt, kernel or CPU" in instance["said"]
        assert "another kernel or CPU" in ready.vmw("doctor").stdout
    finally:
        ready.sh(f"mv {other} {directory}", check=True)
        destroy(ready, "other")


def test_failed_fork_starts_cold_and_says_so(ready: Person) -> None:
    memory = f"{template(ready)}/memory"
    path = make_worktree(ready, "broken")
    ready.sh(f"mv {memory} ~/kept && head -c 2000000 ~/kept > {memory} && rm ~/kept", check=True)
    try:
        instance = spawned(ready, path)
        assert instance["start"] == "cold"
        assert "could not be forked" in instance["said"]
        assert "started cold" in instance["said"]
        assert ready.ssh("broken", "cat repo/own").stdout == "broken\n"
        assert ready.domain_state("broken") == "running"
    finally:
        destroy(ready, "broken")


def test_template_that_cannot_be_loaded_is_made_anew(ready: Person) -> None:
    # Of the test before.
    assert "could not be loaded" in ready.vmw("doctor").stdout
    done = ready.vmw("host", env=PASSWORD_FILE, timeout=START_S)
    assert done.returncode == 0, report(done)
    assert "could not be loaded" not in ready.vmw("doctor").stdout
    path = make_worktree(ready, "mended")
    try:
        assert spawned(ready, path)["start"] == "warm"
    finally:
        destroy(ready, "mended")


def test_interrupted_fork_is_taken_up_again(ready: Person) -> None:
    path = make_worktree(ready, "again")
    try:
        with ready.terminal(f"~/vmw/vmw spawn {path}") as terminal:
            ready.await_path(f"{STATE}/instances/again/fork.json")
            terminal.type(INTERRUPT)
            assert terminal.exit_code(60) == 130, terminal.text[-3000:]
        assert ready.leftovers() == ""
        # What was loaded of it has no definition yet.
        destroy(ready, "again")
        assert ready.traces("again") == []
        with ready.terminal(f"~/vmw/vmw spawn {path}") as terminal:
            ready.await_path(f"{STATE}/instances/again/domain.xml")
            terminal.type(INTERRUPT)
            assert terminal.exit_code(60) == 130, terminal.text[-3000:]
        spawned(ready, path)
        assert ready.ssh("again", "cat repo/own; hostname").stdout == "again\nagain\n"
    finally:
        destroy(ready, "again")
    assert ready.traces("again") == []


def test_playbook_forks_as_the_command_does(ready: Person) -> None:
    path = make_worktree(ready, "by-playbook")
    try:
        done = ready.playbook("playbooks/spawn.yml", "-v", "-e", json.dumps({"worktree": path}), timeout=START_S)
        assert done.returncode == 0, report(done)
        assert '"start": "warm"' in done.stdout
        again = ready.playbook("playbooks/spawn.yml", "-e", json.dumps({"worktree": path}), timeout=START_S)
        assert re.search(r"changed=0 ", again.stdout), report(again)
    finally:
        destroy(ready, "by-playbook")
