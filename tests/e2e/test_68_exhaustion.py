"""A hostile guest uses up what the host has, through its shares and its disk: the host, and vmw, stay usable."""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from testbed import hostimage
from testbed.person import HOME, STATE, Person, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done


NAME = "hoarder"
SMALL = "/srv/small"
WORKTREE = f"{SMALL}/worktrees/{NAME}"
KEPT = "what the user has written"
BOOT_S = 400
ROOM_MIB = 3072
LEFT_MIB = 64
"""What the file system has to spare once the VM is there."""

NEARLY = 1 << 20
"""Fewer bytes than this are left when the guest has done its part."""

HOARD = """
import os, resource, signal, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (1000000, 1000000))
held = []
try:
    while len(held) < 900000:
        held.append(os.open(sys.argv[1], os.O_RDONLY))
except OSError as error:
    print(len(held), os.strerror(error.errno), flush=True)
    signal.pause()
"""
"""Open a file again and again until that fails, tell how often it went well, and keep them all open."""

OPEN_SOME = "import os; held = [os.open('/etc/passwd', os.O_RDONLY) for _ in range(500)]; print(len(held))"


def daemon(person: Person, share: str) -> int:
    """Return the process id of the virtiofsd of a share of the first VM: what bubblewrap has started last."""
    unit = f"vmw-feature-x-{share}.service"
    group = person.sh(f"systemctl --user show --property=ControlGroup --value {unit}", check=True).stdout.strip()
    return max(int(pid) for pid in person.root(f"cat /sys/fs/cgroup{group}/cgroup.procs").split())


def held(person: Person, pid: int) -> int:
    return int(person.root(f"ls /proc/{pid}/fd | wc -l"))


@contextmanager
def hoarding(person: Person, path: str) -> Iterator[tuple[int, str]]:
    """Have root in the guest open a file until no more can be opened; give how often that was, and the error."""
    unit = "e2e-hoard"
    person.ssh("feature-x", f"cat >hoard.py <<'END'\n{HOARD}\nEND")
    limits = "--property=LimitNOFILE=1000000 --property=StandardOutput=file:/tmp/hoard"
    begin = f"sudo rm -f /tmp/hoard; sudo systemd-run --quiet --collect --unit={unit} {limits} python3 $PWD/hoard.py {path}"
    done = person.ssh("feature-x", begin)
    assert done.returncode == 0, report(done)
    try:
        told = person.ssh("feature-x", "until test -s /tmp/hoard; do sleep 0.5; done; cat /tmp/hoard")
        count, _, error = told.stdout.strip().partition(" ")
        yield int(count), error
    finally:
        person.ssh("feature-x", f"sudo systemctl stop {unit}; rm hoard.py")


def usable(person: Person) -> None:
    """See that root and the user can work on the host."""
    for user in ("root", hostimage.USER):
        done = person.host.run(f'ulimit -n 1024; python3 -c "{OPEN_SOME}" && touch ~/.e2e && rm ~/.e2e', user=user, check=False)
        assert done.stdout == "500\n", report(done)
    assert states(person)["feature-x"] == "running"


def states(person: Person) -> dict[str, str]:
    done = person.vmw("list", "--json")
    assert done.returncode == 0, report(done)
    return {vm["name"]: vm["state"] for vm in json.loads(done.stdout)["vms"]}


def test_open_files_are_bounded_by_the_shares_own_daemon(feature_x: Person) -> None:
    path = "/home/claude/repo/hello.py"
    pid = daemon(feature_x, "repo")
    before = held(feature_x, pid)
    limit = int(feature_x.root(f"awk '/Max open files/ {{print $4}}' /proc/{pid}/limits"))
    with hoarding(feature_x, path) as (count, error):
        assert error == "Too many open files in system"
        assert limit * 0.9 < count < limit
        assert held(feature_x, pid) > count
        usable(feature_x)
        # Another share of the same VM has a daemon of its own.
        assert feature_x.ssh("feature-x", "cat .secrets/secrets.env >/dev/null").returncode == 0
    deadline = time.monotonic() + 60
    while held(feature_x, pid) > before + 50:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert feature_x.ssh("feature-x", f"cat {path} >/dev/null").returncode == 0


@pytest.fixture(scope="module")
def hoarder(feature_x: Person) -> Iterator[Person]:
    """Give the user with a second VM that has its worktree, disk and record on a small file system, and vmw's logs."""
    person = feature_x
    parts = {"instances": f"{STATE}/instances", "vmw": f"{HOME}/.local/state/vmw", "ansible": f"{HOME}/.ansible"}
    person.root(f"mkdir -p {SMALL} && mount -t tmpfs -o size={ROOM_MIB}M,mode=755,uid={hostimage.UID} tmpfs {SMALL}")
    try:
        person.sh(
            f"mkdir -p {' '.join(f'{SMALL}/{part} {place}' for part, place in parts.items())} && chmod 711 {SMALL}/instances"
            f" && tar -C {STATE}/instances --exclude=disk.qcow2 --acls -c . | tar -C {SMALL}/instances --acls -x"
            f" && git init -q {WORKTREE} && cd {WORKTREE} && echo '{KEPT}' >kept && git add . && git commit -qm kept",
            check=True,
        )
        for part, place in parts.items():
            person.root(f"mount --bind {SMALL}/{part} {place}")
        done = person.vmw("spawn", WORKTREE, timeout=BOOT_S)
        assert done.returncode == 0, report(done)
        yield person
    finally:
        person.root(f"rm -f {SMALL}/worktrees/{NAME}/hoard*")
        person.vmw("destroy", NAME, "--yes")
        for place in (*parts.values(), SMALL):
            person.root(f"umount {place} || umount --lazy {place}", check=False)


def sizes(person: Person) -> tuple[int, int]:
    """Return how many MiB of the small file system are used, and how many bytes are left."""
    used = int(person.root(f"df --output=used -B1M {SMALL} | tail -n 1"))
    return used, int(person.root(f"df --output=avail -B1 {SMALL} | tail -n 1"))


def fill(person: Person) -> None:
    """Leave the small file system little, and have the guest write to its worktree until nothing is left.

    Its own disk is there as well, so it may stop in the middle of that.
    """
    # What an earlier one still writes, or has not let go of, would be room later.
    assert person.ssh(NAME, "pkill -f '[o]f=repo/hoard'; rm -f repo/hoard* dd.log; sync").returncode == 0
    used, _ = sizes(person)
    person.root(f"mount -o remount,size={used + LEFT_MIB}M {SMALL}")
    write = "dd if=/dev/zero of=repo/hoard bs=1M; dd if=/dev/zero of=repo/hoard2 bs=4096"
    # A moment later, as a guest that has to stop does not answer.
    done = person.ssh(NAME, f"(sleep 2; {write}) >dd.log 2>&1 </dev/null &")
    assert done.returncode == 0, report(done)
    deadline = time.monotonic() + 60
    while sizes(person)[1] > NEARLY and states(person)[NAME] != "paused":
        assert time.monotonic() < deadline
    # The last pages, where the guest had to stop for want of room for its own disk.
    person.sh(f"dd if=/dev/zero of={WORKTREE}/hoard3 bs=4096")
    assert sizes(person)[1] == 0


def make_room(person: Person) -> None:
    """Have the small file system large again, and let the guest go on if it had to stop."""
    person.root(f"mount -o remount,size={ROOM_MIB}M {SMALL}")
    if states(person)[NAME] == "paused":
        person.virsh("resume", NAME)


def files_of(person: Person) -> dict[str, str]:
    """Return what stands in the VM's directory, by name, without what changes while it runs."""
    listing = person.root(
        f"cd {STATE}/instances/{NAME} && find . -type f ! -name disk.qcow2 ! -name console.log -exec sha256sum {{}} +"
    )
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in listing.splitlines())}


def check_full(done: Done, words: str) -> None:
    """See that a command failed in words that a person can act on."""
    assert done.returncode == 1, report(done)
    assert words in done.stderr, report(done)
    assert re.search(r"^hint: make room", done.stderr, re.MULTILINE), report(done)
    assert "Traceback" not in done.stderr + done.stdout, report(done)


def test_a_full_disk_leaves_host_and_records_usable(hoarder: Person) -> None:
    before = files_of(hoarder)
    fill(hoarder)
    usable(hoarder)
    assert states(hoarder)[NAME] in {"running", "paused"}
    # Another VM's share has its own disk.
    assert hoarder.ssh("feature-x", "echo more >repo/more && rm repo/more").returncode == 0
    assert files_of(hoarder) == before


def test_what_has_to_be_written_fails_as_a_whole_and_says_why(hoarder: Person) -> None:
    assert sizes(hoarder)[1] == 0
    before = files_of(hoarder)
    check_full(hoarder.vmw("net", NAME, "open"), "No space left on device")
    assert hoarder.vmw("net", NAME).stdout == "internet\n"
    check_full(hoarder.vmw("spawn", f"{HOME}/Code/project/worktrees/third"), "only 0 MiB are free")
    assert files_of(hoarder) == before
    assert hoarder.traces("third") == []


def test_a_full_disk_keeps_no_vm_from_being_cut_off(hoarder: Person) -> None:
    assert sizes(hoarder)[1] == 0
    public = f"curl -s -o /dev/null --noproxy '*' --max-time 5 {hoarder.host.public_url}/debian-12/SHA512SUMS"
    assert hoarder.ssh("feature-x", public).returncode == 0
    check_full(hoarder.vmw("net", NAME, "offline"), f"{NAME} is offline now, which could not be written down")
    make_room(hoarder)
    assert hoarder.ssh(NAME, public).returncode == 28
    assert hoarder.ssh(NAME, "until grep -c 'No space left' dd.log; do sleep 1; done").stdout
    assert hoarder.vmw("net", NAME).stdout == "internet\n"
    assert hoarder.vmw("net", NAME, "offline").returncode == 0
    assert hoarder.vmw("net", NAME).stdout == "offline\n"
    assert hoarder.vmw("net", NAME, "internet").returncode == 0
    assert hoarder.ssh(NAME, public).returncode == 0


def test_a_vm_whose_disk_has_no_room_waits_and_goes_on(hoarder: Person) -> None:
    # It writes to its own disk once there is no room: a guest that stopped before could not be told to fill the share.
    grow = "until grep 'No space left' dd.log; do sleep 0.5; done; dd if=/dev/zero of=own bs=1M count=200 oflag=direct"
    assert hoarder.ssh(NAME, f"rm -f dd.log; ({grow}) >/dev/null 2>&1 </dev/null &").returncode == 0
    fill(hoarder)
    deadline = time.monotonic() + 120
    while states(hoarder)[NAME] != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "I/O error" in hoarder.virsh("domstate", NAME, "--reason")
    done = hoarder.vmw("stop", NAME)
    check_full(done, f"{NAME} is paused and cannot shut down")
    assert f"vmw stop {NAME} --force`" in done.stderr, report(done)
    usable(hoarder)
    make_room(hoarder)
    whole = "until test $(stat -c %s own) = 209715200; do sleep 1; done; cat repo/kept"
    assert hoarder.ssh(NAME, whole).stdout == f"{KEPT}\n"


def test_a_vm_is_stopped_and_destroyed_on_a_full_disk(hoarder: Person) -> None:
    fill(hoarder)
    done = hoarder.vmw("stop", NAME, "--force")
    assert done.returncode == 0, report(done)
    assert states(hoarder)[NAME] == "shut off"
    # What the daemon kept of removed files is free now, until somebody takes it.
    hoarder.sh(f"dd if=/dev/zero of={WORKTREE}/hoard3 bs=4096")
    assert sizes(hoarder)[1] == 0
    done = hoarder.vmw("destroy", NAME, "--yes")
    assert done.returncode == 0, report(done)
    assert hoarder.traces(NAME) == []
    assert hoarder.read(f"{WORKTREE}/kept") == f"{KEPT}\n"
    assert hoarder.sh(f"git -C {WORKTREE} fsck --strict && git -C {WORKTREE} status --short kept").stdout == ""
