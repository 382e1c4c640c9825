"""vmw doctor: a host in order, and what is broken one thing at a time, with the command that mends it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
from testbed import hostimage
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
    # The test host's CPU cannot run KVM guests, its disk is whoever's, and nobody filled in the key.
    for name in ("CPU virtualisation", "acceleration", "disk space", "secrets"):
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
    """Something broken: how, which check sees it, and how it is put right when the named command is not tried.

    Args:
        check: The check's name.
        harm: Shell command, run as root.
        repair: The same; empty for a fault that doctor's own command must mend.
    """

    check: str
    harm: str
    repair: str = ""


FAULTS = {
    "avahi": Fault("avahi", "systemctl stop avahi-daemon.socket avahi-daemon.service"),
    "linger": Fault("linger", f"rm /var/lib/systemd/linger/{hostimage.USER}"),
    "secrets": Fault("secrets", f"chmod 644 {STATE}/secrets/secrets.env"),
    "socket-directory": Fault("socket directory", "chmod 777 /run/vmw/dev", "chmod 2750 /run/vmw/dev"),
    "golden-image": Fault(
        "golden image",
        f"mv {STATE}/golden-image.qcow2 {STATE}/away",
        f"mv {STATE}/away {STATE}/golden-image.qcow2",
    ),
    "group": Fault("libvirt group", "gpasswd -d dev libvirt", "gpasswd -a dev libvirt"),
    "mdns": Fault("mDNS names", "sed -i.kept 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf"),
    "ssh-key": Fault("SSH key", f"mv {HOME}/.ssh/id_ed25519.pub {HOME}/kept", f"mv {HOME}/kept {HOME}/.ssh/id_ed25519.pub"),
    "bridge": Fault("bridge", "ip link set br0 down", "ip link set br0 up; networkctl reconfigure br0"),
    "libvirt": Fault(
        "libvirt",
        "systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service",
        "systemctl start libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket",
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_fault_is_found_and_its_command_mends_it(ready: Person, fault: Fault) -> None:
    ready.root(fault.harm)
    try:
        code, checks = examine(ready)
        found = checks[fault.check]
        assert (code, found["status"]) == (3, "fail"), found
        assert found["fix"], found
        if not fault.repair:
            command = found["fix"].replace("sudo ", "sudo -S <~/become-password ")
            command = re.sub(r"^vmw ", "~/vmw/vmw ", command)
            mended = ready.sh(command, env=PASSWORD_FILE)
            assert mended.returncode == 0, report(mended)
    finally:
        if fault.repair:
            ready.root(fault.repair)
    _, checks = examine(ready)
    assert checks[fault.check]["status"] in {"ok", "warn"}, checks[fault.check]
