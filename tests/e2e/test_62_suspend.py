"""Suspend and resume: memory to the disk and back, with the shares alive and nothing lost when it does not work."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from testbed.person import STATE, Person, report
from testbed.story import FEATURE_X

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

RESUME_S = 400
CLOCK_S = 5
SAVED = "/var/lib/libvirt/qemu/save/feature-x.save"
CONSOLE = f"{STATE}/instances/feature-x/console.log"
VIRTIOFSD = "/usr/libexec/virtiofsd"
COUNTER = """
import os, time
log = open("/home/claude/repo/counter", "a", buffering=1)
gone = open("/home/claude/repo/unlinked", "w+")
os.unlink("/home/claude/repo/unlinked")
number = 0
while True:
    number += 1
    log.write(f"{os.getpid()} {number}\\n")
    time.sleep(0.5)
"""
"""A program in the guest that holds a file of the share open, and another one that has no name any more."""


def counted(person: Person) -> tuple[int, int]:
    """Return the counter's process and its last number, as the host sees them."""
    pid, number = person.read(f"{FEATURE_X}/counter").splitlines()[-1].split()
    return int(pid), int(number)


def state_shown(person: Person) -> str:
    vms = {vm["name"]: vm for vm in json.loads(person.vmw("list", "--json").stdout)["vms"]}
    return str(vms["feature-x"]["state"])


def suspend(person: Person) -> Done:
    done = person.vmw("suspend", "feature-x")
    assert done.returncode == 0, report(done)
    assert person.domain_state("feature-x") == "shut off"
    return done


def check_goes_on(person: Person, pid: int, number: int) -> None:
    """See that the guest's program counts on and that the shares are alive, without asking vmw."""
    deadline = time.monotonic() + 60
    while counted(person)[1] <= number and time.monotonic() < deadline:
        time.sleep(0.5)
    assert counted(person)[0] == pid
    assert counted(person)[1] > number
    shares = "mountpoint -q repo && mountpoint -q .secrets && cat repo/hello.py && ls .secrets && git -C repo rev-parse HEAD"
    head = person.sh(f"git -C {FEATURE_X} rev-parse HEAD").stdout
    done = person.ssh("feature-x", shares)
    assert done.stdout == f'print("hello")\nsecrets.env\n{head}', report(done)


def changes(done: Done) -> int:
    """Return how many tasks of a playbook that came to its end changed something."""
    found = re.search(r"changed=(\d+) +unreachable=0 +failed=0", done.stdout)
    assert found, report(done)
    return int(found[1])


@pytest.fixture
def feature_x_suspended(ready: Person) -> Person:
    """Give the user with the first VM suspended."""
    if ready.domain_state("feature-x") == "running":
        suspend(ready)
    assert ready.exists(SAVED)
    return ready


def test_suspend_saves_the_memory_where_root_alone_reads_it(feature_x: Person) -> None:
    count = f"echo {base64.b64encode(COUNTER.encode()).decode()} | base64 -d > count.py"
    counts = "timeout 60 sh -c 'until test -s repo/counter; do sleep 0.2; done'"
    started = feature_x.ssh(
        "feature-x", f"{count}; (setsid python3 count.py >count.out 2>&1 &); echo before > repo/from-guest; {counts}"
    )
    assert started.returncode == 0, report(started)
    feature_x.root(f"echo boot >> {CONSOLE}")
    done = suspend(feature_x)
    assert "resume feature-x" in done.stderr
    assert feature_x.stat(SAVED) == "600 root root"
    assert "vmw-feature-x-" not in feature_x.root("ps -C virtiofsd -o cgroup=", check=False)
    assert state_shown(feature_x) == "suspended"


def test_ssh_names_resume(feature_x_suspended: Person) -> None:
    done = feature_x_suspended.vmw("ssh", "feature-x", "--", "true")
    assert done.returncode == 1, report(done)
    assert "suspended" in done.stderr
    assert "resume feature-x" in done.stderr


def test_suspend_again_is_no_error(feature_x_suspended: Person) -> None:
    done = feature_x_suspended.vmw("suspend", "feature-x")
    assert done.returncode == 0, report(done)
    assert "suspended already" in done.stderr


def test_stop_keeps_the_memory_and_says_so(feature_x_suspended: Person) -> None:
    done = feature_x_suspended.vmw("stop", "feature-x")
    assert done.returncode == 5, report(done)
    assert "stop feature-x --force" in done.stderr
    assert feature_x_suspended.exists(SAVED)


def test_resume_goes_on_whatever_became_of_the_worktree(feature_x_suspended: Person) -> None:
    person = feature_x_suspended
    pid, number = counted(person)
    # What an editor does: the file that the guest knew is another one now.
    person.sh(f"cd {FEATURE_X} && echo host > from-host && rm from-guest && cp -p hello.py new && mv new hello.py", check=True)
    # Longer than what the guest's clock may be wrong by afterwards.
    time.sleep(2 * CLOCK_S)
    done = person.vmw("resume", "feature-x", timeout=RESUME_S)
    assert done.returncode == 0, report(done)
    assert person.domain_state("feature-x") == "running"
    assert not person.exists(SAVED)
    check_goes_on(person, pid, number)
    began = time.time()
    seen = person.ssh("feature-x", "cat repo/from-host; ls repo; echo after > repo/later; cat count.out; date +%s")
    assert seen.stdout.startswith("host\n"), report(seen)
    assert "from-guest" not in seen.stdout
    assert "Traceback" not in seen.stdout
    assert began - CLOCK_S <= int(seen.stdout.split()[-1]) <= time.time() + CLOCK_S
    assert person.read(f"{FEATURE_X}/later") == "after\n"
    # It is still the log of the same boot, and the user's.
    assert "boot\n" in person.read(CONSOLE)
    assert person.stat(CONSOLE) == "600 dev dev"


def test_resume_again_is_no_error(feature_x: Person) -> None:
    done = feature_x.vmw("resume", "feature-x", timeout=RESUME_S)
    assert done.returncode == 0, report(done)
    assert "running already" in done.stderr


@pytest.fixture(scope="module")
def packed(feature_x: Person) -> Iterator[Person]:
    """Give the user of a libvirt that packs the memory which it saves, so that it takes seconds on a fast machine too."""
    libvirt = "/etc/libvirt/qemu.conf"
    again = "systemctl restart libvirtd.service"
    feature_x.root(f"cp -p {libvirt} {libvirt}.e2e && echo 'save_image_format = \"gzip\"' >>{libvirt} && {again}")
    yield feature_x
    feature_x.root(f"mv {libvirt}.e2e {libvirt} && {again}")


@pytest.fixture
def heavy(packed: Person) -> Iterator[Person]:
    """Give the user with a VM whose memory can hardly be packed."""
    done = packed.ssh("feature-x", "head -c 300M /dev/urandom > /dev/shm/heavy", timeout=300)
    assert done.returncode == 0, report(done)
    yield packed
    packed.vmw("resume", "feature-x", timeout=RESUME_S)
    packed.ssh("feature-x", "rm -f /dev/shm/heavy")


def test_too_late_means_that_it_runs_on(heavy: Person) -> None:
    feature_x = heavy
    pid, number = counted(feature_x)
    done = feature_x.vmw("suspend", "feature-x", "--timeout", "1")
    assert done.returncode == 1, report(done)
    assert "runs on: it took longer than 1 s" in done.stderr, report(done)
    assert not feature_x.exists(SAVED)
    check_goes_on(feature_x, pid, number)


def test_ctrl_c_means_that_it_runs_on(heavy: Person) -> None:
    feature_x = heavy
    pid, number = counted(feature_x)
    with feature_x.terminal("~/vmw/vmw suspend feature-x") as terminal:
        terminal.wait_for("Save the VM's memory", 60)
        time.sleep(1)
        terminal.type("\x03")
        assert terminal.exit_code(60) == 130
    assert not feature_x.exists(SAVED)
    check_goes_on(feature_x, pid, number)


def test_full_disk_means_that_it_runs_on(feature_x: Person) -> None:
    pid, number = counted(feature_x)
    directory = SAVED.rpartition("/")[0]
    # The user cannot look into libvirt's directory, so this is found only while it is being written.
    feature_x.root(f"mount -t tmpfs -o size=32m,mode=755 tmpfs {directory}")
    try:
        done = feature_x.vmw("suspend", "feature-x")
        assert done.returncode == 1, report(done)
        assert "and the VM runs on" in done.stderr, report(done)
        assert not feature_x.exists(SAVED)
    finally:
        feature_x.root(f"umount {directory}")
    check_goes_on(feature_x, pid, number)


def test_old_virtiofsd_is_refused_in_words(feature_x: Person) -> None:
    old = "#!/bin/sh\\necho virtiofsd 1.10.0 --fd --readonly --translate-uid\\n"
    feature_x.root(f"printf '{old}' > /tmp/old && chmod 755 /tmp/old && mount --bind /tmp/old {VIRTIOFSD}")
    try:
        done = feature_x.vmw("suspend", "feature-x")
        doctor = feature_x.vmw("doctor", "--json")
    finally:
        feature_x.root(f"umount {VIRTIOFSD}")
    assert done.returncode == 3, report(done)
    assert "too old to suspend" in done.stderr
    assert "virtiofsd 1.11" in done.stderr
    checks = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert checks["suspend"]["status"] == "warn"
    assert feature_x.domain_state("feature-x") == "running"


def test_playbooks_do_the_same_and_virsh_start_resumes(feature_x: Person) -> None:
    pid, number = counted(feature_x)
    words = ("-e", "vmw_name=feature-x")
    check = feature_x.playbook("playbooks/suspend.yml", "--check", "--diff", *words, cwd="/")
    assert changes(check) == 1, report(check)
    assert feature_x.domain_state("feature-x") == "running"
    assert changes(feature_x.playbook("playbooks/suspend.yml", *words, cwd="/")) == 1
    assert changes(feature_x.playbook("playbooks/suspend.yml", *words, cwd="/")) == 0
    assert feature_x.exists(SAVED)
    # As after a reboot of the host.
    feature_x.virsh("start", "feature-x")
    check_goes_on(feature_x, pid, number)
    assert changes(feature_x.playbook("playbooks/resume.yml", *words, cwd="/")) == 0


def test_spawn_resumes_a_suspended_vm(feature_x: Person) -> None:
    pid, number = counted(feature_x)
    suspend(feature_x)
    done = feature_x.vmw("spawn", FEATURE_X, timeout=RESUME_S)
    assert done.returncode == 0, report(done)
    check_goes_on(feature_x, pid, number)


def test_forced_stop_gives_the_memory_up(feature_x: Person) -> None:
    suspend(feature_x)
    done = feature_x.vmw("stop", "feature-x", "--force")
    assert done.returncode == 0, report(done)
    assert "saved memory of feature-x is given up" in done.stderr
    assert not feature_x.exists(SAVED)
    assert state_shown(feature_x) == "shut off"


def test_off_is_nothing_to_save_and_nothing_to_resume(feature_x_off: Person) -> None:
    done = feature_x_off.vmw("suspend", "feature-x")
    assert done.returncode == 0, report(done)
    assert "has no memory to save" in done.stderr
    done = feature_x_off.vmw("resume", "feature-x")
    assert done.returncode == 5, report(done)
    assert "start feature-x" in done.stderr
    assert feature_x_off.domain_state("feature-x") == "shut off"


def test_unknown_vm(feature_x_off: Person) -> None:
    for verb in ("suspend", "resume"):
        done = feature_x_off.vmw(verb, "nothing")
        assert done.returncode == 4, report(done)


def test_a_fresh_start_follows(feature_x_off: Person) -> None:
    done = feature_x_off.vmw("start", "feature-x", timeout=RESUME_S)
    assert done.returncode == 0, report(done)
    feature_x_off.sh(f"cd {FEATURE_X} && rm -f counter from-guest from-host later")
    done = feature_x_off.ssh("feature-x", "cat repo/hello.py; pgrep -f '[c]ount.py' || echo anew")
    assert done.stdout == 'print("hello")\nanew\n', report(done)
