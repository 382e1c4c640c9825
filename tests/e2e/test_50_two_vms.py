"""A second VM from a second worktree, with a space in its path, beside the first."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from testbed.hostimage import USER
from testbed.network import PUBLIC_NAME
from testbed.person import PASSWORD_FILE, STATE, Person, report
from testbed.story import FEATURE_TWO, FEATURE_X, PROJECT, SMALL
from testbed.terminal import INTERRUPT

ELSEWHERE = f"{PROJECT}/elsewhere/feature-x"
BOOT_S = 400


@pytest.fixture(scope="module")
def feature_two(feature_x: Person) -> Person:
    """Spawn it by the playbook, from another directory, after a first try that was interrupted."""
    values = json.dumps({"worktree": FEATURE_TWO, "vmw_memory_mib": 1024, "vmw_vcpus": 2})
    done = feature_x.playbook("playbooks/spawn.yml", "-e", values, cwd="/var", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    return feature_x


def listed(person: Person) -> dict[str, dict[str, Any]]:
    done = person.vmw("list", "--json")
    assert done.returncode == 0, report(done)
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    return {vm["name"]: vm for vm in answer["vms"]}


def test_ctrl_c_while_the_guest_boots_leaves_no_process(feature_x: Person) -> None:
    words = " ".join(SMALL)
    with feature_x.terminal(f"~/vmw/vmw spawn '{FEATURE_TWO}' {words}") as terminal:
        feature_x.await_path(f"{STATE}/instances/feature-two/domain.xml")
        terminal.type(INTERRUPT)
        assert terminal.exit_code(60) == 130, terminal.text[-3000:]
    assert feature_x.leftovers() == ""


def test_playbook_with_spaces_in_the_path_carries_on(feature_two: Person) -> None:
    assert feature_two.record("feature-two")["worktree"] == FEATURE_TWO
    assert feature_two.ssh("feature-two", "cat repo/hello.py; hostname").stdout == 'print("hello")\nfeature-two\n'


def test_sizes_were_obeyed(feature_two: Person) -> None:
    info = feature_two.virsh("dominfo", "feature-two")
    assert feature_two.virsh("vcpucount", "feature-two", "--config", "--maximum") == "2"
    assert re.search(r"^Max memory: +1048576 KiB$", info, re.MULTILINE)


def test_two_vms_run_at_once_and_differ(feature_two: Person) -> None:
    identity = (
        "cat /etc/machine-id; hostname; sudo cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub; cat /sys/class/net/e*/address"
    )
    one, two = (feature_two.ssh(name, identity).stdout.split() for name in ("feature-x", "feature-two"))
    assert len(one) == len(two) == 4, f"{one} {two}"
    assert not set(one) & set(two)


def test_one_vm_does_not_see_the_others_files(feature_two: Person) -> None:
    feature_two.sh(f"touch '{FEATURE_TWO}/only-two'", check=True)
    assert feature_two.ssh("feature-two", "ls repo/only-two").stdout == "repo/only-two\n"
    # The search goes through the shares too, and finds what is there to be found.
    search = "touch repo/only-two-control; sudo find / '(' -path /proc -o -path /sys ')' -prune -o -name 'only-two*' -print"
    done = feature_two.ssh("feature-x", f"{search}; rm repo/only-two-control", timeout=300)
    assert done.stdout == "/home/claude/repo/only-two-control\n", report(done)


def test_guests_reach_the_world_by_name_and_not_each_other(feature_two: Person) -> None:
    done = feature_two.ssh("feature-two", f"curl -sI http://{PUBLIC_NAME}/debian-12/SHA512SUMS")
    assert "HTTP/1.1 200" in done.stdout, report(done)
    knock = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{feature_two.address('feature-x')}/22 && head -c 3 <&3'"
    assert feature_two.ssh("feature-two", knock).stdout == ""
    assert feature_two.ssh("feature-two", "getent ahostsv4 feature-x.local").stdout == ""
    for name in ("feature-x", "feature-two"):
        assert feature_two.vmw("net", name, "open").returncode == 0
    assert feature_two.ssh("feature-two", knock).stdout == "SSH"
    for name in ("feature-x", "feature-two"):
        assert feature_two.vmw("net", name, "internet").returncode == 0
    assert feature_two.ssh("feature-two", knock).stdout == ""


def test_list_agrees_with_libvirt(feature_two: Person) -> None:
    vms = listed(feature_two)
    assert set(vms) == set(feature_two.domains()) == {"feature-x", "feature-two"}
    for name, vm in vms.items():
        record = feature_two.record(name)
        assert vm["state"] == feature_two.domain_state(name) == "running"
        assert vm["address"] == feature_two.address(name)
        for key in ("worktree", "memory_mib", "vcpus", "disk_gib", "generation", "created"):
            assert vm[key] == record[key]
        blocks = int(feature_two.root(f"stat --format=%b {STATE}/instances/{name}/disk.qcow2"))
        assert abs(vm["disk_used_bytes"] - blocks * 512) < 64 << 20


def test_list_for_people_has_a_line_for_each(feature_two: Person) -> None:
    done = feature_two.vmw("list")
    assert re.search(r"^feature-x +running +[\d.]+ +4096 MiB/4 .*feature-x$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^feature-two +running +[\d.]+ +1024 MiB/2 .*feature two$", done.stdout, re.MULTILINE), done.stdout


def test_spawning_again_reports_the_existing_vm(feature_two: Person) -> None:
    before = feature_two.record("feature-x")
    began = feature_two.root("stat --format=%Y /run/libvirt/qemu/feature-x.pid")
    done = feature_two.vmw("spawn", FEATURE_X, "--json")
    assert done.returncode == 0, report(done)
    answer = json.loads(done.stdout)
    assert answer["instance"]["uuid"] == before["uuid"] == feature_two.virsh("domuuid", "feature-x")
    assert answer["connect"][-2:] == ["ssh", "feature-x"]
    assert feature_two.root("stat --format=%Y /run/libvirt/qemu/feature-x.pid") == began
    assert feature_two.record("feature-x") == before


def test_relative_path_is_the_same_worktree(feature_two: Person) -> None:
    before = feature_two.virsh("domuuid", "feature-two")
    variants = {
        "worktrees": "~/vmw/vmw spawn 'feature two'",
        "worktrees/feature two": "~/vmw/vmw spawn .",
        "bin": "~/vmw/.venv/bin/ansible-playbook ~/vmw/playbooks/spawn.yml -e \"worktree='../worktrees/feature two'\"",
    }
    for directory, command in variants.items():
        done = feature_two.sh(f"cd '{PROJECT}/{directory}' && {command}")
        assert done.returncode == 0, f"{command}: {report(done)}"
    assert feature_two.virsh("domuuid", "feature-two") == before
    assert feature_two.domains() == ["feature-two", "feature-x"]


def test_playbook_on_a_running_vm_changes_nothing(feature_two: Person) -> None:
    values = json.dumps({"worktree": FEATURE_TWO, "vmw_memory_mib": 1024, "vmw_vcpus": 2})
    done = feature_two.playbook("playbooks/spawn.yml", "-e", values, cwd="/")
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)


def test_the_task_is_the_same_where_ansible_brings_it_to_the_host(feature_two: Person) -> None:
    """With sudo, here to the same user, it is packed and sent as to another machine."""
    here = {"worktree": FEATURE_TWO, "vmw_memory_mib": 1024, "vmw_vcpus": 2}
    brought = {**here, "ansible_become": True, "ansible_become_user": USER}
    for values, packed in ((here, False), (brought, True)):
        env = {**PASSWORD_FILE, "ANSIBLE_BECOME_ALLOW_SAME_USER": "true"}
        done = feature_two.playbook("playbooks/spawn.yml", "-vvv", "-e", json.dumps(values), cwd="/", env=env)
        assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)
        assert '"start": "none"' in done.stdout, report(done)
        assert ("AnsiballZ_vm.py" in done.stdout) == packed, report(done)
        assert ("BECOME-SUCCESS" in done.stdout) == packed, report(done)


def test_other_worktree_of_the_same_name_is_a_conflict(feature_x: Person) -> None:
    done = feature_x.vmw("spawn", ELSEWHERE)
    assert done.returncode == 5, report(done)
    for words in (FEATURE_X, ELSEWHERE, "--name"):
        assert words in done.stderr, report(done)
    assert feature_x.record("feature-x")["worktree"] == FEATURE_X


def test_second_name_for_a_worktree_is_a_conflict(feature_x: Person) -> None:
    done = feature_x.vmw("spawn", FEATURE_X, "--name", "another")
    assert done.returncode == 5, report(done)
    assert "feature-x" in done.stderr
    assert feature_x.traces("another") == []


def test_name_settles_the_conflict_and_a_guest_that_does_not_obey_is_named(feature_x: Person) -> None:
    done = feature_x.vmw("spawn", ELSEWHERE, "--name", "other", "--no-wait", *SMALL)
    assert done.returncode == 0, report(done)
    assert done.stdout.strip().endswith("ssh other")
    assert feature_x.domain_state("other") == "running"
    assert feature_x.record("other")["worktree"] == ELSEWHERE
    # Nobody hears the power button in a guest that is held.
    feature_x.virsh("suspend", "other")
    stop = feature_x.vmw("stop", "other", "--timeout", "1")
    assert stop.returncode == 1, report(stop)
    assert "--force" in stop.stderr, report(stop)
    assert feature_x.domain_state("other") == "paused"
    force = feature_x.vmw("stop", "other", "--force")
    assert force.returncode == 0, report(force)
    assert feature_x.domain_state("other") == "shut off"
    before = feature_x.fingerprint(ELSEWHERE)
    destroy = feature_x.vmw("destroy", "other", "--yes")
    assert destroy.returncode == 0, report(destroy)
    assert feature_x.traces("other") == []
    assert feature_x.fingerprint(ELSEWHERE) == before
