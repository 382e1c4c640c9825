"""What a person may get wrong: each is told in words, with a hint, and leaves nothing behind."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from testbed import hostimage
from testbed.person import HOME, PASSWORD_FILE, STATE, Person, report
from testbed.story import PROJECT, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

PLACE = f"{HOME}/strange"
OK = f"{PLACE}/fine"


@pytest.fixture(scope="module")
def strange(ready: Person) -> Iterator[Person]:
    """Give the user with directories that are no good as worktrees, and some that only look so."""
    ready.sh(
        f"mkdir -p {OK} {PLACE}/sealed && touch {PLACE}/file && chmod 000 {PLACE}/sealed && ln -sfn {HOME} {PLACE}/home"
        f" && ln -sfn {PLACE}/loop {PLACE}/loop && mkdir -p {PLACE}/___ $'{PLACE}/line\\nbreak' $'{PLACE}/bytes\\xff'"
        f" {PLACE}/readonly && chmod 555 {PLACE}/readonly",
        check=True,
    )
    yield ready
    ready.root(f"chmod -R u+rwx {PLACE} && rm -r {PLACE}")


def inventory(person: Person) -> str:
    """Return everything that belongs to any VM."""
    return person.root(f"ls -A {STATE}/instances /run/vmw/dev; ls {HOME}/.config/systemd/user | grep vmw-", check=False) + str(
        person.domains()
    )


def check_refused(done: Done, code: int, words: str) -> None:
    assert done.returncode == code, report(done)
    assert re.search(words, done.stderr), report(done)
    assert "error: " in done.stderr, report(done)
    assert "hint: " in done.stderr, report(done)
    assert "Traceback" not in done.stderr + done.stdout, report(done)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        pytest.param("strange/nowhere", "does not exist", id="missing"),
        pytest.param("strange/file", "not a directory", id="file"),
        pytest.param("strange/sealed", "cannot be read|not yours", id="unreadable"),
        pytest.param("strange/sealed/inner", "cannot be|does not exist", id="below-unreadable"),
        pytest.param("strange/readonly", "not yours to read and write|cannot be written", id="read-only"),
        pytest.param("strange/loop", "does not exist|loop|cannot be", id="link-to-itself"),
        pytest.param("/", "home directory", id="root"),
        pytest.param("~", "home directory", id="home"),
        pytest.param("strange/home", "home directory", id="link-to-home"),
        pytest.param("/home", "home directory", id="above-home"),
        pytest.param("~/.config/vmw/instances", "vmw's own directory", id="state"),
        pytest.param("/etc", "not yours", id="somebody-elses"),
        pytest.param("strange/___", "no name for a VM", id="nameless"),
        pytest.param("strange/line\nbreak", "control character", id="newline"),
        pytest.param("", "does not exist|no worktree|home directory", id="empty"),
    ],
)
def test_path_is_refused(strange: Person, path: str, words: str) -> None:
    before = inventory(strange)
    check_refused(strange.vmw("spawn", path), 2, words)
    assert inventory(strange) == before


def test_path_that_is_no_text_is_refused(strange: Person) -> None:
    before = inventory(strange)
    check_refused(strange.sh(f"~/vmw/vmw spawn $'{PLACE}/bytes\\xff'"), 2, "not valid UTF-8")
    assert inventory(strange) == before


@pytest.mark.parametrize(
    "name", ["Upper", "under_score", "-x", "x-", "a.b", "localhost", "", "x" * 64, "ümlaut", "../x", "{{ 1 }}"]
)
def test_name_is_refused(strange: Person, name: str) -> None:
    before = inventory(strange)
    check_refused(strange.vmw("spawn", OK, f"--name={name}"), 2, "name")
    assert inventory(strange) == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--memory=12Q", "12Q"),
        ("--memory=100M", "memory"),
        ("--memory=-1", "-1"),
        ("--cpus=0", "0"),
        ("--cpus=many", "many"),
        ("--disk=1", "disk"),
        ("--colour=red", "colour"),
    ],
)
def test_option_is_refused(strange: Person, option: str, words: str) -> None:
    before = inventory(strange)
    check_refused(strange.vmw("spawn", OK, option), 2, words)
    assert inventory(strange) == before


def test_playbook_refuses_in_the_same_words(strange: Person) -> None:
    done = strange.playbook("playbooks/spawn.yml", "-e", f"worktree={PLACE}/nowhere", cwd="/")
    assert done.returncode == 2, report(done)
    assert f"{PLACE}/nowhere does not exist" in done.stdout + done.stderr, report(done)


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        pytest.param("{{ 7*7 }}", "7-7", id="template"),
        pytest.param('it\'s a "test" $HOME `id` %n \\t;&', "it-s-a-test-home-id-n-t", id="quotes"),
        pytest.param("Größe-日本", "grosse", id="non-ascii"),
    ],
)
def test_strange_path_works(strange: Person, directory: str, name: str) -> None:
    path = f"{PLACE}/{directory}"
    strange.sh(f"mkdir -p {shlex.quote(path)} && touch {shlex.quote(path)}/this-one", check=True)
    try:
        done = strange.vmw("spawn", path, "--no-wait", *SMALL)
        assert done.returncode == 0, report(done)
        assert strange.record(name)["worktree"] == path
        assert strange.domain_state(name) == "running"
        daemons = strange.root("ps -C virtiofsd -o pid=,cgroup=").splitlines()
        (pid,) = [line.split()[0] for line in daemons if line.endswith(f"/vmw-{name}-repo.service")]
        assert "this-one" in strange.root(f"ls /proc/{pid}/root/share")
    finally:
        destroyed = strange.vmw("destroy", name, "--yes")
    assert destroyed.returncode == 0, report(destroyed)
    assert strange.traces(name) == []
    assert strange.exists(f"{path}/this-one")


def test_missing_ssh_key_is_named(strange: Person) -> None:
    before = inventory(strange)
    strange.sh("mkdir -p ~/keys && mv ~/.ssh/id_* ~/keys", check=True)
    try:
        check_refused(strange.vmw("spawn", OK), 3, "SSH key")
        playbook = strange.playbook("playbooks/spawn.yml", "-e", f"worktree={OK}", cwd="/")
        assert playbook.returncode == 2, report(playbook)
        assert "ssh-keygen" in playbook.stdout + playbook.stderr, report(playbook)
        with strange.terminal(f"~/vmw/vmw spawn {OK}") as terminal:
            terminal.wait_for(r"\[y/N\]", 60)
            terminal.type("n\n")
            assert terminal.exit_code(60) == 3, terminal.text
        assert not strange.exists(f"{HOME}/.ssh/id_ed25519")
    finally:
        strange.sh("mv ~/keys/id_* ~/.ssh && rmdir ~/keys", check=True)
    assert inventory(strange) == before


def test_missing_group_is_named_and_put_right(strange: Person) -> None:
    strange.root("gpasswd -d dev libvirt")
    try:
        playbook = strange.playbook("playbooks/spawn.yml", "-e", f"worktree={OK}", cwd="/")
        assert playbook.returncode == 2, report(playbook)
        assert "vmw host" in playbook.stdout + playbook.stderr, report(playbook)
        assert strange.traces("fine") == []
        check_refused(strange.vmw("spawn", OK), 3, "password")
        assert "not in the group libvirt" in strange.vmw("doctor").stdout
        listing = strange.vmw("list")
        assert listing.returncode == 0, report(listing)
        mended = strange.vmw("spawn", OK, "--no-wait", *SMALL, env=PASSWORD_FILE)
        assert mended.returncode == 0, report(mended)
        assert strange.domain_state("fine") == "running"
    finally:
        strange.root(f"gpasswd -a {hostimage.USER} libvirt")
        strange.vmw("destroy", "fine", "--yes")
    assert strange.traces("fine") == []


def test_full_disk_is_named_and_the_next_run_carries_on(strange: Person) -> None:
    strange.root(f"mount -t tmpfs -o size=600m,uid={hostimage.UID},gid={hostimage.UID},mode=0711 none {STATE}/instances")
    try:
        check_refused(strange.vmw("spawn", OK, *SMALL), 1, "MiB are free")
        assert "fine" not in strange.domains()
        strange.root(f"mount -o remount,size=2g {STATE}/instances")
        done = strange.vmw("spawn", OK, "--no-wait", *SMALL)
        assert done.returncode == 0, report(done)
        destroyed = strange.vmw("destroy", "fine", "--yes")
        assert destroyed.returncode == 0, report(destroyed)
    finally:
        strange.root(f"umount {STATE}/instances")
    assert strange.traces("fine") == []


def test_two_spawns_of_one_worktree_at_the_same_time_make_one_vm(strange: Person) -> None:
    words = " ".join(("spawn", OK, "--no-wait", *SMALL))
    done = strange.sh(f"~/vmw/vmw {words} & ~/vmw/vmw {words}; echo $?; wait $!; echo $?", timeout=300)
    try:
        assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["0", "0"], report(done)
        assert strange.domain_state("fine") == "running"
        assert strange.record("fine")["uuid"] == strange.virsh("domuuid", "fine")
    finally:
        strange.vmw("destroy", "fine", "--yes")
    assert strange.traces("fine") == []


def test_two_worktrees_that_want_one_name_at_the_same_time_make_one_vm(strange: Person) -> None:
    strange.sh(f"mkdir -p {PLACE}/two/fine", check=True)
    others = strange.domains()
    one, two = (f"~/vmw/vmw spawn {path} --no-wait {' '.join(SMALL)}" for path in (OK, f"{PLACE}/two/fine"))
    done = strange.sh(f"{one} & {two}; echo $?; wait $!; echo $?", timeout=300)
    try:
        codes = [line for line in done.stdout.splitlines() if line.isdigit()]
        assert sorted(codes) == ["0", "5"], report(done)
        assert sorted(strange.domains()) == sorted([*others, "fine"])
    finally:
        strange.vmw("destroy", "fine", "--yes")
    assert strange.traces("fine") == []


@pytest.mark.parametrize("text", ["vmw_memory_mib: [", "just words", "vmw_state_dir: '{{ x }}'"])
def test_broken_config_is_named(strange: Person, text: str) -> None:
    config = f"{STATE}/config.yml"
    strange.root(f"cp -p {config} {config}.kept")
    strange.sh(f"cat > {config} <<'END'\n{text}\nEND", check=True)
    try:
        check_refused(strange.vmw("list"), 2, "config.yml")
    finally:
        strange.root(f"mv {config}.kept {config}")


@pytest.mark.parametrize("words", [["nonsense"], ["spawn"], ["ssh"], ["image", "nonsense"], ["destroy", "../x", "--yes"]])
def test_wrong_command_line(strange: Person, words: list[str]) -> None:
    done = strange.vmw(*words)
    assert done.returncode in {2, 4}, report(done)
    assert "hint: " in done.stderr, report(done)
    assert "Traceback" not in done.stderr


def test_worktree_below_a_private_directory_works(strange: Person) -> None:
    # The share's daemon is the user's own, so nobody else needs a way to the worktree.
    path = f"{PROJECT}/worktrees/third"
    modes = {directory: strange.stat(directory).split()[0] for directory in (HOME, f"{HOME}/Code")}
    strange.root(f"chmod 700 {HOME} {HOME}/Code")
    try:
        done = strange.vmw("spawn", path, "--no-wait", *SMALL)
        assert done.returncode == 0, report(done)
        assert strange.domain_state("third") == "running"
    finally:
        strange.vmw("destroy", "third", "--yes")
        for directory, mode in modes.items():
            strange.root(f"chmod {mode} {directory}")
