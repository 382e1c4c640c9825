from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import accelerator, packet_filter, passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Machine
from ansible_collections.vmw.worktree.plugins.module_utils.template import SCHEMA, key_of

from vmw.services import doctor, group, host
from vmw.services.doctor import Status
from vmw.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = "processor : 0\nflags\t\t: fpu vmx sse\n"


def look(name: str, settings: Settings | None = None) -> doctor.Finding:
    check = next(check for check in doctor.CHECKS if check.name == name)
    return check.look(settings or Settings())


def test_names_are_unique() -> None:
    assert len({check.name for check in doctor.CHECKS}) == len(doctor.CHECKS)


def test_every_check_answers_on_any_machine() -> None:
    findings = doctor.examine(Settings())
    assert len(findings) == len([check for check in doctor.CHECKS if check.where != doctor.SESSION])
    assert all(finding.message and "\n" not in finding.message for _, finding in findings)
    assert all(finding.fix for _, finding in findings if finding.status is Status.FAIL)


@pytest.mark.parametrize(("text", "status"), [(CPU, Status.OK), ("flags : fpu\n", Status.WARN)])
def test_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, status: Status) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(accelerator, "CPU_INFO", tmp_path / "cpuinfo")
    assert look("CPU virtualisation").status is status


def test_acceleration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "kvm_obstacle", lambda: "")
    assert look("acceleration").status is Status.OK
    monkeypatch.setattr(accelerator, "kvm_obstacle", lambda: "/dev/kvm does not open: no such file")
    finding = look("acceleration")
    assert finding.status is Status.WARN
    assert "modprobe" in finding.fix


@pytest.mark.parametrize(
    ("member", "status", "words"),
    [
        (group.Membership(in_database=False, in_process=False), Status.FAIL, "not in the group"),
        (group.Membership(in_database=True, in_process=False), Status.OK, "switches by itself"),
        (group.Membership(in_database=True, in_process=True), Status.OK, "equivalent to root"),
    ],
)
def test_group(monkeypatch: pytest.MonkeyPatch, member: group.Membership, status: Status, words: str) -> None:
    monkeypatch.setattr(group, "membership", lambda: member)
    finding = look("libvirt group")
    assert finding.status is status
    assert words in finding.message


def test_libvirt(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "echo 'Running against daemon: 11.3.0'")
    assert "11.3.0" in look("libvirt").message
    fake_program("virsh", "echo 'error: failed to connect' >&2; exit 1")
    assert look("libvirt").message.endswith("does not answer: failed to connect")


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("--readonly --translate-uid", Status.OK),
        ("--readonly", Status.WARN),
        ("", Status.WARN),
    ],
)
def test_virtiofsd(
    monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], options: str, status: Status
) -> None:
    fake_program("virtiofsd", f'[ "$1" = --version ] && echo virtiofsd 1.13.2 || echo "{options}"')
    monkeypatch.setattr(doctor, "find_virtiofsd", lambda: "virtiofsd")
    finding = look("virtiofsd")
    assert finding.status is status
    assert "virtiofsd 1.13.2" in finding.message


@pytest.mark.parametrize(
    ("options", "hypervisor", "status", "words"),
    [
        ("--migration-mode", "Running hypervisor: QEMU 10.0.8", Status.OK, "can save"),
        ("--migration-mode", "Running hypervisor: QEMU 8.1.5", Status.WARN, "QEMU 8.1 cannot"),
        ("--migration-mode", "", Status.WARN, "not known"),
        ("--readonly", "Running hypervisor: QEMU 10.0.8", Status.WARN, "virtiofsd cannot"),
    ],
)
def test_suspend(
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    options: str,
    hypervisor: str,
    status: Status,
    words: str,
) -> None:
    fake_program("virtiofsd", f'echo "{options}"')
    fake_program("virsh", f'echo "{hypervisor}"')
    monkeypatch.setattr(doctor, "find_virtiofsd", lambda: "virtiofsd")
    finding = look("suspend")
    assert finding.status is status
    assert words in finding.message


def _bridge(directory: Path, flags: str, *ports: str, carrier: str = "1") -> None:
    for port in ports:
        (directory / "br0" / "brif" / port).mkdir(parents=True)
        (directory / port).mkdir()
        (directory / port / "carrier").write_text(carrier)
    (directory / "br0").mkdir(exist_ok=True)
    (directory / "br0" / "flags").write_text(flags)


def test_bridge_with_an_uplink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    _bridge(tmp_path, "0x1003", "enp3s0", "vnet0", "vmw-50f65214")
    assert look("bridge") == doctor.Finding(Status.OK, "br0 is up, uplink enp3s0")


@pytest.mark.parametrize(
    ("virsh", "status", "words"),
    [
        ("printf 'default\nvmw\n'", Status.OK, "br0 is up, uplink by NAT"),
        ("echo default", Status.FAIL, "libvirt's network vmw does not run"),
        ("echo 'error: no socket' >&2; exit 1", Status.WARN, "libvirt does not answer: no socket"),
    ],
)
def test_bridge_without_a_nic(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    virsh: str,
    status: Status,
    words: str,
) -> None:
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    calls = fake_program("virsh", virsh)
    _bridge(tmp_path, "0x1003", "vnet0", "vmw-50f65214")
    finding = look("bridge")
    assert finding.status is status
    assert finding.message.endswith(words)
    assert finding.fix == ("" if status is Status.OK else "vmw host")
    assert calls.read_text() == "-q -c qemu:///system net-list --name\n"


def test_bridge_without_a_cable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    _bridge(tmp_path, "0x1003", "enp3s0", carrier="0")
    assert look("bridge").status is Status.WARN


def test_bridge_that_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    _bridge(tmp_path, "0x1002", "enp3s0")
    assert look("bridge").fix == "sudo ip link set br0 up"


def test_golden_image(tmp_path: Path) -> None:
    settings = Settings(vmw_state_dir=str(tmp_path))
    assert look("golden image", settings).fix == "vmw image build"
    generation = tmp_path / "images" / "g1"
    generation.mkdir(parents=True)
    (tmp_path / "golden-image.qcow2").symlink_to("images/g1/disk.qcow2")
    for name in ("disk.qcow2", "kernel", "initrd"):
        (generation / name).touch()
    assert look("golden image", settings).message == "generation g1 lacks manifest.json"
    (generation / "manifest.json").touch()
    assert look("golden image", settings).status is Status.OK


VERSION = "Using library: libvirt 11.3.0\nRunning hypervisor: QEMU 10.0.3\nRunning against daemon: 11.3.0\n"


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(doctor, "_ask", lambda *_argv: doctor._Answer(0, VERSION))
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("model\t\t: 85\n")
    monkeypatch.setattr(accelerator, "CPU_INFO", cpu_info)
    monkeypatch.setattr(accelerator, "kvm_obstacle", lambda: "")
    machine = Machine("kvm", 4096, 4)
    key = key_of(machine, (10_000_003, 11_003_000), os.uname().release, ["model=85"])
    directory = tmp_path / "images/g1/templates" / key
    directory.mkdir(parents=True)
    for name in ("disk.qcow2", "memory", "head"):
        (directory / name).touch()
    (tmp_path / "golden-image.qcow2").symlink_to("images/g1/disk.qcow2")
    what = {"schema": SCHEMA, "machine": asdict(machine), "qemu": 10_000_003, "libvirt": 11_003_000}
    (directory / "template.json").write_text(json.dumps(what))
    return directory


def warm_start(template: Path) -> doctor.Finding:
    return look("warm start", Settings(vmw_state_dir=str(template.parents[3])))


def test_a_template_tells_which_vms_are_forked(template: Path) -> None:
    finding = warm_start(template)
    assert finding.status is Status.OK
    assert "4096 MiB and 4 CPUs" in finding.message


def test_a_template_of_another_vmw_is_told(template: Path) -> None:
    file = template / "template.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": SCHEMA - 1}))
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "another vmw" in finding.message


def test_where_every_vm_is_to_boot_no_template_is_missed(tmp_path: Path) -> None:
    finding = look("warm start", Settings(vmw_state_dir=str(tmp_path), vmw_warm_start=False))
    assert finding.status is Status.OK
    assert "vmw_warm_start" in finding.message


@pytest.mark.parametrize("text", ["", "{", "{}", '{"machine": {"memory_mib": 1, "vcpus": 1}}'])
def test_a_template_that_cannot_be_read_is_none(template: Path, text: str) -> None:
    (template / "template.json").write_text(text)
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "there is no saved VM" in finding.message


def test_a_template_that_could_not_be_loaded_is_told(template: Path) -> None:
    (template / "refused").touch()
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "could not be loaded" in finding.message


@pytest.mark.parametrize("version", [VERSION.replace("QEMU 10.0.3", "QEMU 10.1"), VERSION.replace("11.3", "11.4"), "nothing"])
def test_a_template_of_another_qemu_is_told(template: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(doctor, "_ask", lambda *_argv: doctor._Answer(0, version))
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "another QEMU or libvirt" in finding.message


def test_a_template_of_another_cpu_is_told(template: Path) -> None:
    accelerator.CPU_INFO.write_text("model\t\t: 86\n")
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "another kernel or CPU" in finding.message


def test_a_template_of_kvm_where_there_is_none_is_told(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "kvm_obstacle", lambda: "/dev/kvm does not open")
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "saved with KVM" in finding.message


@pytest.mark.parametrize("part", ["disk.qcow2", "memory", "head"])
def test_a_template_that_lacks_a_part_is_told(template: Path, part: str) -> None:
    (template / part).unlink()
    finding = warm_start(template)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert "lacks a part" in finding.message


@pytest.mark.parametrize(
    ("text", "mode", "status", "words"),
    [
        ("ANTHROPIC_API_KEY=sk-1\n", 0o600, Status.OK, "private"),
        ("export ANTHROPIC_API_KEY='sk-1'\n", 0o600, Status.OK, "private"),
        ("ANTHROPIC_API_KEY=\n#ANTHROPIC_API_KEY=x\n", 0o600, Status.WARN, "not filled in"),
        ('ANTHROPIC_API_KEY=""\n', 0o600, Status.WARN, "not filled in"),
        ("ANTHROPIC_API_KEY=sk-1\n", 0o644, Status.FAIL, "open to others"),
    ],
)
def test_secrets(tmp_path: Path, text: str, mode: int, status: Status, words: str) -> None:
    directory = tmp_path / "secrets"
    directory.mkdir(mode=0o700)
    path = directory / "secrets.env"
    path.write_text(text)
    path.chmod(mode)
    finding = look("secrets", Settings(vmw_state_dir=str(tmp_path)))
    assert finding.status is status
    assert words in finding.message
    assert "sk-1" not in finding.message


def keys(root: Path, profile: str, text: str = "ANTHROPIC_API_KEY=sk-1\n", mode: int = 0o600) -> Path:
    """Make a secrets profile, and return its file."""
    directory = root / "secrets" / profile
    for each in (directory.parent, directory):
        each.mkdir(mode=0o700, exist_ok=True)
    path = directory / "secrets.env"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_secrets_of_every_profile_are_looked_at(tmp_path: Path) -> None:
    settings = Settings(vmw_state_dir=str(tmp_path))
    keys(tmp_path, "default")
    assert look("secrets", settings).message == "private, and the API key is filled in"
    work = keys(tmp_path, "work")
    assert look("secrets", settings).message == "private, and the API key is filled in, in each of 2 profiles"
    home = keys(tmp_path, "home", "ANTHROPIC_API_KEY=\n")
    finding = look("secrets", settings)
    assert (finding.status, finding.fix) == (Status.WARN, f"edit {home}")
    assert "for the profile home" in finding.message
    # What is broken comes before what is not filled in.
    work.chmod(0o604)
    assert (look("secrets", settings).status, look("secrets", settings).fix) == (Status.FAIL, f"chmod 600 {work}")
    work.chmod(0o600)
    work.parent.chmod(0o750)
    assert (look("secrets", settings).status, look("secrets", settings).fix) == (Status.FAIL, f"chmod 700 {work.parent}")
    work.parent.chmod(0o700)
    work.parent.parent.chmod(0o755)
    assert look("secrets", settings).fix == f"chmod 700 {tmp_path / 'secrets'}"


def test_a_profile_without_its_file_is_told(tmp_path: Path) -> None:
    settings = Settings(vmw_state_dir=str(tmp_path))
    assert (look("secrets", settings).status, look("secrets", settings).fix) == (Status.FAIL, "vmw host")
    keys(tmp_path, "default")
    keys(tmp_path, "work").unlink()
    assert (look("secrets", settings).status, look("secrets", settings).fix) == (Status.WARN, "vmw secrets work")
    (tmp_path / "secrets/work").rmdir()
    (tmp_path / "secrets/No-Profile").mkdir()
    assert look("secrets", settings).status is Status.OK


def test_a_file_in_the_place_of_the_link_is_told(tmp_path: Path) -> None:
    settings = Settings(vmw_state_dir=str(tmp_path))
    keys(tmp_path, "default")
    link = tmp_path / "secrets/secrets.env"
    link.symlink_to("default/secrets.env")
    assert look("secrets", settings).status is Status.OK
    link.unlink()
    link.touch(mode=0o600)
    finding = look("secrets", settings)
    assert (finding.status, finding.fix) == (Status.WARN, "vmw host")
    assert str(link) in finding.message


def test_what_is_lent_of_the_agent(monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]) -> None:
    assert look("SSH agent").message == "all of it is lent to guests"
    assert look("SSH agent", Settings(vmw_ssh_agent="off")).message == "nothing of it is lent to guests"
    filtered = Settings(vmw_ssh_agent="filter", vmw_ssh_agent_keys=["me@host"])
    monkeypatch.setattr("shutil.which", lambda _name: None)
    finding = look("SSH agent", filtered)
    assert finding.status is Status.FAIL
    assert "sudo apt install ssh-agent-filter" in finding.fix
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert look("SSH agent", filtered).status is Status.OK


@pytest.mark.parametrize(
    ("stanza", "mode", "status"),
    [("yes", "forward", Status.OK), ("yes", "off", Status.WARN), ("no", "forward", Status.WARN), ("no", "off", Status.OK)],
)
def test_plain_ssh_that_lends_something_else_is_told(
    make_vm: Callable[..., Path], home: Path, stanza: str, mode: str, status: Status
) -> None:
    (make_vm("one") / "ssh_config").write_text(f"Host one\n  ForwardAgent {stanza}\n")
    make_vm("half-made")
    finding = look("SSH agent", Settings(vmw_ssh_agent=mode))
    assert finding.status is status
    assert finding.fix == ("vmw spawn /home/dev/one" if status is Status.WARN else "")


def test_socket_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RUNTIME_BASE", tmp_path)
    assert look("socket directory").status is Status.FAIL
    path = tmp_path / host.user_name()
    path.mkdir()
    path.chmod(0o755)
    assert "mode 0755" in look("socket directory").message
    path.chmod(0o2750)
    assert look("socket directory").status is Status.OK


def test_share_sockets(home: Path, fake_program: Callable[[str, str], Path]) -> None:
    assert look("share sockets").message == "no VM has shares yet"
    directory = home / ".config" / "systemd" / "user"
    directory.mkdir(parents=True)
    for name in ("vmw-a-repo.socket", "vmw-a-secrets.socket"):
        (directory / name).touch()
    fake_program("systemctl", "printf 'active\\nfailed\\n'; exit 3")
    finding = look("share sockets")
    assert finding.fix == "systemctl --user restart vmw-a-secrets.socket"
    fake_program("systemctl", "printf 'active\\nactive\\n'")
    assert look("share sockets").status is Status.OK


def test_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in ((1, Status.FAIL), (10, Status.WARN), (100, Status.OK)):
        usage = type("Usage", (), {"free": free * doctor.GIB})
        monkeypatch.setattr("shutil.disk_usage", lambda _path, usage=usage: usage)
        assert look("disk space").status is status


def test_avahi(fake_program: Callable[[str, str], Path]) -> None:
    fake_program("systemctl", "echo inactive; exit 3")
    assert "avahi-daemon" in look("avahi").fix
    fake_program("systemctl", "echo active")
    assert look("avahi").status is Status.OK


def test_way_of_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]) -> None:
    monkeypatch.setattr(doctor, "qemu_user", lambda: "libvirt-qemu")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    settings = Settings(vmw_state_dir=str(closed))
    fake_program("getfacl", "echo user:libvirt-qemu:--x")
    assert look("QEMU's access", settings).status is Status.OK
    fake_program("getfacl", "echo user::rwx")
    finding = look("QEMU's access", settings)
    assert finding.status is Status.WARN
    assert str(closed) in finding.message


@pytest.mark.parametrize(
    ("answer", "status"),
    [("524288", Status.OK), ("unlimited", Status.OK), ("20000", Status.WARN), ("Failed to connect to bus", Status.WARN)],
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, answer: str, status: Status) -> None:
    monkeypatch.setattr(doctor, "_ask", lambda *_argv: doctor._Answer(0, answer))
    found = look("open files")
    assert found.status is status
    assert ("Too many open files" in found.message) == (answer == "20000")


@pytest.mark.parametrize(
    ("listens", "active", "address", "status", "words"),
    [
        ("192.168.1.2:47000", "active", "192.168.1.2", Status.OK, "at 192.168.1.2:47000"),
        ("192.168.1.2:47000", "active", "192.168.1.9", Status.FAIL, "has the address 192.168.1.9 by now"),
        ("192.168.1.2:47000", "inactive", "192.168.1.2", Status.FAIL, "nobody listens"),
        ("", "active", "192.168.1.2", Status.FAIL, "no proxy is set up"),
    ],
)
def test_proxy(
    home: Path,
    fake_program: Callable[[str, str], Path],
    listens: str,
    active: str,
    address: str,
    status: Status,
    words: str,
) -> None:
    if listens:
        unit = home / ".config/systemd/user/vmw-proxy.socket"
        unit.parent.mkdir(parents=True)
        unit.write_text(f"[Socket]\nListenStream={listens}\nFreeBind=yes\n")
        unit.with_name("vmw-keys.service").touch()
    fake_program("systemctl", f"echo {active}")
    fake_program("ip", f"""echo '[{{"addr_info": [{{"local": "{address}"}}]}}]'""")
    finding = look("proxy")
    assert finding.status is status
    assert words in finding.message


def test_proxy_of_the_time_before_edits_were_followed(home: Path, fake_program: Callable[[str, str], Path]) -> None:
    unit = home / ".config/systemd/user/vmw-proxy.socket"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Socket]\nListenStream=192.168.1.2:47000\n")
    fake_program("systemctl", "echo active")
    fake_program("ip", """echo '[{"addr_info": [{"local": "192.168.1.2"}]}]'""")
    finding = look("proxy")
    assert (finding.status, finding.fix) == (Status.FAIL, "vmw host")
    assert "edits of secrets.env" in finding.message


def test_proxy_on_a_bridge_without_an_address(home: Path, fake_program: Callable[[str, str], Path]) -> None:
    unit = home / ".config/systemd/user/vmw-proxy.socket"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Socket]\nListenStream=192.168.1.2:47000\n")
    fake_program("systemctl", "echo active")
    fake_program("ip", "echo '[]'")
    assert look("proxy").status is Status.WARN


SESSION = Settings(vmw_libvirt_uri="qemu:///session")


def test_the_users_own_libvirt_has_checks_of_its_own() -> None:
    names = [name for name, _ in doctor.examine(SESSION)]
    assert {"passt", "KVM access", "linger", "share sockets"} <= set(names)
    assert not {
        "libvirt group",
        "bridge",
        "bridge filter",
        "packet filter",
        "proxy",
        "other firewalls",
        "avahi",
        "mDNS names",
        "QEMU's access",
    } & set(names)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (" ".join(passt_units.NEEDED_OPTIONS), Status.OK, "your LAN too"),
        ("--no-map-gw", Status.FAIL, "no --vhost-user"),
        ("", Status.FAIL, "missing or too old"),
    ],
)
def test_passt(
    monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path], options: str, status: Status, words: str
) -> None:
    fake_program("passt", f"echo '{options}'")
    monkeypatch.setattr(passt_units, "PASST", "passt")
    finding = look("passt", SESSION)
    assert finding.status is status
    assert words in finding.message


@pytest.mark.parametrize(("state", "status"), [("active", Status.OK), ("inactive", Status.FAIL)])
def test_the_users_own_libvirt_is_to_be_a_service(fake_program: Callable[[str, str], Path], state: str, status: Status) -> None:
    fake_program("virsh", "echo 'Running against daemon: 11.3.0'")
    fake_program("systemctl", f"echo {state}")
    assert look("libvirt", SESSION).status is status


def test_kvm_is_opened_by_the_users_own_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "kvm")
    assert look("KVM access", SESSION).status is Status.OK
    (tmp_path / "kvm").touch()
    assert look("KVM access", SESSION).status is Status.OK
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert look("KVM access", SESSION).status is Status.FAIL


@pytest.mark.parametrize(
    ("firewalld", "ufw", "opened", "status", "words"),
    [
        ("inactive", "ENABLED=no\n", "[]", Status.OK, "none runs"),
        ("inactive", "# off\nENABLED=yes\n", '["ufw"]', Status.OK, "ufw lets VMs through"),
        ("active", "ENABLED=yes\n", '["firewalld", "ufw"]', Status.OK, "firewalld and ufw let VMs through"),
        ("active", "", '["ufw"]', Status.WARN, "firewalld may keep"),
        ("inactive", "ENABLED=yes\n", "[]", Status.WARN, "ufw may keep"),
        ("active", "", "3", Status.WARN, "firewalld may keep"),
    ],
)
def test_other_firewalls(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    firewalld: str,
    ufw: str,
    opened: str,
    status: Status,
    words: str,
) -> None:
    fake_program("systemctl", f"echo {firewalld}")
    (tmp_path / "ufw.conf").write_text(ufw)
    monkeypatch.setattr(doctor, "UFW_SETTINGS", tmp_path / "ufw.conf")
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy/settings.json").write_text(f'{{"firewalls": {opened}}}')
    finding = look("other firewalls", Settings(vmw_state_dir=str(tmp_path)))
    assert finding.status is status
    assert words in finding.message
    assert finding.fix == ("" if status is Status.OK else "vmw host")


@pytest.mark.parametrize(
    ("opened", "ports", "status"),
    [
        (["br0 tcp 47234"], ["enp1s0"], Status.OK),
        (["br0 tcp 47234"], [], Status.WARN),
        (["br0 any 53", "br0 route", "br0 tcp 47234", "br0 udp 67"], ["vmw-0a1b2c3d"], Status.OK),
        (["br7 tcp 47234"], ["enp1s0"], Status.WARN),
        ([], ["enp1s0"], Status.WARN),
        (None, [], Status.OK),
    ],
)
def test_ufw_that_has_lost_the_rules(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    opened: list[str] | None,
    ports: list[str],
    status: Status,
) -> None:
    fake_program("systemctl", "echo inactive")
    (tmp_path / "ufw.conf").write_text("ENABLED=yes\n")
    monkeypatch.setattr(doctor, "UFW_SETTINGS", tmp_path / "ufw.conf")
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy/settings.json").write_text('{"firewalls": ["ufw"]}')
    (tmp_path / doctor.PROXY_SOCKET).write_text("ListenStream=192.168.150.1:47234\n")
    monkeypatch.setattr(doctor, "unit_directory", lambda: tmp_path)
    for port in ("", *ports):
        (tmp_path / "br0/brif" / port).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(host, "NETWORK_DEVICES", tmp_path)
    monkeypatch.setattr(packet_filter, "ask", lambda _verb: {"ok": True} | ({} if opened is None else {"ufw": opened}))
    assert look("other firewalls", Settings(vmw_state_dir=str(tmp_path))).status is status
