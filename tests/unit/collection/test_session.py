"""What goes with the user's own libvirt, and where its VMs are reached."""

from __future__ import annotations

import configparser
import os

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import session
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError


@pytest.mark.parametrize(("uri", "expected"), [("qemu:///session", True), ("qemu:///system", False), ("test:///default", False)])
def test_the_uri_tells(uri: str, *, expected: bool) -> None:
    assert session.is_session(uri) == expected


@pytest.mark.parametrize("mode", ["internet", "allowlist", "offline"])
def test_a_policy_that_nobody_would_enforce_is_refused(mode: str) -> None:
    with pytest.raises(VmwError, match=f"{mode!r} does not go with qemu:///session") as caught:
        session.check_policy(mode)
    assert caught.value.code == "usage"
    assert "qemu:///system" in caught.value.hint


def test_hosts_and_keys_that_stay_on_the_host_are_refused() -> None:
    with pytest.raises(VmwError, match="no list of hosts") as caught:
        session.check_lists(["example.org"])
    assert caught.value.code == "usage"
    with pytest.raises(VmwError, match="keys by 'proxy'") as caught:
        session.check_keys("proxy")
    assert caught.value.code == "usage"


def test_what_goes_is_not_refused() -> None:
    for mode in ("", "open"):
        session.check_policy(mode)
    for mode in ("", "file"):
        session.check_keys(mode)
    session.check_lists([])


def test_a_vm_made_anew_has_its_port_again() -> None:
    first = session.choose_ssh_port("one", set(), lambda _port: True)
    assert session.choose_ssh_port("one", set(), lambda _port: True) == first
    assert session.FIRST_SSH_PORT <= first < session.FIRST_SSH_PORT + session.SSH_PORTS


def test_a_port_is_one_vms_only() -> None:
    first = session.choose_ssh_port("one", set(), lambda _port: True)
    assert session.choose_ssh_port("one", {first}, lambda _port: True) != first
    assert session.choose_ssh_port("one", set(), lambda port: port != first) != first


def test_no_free_port_is_told() -> None:
    asked: list[int] = []

    def is_free(port: int) -> bool:
        asked.append(port)
        return False

    with pytest.raises(VmwError, match="no port") as caught:
        session.choose_ssh_port("one", {session.FIRST_SSH_PORT}, is_free)
    assert caught.value.code == "conflict"
    assert sorted(asked) == list(range(session.FIRST_SSH_PORT + 1, session.FIRST_SSH_PORT + session.SSH_PORTS))


def test_the_sockets_are_where_only_the_user_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/4711")
    assert session.socket_directory() == "/run/user/4711/vmw"
    # A shell from `su` lacks it, and libvirt would look elsewhere.
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert session.runtime_directory() == os.environ["XDG_RUNTIME_DIR"] == f"/run/user/{os.getuid()}"


def parsed(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return parser


@pytest.mark.parametrize(("daemon", "place"), [("libvirtd", "libvirt-sock"), ("virtqemud", "virtqemud-sock")])
def test_the_daemon_listens_where_clients_look(daemon: str, place: str) -> None:
    unit = parsed(session.daemon_socket_unit(daemon))
    assert unit["Socket"]["ListenStream"] == f"%t/libvirt/{place}"
    assert unit["Socket"]["FileDescriptorName"] == f"{daemon}.socket"
    assert unit["Socket"]["SocketMode"] == "0600"


def test_vms_outlive_the_daemon() -> None:
    unit = parsed(session.daemon_service_unit("/usr/sbin/libvirtd"))
    assert unit["Service"]["ExecStart"].split()[0] == "/usr/sbin/libvirtd"
    assert unit["Service"]["KillMode"] == "process"
