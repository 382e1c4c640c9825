"""Stop, start and destroy, with and without vmw's knowledge."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from testbed.person import HOME, STATE, Person, report
from testbed.story import FEATURE_TWO, FEATURE_X, PROJECT, SMALL

if TYPE_CHECKING:
    from testbed.person import Done

BOOT_S = 400
THIRD = f"{PROJECT}/worktrees/third"
SHARES = "mountpoint -q repo && mountpoint -q .secrets && cat repo/hello.py && ls .secrets"
SHARES_ALIVE = 'print("hello")\nsecrets.env\n'
FOREIGN = """
<domain type='qemu'><name>foreign</name><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>
"""


def test_stop_asks_the_guest_and_waits(feature_x: Person) -> None:
    event = "virsh -q -c qemu:///system event --domain feature-x --event lifecycle --timeout 200"
    done = feature_x.sh(f"{event} & sleep 1; ~/vmw/vmw stop feature-x; code=$?; wait; exit $code", timeout=300)
    assert done.returncode == 0, report(done)
    assert "Shutdown Finished after guest request" in done.stdout, report(done)
    assert feature_x.domain_state("feature-x") == "shut off"
    assert "vmw-feature-x-" not in feature_x.root("ps -C virtiofsd -o cgroup=", check=False)


def test_list_shows_it_off(feature_x_off: Person) -> None:
    vms = {vm["name"]: vm for vm in json.loads(feature_x_off.vmw("list", "--json").stdout)["vms"]}
    assert vms["feature-x"]["state"] == "shut off"
    assert vms["feature-x"]["address"] is None


def test_stop_again_is_no_error(feature_x_off: Person) -> None:
    done = feature_x_off.vmw("stop", "feature-x")
    assert done.returncode == 0, report(done)


def test_ssh_to_a_stopped_vm_names_start(feature_x_off: Person) -> None:
    done = feature_x_off.vmw("ssh", "feature-x", "--", "true")
    assert done.returncode == 1, report(done)
    assert "start feature-x" in done.stderr


def test_start_brings_it_back_with_its_shares(feature_x_off: Person) -> None:
    done = feature_x_off.vmw("start", "feature-x", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert feature_x_off.ssh("feature-x", SHARES).stdout == SHARES_ALIVE


def test_guest_had_shut_down_in_order(feature_x: Person) -> None:
    done = feature_x.ssh("feature-x", "sudo journalctl -b -1 -o cat | tail -n 20")
    assert "Shutting down." in done.stdout, report(done)


def test_start_again_is_no_error(feature_x: Person) -> None:
    began = feature_x.root("stat --format=%Y /run/libvirt/qemu/feature-x.pid")
    done = feature_x.vmw("start", "feature-x", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert feature_x.root("stat --format=%Y /run/libvirt/qemu/feature-x.pid") == began


def changes(done: Done) -> int:
    """Return how many tasks of a playbook that came to its end changed something."""
    assert done.returncode == 0, report(done)
    found = re.search(r"changed=(\d+) +unreachable=0 +failed=0", done.stdout)
    assert found, report(done)
    return int(found[1])


def test_check_mode_of_stop_and_destroy_changes_nothing(feature_x: Person) -> None:
    before = (feature_x.traces("feature-x"), feature_x.record("feature-x"), feature_x.virsh("dumpxml", "feature-x"))
    for playbook in ("stop", "destroy"):
        done = feature_x.playbook(f"playbooks/{playbook}.yml", "--check", "--diff", "-e", "vmw_name=feature-x", cwd="/")
        assert changes(done), report(done)
    assert (feature_x.traces("feature-x"), feature_x.record("feature-x"), feature_x.virsh("dumpxml", "feature-x")) == before
    assert feature_x.ssh("feature-x", SHARES).stdout == SHARES_ALIVE


def test_stop_playbook_stops_once(feature_x: Person) -> None:
    assert changes(feature_x.playbook("playbooks/stop.yml", "-e", "vmw_name=feature-x", cwd="/")) == 1
    assert feature_x.domain_state("feature-x") == "shut off"
    assert changes(feature_x.playbook("playbooks/stop.yml", "-e", "vmw_name=feature-x", cwd="/")) == 0


def test_wait_in_vain_names_phase_cause_and_log(feature_x_off: Person) -> None:
    # The bridge takes nothing from the guest.
    mac = feature_x_off.record("feature-x")["mac"]
    chain = "{ type filter hook prerouting priority 0; }"
    feature_x_off.root(
        f"nft 'add table bridge deaf; add chain bridge deaf ears {chain}; add rule bridge deaf ears ether saddr {mac} drop'"
    )
    try:
        words = ("-e", "vmw_name=feature-x", "-e", "domain_wait_timeout=20")
        done = feature_x_off.playbook("playbooks/start.yml", *words, cwd="/")
        assert done.returncode == 2, report(done)
        assert "feature-x did not reach the phase 'address' in 20 s" in done.stdout, report(done)
        assert "got no DHCP lease" in done.stdout, report(done)
        assert f"{STATE}/instances/feature-x/console.log" in done.stdout, report(done)
        assert feature_x_off.domain_state("feature-x") == "running"
    finally:
        feature_x_off.virsh("destroy", "feature-x", check=False)
        feature_x_off.root("nft delete table bridge deaf")


def test_start_playbook_carries_on_and_starts_once(feature_x_off: Person) -> None:
    words = ("playbooks/start.yml", "-e", "vmw_name=feature-x")
    assert changes(feature_x_off.playbook(*words, cwd="/", timeout=BOOT_S)) == 1
    assert feature_x_off.ssh("feature-x", SHARES).stdout == SHARES_ALIVE
    assert changes(feature_x_off.playbook(*words, cwd="/")) == 0


def test_virsh_behind_vmws_back_leaves_the_shares_alive_and_the_secrets_true(feature_x: Person) -> None:
    feature_x.virsh("destroy", "feature-x")
    feature_x.sh(f"echo EDITED_WHILE_OFF=yes >> {STATE}/secrets.env", check=True)
    feature_x.virsh("start", "feature-x")
    # Before vmw itself looks at it: its guest takes longer to boot.
    copy = f"{STATE}/instances/feature-x/guest-secrets/secrets.env"
    done = feature_x.sh(f"timeout 20 sh -c 'until grep -x EDITED_WHILE_OFF=yes {copy}; do sleep 0.2; done'")
    assert done.returncode == 0, report(done)
    done = feature_x.vmw("start", "feature-x", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert "feature-x reads EDITED_WHILE_OFF itself" in done.stderr, report(done)
    assert feature_x.ssh("feature-x", f"{SHARES}; echo $EDITED_WHILE_OFF").stdout == f"{SHARES_ALIVE}yes\n"
    feature_x.sh(f"sed -i --follow-symlinks /EDITED_WHILE_OFF/d {STATE}/secrets.env", check=True)


def test_spawn_starts_a_stopped_vm(feature_x: Person) -> None:
    uuid = feature_x.record("feature-x")["uuid"]
    assert feature_x.vmw("stop", "feature-x", "--force").returncode == 0
    done = feature_x.vmw("spawn", FEATURE_X, "--no-wait")
    assert done.returncode == 0, report(done)
    assert feature_x.domain_state("feature-x") == "running"
    assert feature_x.virsh("domuuid", "feature-x") == uuid


def test_destroy_asks_on_a_terminal_and_no_means_no(ready: Person) -> None:
    with ready.terminal("~/vmw/vmw destroy feature-x") as terminal:
        terminal.wait_for(r"\[y/N\]", 60)
        terminal.type("n\n")
        assert terminal.exit_code(60) == 1
    assert ready.domain_state("feature-x") == "running"


def test_destroy_without_a_terminal_wants_yes(ready: Person) -> None:
    done = ready.vmw("destroy", "feature-x")
    assert done.returncode == 2, report(done)
    assert "--yes" in done.stderr
    assert ready.domain_state("feature-x") == "running"


def test_destroy_leaves_the_worktree_and_nothing_else(ready: Person) -> None:
    before = ready.fingerprint(FEATURE_X)
    generation = ready.fingerprint(f"{STATE}/images")
    assert ready.traces("feature-x") != []
    done = ready.vmw("destroy", "feature-x", "--yes")
    assert done.returncode == 0, report(done)
    assert ready.traces("feature-x") == []
    assert ready.fingerprint(FEATURE_X) == before
    assert ready.fingerprint(f"{STATE}/images") == generation


def test_destroy_again_says_that_there_is_none(ready: Person) -> None:
    done = ready.vmw("destroy", "feature-x", "--yes")
    assert done.returncode == 0, report(done)
    assert "no VM named 'feature-x'" in done.stderr


def test_destroy_playbook_again_changes_nothing(ready: Person) -> None:
    done = ready.playbook("playbooks/destroy.yml", "-e", "vmw_name=feature-x", cwd="/")
    assert done.returncode == 0, report(done)
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)


def test_destroy_removes_the_second_vm_by_the_playbook(ready: Person) -> None:
    before = ready.fingerprint(FEATURE_TWO)
    done = ready.playbook("playbooks/destroy.yml", "-e", "vmw_name=feature-two", cwd="/var")
    assert done.returncode == 0, report(done)
    assert ready.traces("feature-two") == []
    assert ready.fingerprint(FEATURE_TWO) == before


# --- half-made and half-removed -------------------------------------------------------------------------------------


def spawn_third(person: Person) -> None:
    done = person.vmw("spawn", THIRD, "--no-wait", *SMALL)
    assert done.returncode == 0, report(done)
    assert person.domain_state("third") == "running"


def check_destroy(person: Person) -> None:
    done = person.vmw("destroy", "third", "--yes")
    assert done.returncode == 0, report(done)
    assert person.traces("third") == []


def test_check_mode_of_spawn_makes_nothing(ready: Person) -> None:
    before = ready.fingerprint(f"{STATE}/instances")
    done = ready.playbook("playbooks/spawn.yml", "--check", "--diff", "-e", f"worktree={THIRD}", cwd="/")
    assert changes(done), report(done)
    assert ready.traces("third") == []
    assert ready.fingerprint(f"{STATE}/instances") == before


def test_spawn_completes_a_vm_that_libvirt_forgot_and_destroy_removes_it(ready: Person) -> None:
    spawn_third(ready)
    uuid = ready.virsh("domuuid", "third")
    ready.virsh("destroy", "third")
    ready.virsh("undefine", "third")
    spawn_third(ready)
    assert ready.virsh("domuuid", "third") == uuid
    ready.virsh("destroy", "third")
    ready.virsh("undefine", "third")
    check_destroy(ready)


def test_destroy_cleans_a_vm_without_a_record(ready: Person) -> None:
    spawn_third(ready)
    ready.root(f"rm {STATE}/instances/third/instance.json")
    vms = {vm["name"]: vm["state"] for vm in json.loads(ready.vmw("list", "--json").stdout)["vms"]}
    assert vms["third"] == "broken"
    spawn = ready.vmw("spawn", THIRD)
    assert spawn.returncode == 5, report(spawn)
    assert "destroy third" in spawn.stderr, report(spawn)
    check_destroy(ready)


def test_destroy_cleans_a_domain_whose_files_are_gone(ready: Person) -> None:
    spawn_third(ready)
    ready.root(f"rm -r {STATE}/instances/third {HOME}/.config/systemd/user/vmw-third-*")
    check_destroy(ready)


def test_destroy_cleans_a_vm_whose_worktree_is_gone(ready: Person) -> None:
    spawn_third(ready)
    ready.root(f"mv {THIRD} {THIRD}.away")
    try:
        check_destroy(ready)
    finally:
        ready.root(f"mv {THIRD}.away {THIRD}")


def test_link_in_the_place_of_a_worktree_is_not_followed(ready: Person) -> None:
    spawn_third(ready)
    ready.virsh("destroy", "third")
    ready.sh(f"mv {THIRD} {THIRD}.away && ln -s {HOME}/.ssh {THIRD}", check=True)
    try:
        # The control: bubblewrap by itself follows the link.
        control = ready.sh(f"bwrap --dev-bind / / --bind {THIRD} /mnt ls /mnt")
        assert "id_ed25519" in control.stdout, report(control)
        start = ready.vmw("start", "third")
        assert start.returncode == 5, report(start)
        assert f"leads to {HOME}/.ssh" in start.stderr, report(start)
        ready.virsh("start", "third", check=False)
        shown = ready.root("for pid in $(pgrep -x virtiofsd); do ls -A /proc/$pid/root/share; done", check=False)
        assert "id_ed25519" not in shown
    finally:
        ready.sh(f"rm {THIRD} && mv {THIRD}.away {THIRD}", check=True)
    check_destroy(ready)


def test_foreign_domain_is_never_touched(ready: Person) -> None:
    ready.root(f"cat > /tmp/foreign.xml <<'END'\n{FOREIGN}\nEND\nvirsh -q -c qemu:///system define /tmp/foreign.xml")
    try:
        before = ready.virsh("dumpxml", "foreign")
        ready.sh(f"mkdir -p {PROJECT}/foreign", check=True)
        spawn = ready.vmw("spawn", f"{PROJECT}/foreign")
        assert spawn.returncode == 5, report(spawn)
        assert "foreign" in spawn.stderr
        assert "hint: " in spawn.stderr
        destroy = ready.vmw("destroy", "foreign", "--yes")
        assert destroy.returncode in {4, 5}, report(destroy)
        assert ready.virsh("dumpxml", "foreign") == before
        assert ready.traces("foreign") == ["domain foreign"]
    finally:
        ready.virsh("undefine", "foreign")
