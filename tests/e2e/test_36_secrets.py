"""Secrets profiles: a VM sees the file of its own, and another's keys are nowhere. And what it is lent of the SSH agent.

The VMs made here read their keys themselves (``--keys file``), beside the first one, whose keys stay on the host.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from testbed import hostimage
from testbed.person import HOME, SSH_OPTIONS, STATE, Person, report
from testbed.story import FEATURE_X

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

WORKTREE = f"{HOME}/Code/profiled"
NAME = "profiled"
SECRETS = f"{STATE}/secrets"
AGED = "aged"
UNIT = f"{HOME}/.config/systemd/user/vmw-{AGED}-secrets.service"
START_S = 600
PLANTED = {profile: f"sk-planted-{profile}-7d1f0c" for profile in ("default", "work", "other")}
"""Keys that stand in one profile each and nowhere else."""

COPY = f"{STATE}/instances/feature-x/guest-secrets/secrets.env"
"""Of what the first VM sees, also of its profile: the proxy has no API for what is planted."""

SEEN = "ls -A ~/.secrets; echo $PLANTED"
MARKER = "marker-of-a-guest-4b1e"


def spawn(person: Person, *options: str) -> Done:
    return person.vmw("spawn", WORKTREE, *options, timeout=START_S)


def plant(person: Person, profile: str) -> None:
    # By its input, for the journal has commands.
    path = f"{SECRETS}/{profile}/secrets.env"
    person.host.run(f"cat >> {path}", user=hostimage.USER, stdin=f"PLANTED={PLANTED[profile]}\n")


@pytest.fixture(scope="module")
def profiles(feature_x: Person) -> Iterator[Person]:
    """Give the user with two profiles beside the default one, a key in each, and a worktree; the first VM runs since before."""
    feature_x.sh(
        f"rm -rf {WORKTREE} && git init -q {WORKTREE} && cd {WORKTREE} && git commit -q --allow-empty -m Start", check=True
    )
    for profile in ("work", "other"):
        done = feature_x.vmw("secrets", profile)
        assert done.returncode == 0, report(done)
        assert done.stdout == f"{SECRETS}/{profile}/secrets.env\n"
    for profile in PLANTED:
        plant(feature_x, profile)
    yield feature_x
    feature_x.sh(f"rm -rf {SECRETS}/work {SECRETS}/other && sed -i /PLANTED/d {SECRETS}/default/secrets.env", check=True)


@pytest.fixture(scope="module")
def work(profiles: Person) -> Iterator[Person]:
    """Give the user with a VM of the profile work."""
    done = spawn(profiles, "--secrets", "work", "--keys", "file", "--json")
    assert done.returncode == 0, report(done)
    instance = json.loads(done.stdout)["instance"]
    assert (instance["secrets_profile"], instance["keys"]["mode"]) == ("work", "file")
    yield profiles
    done = profiles.vmw("destroy", "--yes", NAME)
    assert done.returncode == 0, report(done)


# --- what is refused before there is a VM ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("nowhere", r"no secrets profile 'nowhere'.*\nhint: .*secrets nowhere"),
        ("../secrets", "cannot name a secrets profile"),
        ("..", "cannot name a secrets profile"),
        ("Work", "cannot name a secrets profile"),
        ("", "cannot name a secrets profile"),
    ],
)
def test_what_is_no_profile_is_refused(profiles: Person, profile: str, words: str) -> None:
    done = spawn(profiles, "--secrets", profile)
    assert done.returncode == 2, report(done)
    assert re.search(words, done.stderr), report(done)
    values = json.dumps({"worktree": WORKTREE, "vmw_secrets_profile": profile})
    done = profiles.playbook("playbooks/spawn.yml", "-e", values)
    assert done.returncode == 2, report(done)
    assert profiles.traces(NAME) == []


def test_a_profile_that_others_can_read_is_refused(profiles: Person) -> None:
    path = f"{SECRETS}/other/secrets.env"
    profiles.sh(f"chmod 644 {path}", check=True)
    try:
        done = spawn(profiles, "--secrets", "other")
    finally:
        profiles.sh(f"chmod 600 {path}", check=True)
    assert done.returncode == 2, report(done)
    assert f"chmod 600 {path}" in done.stderr, report(done)
    assert profiles.traces(NAME) == []


def test_profiles_are_private_and_made_once(profiles: Person) -> None:
    before = profiles.fingerprint(SECRETS)
    for profile in ("work", "other"):
        assert profiles.stat(f"{SECRETS}/{profile}") == "700 dev dev"
        assert profiles.stat(f"{SECRETS}/{profile}/secrets.env") == "600 dev dev"
    assert profiles.vmw("secrets", "work").returncode == 0
    done = profiles.playbook("playbooks/secrets.yml", "-e", "vmw_secrets=other")
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)
    assert profiles.fingerprint(SECRETS) == before


# --- what a VM sees -------------------------------------------------------------------------------------------------


def test_a_vm_sees_its_own_profile_alone(work: Person) -> None:
    for name, profile in ((NAME, "work"), ("feature-x", "default")):
        done = work.ssh(name, SEEN)
        assert done.stdout.split() == ["secrets.env", PLANTED[profile]], report(done)


def test_an_edit_is_seen_by_the_vms_of_that_profile_alone(work: Person) -> None:
    for profile, sees, sees_not in (("work", NAME, "feature-x"), ("default", "feature-x", NAME)):
        work.sh(f"sed -i '$aEDITED=yes' {SECRETS}/{profile}/secrets.env", check=True)
        assert work.ssh(sees, "echo $EDITED").stdout == "yes\n"
        assert work.ssh(sees_not, "echo $EDITED").stdout == "\n"
        work.sh(f"sed -i /^EDITED/d {SECRETS}/{profile}/secrets.env", check=True)


def test_a_vm_by_file_reads_its_key_itself(work: Person) -> None:
    key = "sk-planted-for-a-file"
    work.sh(f"sed -i 's/^ANTHROPIC_API_KEY=.*/ANTHROPIC_API_KEY={key}/' {SECRETS}/work/secrets.env", check=True)
    done = work.ssh(NAME, "env; cat .secrets/secrets.env")
    assert f"\nANTHROPIC_API_KEY={key}\n" in f"\n{done.stdout}", report(done)
    assert "ANTHROPIC_BASE_URL" not in done.stdout
    assert work.read(f"{SECRETS}/work/secrets.env") in done.stdout
    work.sh(f"sed -i 's/^ANTHROPIC_API_KEY=.*/ANTHROPIC_API_KEY=/' {SECRETS}/work/secrets.env", check=True)


def test_root_in_the_guest_finds_no_other_profile(work: Person) -> None:
    look = "mkdir -p /mnt/again; mount -t virtiofs vmw:secrets /mnt/again && find /mnt/again -mindepth 1; umount /mnt/again"
    done = work.ssh(NAME, f"sudo sh -c '{look}'")
    assert done.stdout == "/mnt/again/secrets.env\n", report(done)


def test_root_in_the_guest_cannot_write_the_profile(work: Person) -> None:
    before = work.fingerprint(SECRETS)
    work.ssh(NAME, "sudo mount -o remount,rw /home/claude/.secrets")
    done = work.ssh(NAME, "sudo sh -c 'cd /home/claude/.secrets; echo x >> secrets.env; mkdir new; rm secrets.env'")
    assert done.stderr.count("Read-only file system") == 3, report(done)
    assert work.fingerprint(SECRETS) == before


def pattern(text: str) -> str:
    """Return a pattern for grep that finds a text, and that the text is not in: commands are in journals and process lists."""
    return f"[{text[0]}]{text[1:]}"


def test_keys_of_other_profiles_are_nowhere_in_the_guest(work: Person) -> None:
    places = "/home/claude/.secrets /home/claude/repo /etc /run /tmp /var /root"
    # In memory: nothing of it may come to the disk.
    gather = "for each in /proc/[0-9]*/environ; do tr '\\0' '\\n' <$each; done > /run/environments 2>/dev/null"
    found = {}
    for profile, key in PLANTED.items():
        look = f"{gather}; grep -rlaE -D skip '{pattern(key)}' {places} 2>/dev/null; rm /run/environments"
        done = work.ssh(NAME, f"sudo sh -s <<'END'\n{look}\nEND")
        assert done.returncode == 0, report(done)
        found[profile] = set(done.stdout.split())
    # The control: its own key is in its share, and in the environment of the login that looks.
    assert found["work"] == {"/home/claude/.secrets/secrets.env", "/run/environments"}
    assert found["default"] == found["other"] == set()


def test_keys_are_on_the_host_in_their_files_alone(work: Person) -> None:
    """In no seed, definition, disk, log and record, and in no process's arguments or environment."""
    done = work.ssh(NAME, f"echo {MARKER} > ~/marker && sync")
    assert done.returncode == 0, report(done)
    seen = "/run/seen-by-a-test"
    work.root(
        f"mkdir -p {seen}; virsh -q -c qemu:///system dumpxml --security-info {NAME} > {seen}/xml;"
        f" for each in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do tr '\\0' '\\n' <$each; done > {seen}/processes 2>/dev/null;"
        f" journalctl -b --no-pager > {seen}/journal"
    )
    places = f"{STATE} {HOME}/.local/state {HOME}/.config/systemd {HOME}/.ansible /var/log /tmp {seen}"

    def files_with(text: str) -> set[str]:
        command = f"grep -rlaE -D skip --exclude-dir=images '{pattern(text)}' {places} 2>/dev/null"
        return set(work.root(command, check=False).split())

    try:
        for profile, key in PLANTED.items():
            assert files_with(key) == {f"{SECRETS}/{profile}/secrets.env", *([COPY] if profile == "default" else [])}
        # The controls: each of these places does show what is in it.
        instance = f"{STATE}/instances/{NAME}"
        described = {f"{instance}/{file}" for file in ("instance.json", "cloud-init.iso", "domain.xml")}
        assert described | {f"{seen}/xml"} <= files_with(work.record(NAME)["uuid"])
        assert f"{instance}/disk.qcow2" in files_with(MARKER)
        assert f"{seen}/processes" in files_with(f"instances/{NAME}/")
        assert f"{seen}/journal" in files_with(f"vmw-{NAME}-secrets")
        named = files_with(NAME)
        assert f"/var/log/libvirt/qemu/{NAME}.log" in named
        assert any(path.startswith(f"{HOME}/.local/state/vmw/log/") for path in named), named
    finally:
        work.root(f"rm -r {seen}")


def test_daemon_is_shown_its_profile_alone(work: Person) -> None:
    unit = f"vmw-{NAME}-secrets.service"
    pid = work.sh(
        f"pgrep -x virtiofsd | while read -r pid; do grep -q {unit} /proc/$pid/cgroup && echo $pid; done"
    ).stdout.split()[0]
    assert work.root(f"ls -A /proc/{pid}/root/share").split() == ["secrets.env"]
    assert "home" not in work.root(f"ls -A /proc/{pid}/root").split()


# --- the profile stays ----------------------------------------------------------------------------------------------


def test_list_shows_the_profile(work: Person) -> None:
    vms = {vm["name"]: vm["secrets_profile"] for vm in json.loads(work.vmw("list", "--json").stdout)["vms"]}
    assert (vms[NAME], vms["feature-x"]) == ("work", "default")
    assert re.search(rf"^{NAME} .* work .*{WORKTREE}$", work.vmw("list").stdout, re.MULTILINE)


def test_another_profile_is_a_conflict(work: Person) -> None:
    before = work.record(NAME)
    for other in ("other", "default"):
        done = spawn(work, "--secrets", other)
        assert done.returncode == 5, report(done)
        assert "was made with the secrets profile 'work'" in done.stderr, report(done)
        assert f"destroy {NAME}" in done.stderr, report(done)
        done = work.playbook("playbooks/spawn.yml", "-e", json.dumps({"worktree": WORKTREE, "vmw_secrets": other}))
        assert done.returncode == 2, report(done)
        assert "was made with the secrets profile 'work'" in done.stdout, report(done)
    assert work.record(NAME) == before
    assert work.ssh(NAME, SEEN).stdout.split()[-1] == PLANTED["work"]


def test_spawning_again_keeps_the_profile(work: Person) -> None:
    before = work.record(NAME)
    for options in ((), ("--secrets", "work")):
        done = spawn(work, *options)
        assert done.returncode == 0, report(done)
        assert ("keeps it; default applies to new VMs" in done.stderr) == (not options), report(done)
    assert work.record(NAME) == before


# --- a VM of the time before profiles -------------------------------------------------------------------------------


@pytest.fixture
def before(profiles: Person) -> Iterator[Person]:
    """Give the user with a VM running as an earlier vmw served it: with the secrets' directory, in which the file was."""
    worktree = f"{HOME}/Code/{AGED}"
    profiles.sh(f"git init -q {worktree} && cd {worktree} && git commit -q --allow-empty -m Start", check=True)
    done = profiles.vmw("spawn", worktree, "--keys", "file", timeout=START_S)
    assert done.returncode == 0, report(done)
    profiles.virsh("destroy", AGED)
    arrange = f"cd {STATE} && rm secrets/secrets.env && mv secrets kept && mv kept/default secrets"
    lead = f"sed -i 's,{SECRETS}/default,{SECRETS},g' {UNIT} && systemctl --user daemon-reload"
    profiles.sh(f"{arrange} && {lead}", check=True)
    profiles.virsh("start", AGED)
    deadline = time.monotonic() + START_S
    while in_aged(profiles, "mountpoint .secrets").returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(2)
    yield profiles
    profiles.sh(f"cd {STATE} && rm -rf secrets/by-hand secrets/later && mv kept/* secrets/ && rmdir kept", check=True)
    done = profiles.vmw("destroy", "--yes", AGED)
    assert done.returncode == 0, report(done)
    profiles.sh(f"rm -rf {worktree}", check=True)


def in_aged(person: Person, command: str) -> Done:
    return person.vmw("ssh", AGED, "--", command)


def test_a_vm_of_before_goes_on_and_sees_no_profile(before: Person) -> None:
    # The control: it does see what is made by hand in the directory that it is served.
    before.sh(f"install -d -m 700 {SECRETS}/by-hand && echo HAND=1 > {SECRETS}/by-hand/secrets.env", check=True)
    look = "ls -A .secrets; cat .secrets/by-hand/secrets.env"
    assert in_aged(before, look).stdout.split() == ["by-hand", "secrets.env", "HAND=1"]
    done = before.vmw("secrets", "later")
    assert done.returncode == 0, report(done)
    assert before.read(f"{SECRETS}/by-hand/secrets.env") == "HAND=1\n"
    done = in_aged(before, look)
    assert done.stdout == "secrets.env\n", report(done)
    assert before.domain_state(AGED) == "running"
    # Its keys are the same, and an edit at the old places is seen at the next login: there, and where keys stay on the host.
    assert in_aged(before, "echo $PLANTED").stdout.strip() == PLANTED["default"]
    for number, place in enumerate((f"{STATE}/secrets.env", f"{SECRETS}/secrets.env")):
        before.sh(f"sed -i --follow-symlinks '$aEDITED{number}=yes' {place}", check=True)
        assert in_aged(before, f"echo $EDITED{number}").stdout == "yes\n"
        assert before.ssh("feature-x", f"echo $EDITED{number}").stdout == "yes\n"
    before.sh(f"sed -i /^EDITED/d {SECRETS}/default/secrets.env", check=True)
    # When libvirt starts it next, it is by the unit as it is now.
    unit = before.read(UNIT)
    assert f" {SECRETS}/default /share " in unit
    assert f" {SECRETS} " not in unit
    shown = before.sh(f"systemctl --user show --property=NeedDaemonReload vmw-{AGED}-secrets.service").stdout
    assert shown.strip() == "NeedDaemonReload=no"


# --- the SSH agent --------------------------------------------------------------------------------------------------

WITH_AGENT = "eval $(ssh-agent) >/dev/null; ssh-add -q ~/.ssh/id_ed25519; {}; code=$?; kill $SSH_AGENT_PID; exit $code"
LENT = "'echo ${SSH_AUTH_SOCK:+lent}; ssh-add -l'"
FILTER = f"{HOME}/filter"


def with_agent(person: Person, command: str) -> Done:
    """Run a command with an agent that holds the user's key."""
    return person.sh(WITH_AGENT.format(command))


@pytest.mark.parametrize("words", ["--no-agent feature-x", "feature-x --no-agent"])
def test_no_agent_lends_none(feature_x: Person, words: str) -> None:
    # The control: without the option there is one.
    assert with_agent(feature_x, f"~/vmw/vmw ssh feature-x -- {LENT}").stdout.startswith("lent\n256 SHA256:")
    done = with_agent(feature_x, f"~/vmw/vmw ssh {words} -- {LENT}")
    assert done.stdout == "\n", report(done)
    assert "authentication agent" in done.stderr, report(done)


@pytest.fixture
def settings(feature_x: Person) -> Iterator[Person]:
    """Give the user with settings that may be changed, and the first VM's ssh_config as they were."""
    path = f"{STATE}/config.yml"
    text = feature_x.read(path)
    yield feature_x
    feature_x.host.run(f"cat > {path}", user=hostimage.USER, stdin=text)
    done = feature_x.vmw("spawn", FEATURE_X, timeout=START_S)
    assert done.returncode == 0, report(done)


def add_settings(person: Person, text: str) -> None:
    person.host.run(f"cat >> {STATE}/config.yml", user=hostimage.USER, stdin=text)


def test_agent_is_off_when_the_setting_says_so(settings: Person) -> None:
    config = f"{STATE}/instances/feature-x/ssh_config"
    plain = f"ssh -F {config} {SSH_OPTIONS} feature-x.local {LENT}"
    assert settings.lookup("feature-x")
    assert with_agent(settings, plain).stdout.startswith("lent\n")
    # As a person writes it, which YAML takes for a truth value.
    add_settings(settings, "vmw_ssh_agent: off\n")
    done = with_agent(settings, f"~/vmw/vmw ssh feature-x -- {LENT}")
    assert done.stdout == "\n", report(done)
    checks = {check["name"]: check for check in json.loads(settings.vmw("doctor", "--json").stdout)["checks"]}
    assert checks["SSH agent"]["status"] == "warn"
    done = settings.vmw("spawn", FEATURE_X, timeout=START_S)
    assert done.returncode == 0, report(done)
    assert "  ForwardAgent no\n" in settings.read(config)
    assert settings.lookup("feature-x")
    done = with_agent(settings, plain)
    assert done.stdout == "\n", report(done)
    again = settings.playbook("playbooks/spawn.yml", "-e", f"worktree={FEATURE_X}")
    assert re.search(r"changed=0 +unreachable=0 +failed=0", again.stdout), report(again)


@pytest.fixture
def filtering(settings: Person) -> Person:
    """Give the user with the setting for chosen keys, a key to be chosen, and two programs that answer."""
    add_settings(settings, "vmw_ssh_agent: filter\nvmw_ssh_agent_keys: [chosen key]\n")
    made = [
        f"rm -rf {FILTER} && mkdir {FILTER} && cd {FILTER} && ssh-keygen -q -t ed25519 -N '' -C 'chosen key' -f chosen",
        *(
            f"printf '#!/bin/sh\necho \"$1\" >> {FILTER}/asked\nexit {code}\n' > {name} && chmod 755 {name}"
            for name, code in (("yes", 0), ("no", 1))
        ),
    ]
    settings.sh(" && ".join(made), check=True)
    return settings


def test_missing_filter_is_told_with_the_command_that_installs_it(filtering: Person) -> None:
    done = with_agent(filtering, "~/vmw/vmw ssh feature-x -- true")
    assert done.returncode == 3, report(done)
    assert "sudo apt install ssh-agent-filter" in done.stderr, report(done)


def test_chosen_key_alone_is_lent_and_each_use_asks(filtering: Person) -> None:
    filtering.root("apt-get install -qq --no-install-recommends ssh-agent-filter", timeout=300)
    sign = (
        "ssh-add -l; ssh-add -L > chosen.pub; rm -f text.sig; echo text > text;"
        " ssh-keygen -q -Y sign -n test -f chosen.pub text; test -e text.sig"
    )
    command = f"ssh-add -q {FILTER}/chosen; SSH_ASKPASS={FILTER}/{{}} ~/vmw/vmw ssh feature-x -- '{sign}'"
    try:
        for answer, code in (("yes", 0), ("no", 1)):
            filtering.sh(f"rm -f {FILTER}/asked")
            done = with_agent(filtering, command.format(answer))
            assert done.returncode == code, report(done)
            # The login itself asked nothing.
            assert len(done.stdout.splitlines()) == 1, report(done)
            assert "chosen key" in done.stdout, report(done)
            asked = filtering.read(f"{FILTER}/asked")
            assert asked.count("requested use of the key named 'chosen key'") == 1, asked
            assert "named 'feature-x'" in asked
        # Without a program that asks there is nobody to say yes.
        done = with_agent(filtering, command.format("nothing"))
        assert done.returncode == 3, report(done)
        assert "no program that could ask you" in done.stderr, report(done)
        assert filtering.root("pgrep -x ssh-agent-filte", check=False) == ""
    finally:
        filtering.root(f"apt-get purge -qq ssh-agent-filter; rm -rf {FILTER}", timeout=300)
