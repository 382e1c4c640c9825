from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmw.display.follow import show
from vmw.errors import ExitCode, VmwError
from vmw.runner.logs import KEEP, open_log
from vmw.services import logs
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def units(home: Path) -> Path:
    """Return the directory of the user's units, with those of the VMs `a` and `a-b`."""
    directory = home / ".config" / "systemd" / "user"
    directory.mkdir(parents=True)
    for name in ("vmw-a-repo", "vmw-a-secrets", "vmw-a-b-repo"):
        (directory / f"{name}.service").touch()
        (directory / f"{name}.socket").touch()
    return directory


def test_sources(make_vm: Callable[..., Path], units: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("journalctl", "")
    console = make_vm("a") / "console.log"
    console.touch()
    found = logs.sources(load_settings(), "a", follow=False)
    assert found[0].argv == ["tail", "-n", "+1", "--", str(console)]
    assert found[1].argv[-4:] == ["--user-unit", "vmw-a-repo.service", "--user-unit", "vmw-a-secrets.service"]


def test_ports_are_shown_with_their_vm(
    make_vm: Callable[..., Path], units: Path, fake_program: Callable[[str, str], Path]
) -> None:
    fake_program("journalctl", "")
    for name in ("vmw-a-port-8080", "vmw-a-b-port-8081"):
        (units / f"{name}.service").write_text("[X-vmw]\nGuestPort=80\n")
    (make_vm("a") / "console.log").touch()
    (make_vm("a-port") / "console.log").touch()
    found = logs.sources(load_settings(), "a", follow=False)
    assert [word for word in found[1].argv if word.endswith(".service")] == [
        "vmw-a-repo.service",
        "vmw-a-secrets.service",
        "vmw-a-port-8080.service",
    ]
    assert logs.sources(load_settings(), "a-port", follow=False)[1].obstacle == "it has no units"


def test_follow(make_vm: Callable[..., Path], units: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("journalctl", "")
    (make_vm("a-b") / "console.log").touch()
    found = logs.sources(load_settings(), "a-b", follow=True)
    assert "-F" in found[0].argv
    assert "--follow" in found[1].argv
    assert found[1].argv[-2:] == ["--user-unit", "vmw-a-b-repo.service"]


def test_missing_pieces_are_said(make_vm: Callable[..., Path]) -> None:
    make_vm("a")
    found = logs.sources(load_settings(), "a", follow=False)
    assert [source.obstacle for source in found] == ["there is none yet", "it has no units"]


@pytest.mark.parametrize("name", ["none", "../a", ".", ""])
def test_unknown(make_vm: Callable[..., Path], name: str) -> None:
    make_vm("a")
    with pytest.raises(VmwError) as caught:
        logs.sources(load_settings(), name, follow=False)
    assert caught.value.exit_code is ExitCode.NOT_FOUND


def test_show(capfd: pytest.CaptureFixture[str]) -> None:
    shown = show(
        [
            logs.Source("one", ["printf", "first\\n"]),
            logs.Source("two", [], "there is none", "start it"),
            logs.Source("three", ["printf", "third\\n"], follows=True),
        ]
    )
    assert shown
    captured = capfd.readouterr()
    assert captured.out == "first\nthird\n"
    assert captured.err.splitlines() == ["==> one", "warning: two: there is none", "hint: start it", "==> three"]


def test_show_nothing() -> None:
    assert not show([logs.Source("two", [], "there is none")])


FOLLOW = """
from vmw.display.follow import show
from vmw.services.logs import Source
show([Source("one", ["sh", "-c", "echo $$; exec sleep 60"], follows=True)])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_kill_ends_what_follows(number: signal.Signals, code: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", FOLLOW], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        follower = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait() == code
    with pytest.raises(ProcessLookupError):
        os.kill(follower, 0)


def test_run_logs_are_private_and_few(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    paths = []
    for _ in range(KEEP + 5):
        path, handle = open_log(directory, "spawn")
        handle.write("caf\udce9\n")
        handle.close()
        paths.append(path)
    assert len(list(directory.iterdir())) == KEEP
    assert paths[-1].exists()
    assert paths[-1].stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
