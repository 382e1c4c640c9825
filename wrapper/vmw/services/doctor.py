"""Look for what keeps VMs from working on this host, and say what mends it. Changes nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import (
    accelerator,
    packet_filter,
    passt_units,
    secrets_profiles,
)
from ansible_collections.vmw.worktree.plugins.module_utils.bridge_address import bridge_address
from ansible_collections.vmw.worktree.plugins.module_utils.domain_xml import Machine
from ansible_collections.vmw.worktree.plugins.module_utils.egress import TAP_PREFIX
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.key_proxy import FOLLOWER
from ansible_collections.vmw.worktree.plugins.module_utils.session import is_session
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import OPEN_FILES, find_virtiofsd
from ansible_collections.vmw.worktree.plugins.module_utils.state import DEFAULT_PROFILE, State, qemu_user
from ansible_collections.vmw.worktree.plugins.module_utils.template import SCHEMA as TEMPLATE_SCHEMA
from ansible_collections.vmw.worktree.plugins.module_utils.template import Template, host_cpu, key_of, saved_in
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory

from vmw.errors import VmwError
from vmw.services import agent, group, host, records, virsh, worktree

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmw.settings import Settings

SCHEMA = 1
GIB = 1024**3
SPACE_NEEDED_GIB = 5
"""Less free space than this does not hold a new golden image beside the old one."""
SPACE_WANTED_GIB = 20
PROGRAM_SECONDS = 10.0
HOST = "vmw host"
QEMU_SAVES_SHARES = (8, 2)
"""The first QEMU that saves a vhost-user-fs device: https://wiki.qemu.org/ChangeLog/8.2."""
HYPERVISOR = re.compile(r"hypervisor: QEMU (\d+)\.(\d+)(?:\.(\d+))?")
DAEMON = re.compile(r"daemon: (\d+)\.(\d+)(?:\.(\d+))?")
"""What `virsh version --daemon` says."""
FORWARD_AGENT = re.compile(r"^\s*ForwardAgent (yes|no)$", re.MULTILINE)
MDNS_SOURCE = re.compile(r"^hosts:.*\bmdns", re.MULTILINE)
SETGID_GROUP_READ = 0o2750


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found, and the command that mends it."""

    status: Status
    message: str
    fix: str = ""


UFW_SETTINGS = Path("/etc/ufw/ufw.conf")
PROXY_SOCKET = "vmw-proxy.socket"
PROXY_LISTENS = re.compile(r"^ListenStream=(.+):(\d+)$", re.MULTILINE)
"""Where the proxy of this user is reached, in its unit as the role proxy writes it."""


EVERYWHERE = "everywhere"
SYSTEM = "system"
SESSION = "session"
"""For which libvirt a check is made: the system's, the user's own, or both."""


@dataclass(frozen=True)
class Check:
    """One row of the report."""

    name: str
    look: Callable[[Settings], Finding]
    where: str = EVERYWHERE


def _ok(message: str) -> Finding:
    return Finding(Status.OK, message)


def _warn(message: str, fix: str = "") -> Finding:
    return Finding(Status.WARN, message, fix)


def _fail(message: str, fix: str) -> Finding:
    return Finding(Status.FAIL, message, fix)


@dataclass(frozen=True)
class _Answer:
    status: int
    output: str


def _ask(*argv: str) -> _Answer:
    """Run a program that only looks; one that is missing or hangs has failed."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=PROGRAM_SECONDS,
            env=virsh.environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Answer(127, str(error))
    return _Answer(done.returncode, done.stdout.strip())


def _check_cpu(_settings: Settings) -> Finding:
    extension = accelerator.cpu_virtualisation(accelerator.CPU_INFO.read_text())
    if extension:
        return _ok(f"the CPU has {extension}")
    return _warn("the CPU shows neither vmx nor svm", "switch on VT-x or AMD-V (SVM) in the firmware's set-up")


def _check_acceleration(_settings: Settings) -> Finding:
    obstacle = accelerator.kvm_obstacle()
    if not obstacle:
        return _ok("KVM; VMs run at full speed")
    fix = "sudo modprobe kvm_intel || sudo modprobe kvm_amd" if "/dev/kvm" in obstacle else ""
    return _warn(f"software emulation, many times slower than KVM: {obstacle}", fix)


def _check_group(settings: Settings) -> Finding:
    if not settings.system_libvirt:
        return _ok(f"not needed for {settings.vmw_libvirt_uri}")
    member = group.membership()
    if not member.in_database:
        return _fail(f"{host.user_name()} is not in the group {group.GROUP}", HOST)
    note = " (this process is older than that; vmw switches by itself)" if member.stale else ""
    return _ok(f"{host.user_name()} is in the group {group.GROUP}, which is equivalent to root on this machine{note}")


def _check_programs(_settings: Settings) -> Finding:
    absent = [name for name in (*host.PROGRAMS, "ssh") if not host.find_program(name)]
    return _fail(f"not installed: {', '.join(absent)}", HOST) if absent else _ok("all installed")


def _check_libvirt(settings: Settings) -> Finding:
    answer = _ask("virsh", "-q", "-c", settings.vmw_libvirt_uri, "version", "--daemon")
    if answer.status:
        last = (answer.output.splitlines() or ["no answer"])[-1].removeprefix("error: ")
        return _fail(f"{settings.vmw_libvirt_uri} does not answer: {last}", HOST)
    if is_session(settings.vmw_libvirt_uri):
        return _look_at_session_libvirt(settings)
    kind = "monolithic" if host.LIBVIRT_SOCKETS[0].exists() else "modular"
    version = re.search(r"daemon: (\S+)", answer.output)
    return _ok(f"{settings.vmw_libvirt_uri} answers ({kind} daemon {version[1] if version else ''})".replace(" )", ")"))


def _look_at_session_libvirt(settings: Settings) -> Finding:
    """Look whether the user's own libvirt is a service, and not the child of whoever asked for it first."""
    if _ask("systemctl", "--user", "is-active", host.SESSION_SOCKET).output != "active":
        return _fail("your own libvirt answers, but its VMs may end with your login: its socket is not systemd's", HOST)
    meaning = "VMs run as you, and a program that breaks out of one has your account"
    return _ok(f"{settings.vmw_libvirt_uri} answers, apart from any login; {meaning}")


def _check_passt(_settings: Settings) -> Finding:
    lacking = passt_units.lacking_options(_ask(passt_units.PASST, "--help").output)
    if lacking:
        return _fail(f"passt is missing or too old: no {' and no '.join(lacking)}", HOST)
    return _ok("it is the VMs' network; they reach what you reach, your LAN too, but not this host's loopback")


def _check_kvm_access(_settings: Settings) -> Finding:
    if not accelerator.KVM_DEVICE.exists() or os.access(accelerator.KVM_DEVICE, os.R_OK | os.W_OK):
        return _ok("nothing keeps your QEMU from KVM" if accelerator.KVM_DEVICE.exists() else "there is no /dev/kvm to open")
    return _fail(f"{host.user_name()} may not open /dev/kvm, and QEMU runs as you", HOST)


def _check_virtiofsd(_settings: Settings) -> Finding:
    try:
        binary = find_virtiofsd()
    except CollectionError as error:
        return _fail(error.message, HOST)
    version = _ask(binary, "--version").output
    options = _ask(binary, "--help").output
    lacking = [option for option in ("--readonly", "--translate-uid") if option not in options]
    name = version.splitlines()[0] if version else binary
    if lacking:
        what = "`sudo chown` in the guest fails on shares" if "--translate-uid" in lacking else "the read-only bind still holds"
        return _warn(f"{name} lacks {' and '.join(lacking)}: {what}", "upgrade virtiofsd to 1.13 or later")
    return _ok(f"{name} with --readonly and --translate-uid")


def _check_suspend(settings: Settings) -> Finding:
    try:
        options = _ask(find_virtiofsd(), "--help").output
    except CollectionError as error:
        return _fail(error.message, HOST)
    if "--migration-mode" not in options:
        return _warn("VMs cannot be suspended: virtiofsd cannot save what a guest has open", "upgrade virtiofsd to 1.11 or later")
    # QEMU has nothing to probe: whether a share's device can be saved shows in a VM that runs.
    found = HYPERVISOR.search(_ask("virsh", "-q", "-c", settings.vmw_libvirt_uri, "version").output)
    if not found:
        return _warn("whether VMs can be suspended is not known: libvirt does not tell QEMU's version", HOST)
    version = (int(found[1]), int(found[2]))
    if version < QEMU_SAVES_SHARES:
        return _warn(f"VMs cannot be suspended: QEMU {found[1]}.{found[2]} cannot save shares", "upgrade QEMU to 8.2 or later")
    return _ok("QEMU and virtiofsd can save a VM's memory")


def _check_bubblewrap(_settings: Settings) -> Finding:
    answer = _ask("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")
    if answer.status:
        return _fail(f"bubblewrap cannot make a namespace: {(answer.output.splitlines() or ['no reason given'])[-1]}", HOST)
    return _ok("makes namespaces")


def _check_bridge(settings: Settings) -> Finding:
    bridge = host.NETWORK_DEVICES / settings.vmw_bridge
    if not bridge.exists():
        if host.network_exists(settings):
            return _warn(f"{settings.vmw_bridge} is a libvirt network that is not started", HOST)
        return _fail(f"{settings.vmw_bridge} does not exist", HOST)
    uplinks = _uplinks(bridge)
    if not (_flags(bridge) & 1):
        return _fail(f"{settings.vmw_bridge} is down", f"sudo ip link set {settings.vmw_bridge} up")
    down = [port for port in uplinks if _read(host.NETWORK_DEVICES / port / "carrier") == "0"]
    if down:
        return _warn(f"{settings.vmw_bridge}'s uplink {', '.join(down)} has no carrier", "plug in the cable")
    return _ok(f"{settings.vmw_bridge} is up, uplink {', '.join(uplinks)}") if uplinks else _look_for_nat(settings)


def _uplinks(bridge: Path) -> list[str]:
    """Return the ports of a bridge that are no VM's."""
    ports = [path.name for path in (bridge / "brif").iterdir()] if (bridge / "brif").is_dir() else []
    return sorted(port for port in ports if not port.startswith((TAP_PREFIX, "vnet", "tap", "virbr")))


def _look_for_nat(settings: Settings) -> Finding:
    """Look whether libvirt's network serves a bridge that is up without an uplink of its own."""
    try:
        active = virsh.Virsh(settings.vmw_libvirt_uri).networks()
    except VmwError as error:
        return _warn(f"{settings.vmw_bridge} is up, but whether NAT is its uplink is not known: {error.message}", HOST)
    if host.NAT_NETWORK not in active:
        return _fail(f"{settings.vmw_bridge} is up, but has no uplink: libvirt's network {host.NAT_NETWORK} does not run", HOST)
    return _ok(f"{settings.vmw_bridge} is up, uplink by NAT")


def _flags(device: Path) -> int:
    return int(_read(device / "flags") or "0", 16)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _check_bridge_filter(_settings: Settings) -> Finding:
    if _read(Path("/proc/sys/net/bridge/bridge-nf-call-iptables")) != "1":
        return _ok("the bridge's traffic does not pass the host's firewall")
    return _warn("br_netfilter sends the VMs' traffic through the host's firewall, where Docker's rules may drop it", HOST)


def _check_packet_filter(settings: Settings) -> Finding:
    try:
        told = packet_filter.ask("status")
    except CollectionError as error:
        return _fail(error.message, HOST)
    if not told.get("loaded"):
        return _fail("the rules for the VMs' network are not loaded", "sudo systemctl restart vmw-filter.service")
    free = _without_policy(settings)
    if free:
        return _fail(f"{', '.join(free)} runs without a network policy", f"vmw stop {free[0]} && vmw start {free[0]}")
    count = len(told.get("policies", []))
    return _ok(f"the network policies of {count} {'VM' if count == 1 else 'VMs'} are enforced")


def _without_policy(settings: Settings) -> list[str]:
    """Return the names of VMs that run with a network card of the time before there were policies."""
    vms = [each.instance for each in records.all_recorded(settings.state_dir) if each.instance and not each.instance.is_session]
    try:
        states = virsh.Virsh(settings.vmw_libvirt_uri).states() if vms else {}
    except VmwError:
        # Another check tells of that.
        return []
    return [vm.name for vm in vms if states.get(vm.name) in virsh.ON and not (host.NETWORK_DEVICES / vm.tap).exists()]


def _check_proxy(settings: Settings) -> Finding:
    told = PROXY_LISTENS.search(_read(unit_directory() / PROXY_SOCKET))
    if not told:
        return _fail("no proxy is set up, without which there are no allow-lists and no keys that stay here", HOST)
    if _ask("systemctl", "--user", "is-active", PROXY_SOCKET).output != "active":
        return _fail("nobody listens for the proxy", f"systemctl --user start {PROXY_SOCKET}")
    try:
        address = bridge_address(settings.vmw_bridge)
    except CollectionError as error:
        return _warn(error.message, HOST)
    if address != told[1]:
        return _fail(f"it listens at {told[1]}, and {settings.vmw_bridge} has the address {address} by now", HOST)
    if not (unit_directory() / FOLLOWER).exists():
        return _fail("it is of an earlier release, in which edits of secrets.env reach VMs later", HOST)
    return _ok(f"it listens at {told[1]}:{told[2]}")


def _check_firewalls(settings: Settings) -> Finding:
    # firewalld's rules are root's to read, so what the last set-up has opened is compared with what runs now.
    told = _opened_firewalls(settings)
    running = [name for name, runs in (("firewalld", _runs_firewalld()), ("ufw", _runs_ufw())) if runs]
    closed = [name for name in running if name not in told or (name == "ufw" and not _ufw_is_open(settings))]
    if closed:
        return _warn(f"{' and '.join(closed)} may keep VMs from the proxy, their names from you, and NAT from working", HOST)
    return _ok(f"{' and '.join(running)} {'lets' if len(running) == 1 else 'let'} VMs through" if running else "none runs")


def _ufw_is_open(settings: Settings) -> bool:
    """Tell whether ufw still has the rules of the set-up, as far as the packet filter's service tells of them."""
    try:
        opened = packet_filter.ask("status").get("ufw")
    except CollectionError:
        # Another check tells of that.
        return True
    proxy = PROXY_LISTENS.search(_read(unit_directory() / PROXY_SOCKET))
    needed = [f"tcp {proxy[2]}"] if proxy else []
    bridge = host.NETWORK_DEVICES / settings.vmw_bridge
    if bridge.exists() and not _uplinks(bridge):
        needed += ["udp 67", "any 53", "route"]
    # A service of an earlier release does not tell.
    return not isinstance(opened, list) or {f"{settings.vmw_bridge} {each}" for each in needed} <= set(opened)


def _opened_firewalls(settings: Settings) -> list[str]:
    """Return the firewalls that the last set-up of the host has let VMs through."""
    try:
        return [str(name) for name in json.loads(_read(settings.state_dir / "proxy/settings.json")).get("firewalls", ())]
    except (ValueError, AttributeError, TypeError):
        return []


def _runs_firewalld() -> bool:
    return _ask("systemctl", "is-active", "firewalld.service").output == "active"


def _runs_ufw() -> bool:
    return bool(re.search(r"^ENABLED=[\"']?yes", _read(UFW_SETTINGS), re.MULTILINE | re.IGNORECASE))


def _check_avahi(_settings: Settings) -> Finding:
    answer = _ask("systemctl", "is-active", "avahi-daemon.service")
    if answer.output == "active":
        return _ok("runs")
    state = (answer.output.splitlines() or ["not there"])[0]
    return _fail(f"avahi-daemon: {state}", "sudo systemctl enable --now avahi-daemon.service")


def _check_nsswitch(_settings: Settings) -> Finding:
    if MDNS_SOURCE.search(_read(Path("/etc/nsswitch.conf"))):
        return _ok("names under .local are looked up by mDNS")
    return _fail("the line `hosts:` of /etc/nsswitch.conf has no mdns", HOST)


def _check_golden_image(settings: Settings) -> Finding:
    link = settings.state_dir / "golden-image.qcow2"
    if not link.exists():
        return _fail("there is no golden image", "vmw image build" if link.parent.is_dir() else HOST)
    generation = link.resolve().parent
    absent = [name for name in ("disk.qcow2", "kernel", "initrd", "manifest.json") if not (generation / name).is_file()]
    if absent:
        return _fail(f"generation {generation.name} lacks {', '.join(absent)}", "vmw image build")
    return _ok(f"generation {generation.name} is complete")


def _check_template(settings: Settings) -> Finding:
    cold = "new VMs start cold"
    if not settings.vmw_warm_start:
        return _ok(f"{cold}, as the setting vmw_warm_start asks for it")
    generation = (settings.state_dir / "golden-image.qcow2").resolve().parent
    for manifest in saved_in(generation):
        try:
            told = json.loads(manifest.read_text())
            saved = _Saved(Machine(**told["machine"]), (int(told["qemu"]), int(told["libvirt"])), int(told["schema"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        reason = _unfit(settings, Template(generation, manifest.parent.name), saved)
        if reason:
            return _warn(f"{cold}, as the saved VM that they would be forked of {reason}", HOST)
        return _ok(f"new VMs with {saved.machine.memory_mib} MiB and {saved.machine.vcpus} CPUs are forked of a saved one")
    return _warn(f"{cold}, as there is no saved VM to fork them of", HOST)


@dataclass(frozen=True)
class _Saved:
    """What a template's manifest tells: for which VMs it is, and by which QEMU and libvirt, and which vmw, it was saved."""

    machine: Machine
    versions: tuple[int, int]
    schema: int


def _unfit(settings: Settings, template: Template, saved: _Saved) -> str:
    """Say why VMs cannot be forked of a template on this host; an empty string when they can."""
    if template.is_refused():
        return "could not be loaded"
    if saved.schema != TEMPLATE_SCHEMA:
        return "was saved by another vmw"
    if saved.versions != _versions(settings):
        return "was saved by another QEMU or libvirt"
    if saved.machine.virt_type == "kvm" and accelerator.kvm_obstacle():
        return "was saved with KVM"
    here = (os.uname().release, host_cpu(accelerator.CPU_INFO.read_text()))
    if template.key != key_of(saved.machine, saved.versions, *here, session=is_session(settings.vmw_libvirt_uri)):
        return "was saved with another kernel or CPU, or through another connection to libvirt"
    return "" if template.exists() else "lacks a part"


def _versions(settings: Settings) -> tuple[int, int]:
    """Return QEMU's and libvirt's version as libvirt counts them."""
    answer = _ask("virsh", "-q", "-c", settings.vmw_libvirt_uri, "version", "--daemon").output
    return _number(HYPERVISOR, answer), _number(DAEMON, answer)


def _number(pattern: re.Pattern[str], answer: str) -> int:
    """Return a version of virsh's answer as libvirt counts it: 1,000,000 * major + 1,000 * minor + release; 0 without one."""
    found = pattern.search(answer)
    if not found:
        return 0
    major, minor, release = (int(part or 0) for part in found.groups())
    return major * 1_000_000 + minor * 1_000 + release


def _check_space(settings: Settings) -> Finding:
    directory = settings.state_dir
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free / GIB
    message = f"{free:.1f} GiB free below {directory}"
    if free < SPACE_NEEDED_GIB:
        return _fail(message, "vmw image prune")
    return _warn(message, "vmw image prune") if free < SPACE_WANTED_GIB else _ok(message)


def _check_runtime_dir(_settings: Settings) -> Finding:
    path = host.RUNTIME_BASE / host.user_name()
    try:
        status = path.stat()
    except OSError:
        return _fail(f"{path} does not exist", HOST)
    mode = stat.S_IMODE(status.st_mode)
    if mode != SETGID_GROUP_READ or status.st_uid != os.getuid():
        return _fail(f"{path} has mode {mode:04o} and owner {status.st_uid}, not {SETGID_GROUP_READ:04o} and {os.getuid()}", HOST)
    return _ok(f"{path} is there")


def _check_linger(_settings: Settings) -> Finding:
    user = host.user_name()
    if (host.LINGER / user).exists():
        return _ok("on; shares outlive the login")
    return _fail("off: a running VM loses its shares when you log out", f"sudo loginctl enable-linger {user}")


def _check_way(settings: Settings) -> Finding:
    try:
        user = qemu_user()
    except CollectionError as error:
        return _fail(error.message, HOST)
    blocked = []
    for directory in [*reversed(settings.state_dir.resolve().parents), settings.state_dir.resolve()]:
        if not directory.exists():
            break
        if directory.stat().st_mode & stat.S_IXOTH:
            continue
        entry = re.search(rf"^user:{re.escape(user)}:\S*x", _ask("getfacl", "-cp", str(directory)).output, re.MULTILINE)
        if not entry:
            blocked.append(str(directory))
    if blocked:
        fix = f"setfacl -m u:{user}:x {shlex.quote(blocked[0])}"
        return _warn(f"{user} cannot pass {', '.join(blocked)} (`vmw spawn` opens the way)", fix)
    return _ok(f"{user} can reach {settings.state_dir}")


def _check_sockets(_settings: Settings) -> Finding:
    sockets = sorted(path.name for path in unit_directory().glob("vmw-*.socket"))
    if not sockets:
        return _ok("no VM has shares yet")
    states = _ask("systemctl", "--user", "is-active", *sockets).output.splitlines()
    if len(states) != len(sockets):
        return _fail("the user's systemd does not answer", f"sudo loginctl enable-linger {host.user_name()}")
    dead = [unit for unit, state in zip(sockets, states, strict=True) if state != "active"]
    if dead:
        return _fail(f"not listening: {', '.join(dead)}", f"systemctl --user restart {' '.join(dead)}")
    return _ok(f"{len(sockets)} listening")


def _check_secrets(settings: Settings) -> Finding:
    state = State(settings.state_dir)
    files = secrets_profiles.profile_files(state)
    findings = [finding for name, path in files.items() if (finding := _look_at_keys(settings, name, path))]
    old = state.secrets / secrets_profiles.FILE
    if old.is_file() and not old.is_symlink() and old not in files.values():
        findings.append(_warn(f"{old} is a file of its own, and not the one that VMs see", HOST))
    # What is broken before what is not filled in.
    findings.sort(key=lambda finding: finding.status is not Status.FAIL)
    several = f", in each of {len(files)} profiles" if len(files) > 1 else ""
    return findings[0] if findings else _ok(f"private, and the API key is filled in{several}")


def _look_at_keys(settings: Settings, name: str, path: Path) -> Finding | None:
    """Return what is wrong with the file of a secrets profile."""
    is_default = name == DEFAULT_PROFILE
    if not path.is_file():
        missing = f"{path} does not exist"
        return _fail(missing, HOST) if is_default else _warn(missing, f"vmw secrets {name}")
    directories = dict.fromkeys((settings.state_dir / "secrets", path.parent), secrets_profiles.DIRECTORY_MODE)
    for each, wanted in (*directories.items(), (path, secrets_profiles.FILE_MODE)):
        if secrets_profiles.opened(each, wanted):
            return _fail(f"{each} is open to others", f"chmod {wanted:o} {shlex.quote(str(each))}")
    if not re.search(r"^\s*(export\s+)?ANTHROPIC_API_KEY=[\"']?[^\s\"'#]", _read(path), re.MULTILINE):
        place = settings.state_dir / "secrets.env" if is_default else path
        whose = "" if is_default else f" for the profile {name}"
        return _warn(f"ANTHROPIC_API_KEY is not filled in{whose}", f"edit {shlex.quote(str(place))}")
    return None


def _check_ssh_key(_settings: Settings) -> Finding:
    if worktree.has_ssh_key():
        return _ok("there is one for the guests to trust")
    return _fail("you have no SSH key", "ssh-keygen -t ed25519")


def _check_ssh_agent(settings: Settings) -> Finding:
    if settings.vmw_ssh_agent == "filter":
        try:
            agent.check_filter(settings)
        except VmwError as error:
            return _fail(error.message, error.hint)
    forwards = settings.vmw_ssh_agent == "forward"
    for each in records.all_recorded(settings.state_dir):
        found = FORWARD_AGENT.search(_read(each.files.ssh_config))
        if each.instance and found and (found[1] == "yes") != forwards:
            other = f"plain ssh to {each.name} {'forwards' if found[1] == 'yes' else 'does not forward'} your SSH agent"
            fix = f"vmw spawn {shlex.quote(each.instance.worktree)}"
            return _warn(f"{other}, and vmw_ssh_agent is {settings.vmw_ssh_agent} now", fix)
    lent = {"forward": "all of it is lent", "off": "nothing of it is lent", "filter": "chosen keys are lent, when you say yes"}
    return _ok(f"{lent[settings.vmw_ssh_agent]} to guests")


def _check_open_files(_settings: Settings) -> Finding:
    # What a service of the user gets, which may be less than a login or root's services have.
    answer = _ask("systemd-run", "--user", "--quiet", "--pipe", "--wait", "/bin/sh", "-c", "ulimit -Hn")
    if answer.output == "unlimited" or (answer.output.isdigit() and int(answer.output) >= OPEN_FILES):
        return _ok("a share can show a tree of half a million files")
    if not answer.output.isdigit():
        return _warn("your service manager does not tell its limit", "loginctl show-user")
    message = f"a guest that has seen {answer.output} files of a share gets `Too many open files in system`"
    return _warn(message, f"set DefaultLimitNOFILE=1024:{OPEN_FILES} in /etc/systemd/system.conf, and log in anew")


CHECKS = (
    Check("CPU virtualisation", _check_cpu),
    Check("acceleration", _check_acceleration),
    Check("programs", _check_programs),
    Check("libvirt group", _check_group, SYSTEM),
    Check("libvirt", _check_libvirt),
    Check("virtiofsd", _check_virtiofsd),
    Check("suspend", _check_suspend),
    Check("bubblewrap", _check_bubblewrap),
    Check("KVM access", _check_kvm_access, SESSION),
    Check("passt", _check_passt, SESSION),
    Check("bridge", _check_bridge, SYSTEM),
    Check("bridge filter", _check_bridge_filter, SYSTEM),
    Check("packet filter", _check_packet_filter, SYSTEM),
    Check("proxy", _check_proxy, SYSTEM),
    Check("other firewalls", _check_firewalls, SYSTEM),
    Check("avahi", _check_avahi, SYSTEM),
    Check("mDNS names", _check_nsswitch, SYSTEM),
    Check("golden image", _check_golden_image),
    Check("warm start", _check_template),
    Check("disk space", _check_space),
    Check("socket directory", _check_runtime_dir, SYSTEM),
    Check("linger", _check_linger),
    Check("QEMU's access", _check_way, SYSTEM),
    Check("share sockets", _check_sockets),
    Check("open files", _check_open_files),
    Check("secrets", _check_secrets),
    Check("SSH key", _check_ssh_key),
    Check("SSH agent", _check_ssh_agent),
)


def examine(settings: Settings) -> list[tuple[str, Finding]]:
    """Run every check that means something for the libvirt in the settings."""
    other = SYSTEM if is_session(settings.vmw_libvirt_uri) else SESSION
    return [(check.name, check.look(settings)) for check in CHECKS if check.where != other]
