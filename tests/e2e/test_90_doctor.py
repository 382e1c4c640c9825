"""vmw doctor: a host in order, and what is broken one thing at a time; the command that it names mends it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
from testbed import hostimage, machine
from testbed.person import HOME, PASSWORD_FILE, STATE, Person, report

Checks = dict[str, dict[str, str]]


def examine(person: Person) -> tuple[int, Checks]:
    done = person.vmw("doctor", "--json")
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    return done.returncode, {check["name"]: check for check in answer["checks"]}


def test_host_in_order(ready: Person) -> None:
    code, checks = examine(ready)
    broken = {name: check for name, check in checks.items() if check["status"] != "ok"}
    speed = {checks[name]["status"] for name in ("CPU virtualisation", "acceleration")}
    assert speed == {"ok" if machine.has_kvm() else "warn"}
    # The test host's disk and limits are whoever's, and nobody filled in the key.
    for name in ("CPU virtualisation", "acceleration", "disk space", "open files", "secrets"):
        if broken.get(name, {}).get("status") == "warn":
            del broken[name]
    assert broken == {}
    assert code == 0
    assert len(checks) >= 15


def test_report_for_people_has_a_line_for_each_check(ready: Person) -> None:
    done = ready.vmw("doctor")
    assert done.returncode == 0, report(done)
    assert re.search(r"^ok +bridge: br0 is up, uplink enp1s0$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ok +golden image: generation \S+ is complete$", done.stdout, re.MULTILINE), done.stdout


@dataclass(frozen=True)
class Fault:
    """Something broken: how, which check sees it, and what shows that it is mended.

    Args:
        check: The check's name.
        harm: Shell command, run as root.
        mended: Shell command, run as root, that succeeds once it is mended; it does not ask doctor.
        tidy: Shell command, run as root at the end, that puts away what is left.
    """

    check: str
    harm: str
    mended: str
    tidy: str = ""


# {address} is the LAN's router; the bridge has its address back when DHCP has answered.
ROUTE = "timeout 60 sh -c 'until ip -4 route show default dev br0 | grep {address}; do sleep 0.5; done'"
KEY = f"{HOME}/.ssh/id_ed25519"
FAULTS = {
    "avahi": Fault(
        "avahi",
        "systemctl stop avahi-daemon.socket avahi-daemon.service",
        "systemctl is-active avahi-daemon.service && getent hosts testhost.local",
    ),
    "linger": Fault(
        "linger",
        f"rm /var/lib/systemd/linger/{hostimage.USER}",
        f"loginctl show-user {hostimage.USER} -p Linger --value | grep yes",
    ),
    "secrets": Fault(
        "secrets",
        f"chmod 644 {STATE}/secrets/default/secrets.env",
        f"stat --format=%a {STATE}/secrets/default/secrets.env | grep -x 600",
    ),
    "secrets-of-a-profile": Fault(
        "secrets",
        f"install -d -o dev -g dev -m 755 {STATE}/secrets/shown"
        f" && install -o dev -g dev -m 600 /dev/null {STATE}/secrets/shown/secrets.env",
        f"test ! -d {STATE}/secrets/shown || stat --format=%a {STATE}/secrets/shown | grep -x 700",
        f"rm -rf {STATE}/secrets/shown",
    ),
    "socket-directory": Fault(
        "socket directory",
        "chmod 777 /run/vmw/dev",
        "stat --format='%a %U %G' /run/vmw/dev | grep -x '2750 dev libvirt-qemu'",
    ),
    "group": Fault("libvirt group", "gpasswd -d dev libvirt", "id -nG dev | grep -w libvirt"),
    "mdns": Fault(
        "mDNS names",
        "sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf",
        "grep '^hosts:.* mdns4_minimal .*dns' /etc/nsswitch.conf && getent hosts testhost.local",
    ),
    "ssh-key": Fault(
        "SSH key",
        f"mkdir {HOME}/kept && mv {KEY} {KEY}.pub {HOME}/kept",
        f"stat --format='%a %U' {KEY} | grep -x '600 dev' && test -s {KEY}.pub",
        f"mv {HOME}/kept/* {HOME}/.ssh && rmdir {HOME}/kept",
    ),
    "bridge": Fault("bridge", "ip link set br0 down", ROUTE),
    "libvirt": Fault(
        "libvirt",
        "systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service",
        "virsh -c qemu:///system list && systemctl is-active libvirtd.socket",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_found_and_its_command_mends_it(ready: Person, fault: Fault) -> None:
    look = fault.mended.format(address=ready.host.network.gateway)
    ready.root(look)
    ready.root(fault.harm)
    try:
        code, checks = examine(ready)
        found = checks[fault.check]
        assert (code, found["status"]) == (3, "fail"), found
        command = re.sub(r"^vmw ", "~/vmw/vmw ", found["fix"].replace("sudo ", "sudo -S <~/become-password "))
        # ssh-keygen asks where to, and twice for a passphrase.
        mended = ready.host.run(command, user=hostimage.USER, env=PASSWORD_FILE, stdin="\n\n\n", check=False)
        assert mended.returncode == 0, report(mended)
        ready.root(look)
    finally:
        if fault.tidy:
            ready.root(fault.tidy)
    _, checks = examine(ready)
    assert checks[fault.check]["status"] in {"ok", "warn"}, checks[fault.check]


def test_lost_golden_image_is_found(ready: Person) -> None:
    # Its command bakes one, which other tests do.
    link = f"{STATE}/golden-image.qcow2"
    ready.root(f"mv {link} {link}.away")
    try:
        code, checks = examine(ready)
    finally:
        ready.root(f"mv {link}.away {link}")
    found = checks["golden image"]
    assert (code, found["status"], found["fix"]) == (3, "fail", f"{HOME}/vmw/vmw image build"), found
