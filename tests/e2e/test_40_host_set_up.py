"""The host that the first command left, and the set-up a second time."""

from __future__ import annotations

import json
import re

from testbed import cloudimage, hostimage, standins
from testbed.person import HOME, PASSWORD_FILE, PROMPT, STATE, Person, report
from testbed.story import COLD


def test_daemons_run_now_and_at_boot(ready: Person) -> None:
    for unit in ("libvirtd.socket", "avahi-daemon.service"):
        state = ready.root(f"systemctl is-active {unit}; systemctl is-enabled {unit}").split()
        assert state == ["active", "enabled"], unit


def test_user_is_in_the_group_and_lingers(ready: Person) -> None:
    assert "libvirt" in ready.sh("id -nG").stdout.split()
    assert ready.root("loginctl show-user dev -p Linger --value").strip() == "yes"


def test_wired_nic_is_the_bridges_and_the_host_kept_its_network(ready: Person) -> None:
    ports = {port["ifname"] for port in json.loads(ready.root("ip -json link show master br0"))}
    assert hostimage.NIC in ports
    bridge = json.loads(ready.root("ip -json -4 address show br0"))[0]
    assert bridge["addr_info"][0]["local"].startswith(ready.host.network.gateway.rpartition(".")[0])
    assert ready.root("ip -4 -oneline address show enp1s0") == ""
    route = json.loads(ready.root("ip -json route show default"))
    assert [(entry["gateway"], entry["dev"]) for entry in route] == [(ready.host.network.gateway, "br0")]
    assert ready.root(f"curl -sI {ready.host.url}/{standins.IMAGE_PATH}/SHA512SUMS").startswith("HTTP/1.1 200")


def test_sockets_directory_is_made_at_boot(ready: Person) -> None:
    assert ready.stat("/run/vmw/dev") == "2750 dev libvirt-qemu"
    ready.root("rm -rf /run/vmw-test && systemd-tmpfiles --dry-run --create 2>&1 | grep -q /run/vmw/dev")


def test_names_are_looked_up_by_mdns(ready: Person) -> None:
    assert re.search(r"^hosts:.*\bmdns4?_minimal \[NOTFOUND=return\].*\bdns", ready.read("/etc/nsswitch.conf"), re.MULTILINE)


def test_secrets_template_is_private(ready: Person) -> None:
    assert ready.stat(f"{STATE}/secrets") == "700 dev dev"
    assert ready.stat(f"{STATE}/secrets/default") == "700 dev dev"
    assert ready.stat(f"{STATE}/secrets/default/secrets.env") == "600 dev dev"
    assert ready.root(f"readlink {STATE}/secrets.env").strip() == "secrets/secrets.env"
    assert ready.root(f"readlink {STATE}/secrets/secrets.env").strip() == "default/secrets.env"
    text = ready.read(f"{STATE}/secrets.env")
    for line in (r"ANTHROPIC_API_KEY=", r"# ?PERPLEXITY_API_KEY=", r"# ?OPENAI_API_KEY="):
        assert re.search(rf"^{line}", text, re.MULTILINE), line


def test_golden_image_is_one_complete_generation(ready: Person) -> None:
    names = ready.root(f"ls -A {STATE}/images").split()
    (generation,) = [name for name in names if not name.startswith(".")]
    assert not [name for name in names if name.startswith(".build")]
    directory = f"{STATE}/images/{generation}"
    assert ready.root(f"readlink {STATE}/golden-image.qcow2").strip() == f"images/{generation}/disk.qcow2"
    templates = [] if COLD else ["templates"]
    assert sorted(ready.root(f"ls {directory}").split()) == ["disk.qcow2", "initrd", "kernel", "manifest.json", *templates]
    assert ready.stat(f"{directory}/disk.qcow2").startswith("444 dev")
    info = json.loads(ready.root(f"qemu-img info -U --output=json {directory}/disk.qcow2"))
    assert "backing-filename" not in info
    assert ready.root(f"qemu-img check -U {directory}/disk.qcow2").startswith("No errors")


CLEAN_LOOK = """
set -eu
work=$(mktemp -d /var/tmp/golden.XXXXXX)
trap 'rm -rf "$work"' EXIT
qemu-img convert -U -O raw "$1" "$work/disk"
start=$(partx --noheadings --raw --output START --nr 1 "$work/disk")
look() { debugfs -R "$*" "$work/disk?offset=$((start * 512))" 2>/dev/null; }
mkdir "$work/files"
for part in /etc /home /root /tmp /var/tmp /var/lib /var/log; do look rdump "$part" "$work/files"; done
cd "$work/files"
find . -path ./lib/dpkg -prune -o -type d -printf '%p/ 0\n' -o -type f -printf '%p %s\n' -o -printf '%p 0\n'
"""


def test_golden_image_was_cleaned(ready: Person) -> None:
    # Read from its disk: a clone has booted, and would have made most of this anew.
    disk = ready.root(f"readlink -f {STATE}/golden-image.qcow2").strip()
    look = ready.host.run(f"bash -s {disk}", stdin=CLEAN_LOOK, timeout=300).stdout
    files = {name: int(size) for name, _, size in (line.rpartition(" ") for line in look.splitlines())}
    assert files["./etc/machine-id"] == 0
    assert files["./etc/hostname"] == 0
    assert [name for name in files if "ssh_host_" in name] == []
    for absent in ("./lib/systemd/random-seed", "./lib/systemd/credential.secret", "./root/.npm", "./root/.bash_history"):
        assert absent not in files
    # The user is there, as the image has made it; the keys of who may log in are each VM's own.
    assert "./home/claude/.profile" in files
    assert files["./home/claude/.ssh/authorized_keys"] == 0
    for empty in ("./root/.ssh/", "./lib/apt/lists/", "./lib/cloud/", "./log/journal/"):
        assert [name for name in files if name.startswith(empty)] == [empty]
    assert files["./etc/debian_version"] > 0
    assert files["./log/dpkg.log"] == 0
    assert {name: size for name, size in files.items() if name.startswith("./log/") and size} == {}


def test_manifest_says_what_was_baked(ready: Person) -> None:
    manifest = ready.read_json(
        ready.root(f"readlink -f {STATE}/golden-image.qcow2").strip().replace("disk.qcow2", "manifest.json")
    )
    sums = (standins.site() / standins.IMAGE_PATH / "SHA512SUMS").read_text().splitlines()
    (digest,) = [line.split()[0] for line in sums if line.split()[1] == cloudimage.FILE]
    assert manifest["schema"] == 1
    assert manifest["base_image"]["sha512"] == digest
    assert manifest["node"].startswith("24.")
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["claude_code"])
    assert manifest["debian"].startswith("12")


def test_agent_is_the_newest_release(ready: Person) -> None:
    manifest = ready.read_json(
        ready.root(f"readlink -f {STATE}/golden-image.qcow2").strip().replace("disk.qcow2", "manifest.json")
    )
    # Where packages come from may be a mirror at an address that is none of the internet's.
    assert ready.vmw("net", "feature-x", "open").returncode == 0
    newest = ready.ssh("feature-x", "npm view @anthropic-ai/claude-code version").stdout.strip()
    assert ready.vmw("net", "feature-x", "internet").returncode == 0
    assert manifest["claude_code"] == newest


def test_second_run_as_the_user_types_it_changes_nothing(ready: Person) -> None:
    ready.sh(f"echo '# mine' >> {STATE}/secrets.env", check=True)
    before = [ready.fingerprint(f"{STATE}/{part}") for part in ("images", "secrets")]
    with ready.terminal("cd vmw && PATH=$PWD/.venv/bin:$PATH && ansible-playbook host.yml --ask-become-pass") as terminal:
        terminal.wait_for("BECOME password: ", 60)
        terminal.type(f"{hostimage.PASSWORD}\n")
        assert terminal.exit_code(300) == 0, terminal.text[-6000:]
    assert re.search(r"changed=0 +unreachable=0 +failed=0", terminal.text), terminal.text[-3000:]
    assert [ready.fingerprint(f"{STATE}/{part}") for part in ("images", "secrets")] == before


def test_playbook_runs_from_elsewhere_with_a_password_file(ready: Person) -> None:
    done = ready.playbook("playbooks/host.yml", cwd="/", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)


def test_check_mode_finds_nothing_to_change(ready: Person) -> None:
    done = ready.playbook("host.yml", "--check", "--diff", cwd="~/vmw", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    assert re.search(r"changed=0 +unreachable=0 +failed=0", done.stdout), report(done)


def test_vmw_host_asks_once_and_changes_nothing(ready: Person) -> None:
    with ready.terminal("~/vmw/vmw host") as terminal:
        terminal.wait_for(PROMPT, 60)
        terminal.type("wrong\n")
        terminal.wait_for(rf"try again\.\s+{PROMPT}", 60)
        terminal.type(f"{hostimage.PASSWORD}\n")
        assert terminal.exit_code(300) == 0, terminal.text[-6000:]
    assert "(0 changed)" in terminal.text


def test_running_vm_was_not_disturbed(ready: Person) -> None:
    assert ready.ssh("feature-x", "cat repo/hello.py").returncode == 0


def test_launcher_works_by_a_link_on_the_path(ready: Person) -> None:
    ready.sh("mkdir -p ~/bin && ln -sf ~/vmw/vmw ~/bin/vmw", check=True)
    done = ready.sh(f"cd / && PATH={HOME}/bin:$PATH && vmw list --json")
    ready.sh("rm ~/bin/vmw", check=True)
    assert done.returncode == 0, report(done)
    assert '"name": "feature-x"' in done.stdout
