"""How ports are written, what the units that publish them say, and which files are such units."""

from __future__ import annotations

import configparser
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import port_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.port_units import (
    CONNECT,
    Place,
    Port,
    Published,
    all_published,
    can_bind,
    describe,
    forward,
    listen_addresses,
    parse_unit_name,
    port_unit_name,
    service_unit,
    to_publish,
    to_remove,
)
from ansible_collections.vmw.worktree.plugins.module_utils.ssh_command import identities, port_options
from records import record, session_record

MAC = "52:54:00:00:00:01"
BOTH = ["127.0.0.1", "::1"]


def text(name: str = "one", host: int = 8080, guest: int = 3000) -> str:
    options = port_options(name, "claude", Path("/known_hosts"), [])
    return service_unit(Published(name, Port(host, guest)), Place(MAC.lower(), f"{name}.local"), options, BOTH)


def parsed(unit: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit)
    return parser


@pytest.mark.parametrize(
    ("spec", "port"),
    [
        ("3000", Port(3000, 3000)),
        ("3000:8080", Port(8080, 3000)),
        ("80:8080", Port(8080, 80)),
        ("65535:1024", Port(1024, 65535)),
        ("03000:08080", Port(8080, 3000)),
    ],
)
def test_the_guests_port_comes_first(spec: str, port: Port) -> None:
    assert to_publish(spec) == port


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "is no port"),
        ("http", "is no port"),
        ("3000:", "is no port"),
        (":3000", "is no port"),
        ("3000:8080:9090", "is no port"),
        ("127.0.0.1:3000:8080", "is no port"),
        ("-1", "is no port"),
        (" 3000", "is no port"),
        ("3000\n", "is no port"),
        ("3000/tcp", "is no port"),
        ("\u0663\u0660\u0660\u0660", "is no port"),
        ("0", "0 is no port"),
        ("0:8080", "0 is no port"),
        ("3000:0", "0 is no port"),
        ("65536", "65536 is no port"),
        ("3000:65536", "65536 is no port"),
        ("9" * 5000, "is no port"),
        ("80", "port 80 of the host is below 1024"),
        ("3000:1023", "port 1023 of the host is below 1024"),
    ],
)
def test_what_is_no_port_is_refused_in_words(spec: str, words: str) -> None:
    with pytest.raises(VmwError, match=words) as caught:
        to_publish(spec)
    assert caught.value.code == "usage"
    assert caught.value.hint
    assert len(caught.value.message) < 200


def test_the_hint_for_a_low_port_can_be_typed() -> None:
    with pytest.raises(VmwError) as caught:
        to_publish("80")
    assert "`80:8080`" in caught.value.hint
    assert to_publish("80:8080") == Port(8080, 80)


PORTS = [Port(5000, 3000), Port(8080, 80), Port(9000, 9000)]


@pytest.mark.parametrize(
    ("spec", "port"),
    [
        ("3000:5000", Port(5000, 3000)),
        ("3000", Port(5000, 3000)),
        ("5000", Port(5000, 3000)),
        ("80", Port(8080, 80)),
        ("9000", Port(9000, 9000)),
        ("9000:9000", Port(9000, 9000)),
        ("5000:3000", None),
        ("3000:3000", None),
        ("4000", None),
    ],
)
def test_a_number_alone_removes_what_it_can_only_mean(spec: str, port: Port | None) -> None:
    assert to_remove(spec, PORTS) == port


def test_a_number_that_may_mean_two_ports_removes_none() -> None:
    two = [Port(5000, 3000), Port(5001, 3000)]
    with pytest.raises(VmwError, match="3000 may mean 3000:5000 or 3000:5001") as caught:
        to_remove("3000", two)
    assert caught.value.code == "conflict"
    assert to_remove("3000:5001", two) == two[1]
    # Both readings, and the one that publishing would take.
    assert to_remove("3000", [*two, Port(3000, 3000)]) == Port(3000, 3000)
    with pytest.raises(VmwError, match="may mean"):
        to_remove("3000", [Port(5000, 3000), Port(3000, 7000)])


def test_the_unit_lives_as_long_as_the_share() -> None:
    unit = parsed(text())
    assert unit["Unit"]["BindsTo"] == unit["Unit"]["After"] == unit["Install"]["WantedBy"] == "vmw-one-repo.service"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Unit"]["Description"] == "vmw: port 3000 of one at 127.0.0.1:8080"
    assert unit["Service"]["Type"] == "forking"
    assert unit["Service"]["Restart"] == "always"
    assert int(unit["Service"]["RestartSec"]) >= 1


def argv_of(unit: str) -> list[str]:
    """Return a unit's command as systemd runs it: systemd.service(5), "Command lines"."""
    words = shlex.split(parsed(unit)["Service"]["ExecStart"])
    return [word.replace("$$", "$").replace("%%", "%") for word in words]


def test_ssh_listens_at_loopback_alone_and_lends_nothing() -> None:
    argv = argv_of(text())
    assert argv[:2] == ["/bin/sh", "-c"]
    assert argv[3:6] == ["sh", MAC, "one.local"]
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "-L"] == [
        "127.0.0.1:8080:localhost:3000",
        "[::1]:8080:localhost:3000",
    ]
    ssh = argv[6:]
    shown = subprocess.run(["ssh", "-G", *ssh, "192.0.2.8"], capture_output=True, text=True, check=True).stdout
    lines = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert lines["batchmode"] == lines["exitonforwardfailure"] == "yes"
    assert lines["forwardagent"] == lines["forwardx11"] == lines["gatewayports"] == lines["permitlocalcommand"] == "no"
    assert lines["gssapiauthentication"] == "no"
    assert lines["stricthostkeychecking"] == "true"
    assert lines["hostkeyalias"] == "one"
    assert lines["user"] == "claude"
    assert lines["userknownhostsfile"].strip('"') == "/known_hosts"
    assert "remoteforward" not in lines
    assert "dynamicforward" not in lines


def test_the_users_configuration_forwards_nothing_more(tmp_path: Path) -> None:
    configuration = tmp_path / "config"
    configuration.write_text("Host *\n  RemoteForward 9999 localhost:22\n  ForwardAgent yes\n  LocalForward 7777 localhost:1\n")
    options = port_options("one", "claude", tmp_path / "known_hosts", [])
    command = ["ssh", "-G", *options, "192.0.2.8"]
    # The control: by itself ssh would obey it.
    control = ["ssh", "-G", "-F", str(configuration), "192.0.2.8"]
    assert "remoteforward" in subprocess.run(control, capture_output=True, text=True, check=True).stdout
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert command[2:4] == ["-F", "none"]
    assert "remoteforward" not in shown
    assert "localforward" not in shown


def test_the_users_keys_and_agent_are_taken_over(tmp_path: Path) -> None:
    key = tmp_path / 'my "key"'
    key.touch()
    shown = f"""user claude
identityfile {key}
identityfile {tmp_path}/gone
identityfile ~/.ssh/%h
identityagent /run/user/1000/agent
identitiesonly yes
certificatefile {tmp_path}/gone-cert
remoteforward 9999 [localhost]:22
"""
    escaped = str(key).replace('"', '\\"')
    assert identities(shown) == [
        f'identityfile="{escaped}"',
        'identityfile="~/.ssh/%h"',
        "identityagent=/run/user/1000/agent",
        "identitiesonly=yes",
    ]


def test_keys_go_through_systemd_and_ssh_as_they_are(tmp_path: Path) -> None:
    key = tmp_path / "a b"
    key.touch()
    options = port_options("one", "claude", tmp_path / "100% known", identities(f"identityfile {key}\n"))
    unit = service_unit(Published("one", Port(8080, 80)), Place(MAC, "one.local"), options, ["127.0.0.1"])
    shown = subprocess.run(["ssh", "-G", *argv_of(unit)[6:], "192.0.2.8"], capture_output=True, text=True, check=True).stdout
    assert f"identityfile {key}\n" in shown
    assert "100% known" in shown.replace("%%", "%")


@pytest.fixture
def connect(tmp_path: Path) -> tuple[Path, Path]:
    """Return a table of neighbours and the log of a stand-in for ssh, which reaches the address in `reached` alone."""
    program = tmp_path / "ssh"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/calls\n'
        f'for last; do :; done; [ "$last" = "$(cat {tmp_path}/reached 2>/dev/null)" ]\n'
    )
    program.chmod(0o755)
    (tmp_path / "arp").write_text(
        "IP address       HW type     Flags       HW address            Mask     Device\n"
        f"10.0.0.4         0x1         0x0         {MAC}     *        br0\n"
        f"10.0.0.5         0x1         0x2         {MAC}     *        br0\n"
        "10.0.0.6         0x1         0x2         52:54:00:00:00:99     *        br0\n"
    )
    return tmp_path / "arp", tmp_path / "calls"


@pytest.mark.parametrize(
    ("reached", "code", "tried"),
    [("10.0.0.5", 0, ["10.0.0.5"]), ("one.local", 0, ["10.0.0.5", "one.local"]), ("", 1, ["10.0.0.5", "one.local"])],
)
def test_the_vm_is_found_by_its_card_and_then_by_its_name(
    connect: tuple[Path, Path], tmp_path: Path, reached: str, code: int, tried: list[str]
) -> None:
    table, calls = connect
    (tmp_path / "reached").write_text(reached or "nowhere")
    script = CONNECT.replace("/proc/net/arp", str(table))
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", MAC, "one.local", "-o", "two words"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == code
    assert calls.read_text().splitlines() == [f"-o two words -- {address}" for address in tried]


def test_a_vm_of_the_users_own_libvirt_is_found_at_the_loopback_alone() -> None:
    vm = session_record(22017)
    options = port_options("one", "claude", Path("/known_hosts"), [], vm.ssh_port)
    argv = argv_of(service_unit(Published("one", Port(8080, 3000)), Place.of(vm), options, BOTH))
    # No card has an address without digits.
    assert argv[3:6] == ["sh", "-", "127.0.0.1"]
    assert "Port=22017" in argv
    assert Place.of(record()) == Place(MAC, "one.local")


@pytest.mark.parametrize("name", ["one", "a-port", "port", "a-port-8080", "x" * 63])
def test_units_are_named_exactly(name: str) -> None:
    unit = port_unit_name(name, 8080)
    assert unit == f"vmw-{name}-port-8080.service"
    assert parse_unit_name(unit) == (name, 8080)


@pytest.mark.parametrize(
    "unit",
    [
        "vmw-one-repo.service",
        "vmw-a-port-repo.service",
        "vmw-a-port-8080-repo.service",
        "vmw-one-port-8080.socket",
        "vmw-one-port-80.service",
        "vmw-one-port-08080.service",
        "vmw-one-port-65536.service",
        "vmw-One-port-8080.service",
        "vmw--port-8080.service",
        "vmw-one-port-8080.service.wants",
        "one-port-8080.service",
    ],
)
def test_other_units_are_no_ports(unit: str) -> None:
    assert parse_unit_name(unit) is None


def test_what_is_published_is_what_vmw_wrote(tmp_path: Path) -> None:
    (tmp_path / "vmw-one-port-8080.service").write_text(text())
    (tmp_path / "vmw-a-port-9000.service").write_text(text("a", 9000, 80))
    (tmp_path / "vmw-a-port-port-9001.service").write_text(text("a-port", 9001, 81))
    (tmp_path / "vmw-one-port-8081.service").write_text("[Service]\nExecStart=/bin/true\n")
    (tmp_path / "vmw-one-port-8082.service").symlink_to("vmw-one-port-8080.service")
    (tmp_path / "vmw-one-port-8083.service").mkdir()
    (tmp_path / "vmw-one-port-8084.service").write_bytes(b"\xff")
    (tmp_path / "vmw-one-port-8085.service").write_text("[X-vmw]\nGuestPort=99999999\n")
    (tmp_path / "vmw-one-repo.service").touch()
    assert all_published(tmp_path) == [
        Published("a", Port(9000, 80)),
        Published("a-port", Port(9001, 81)),
        Published("one", Port(8080, 3000)),
    ]
    assert all_published(tmp_path / "nothing") == []


def test_a_port_that_is_taken_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not can_bind("127.0.0.1", taken.getsockname()[1])
    assert can_bind("127.0.0.1", 0)


def test_a_program_at_all_addresses_is_in_the_way() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104 - what development servers do
        assert not can_bind("127.0.0.1", taken.getsockname()[1])


def test_without_ipv6_one_address_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_units, "can_bind", lambda address, _port: ":" not in address)
    assert listen_addresses() == ["127.0.0.1"]
    assert forward(Port(8080, 80), listen_addresses()) == ["-L", "127.0.0.1:8080:localhost:80"]


def test_describe() -> None:
    assert describe({Port(9000, 80), Port(8080, 3000)}) == "127.0.0.1:8080 -> 3000\n127.0.0.1:9000 -> 80\n"
