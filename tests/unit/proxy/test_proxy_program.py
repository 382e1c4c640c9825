"""The program as systemd starts it: with a socket that is listening already."""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = Path(__file__).resolve().parents[3] / "roles/proxy/files"
LAUNCHER = FILES / "vmw-proxy"
PYTHON: list[str] = []


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen as vmw-proxy.socket does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture(autouse=True, scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have aiohttp compiled once: where it is installed, it may not be."""
    directory = tmp_path_factory.mktemp("compiled")
    PYTHON[:] = [sys.executable, "-I", "-X", f"pycache_prefix={directory}"]
    return directory


def start(state: Path, listening: socket.socket, *more: str) -> subprocess.Popen[str]:
    """Start the program with the socket at the place that sd_listen_fds(3) says."""
    script = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    argv = ["bash", "-c", script, "bash", str(listening.fileno())]
    argv += [*PYTHON, str(LAUNCHER), "--state-dir", str(state), *more]
    return subprocess.Popen(argv, pass_fds=[listening.fileno()], stderr=subprocess.PIPE, text=True)


def ask(listening: socket.socket) -> bytes:
    """Ask for a tunnel, which this machine is not given, being no VM."""
    with socket.create_connection(listening.getsockname(), timeout=30) as connection:
        connection.sendall(b"CONNECT github.com:443 HTTP/1.1\r\nHost: github.com\r\nProxy-Authorization: a-secret\r\n\r\n")
        parts = iter(lambda: connection.recv(4096), b"")
        return b"".join(parts)


def settle(state: Path) -> None:
    """Write settings."""
    (state / "proxy").mkdir()
    (state / "proxy/settings.json").write_text(
        json.dumps({"schema": 1, "bridge": "br0", "upstreams": {}, "allow": ["github.com"]})
    )


def test_it_serves_the_socket_that_it_is_given_until_it_is_told_to_end(tmp_path: Path, listener: socket.socket) -> None:
    settle(tmp_path)
    with start(tmp_path, listener) as process:
        answer = ask(listener)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"no VM" in answer
    assert process.returncode == 0
    assert errors == "127.0.0.1 is no VM of this user\n"


def test_it_ends_by_itself_and_the_socket_stays(tmp_path: Path, listener: socket.socket) -> None:
    settle(tmp_path)
    for _ in range(2):
        with start(tmp_path, listener, "--idle-minutes", "0.002") as process:
            assert process.wait(timeout=30) == 0
    with start(tmp_path, listener) as process:
        assert ask(listener).startswith(b"HTTP/1.1 403 ")
        process.terminate()


def test_without_settings_it_serves_nobody(tmp_path: Path, listener: socket.socket) -> None:
    with start(tmp_path, listener) as process:
        assert ask(listener).startswith(b"HTTP/1.1 503 ")
        (tmp_path / "proxy").mkdir()
        (tmp_path / "proxy/settings.json").write_text('{"schema": 2, "bridge": "br0"}')
        assert ask(listener).startswith(b"HTTP/1.1 503 ")
        (tmp_path / "proxy/settings.json").write_text('{"schema": 1, "bridge": "br0"}')
        assert ask(listener).startswith(b"HTTP/1.1 403 ")
        process.terminate()


def test_without_a_socket_it_says_who_has_one(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    argv = [*PYTHON, str(LAUNCHER), "--state-dir", str(tmp_path)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, "vmw-proxy.socket" in done.stderr) == (2, True)


def test_the_unit_is_started_again_however_often_it_ends() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read_string((FILES.parent / "templates/vmw-proxy.service.j2").read_text())
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert (unit["Service"]["Restart"], unit["Service"]["RestartSec"]) == ("on-failure", "1")
