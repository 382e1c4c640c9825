"""The first VM from inside, by ssh, and what of its doings is seen on the host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from testbed import hostimage, machine
from testbed.person import HOME, SSH_OPTIONS, STATE, Person, report
from testbed.story import FEATURE_X

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRETS = f"{STATE}/secrets.env"
PLACEHOLDER = "vmw-feature-x"
BASE_URL = r"http://[0-9.]+:[0-9]+/anthropic"
FACTS = r"""
fact() { name=$1; shift; printf '%s=%s\n' "$name" "$("$@" 2>&1 | tr '\n' ' ')"; }
fact hostname hostname
fact user id -un
fact uid id -u
fact sudo sudo -n id -u
fact node node --version
fact claude claude --version
fact git git --version
fact curl curl --version
fact gcc gcc --version
fact repo findmnt -n -o FSTYPE,SOURCE,OPTIONS /home/claude/repo
fact secrets findmnt -n -o FSTYPE,SOURCE,OPTIONS /home/claude/.secrets
fact secret_names ls -A /home/claude/.secrets
fact cpus nproc
fact possible_cpus cat /sys/devices/system/cpu/possible
fact root_size df --output=size -BG /
fact lists find /var/lib/apt/lists -type f
fact keys find /etc/ssh -name 'ssh_host_*_key'
fact identity cat /var/lib/vmw/instance-id
fact machine cat /etc/machine-id
fact failed systemctl --failed --no-legend --plain
ran() { for unit; do systemctl show --property=Id,ExecMainStartTimestampMonotonic "$unit"; done | grep -B1 'Monotonic=[1-9]'; }
fact baked ran @BAKED@
"""
BAKED = (
    "apt-daily", "apt-daily-upgrade", "cloud-config", "cloud-final", "cloud-init", "cloud-init-local", "dpkg-db-backup",
    "e2scrub_reap", "man-db", "ssh-keygen", "systemd-firstboot", "systemd-networkd-wait-online", "unattended-upgrades",
)  # fmt: skip
"""Services that a boot of the cloud image runs, and whose work was done when the image was baked or is nobody's here."""


@pytest.fixture(scope="module")
def facts(feature_x: Person) -> dict[str, str]:
    """Ask the guest for everything in one login by plain ssh."""
    services = " ".join(f"{name}.service" for name in BAKED)
    done = feature_x.ssh("feature-x", FACTS.replace("@BAKED@", services), timeout=180)
    assert done.returncode == 0, report(done)
    return {name: value.strip() for name, _, value in (line.partition("=") for line in done.stdout.splitlines())}


def test_host_name_is_the_vms(facts: dict[str, str]) -> None:
    assert facts["hostname"] == "feature-x"


def test_user_has_the_host_users_uid(facts: dict[str, str]) -> None:
    assert (facts["user"], facts["uid"]) == ("claude", str(hostimage.UID))


def test_sudo_needs_no_password(facts: dict[str, str]) -> None:
    assert facts["sudo"] == "0"


def test_node_is_24(facts: dict[str, str]) -> None:
    assert re.fullmatch(r"v24\.\d+\.\d+", facts["node"])


def test_claude_is_what_the_manifest_says(feature_x: Person, facts: dict[str, str]) -> None:
    generation = feature_x.record("feature-x")["generation"]
    manifest = feature_x.read_json(f"{STATE}/images/{generation}/manifest.json")
    assert facts["claude"].split()[0] == manifest["claude_code"]
    assert facts["node"] == f"v{manifest['node']}"


@pytest.mark.parametrize("tool", ["git", "curl", "gcc"])
def test_tool_is_there(facts: dict[str, str], tool: str) -> None:
    assert re.match(rf"{tool} .*\d", facts[tool])


def test_worktree_is_mounted_for_writing(facts: dict[str, str]) -> None:
    kind, _, options = facts["repo"].split()
    assert kind == "virtiofs"
    assert "rw" in options.split(",")


def test_secrets_are_mounted_read_only_and_alone(facts: dict[str, str]) -> None:
    kind, _, options = facts["secrets"].split()
    assert kind == "virtiofs"
    assert "ro" in options.split(",")
    assert facts["secret_names"] == "secrets.env"


def test_guest_has_its_sizes(facts: dict[str, str]) -> None:
    # One CPU is online under emulation, and the others can be plugged in.
    assert facts["cpus"] == ("4" if machine.has_kvm() else "1")
    assert facts["possible_cpus"] == "0-3"
    assert int(facts["root_size"].split()[-1].rstrip("G")) >= 18


def test_image_was_cleaned(facts: dict[str, str]) -> None:
    assert facts["lists"] == ""
    assert facts["keys"].split() == ["/etc/ssh/ssh_host_ed25519_key"]


def test_boot_does_nothing_that_was_done_before(facts: dict[str, str], feature_x: Person) -> None:
    assert facts["baked"] == ""
    # The control: the question finds what did run.
    asked = "systemctl show --property=ExecMainStartTimestampMonotonic ssh.service systemd-networkd.service"
    assert re.fullmatch(r"(ExecMainStartTimestampMonotonic=[1-9]\d*\s*){2}", feature_x.ssh("feature-x", asked).stdout)


def test_ramdisk_has_only_what_the_root_needs(feature_x: Person) -> None:
    generation = feature_x.record("feature-x")["generation"]
    assert int(feature_x.root(f"stat --format=%s {STATE}/images/{generation}/initrd")) < 1 << 20


def test_nothing_failed_in_the_guest(facts: dict[str, str]) -> None:
    assert facts["failed"] == ""


def test_machine_has_the_identity_of_its_record(facts: dict[str, str], feature_x: Person) -> None:
    assert facts["identity"] == feature_x.record("feature-x")["uuid"]
    assert facts["machine"] == facts["identity"].replace("-", "")


# --- the worktree, both ways ----------------------------------------------------------------------------------------


def test_guest_sees_what_the_host_writes(feature_x: Person) -> None:
    feature_x.sh(f"printf 'from the host\\n' > {FEATURE_X}/from-host", check=True)
    assert feature_x.ssh("feature-x", "cat repo/from-host repo/tool").stdout == "from the host\n#!/bin/sh\necho tool\n"


def test_host_sees_what_the_guest_writes_as_its_users(feature_x: Person) -> None:
    done = feature_x.ssh("feature-x", "cd repo && mkdir made && echo guest > made/by-user && chmod 750 made/by-user")
    assert done.returncode == 0, report(done)
    assert feature_x.read(f"{FEATURE_X}/made/by-user") == "guest\n"
    assert feature_x.stat(f"{FEATURE_X}/made/by-user") == "750 dev dev"


def test_root_in_the_guest_leaves_nothing_that_is_not_the_users(feature_x: Person) -> None:
    done = feature_x.ssh("feature-x", "sudo sh -c 'echo root > repo/by-root && chown root:root repo/by-root && mkdir repo/d'")
    assert done.returncode == 0, report(done)
    assert feature_x.read(f"{FEATURE_X}/by-root") == "root\n"
    assert feature_x.root(f"find {FEATURE_X} ! -user dev -o ! -group dev") == ""
    assert feature_x.sh(f"rm -r {FEATURE_X}/by-root {FEATURE_X}/d").returncode == 0


def test_link_out_of_the_worktree_leads_into_the_guests_own_files(feature_x: Person) -> None:
    keys = f"{HOME}/.ssh"
    before = feature_x.fingerprint(keys)
    # The control: on the host the link leads to the keys.
    feature_x.sh(f"ln -sfn {keys} {FEATURE_X}/out && ls {FEATURE_X}/out/id_ed25519", check=True)
    try:
        through = f"ls repo/out/; mkdir -p {keys} && echo guest > repo/out/authorized_keys && ls -A repo/out/ && cat {keys}/*"
        done = feature_x.ssh("feature-x", f"sudo sh -c '{through}'; sudo rm -r {keys}")
        assert done.returncode == 0, report(done)
        assert done.stdout.split() == ["authorized_keys", "guest"], report(done)
        assert "cannot access 'repo/out/'" in done.stderr, report(done)
    finally:
        feature_x.sh(f"rm {FEATURE_X}/out", check=True)
    assert feature_x.fingerprint(keys) == before


# --- secrets --------------------------------------------------------------------------------------------------------


def test_root_in_the_guest_cannot_write_the_secrets(feature_x: Person) -> None:
    shown = [f"{STATE}/secrets", f"{STATE}/instances/feature-x/guest-secrets"]
    before = [feature_x.fingerprint(path) for path in shown]
    # The control: the same attack on the share that may be written works.
    attack = """
    place=$1
    tee -a $place/secrets.env < /etc/hostname > /dev/null && echo appended
    touch $place/new && echo created
    chmod 777 $place && echo opened
    mv $place/secrets.env $place/moved && mv $place/moved $place/secrets.env && echo moved
    rm $place/secrets.env && echo removed
    echo end
    """
    feature_x.sh(f"mkdir {FEATURE_X}/control && touch {FEATURE_X}/control/secrets.env", check=True)
    control = feature_x.ssh("feature-x", f"sudo sh -c '{attack}' sh repo/control")
    assert control.stdout.split() == ["appended", "created", "opened", "moved", "removed", "end"], report(control)
    feature_x.sh(f"rm -r {FEATURE_X}/control", check=True)

    ways_in = """
    mount -o remount,rw /home/claude/.secrets
    mkdir -p /mnt/again
    tag=$(findmnt -n -o SOURCE /home/claude/.secrets)
    mount -t virtiofs -o rw "$tag" /mnt/again && echo mounted
    """
    real = feature_x.ssh("feature-x", f"sudo sh -c '{ways_in}'")
    assert real.stdout.split() == ["mounted"], report(real)
    for place in ("/home/claude/.secrets", "/mnt/again"):
        done = feature_x.ssh("feature-x", f"sudo sh -c '{attack}' sh {place}")
        assert done.stdout.split() == ["end"], report(done)
        assert done.stderr.count("Read-only file system") == len(control.stdout.split()) - 1, report(done)
    assert [feature_x.fingerprint(path) for path in shown] == before


@pytest.fixture
def key(feature_x: Person) -> Iterator[str]:
    """Have a key in secrets.env, written the way an editor does."""
    before = feature_x.read(SECRETS)
    feature_x.sh(f"sed -i --follow-symlinks 's/^ANTHROPIC_API_KEY=.*/ANTHROPIC_API_KEY=sk-first/' {SECRETS}", check=True)
    yield "sk-first"
    feature_x.sh(f"cat > {SECRETS} <<'END'\n{before}END\n", check=True)


def environment_in(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def test_variables_without_an_api_are_read_as_the_readme_says(feature_x: Person, key: str) -> None:
    lines = (
        ("EQUALS=a=b==", "a=b=="),
        ("BLANKS=two  words", "two  words"),
        ("PERCENT=50%d", "50%d"),
        (r"BACKSLASH=a\b", r"a\b"),
        ("DOLLAR=$HOME ${HOME} @{HOME}", "$HOME ${HOME} @{HOME}"),
        ('DOUBLE="in quotes"', "in quotes"),
        ("SINGLE='in quotes'", "in quotes"),
        ("HASH=before#after", "before"),
    )
    text = "".join(f"{line}\n" for line, _ in lines)
    feature_x.host.run(f"cat >> {SECRETS}", user=hostimage.USER, stdin=text)
    found = environment_in(feature_x.vmw("ssh", "feature-x", "--", "env").stdout)
    names = [line.partition("=")[0] for line, _ in lines]
    assert {name: found.get(name) for name in names} == dict(zip(names, (value for _, value in lines), strict=True))
    assert found["ANTHROPIC_API_KEY"] == PLACEHOLDER
    assert key not in feature_x.ssh("feature-x", "cat .secrets/secrets.env").stdout


def test_the_key_stays_on_the_host_and_an_edit_is_seen_at_the_next_login(feature_x: Person, key: str) -> None:
    """The VM was spawned before there was a key, as the README's reader does it."""
    done = feature_x.vmw("ssh", "feature-x", "--", "env")
    found = environment_in(done.stdout)
    assert found.get("ANTHROPIC_API_KEY") == PLACEHOLDER, report(done)
    assert re.fullmatch(BASE_URL, found["ANTHROPIC_BASE_URL"])
    assert key not in done.stdout
    assert not {"OPENAI_API_KEY", "OPENAI_BASE_URL", "GITHUB_TOKEN"} & set(found)
    assert feature_x.stat(f"{STATE}/secrets/default/secrets.env") == "600 dev dev"
    assert feature_x.stat(f"{STATE}/instances/feature-x/guest-secrets/secrets.env") == "600 dev dev"
    edit = "-e 's/sk-first/sk-second/' -e '$aOPENAI_API_KEY=sk-more' -e '$aGITHUB_TOKEN=gh-one'"
    feature_x.sh(f"sed -i --follow-symlinks {edit} {SECRETS}", check=True)
    done = feature_x.vmw("ssh", "feature-x", "--", "env")
    found = environment_in(done.stdout)
    assert found["ANTHROPIC_API_KEY"] == found.get("OPENAI_API_KEY") == PLACEHOLDER, report(done)
    assert found["OPENAI_BASE_URL"] == found["ANTHROPIC_BASE_URL"].replace("/anthropic", "/openai/v1")
    assert found["GITHUB_TOKEN"] == "gh-one"
    assert "sk-" not in done.stdout


@pytest.mark.parametrize(
    "edit",
    [
        "cat > new && cat new > {file}",
        "cat > new && mv new {file}",
        "cp {file} {file}~; rm {file}; sleep 2; cat > {file}; rm {file}~",
        "mv {file} {file}.swp; cat > {file}; rm {file}.swp",
    ],
    ids=["in place", "replaced", "removed before", "moved away before"],
)
def test_each_way_to_save_a_file_is_seen(feature_x: Person, key: str, edit: str) -> None:
    real = f"{STATE}/secrets/default/secrets.env"
    command = edit.format(file=real)
    for number in range(3):
        text = f"ANTHROPIC_API_KEY={key}\nNUMBER={number}\n"
        feature_x.host.run(f"umask 077; {command}", user=hostimage.USER, stdin=text)
        found = environment_in(feature_x.ssh("feature-x", "env").stdout)
        assert (found.get("NUMBER"), found.get("ANTHROPIC_API_KEY")) == (str(number), PLACEHOLDER)
    feature_x.host.run(f"cat > {real}", user=hostimage.USER, stdin="")
    assert not {"NUMBER", "ANTHROPIC_API_KEY"} & set(environment_in(feature_x.ssh("feature-x", "env").stdout))


def test_plain_ssh_by_name_has_the_variables_and_the_pinned_host_key(feature_x: Person, key: str) -> None:
    options = f"-A {SSH_OPTIONS} -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=~/met-hosts"
    assert feature_x.lookup("feature-x")
    done = feature_x.sh(f"ssh {options} claude@feature-x.local env")
    assert environment_in(done.stdout).get("ANTHROPIC_API_KEY") == PLACEHOLDER, report(done)
    assert key not in done.stdout
    met = feature_x.read(f"{HOME}/met-hosts").split()[1:]
    assert met == feature_x.read(f"{STATE}/instances/feature-x/known_hosts").split()[1:]


# --- vmw ssh --------------------------------------------------------------------------------------------------------


def test_agent_is_forwarded(feature_x: Person) -> None:
    command = "eval $(ssh-agent) >/dev/null; ssh-add -q; ssh-add -l; ~/vmw/vmw ssh feature-x -- ssh-add -l; kill $SSH_AGENT_PID"
    done = feature_x.sh(command)
    here, there = done.stdout.splitlines()[:2]
    assert here == there, report(done)
    assert here.startswith("256 SHA256:")


def test_exit_code_is_the_remote_commands(feature_x: Person) -> None:
    assert feature_x.vmw("ssh", "feature-x", "--", "exit 42").returncode == 42


def test_streams_are_the_remote_commands(feature_x: Person) -> None:
    done = feature_x.sh("printf 'in\\n' | ~/vmw/vmw ssh feature-x -- 'cat; echo oops >&2'")
    assert (done.stdout, done.stderr) == ("in\n", "oops\n"), report(done)


def test_login_on_a_terminal_asks_nothing(feature_x: Person) -> None:
    with feature_x.terminal("~/vmw/vmw ssh feature-x") as terminal:
        terminal.wait_for(r"claude@feature-x:", 60)
        terminal.type("hostname; exit 7\n")
        assert terminal.exit_code(60) == 7
    assert "yes/no" not in terminal.text
    assert "assword" not in terminal.text


def test_address_is_found_without_mdns(feature_x: Person) -> None:
    feature_x.root("systemctl stop avahi-daemon.socket avahi-daemon.service")
    try:
        assert feature_x.sh("getent ahostsv4 feature-x.local").stdout == ""
        assert feature_x.vmw("ssh", "feature-x", "--", "hostname").stdout == "feature-x\n"
    finally:
        feature_x.root("systemctl start avahi-daemon.socket avahi-daemon.service")


def test_name_is_resolved_by_mdns(feature_x: Person) -> None:
    assert feature_x.lookup("feature-x") == feature_x.address("feature-x")


def test_logs_have_the_guests_console_and_the_daemons_journal(feature_x: Person) -> None:
    done = feature_x.vmw("logs", "feature-x")
    assert done.returncode == 0, report(done)
    # A VM that was forked has not booted, and says so much.
    assert "feature-x login:" in done.stdout or "vmw-identity: done" in done.stdout, report(done)
    assert "vmw-feature-x-repo" in done.stdout + done.stderr or "virtiofsd" in done.stdout, report(done)


def test_unknown_vm_is_named_with_one_that_is_near(feature_x: Person) -> None:
    for verb in ("ssh", "logs", "start", "stop"):
        done = feature_x.vmw(verb, "feature-y")
        assert done.returncode == 4, report(done)
        assert "no VM named 'feature-y'" in done.stderr
        assert "feature-x" in done.stderr
