from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services.agent import FORWARD, OFF, Lending
from vmw.services.ssh import connection, ssh_argv
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNING = """case "$*" in
*domstate*) echo running;;
*lease*) printf ' vnet0 52:54:00:aa:bb:cc ipv4 10.0.0.5/24\\n';;
esac"""


def test_exact_command(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", RUNNING)
    directory = make_vm("one")
    assert connection(load_settings(), "one", ["ls", "-la"]) == [
        "ssh",
        "-A",
        "-o",
        "HostKeyAlias=one",
        "-o",
        f'UserKnownHostsFile="{directory}/known_hosts"',
        "-o",
        "StrictHostKeyChecking=yes",
        "-l",
        "claude",
        "--",
        "10.0.0.5",
        "ls",
        "-la",
    ]


@pytest.mark.parametrize(
    ("lending", "shown"),
    [(FORWARD, "yes"), (OFF, "no")],
)
def test_ssh_is_told_what_becomes_of_the_agent(tmp_path: Path, lending: Lending, shown: str) -> None:
    """Whatever the user's own configuration says."""
    argv = ssh_argv("one", "claude", "10.0.0.5", tmp_path / "known_hosts", ["ls"], lending=lending)
    for own in ("yes", "no"):
        config = tmp_path / "config"
        config.write_text(f"ForwardAgent {own}\n")
        done = subprocess.run([argv[0], "-G", "-F", config, *argv[1:]], capture_output=True, text=True, check=True)
        assert f"forwardagent {shown}" in done.stdout.splitlines()


def test_what_filters_stands_before_all_else(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", RUNNING)
    make_vm("one")
    plain = connection(load_settings(), "one", ["ls"])
    argv = connection(load_settings(), "one", ["ls"], Lending(("sh", "-c", "x", "y")))
    assert argv == ["sh", "-c", "x", "y", *plain[2:]]


def test_without_an_address_the_name_serves(
    make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmw.services.virsh.neighbours", dict)
    fake_program("virsh", 'case "$*" in *domstate*) echo running;; *) exit 1;; esac')
    make_vm("one")
    assert connection(load_settings(), "one", [])[-1] == "one.local"


@pytest.mark.parametrize("state", ["shut off", "paused", "crashed"])
def test_not_running(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path], state: str) -> None:
    fake_program("virsh", f'case "$*" in *domstate*) echo "{state}";; esac')
    make_vm("one")
    with pytest.raises(VmwError) as caught:
        connection(load_settings(), "one", [])
    assert caught.value.exit_code is ExitCode.FAILED
    assert caught.value.hint == "start it with `vmw start one`"


def test_suspended(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", 'case "$*" in *domstate*) echo "shut off";; *with-managed-save*) echo one;; esac')
    make_vm("one")
    with pytest.raises(VmwError) as caught:
        connection(load_settings(), "one", [])
    assert caught.value.message == "VM 'one' is suspended"
    assert "vmw resume one" in caught.value.hint


def test_half_made(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "echo \"error: failed to get domain 'one'\" >&2; exit 1")
    make_vm("one")
    with pytest.raises(VmwError) as caught:
        connection(load_settings(), "one", [])
    assert "vmw spawn" in caught.value.hint
    assert "vmw destroy one" in caught.value.hint


def test_libvirt_down(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]) -> None:
    fake_program("virsh", "echo 'error: no socket' >&2; exit 1")
    make_vm("one")
    with pytest.raises(VmwError) as caught:
        connection(load_settings(), "one", [])
    assert caught.value.message == "libvirt does not answer: no socket"


@pytest.mark.parametrize("directory", ["/plain", "/with blank", "/100%h", '/quo"te', "/back\\slash", "/$HOME"])
def test_ssh_reads_the_path_as_it_is(directory: str) -> None:
    argv = ssh_argv("one", "claude", "10.0.0.5", Path(directory, "known_hosts"), [])
    # `ssh -G` prints the configuration as parsed, before tokens are expanded.
    shown = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True).stdout
    line = next(line for line in shown.splitlines() if line.startswith("userknownhostsfile "))
    assert line.partition(" ")[2].replace("%%", "%").strip('"') == f"{directory}/known_hosts"


def test_a_vm_of_the_users_own_libvirt_is_reached_at_its_port(
    make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path]
) -> None:
    calls = fake_program("virsh", RUNNING)
    make_vm("one", libvirt_uri="qemu:///session", ssh_port=22017)
    argv = connection(load_settings(), "one", [])
    assert argv[-1] == "127.0.0.1"
    assert "Port=22017" in argv
    assert "domifaddr" not in calls.read_text()
