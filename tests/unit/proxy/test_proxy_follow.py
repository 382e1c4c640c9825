"""What guests see follows their profile: by the real program, with a stand-in of inotifywait, and with the real one."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from vmw_proxy import follow, key_proxy

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = Path(__file__).resolve().parents[3] / "roles/proxy/files"
WAIT_S = 30
# It notes what it is to watch, says that it does, and repeats what it is told by a FIFO; the end of that is its own.
STAND_IN = """#!/bin/sh
echo "$@" >> "$0.told"
echo "Watches established."
exec cat "$0.fifo"
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Make a state directory with a proxy and two profiles."""
    root = tmp_path / "state"
    for part in ("proxy", "secrets/default", "secrets/work", "instances"):
        (root / part).mkdir(parents=True)
    (root / "proxy/settings.json").write_text('{"schema": 1, "address": "10.0.0.1", "port": 47000, "bridge": "br0"}')
    return root


def make_vm(state: Path, name: str, profile: str = "default", mode: str = "proxy") -> Path:
    """Record a VM that vmw has started; return its copy."""
    directory = state / "instances" / name
    (directory / "guest-secrets").mkdir(parents=True)
    record = {"name": name, "uuid": name, "mac": "52:54:00:00:00:01", "secrets_profile": profile, "keys": {"mode": mode}}
    (directory / "instance.json").write_text(json.dumps(record))
    return directory / "guest-secrets/secrets.env"


def until(condition: Callable[[], object]) -> None:
    """Wait for what the program does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def seen(copy: Path) -> dict[str, str]:
    return key_proxy.parse(copy.read_text()) if copy.exists() else {}


def test_each_vm_gets_what_its_profile_has(state: Path) -> None:
    copies = [make_vm(state, "one"), make_vm(state, "two", "work"), make_vm(state, "three", mode="file")]
    leaving = make_vm(state, "leaving")
    (state / "instances/leaving/leaving").touch()
    (state / "instances/broken/guest-secrets").mkdir(parents=True)
    (state / "secrets/default/secrets.env").write_text("ANTHROPIC_API_KEY=k\nTOKEN=t\n")
    (state / "secrets/work/secrets.env").write_text("TOKEN=w\n")
    follow.refresh(state)
    place = "http://10.0.0.1:47000/anthropic"
    assert seen(copies[0]) == {"ANTHROPIC_API_KEY": "vmw-one", "ANTHROPIC_BASE_URL": place, "TOKEN": "t"}
    assert seen(copies[1]) == {"TOKEN": "w"}
    assert not copies[2].exists()
    assert not leaving.exists()


def test_one_that_cannot_be_brought_up_to_date_does_not_keep_the_others(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_vm(state, "one", "work")
    other = make_vm(state, "two")
    (state / "secrets/work/secrets.env").mkdir()
    (state / "secrets/default/secrets.env").write_text("TOKEN=planted\n")
    follow.refresh(state)
    assert seen(other) == {"TOKEN": "planted"}
    assert "one sees its old secrets.env" in caplog.text
    assert "planted" not in caplog.text
    (state / "proxy/settings.json").unlink()
    follow.refresh(state)
    assert "two sees its old secrets.env: the proxy that has the keys is not set up" in caplog.text
    assert seen(other) == {"TOKEN": "planted"}


def test_links_are_followed_to_where_the_edits_are(state: Path, tmp_path: Path) -> None:
    always = {str(state), f"{state}/proxy", f"{state}/secrets"}
    (state / "secrets/secrets.env").symlink_to("default/secrets.env")
    assert set(follow.places(state)) == {*always, f"{state}/secrets/default", f"{state}/secrets/work"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (state / "secrets/work/secrets.env").symlink_to(elsewhere / "keys")
    (state / "secrets/default").rmdir()
    assert set(follow.places(state)) == {*always, f"{state}/secrets/work", str(elsewhere)}
    (elsewhere / "keys").symlink_to("keys")
    assert set(follow.places(state)) == {*always, f"{state}/secrets/work", str(elsewhere)}


def test_another_directory_in_the_place_of_one_is_not_the_same(state: Path, tmp_path: Path) -> None:
    before = follow.places(state)
    (state / "secrets/default").rename(tmp_path / "old")
    (state / "secrets/default").mkdir()
    after = follow.places(state)
    assert list(after) == list(before)
    assert after != before


def test_the_program_follows_edits_new_profiles_and_the_proxys_place(state: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin/inotifywait"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    fifo, told = Path(f"{program}.fifo"), Path(f"{program}.told")
    os.mkfifo(fifo)
    copy, profile = make_vm(state, "one"), state / "secrets/default/secrets.env"
    argv = [sys.executable, "-I", "-B", str(FILES / "vmw-keys"), "--state-dir", str(state)]
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    profile.write_text("ANTHROPIC_API_KEY=planted\n")
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        # What was edited before it began counts too.
        until(lambda: "ANTHROPIC_API_KEY" in seen(copy))
        with fifo.open("w") as events:

            def watched() -> list[set[str]]:
                return [set(line.partition(" -- ")[2].split()) for line in told.read_text().splitlines()]

            def happens(path: Path) -> None:
                # The real one tells of nothing else.
                assert str(path.parent) in watched()[-1]
                events.write(f"{path.name}\n")
                events.flush()

            profile.write_text("ANTHROPIC_API_KEY=planted\nTOKEN=planted\n")
            happens(profile)
            until(lambda: "TOKEN" in seen(copy))
            (state / "proxy/settings.json").write_text('{"schema": 1, "address": "10.0.0.2", "port": 1}')
            happens(state / "proxy/settings.json")
            until(lambda: seen(copy)["ANTHROPIC_BASE_URL"] == "http://10.0.0.2:1/anthropic")
            # Another VM, of which nothing is told, with a profile that was there.
            second, other = make_vm(state, "two", "work"), state / "secrets/work/secrets.env"
            other.write_text("TOKEN=planted\n")
            happens(other)
            until(lambda: "TOKEN" in seen(second))
            # Another profile, which is watched from then on.
            third, new = make_vm(state, "three", "new"), state / "secrets/new/secrets.env"
            new.parent.mkdir()
            happens(new.parent)
            until(lambda: len(watched()) == 2)
            new.write_text("TOKEN=planted\n")
            happens(new)
            until(lambda: "TOKEN" in seen(third))
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(timeout=WAIT_S) == 1
    assert errors == "inotifywait has ended\n"
    first, after = watched()
    assert after - first == {f"{state}/secrets/new"}
    assert "planted" not in told.read_text()


@pytest.mark.skipif(not shutil.which("inotifywait"), reason="asks inotifywait")
def test_the_edits_of_a_vm_that_comes_later_are_followed(state: Path) -> None:
    first, second = make_vm(state, "one"), state / "instances/two/guest-secrets/secrets.env"
    (state / "secrets/default/secrets.env").write_text("TOKEN=1\n")
    argv = [sys.executable, "-I", "-B", str(FILES / "vmw-keys"), "--state-dir", str(state)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            # Twice inotifywait speaks before it tells of an edit, and what comes before it watches it never tells.
            for value in ("2", "3", "4"):

                def edited(value: str = value) -> bool:
                    (state / "secrets/default/secrets.env").write_text(f"TOKEN={value}\n")
                    time.sleep(0.1)
                    return seen(first) == {"TOKEN": value}

                until(edited)
            # Of the new VM nothing is told, until its profile is edited.
            make_vm(state, "two", "work")
            partial = state / "secrets/work/.partial"
            partial.write_text("TOKEN=w\n")
            partial.rename(state / "secrets/work/secrets.env")
            until(lambda: seen(second) == {"TOKEN": "w"})
            # A profile that comes later, too.
            third, profile = make_vm(state, "three", "new"), state / "secrets/new"
            profile.mkdir()
            (profile / "secrets.env").write_text("TOKEN=n\n")
            until(lambda: seen(third) == {"TOKEN": "n"})
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_unit_goes_on_while_it_is_wanted_and_no_longer() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read_string((FILES.parent / "templates/vmw-keys.service.j2").read_text())
    assert (unit["Unit"]["StopWhenUnneeded"], unit["Unit"]["StartLimitIntervalSec"]) == ("yes", "0")
    assert unit["Service"]["Restart"] == "always"
