from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services.agent import FORWARD, LEND_FILTERED, OFF, Key, Lending, check_filter, lending_of
from vmw.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILTERED = "vmw_ssh_agent is filter, and "


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Make two keys, and return their files by their comments."""
    files = {"me@host key": tmp_path / "one", "other": tmp_path / "two"}
    for comment, path in files.items():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], check=True)
    return files


@pytest.fixture
def agent(keys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Run an agent that holds them, and return its socket."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", *keys.values()], check=True)
        yield socket
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def programs(fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for the filter and for a program that asks."""
    monkeypatch.delenv("SSH_ASKPASS", raising=False)
    fake_program("ssh-agent-filter", "")
    fake_program("ssh-askpass", "")


def public(path: Path) -> str:
    return path.with_suffix(".pub").read_text().split()[1]


def fingerprint(path: Path) -> str:
    return subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout.split()[1]


def filtering(*names: str) -> Settings:
    return Settings(vmw_ssh_agent="filter", vmw_ssh_agent_keys=list(names))


@pytest.mark.parametrize("mode", ["forward", "off", "filter"])
def test_no_agent_means_none_whatever_the_settings_say(mode: str) -> None:
    assert lending_of(Settings(vmw_ssh_agent=mode), "one", no_agent=True) is OFF


def test_the_setting_decides_otherwise() -> None:
    assert lending_of(Settings(), "one") is FORWARD
    assert lending_of(Settings(vmw_ssh_agent="off"), "one") is OFF


def test_fingerprints_are_those_of_ssh_add(keys: dict[str, Path]) -> None:
    for path in keys.values():
        assert Key(public(path), "").fingerprint == fingerprint(path)


@pytest.mark.parametrize("by", ["comment", "fingerprint"])
def test_the_chosen_key_alone_is_lent_and_each_use_confirmed(
    keys: dict[str, Path], agent: Path, programs: None, tmp_path: Path, by: str
) -> None:
    path = keys["me@host key"]
    lending = lending_of(filtering("nobody", "me@host key" if by == "comment" else fingerprint(path)), "feature-x")
    askpass = f"SSH_ASKPASS={tmp_path}/bin/ssh-askpass"
    options = f"--name=feature-x --key-confirmed={public(path)}"
    assert lending == Lending(("env", askpass, "sh", "-c", LEND_FILTERED, "vmw-ssh", options))


def test_several_keys_are_lent(keys: dict[str, Path], agent: Path, programs: None) -> None:
    options = lending_of(filtering(*keys), "one").words[-1].split()
    assert sorted(options[1:]) == sorted(f"--key-confirmed={public(path)}" for path in keys.values())


@pytest.mark.parametrize("name", ["me@host", "host key", "ME@HOST KEY", "*", "", "SHA256:", "--all-confirmed", "-A"])
def test_what_names_no_key_lends_none(agent: Path, programs: None, name: str) -> None:
    lending = lending_of(filtering(name), "one")
    assert lending.words == OFF.words
    assert "none of vmw_ssh_agent_keys" in lending.warning


def test_without_an_agent_nothing_is_lent_and_nothing_said(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lending_of(filtering("me"), "one") == OFF
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    assert lending_of(filtering("me"), "one") == OFF


def test_a_filter_without_keys_is_refused(programs: None) -> None:
    with pytest.raises(VmwError, match="names no key") as caught:
        lending_of(filtering(), "one")
    assert caught.value.exit_code is ExitCode.USAGE
    assert "ssh-add -l" in caught.value.hint


def test_a_missing_filter_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmwError, match=f"{FILTERED}ssh-agent-filter is not installed") as caught:
        lending_of(filtering("me"), "one")
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY
    assert "sudo apt install ssh-agent-filter" in caught.value.hint


@pytest.mark.parametrize("askpass", ["", "/nonexistent", "nonexistent", "/etc/passwd"])
def test_nothing_is_lent_when_nobody_could_be_asked(
    fake_program: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, askpass: str
) -> None:
    """For the filter takes a program that it cannot start for a yes."""
    fake_program("ssh-agent-filter", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SSH_ASKPASS", askpass)
    with pytest.raises(VmwError, match=f"{FILTERED}there is no program that could ask you") as caught:
        lending_of(filtering("me"), "one")
    assert caught.value.exit_code is ExitCode.HOST_NOT_READY


def test_the_program_that_asks_is_named_wherever_the_filter_starts_it(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_filter(filtering("me")) == f"{tmp_path}/bin/ssh-askpass"
    monkeypatch.chdir(tmp_path)
    for name in (f"{tmp_path}/bin/ssh-askpass", "bin/ssh-askpass", "ssh-askpass"):
        monkeypatch.setenv("SSH_ASKPASS", name)
        assert check_filter(filtering("me")) == f"{tmp_path}/bin/ssh-askpass"


# --- the program that begins ssh -----------------------------------------------------------------------------------

FILTER = """case $SSH_AUTH_SOCK in */agent) ;; *) exit 9;; esac
[ -z "$SSH_AGENT_PID" ] || exit 9
stat --format=%a . >"$TMP_NOTES/mode"
sleep 60 >/dev/null 2>&1 &
echo "SSH_AUTH_SOCK='$PWD/agent.$!'; export SSH_AUTH_SOCK;"
echo "SSH_AGENT_PID='$!'; export SSH_AGENT_PID;"
echo "echo 'Agent pid $!';"
"""
SSH = """printf '%s\\n' "$@" >"$TMP_NOTES/ssh"
echo "$SSH_AUTH_SOCK" >"$TMP_NOTES/agent"
kill -0 "${4##*.}" && cat
exit 42"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_program: Callable[[str, str], Path]) -> Path:
    """Stand for the filter and ssh, and return where they note what they see."""
    fake_program("ssh-agent-filter", FILTER)
    fake_program("ssh", SSH)
    monkeypatch.setenv("TMP_NOTES", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/user/1/agent")
    monkeypatch.setenv("SSH_AGENT_PID", str(os.getpid()))
    return tmp_path


def begin(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["sh", "-c", LEND_FILTERED, "vmw-ssh", "--name=one --key-confirmed=AAAA+/==", *words]
    return subprocess.run(argv, input="typed\n", capture_output=True, text=True, check=False)


def test_ssh_logs_in_with_the_users_agent_and_forwards_the_filters(notes: Path) -> None:
    done = begin("-l", "claude", "--", "10.0.0.5", "echo  $x 'y'")
    assert (done.returncode, done.stdout, done.stderr) == (42, "typed\n", "")
    control, forward, *rest = _pairs((notes / "ssh").read_text().splitlines())
    assert control == ("-o", "ControlPath=none")
    socket = Path(forward[1].removeprefix("ForwardAgent="))
    assert rest == [("-l", "claude"), ("--", "10.0.0.5"), ("echo  $x 'y'",)]
    assert (notes / "agent").read_text() == "/run/user/1/agent\n"
    assert (notes / "ssh-agent-filter.calls").read_text() == "--name=one --key-confirmed=AAAA+/==\n"
    # A directory of its own, of which nothing is left, nor of the filter; the user's own agent lives on.
    assert (notes / "mode").read_text() == "700\n"
    assert not socket.parent.exists()
    assert _has_ended(int(socket.suffix.removeprefix(".")))


def _pairs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + 2]) for start in range(0, len(words), 2)]


def _has_ended(pid: int) -> bool:
    """Tell whether a process ends in a moment; nobody may have asked for its exit code yet."""
    for _ in range(500):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_filter_that_fails_begins_no_login(notes: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("ssh-agent-filter", "echo no >&2; exit 3")
    done = begin("10.0.0.5")
    assert (done.returncode, done.stderr) == (3, "no\n")
    assert not (notes / "ssh").exists()


def test_a_login_that_is_interrupted_leaves_no_filter(notes: Path, fake_program: Callable[[str, str], Path]) -> None:
    fake_program("ssh", 'printf "%s\\n" "$@" >"$TMP_NOTES/ssh"; exec sleep 30')
    argv = ["sh", "-c", LEND_FILTERED, "vmw-ssh", "--name=one", "host"]
    process = subprocess.Popen(argv, start_new_session=True)
    while not (notes / "ssh").exists() or "host" not in (notes / "ssh").read_text():
        time.sleep(0.01)
    socket = Path((notes / "ssh").read_text().splitlines()[3].removeprefix("ForwardAgent="))
    # As the terminal does it.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) in {130, -signal.SIGINT}
    assert not socket.parent.exists()
    assert _has_ended(int(socket.suffix.removeprefix(".")))
