"""Commits between the host and a guest's private repository, with the real git and a stand-in for ssh."""

from __future__ import annotations

import contextlib
import resource
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import git_share, guest_agent
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import Kind, read_layout
from ansible_collections.vmw.worktree.plugins.module_utils.git_transfer import Remote, Transfer, pull, push, remote_of
from ansible_collections.vmw.worktree.plugins.module_utils.layers import instance
from ansible_collections.vmw.worktree.plugins.module_utils.ssh_command import git_ssh_command
from ansible_collections.vmw.worktree.plugins.modules import git_transfer
from git_support import Guest, attach, commit, git, make_guest

ADDRESS = "192.0.2.8"
TARGET = "refs/heads/vmw/one"


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return make_guest(tmp_path, "isolated")


@pytest.fixture
def remote(guest: Guest, tmp_path: Path) -> Remote:
    return replace(remote_of(guest.instance, guest.files, ADDRESS), ssh=guest.ssh(tmp_path))


def main_of(guest: Guest) -> Path:
    return guest.common.parent


def test_ssh_lends_nothing_and_takes_no_other_machine() -> None:
    assert "GSSAPIAuthentication=no" in git_ssh_command("one", "claude", Path("/known_hosts"))
    command = git_ssh_command("one", "claude", Path("/with blank/100%/known_hosts"))
    argv = shlex.split(command)
    shown = subprocess.run([argv[0], "-F", "none", "-G", *argv[1:], ADDRESS], capture_output=True, text=True, check=True).stdout
    lines = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert lines["batchmode"] == lines["clearallforwardings"] == "yes"
    assert lines["forwardagent"] == lines["forwardx11"] == "no"
    assert lines["stricthostkeychecking"] == "true"
    assert lines["hostkeyalias"] == "one"
    assert lines["user"] == "claude"
    assert lines["userknownhostsfile"].replace("%%", "%").strip('"') == "/with blank/100%/known_hosts"


def test_pull(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    guest.commit("a")
    new = guest.commit("b")
    came = pull(guest.instance, remote)
    assert came == Transfer(changed=True, branch="vmw/one", commits=2, look=f"git -C {main_of(guest)} log main..vmw/one")
    assert git(main_of(guest), "rev-parse", TARGET) == new
    assert subprocess.run(came.look.split(), capture_output=True, text=True, check=True).stderr == ""
    assert not (guest.common / "FETCH_HEAD").exists()
    assert ADDRESS in (tmp_path / "ssh.calls").read_text()
    assert pull(guest.instance, remote) == replace(came, changed=False, commits=0)
    guest.commit("c")
    assert pull(guest.instance, remote).commits == 1


def test_pull_of_nothing_new(guest: Guest, remote: Remote) -> None:
    came = pull(guest.instance, remote)
    assert (came.changed, came.commits) == (True, 0)


def test_pull_of_a_named_branch(guest: Guest, remote: Remote) -> None:
    guest.git("checkout", "-qb", "feature/x")
    new = guest.commit("a")
    guest.git("checkout", "-q", "topic")
    pull(guest.instance, remote, "feature/x")
    assert git(main_of(guest), "rev-parse", TARGET) == new


def test_a_look_fetches_nothing(guest: Guest, remote: Remote) -> None:
    known = pull(guest.instance, remote, dry=True)
    assert (known.changed, known.commits) == (True, 0)
    new = guest.commit("a")
    came = pull(guest.instance, remote, dry=True)
    assert (came.changed, came.commits) == (True, None)
    with pytest.raises(subprocess.CalledProcessError):
        git(main_of(guest), "cat-file", "-e", new)
    pull(guest.instance, remote)
    assert not pull(guest.instance, remote, dry=True).changed


def test_rewritten_commits_are_refused_unless_forced(guest: Guest, remote: Remote) -> None:
    old = guest.commit("a")
    pull(guest.instance, remote)
    guest.git("commit", "-q", "--amend", "-m", "Otherwise")
    with pytest.raises(VmwError, match="was rewritten there") as caught:
        pull(guest.instance, remote)
    assert caught.value.code == "conflict"
    assert "`vmw git pull one --force`" in caught.value.hint
    assert git(main_of(guest), "rev-parse", TARGET) == old
    assert pull(guest.instance, remote, force=True).commits == 1
    assert git(main_of(guest), "rev-parse", TARGET) == guest.git("rev-parse", "HEAD")


@pytest.mark.parametrize("force", [False, True])
def test_a_branch_that_is_checked_out_stays(guest: Guest, remote: Remote, *, force: bool) -> None:
    pull(guest.instance, remote)
    git(main_of(guest), "checkout", "-q", "vmw/one")
    guest.commit("a")
    with pytest.raises(VmwError, match=f"vmw/one is checked out at {main_of(guest)}, where") as caught:
        pull(guest.instance, remote, force=force)
    assert caught.value.code == "conflict"


@pytest.mark.parametrize(
    "line", ["! [rejected] HEAD -> vmw/one  (non-fast-forward)", "refusing to fetch into x checked out at 'y'"]
)
def test_a_guest_cannot_have_force_advised(guest: Guest, remote: Remote, tmp_path: Path, line: str) -> None:
    script = tmp_path / "forged"
    script.write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 1\n')
    script.chmod(0o755)
    with pytest.raises(VmwError, match="could not fetch from one") as caught:
        pull(guest.instance, replace(remote, ssh=str(script)))
    assert caught.value.code == "failed"
    assert "--force" not in caught.value.hint


def test_nothing_is_left_of_a_pull(guest: Guest, remote: Remote) -> None:
    git(main_of(guest), "update-ref", "refs/vmw/incoming/one", "HEAD")
    guest.commit("a")
    pull(guest.instance, remote)
    assert not git(main_of(guest), "for-each-ref", "refs/vmw/incoming")
    guest.git("commit", "-q", "--amend", "-m", "Otherwise")
    with pytest.raises(VmwError, match="was rewritten there"):
        pull(guest.instance, remote)
    with pytest.raises(VmwError, match="no branch"):
        pull(guest.instance, remote, "none")
    assert not git(main_of(guest), "for-each-ref", "refs/vmw/incoming")


@pytest.mark.parametrize("taken", ["vmw", "vmw/one/x"])
def test_a_branch_in_the_way_is_seen_before_the_guest_is_asked(guest: Guest, remote: Remote, tmp_path: Path, taken: str) -> None:
    git(main_of(guest), "branch", taken)
    with pytest.raises(VmwError, match=f"your branch {taken} is in the way") as caught:
        pull(guest.instance, remote)
    assert caught.value.hint.startswith(f"rename your branch `{taken}`")
    assert not (tmp_path / "ssh.calls").exists()


def test_what_the_guest_does_not_have(guest: Guest, remote: Remote) -> None:
    for dry in (False, True):
        with pytest.raises(VmwError, match="one has no branch 'none'"):
            pull(guest.instance, remote, "none", dry=dry)
    guest.git("checkout", "-q", "--orphan", "empty")
    for dry in (False, True):
        with pytest.raises(VmwError, match="one has no commit yet"):
            pull(guest.instance, remote, dry=dry)


@pytest.mark.parametrize("name", ["-x", "a:refs/heads/main", "*", "a b", "a..b", "x\nrefs/heads/y", "x.lock"])
def test_what_is_no_branch(guest: Guest, remote: Remote, tmp_path: Path, name: str) -> None:
    for work in (pull, push):
        with pytest.raises(VmwError, match="cannot be a branch's name"):
            work(guest.instance, remote, name)
    assert not (tmp_path / "ssh.calls").exists()


def test_a_broken_object_does_not_come_over(guest: Guest, remote: Remote) -> None:
    text = f"tree {guest.git('rev-parse', 'HEAD^{tree}')}\nauthor nobody\ncommitter nobody\n\nx\n"
    made = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--literally", "--stdin"],
        env={"PATH": "/usr/bin:/bin", "GIT_DIR": str(guest.head_dir)},
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    guest.git("update-ref", "refs/heads/topic", made.stdout.strip())
    with pytest.raises(VmwError, match=r"could not fetch from one: .*missingEmail"):
        pull(guest.instance, remote)
    with pytest.raises(subprocess.CalledProcessError):
        git(main_of(guest), "rev-parse", "--verify", TARGET)


def test_no_hook_runs_and_the_words_of_the_guest_are_tamed(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name in ("reference-transaction", "pre-push", "post-update"):
        hook = guest.common / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
        hook.chmod(0o755)
    git(main_of(guest), "update-ref", "refs/heads/control", "HEAD")
    assert marker.exists()
    marker.unlink()
    guest.commit("a")
    pull(guest.instance, remote)
    push(guest.instance, remote)
    assert not marker.exists()
    script = tmp_path / "loud"
    script.write_text("#!/bin/sh\nprintf 'fatal: \\033[31mred\\n' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(VmwError, match=r"\\x1b\[31mred") as caught:
        pull(guest.instance, replace(remote, ssh=str(script)))
    assert caught.value.message.isprintable()


def test_a_repository_that_borrows_runs_nothing(guest: Guest, remote: Remote, tmp_path: Path) -> None:
    marker, main = tmp_path / "marker", main_of(guest)
    git(tmp_path, "clone", "-q", "--bare", str(main), "lender.git")
    (guest.common / "objects/info/alternates").write_text(f"{tmp_path}/lender.git/objects\n")
    git(main, "config", "core.alternateRefsCommand", f"touch '{marker}';:")
    git(main, "config", "fetch.bundleURI", f"file://{tmp_path}/none")
    guest.commit("a")
    git(main, "fetch", "-q", str(guest.head_dir), "HEAD")
    assert marker.exists()
    marker.unlink()
    guest.commit("b")
    assert pull(guest.instance, remote).changed
    push(guest.instance, remote)
    assert not marker.exists()


@pytest.mark.parametrize("script", ["yes fatal: >&2", "yes fatal: | tr -d '\\n' >&2"])
def test_a_guest_that_complains_without_end_is_ended(guest: Guest, remote: Remote, tmp_path: Path, script: str) -> None:
    loud = tmp_path / "loud"
    # Without a bound it would be 30 MB.
    loud.write_text(f"#!/bin/sh\n({script}) 2>&1 | head -c 30000000 >&2\nexit 1\n")
    loud.chmod(0o755)
    for work in (pull, push):
        with pytest.raises(VmwError, match="said too much"):
            work(guest.instance, replace(remote, ssh=str(loud)))


def test_a_guest_with_refs_without_end_is_ended(guest: Guest, remote: Remote) -> None:
    value = guest.git("rev-parse", "HEAD")
    lines = "".join(f"{value} refs/heads/x{number}/refs/heads/none\n" for number in range(20_000))
    with (guest.head_dir / "packed-refs").open("a") as packed:
        packed.write(lines)
    with pytest.raises(VmwError, match="said too much"):
        pull(guest.instance, remote, "none", dry=True)


def test_git_has_so_much_memory_and_no_more(guest: Guest, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "prlimit", lambda _pid, what, values: limits.append((what, values)))
    pull(guest.instance, remote)
    assert set(limits) == {(resource.RLIMIT_AS, (2 << 30, 2 << 30))}


def test_only_ssh_is_spoken(guest: Guest, remote: Remote) -> None:
    with pytest.raises(VmwError, match="transport 'file' not allowed"):
        pull(guest.instance, replace(remote, url=f"file://{guest.head_dir}"))


def test_push(guest: Guest, remote: Remote) -> None:
    pull(guest.instance, remote)
    new = commit(main_of(guest), "second")
    assert sorted(push(guest.instance, remote, dry=True).branches) == ["main", "topic"]
    assert not guest.git("for-each-ref", "refs/remotes")
    assert push(guest.instance, remote).changed
    listed = guest.git("for-each-ref", "--format=%(refname)", "refs/remotes").splitlines()
    assert listed == ["refs/remotes/host/main", "refs/remotes/host/topic"]
    assert push(guest.instance, remote) == Transfer(changed=False)
    guest.git("merge", "-q", "host/main")
    assert guest.git("rev-parse", "HEAD") == new
    git(main_of(guest), "commit", "-q", "--amend", "-m", "Otherwise")
    assert push(guest.instance, remote, "main").branches == ["main"]
    assert guest.git("rev-parse", "topic") == new


@pytest.mark.parametrize("name", ["a\u2028refs/heads/x", "a\x85b", "a\u2029"])
def test_a_branch_with_a_line_end_of_another_script(guest: Guest, remote: Remote, name: str) -> None:
    git(main_of(guest), "branch", name)
    assert push(guest.instance, remote).changed
    assert guest.git("rev-parse", f"refs/remotes/host/{name}") == guest.git("rev-parse", "main")
    assert len(guest.git("for-each-ref", "--format=x", "refs/remotes").split()) == 3
    guest.git("branch", name)
    guest.git("checkout", "-q", name)
    new = guest.commit("a")
    pull(guest.instance, remote, name)
    assert git(main_of(guest), "rev-parse", TARGET) == new


def test_push_of_no_branch_and_to_a_guest_that_refuses(guest: Guest, remote: Remote) -> None:
    with pytest.raises(VmwError, match="no branch 'none'") as caught:
        push(guest.instance, remote, "none")
    assert caught.value.code == "usage"
    hook = guest.head_dir / "hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(VmwError, match=r"the guest did not take main: .*hook declined"):
        push(guest.instance, remote, "main")


@pytest.mark.parametrize("kind", [Kind.MAIN, Kind.BARE])
def test_other_worktrees(tmp_path: Path, kind: Kind) -> None:
    guest = make_guest(tmp_path, "isolated", kind)
    remote = replace(remote_of(guest.instance, guest.files, ADDRESS), ssh=guest.ssh(tmp_path))
    guest.commit("a")
    came = pull(guest.instance, remote)
    assert came.commits == 1
    assert "Add a" in subprocess.run(came.look.split(), capture_output=True, text=True, check=True).stdout


def call(guest: Guest, **parameters: object) -> Any:  # noqa: ANN401 - stands for an AnsibleModule
    values = {"state_dir": str(guest.files.state.root), "name": "one", "branch": None, "force": False}
    return SimpleNamespace(params={**values, **parameters}, check_mode=False)


@pytest.mark.parametrize(("mode", "words"), [("protected", "in your repository already"), ("none", "has no git data")])
def test_modes_without_a_private_repository(tmp_path: Path, mode: str, words: str) -> None:
    guest = make_guest(tmp_path, mode)
    with pytest.raises(VmwError, match=words) as caught:
        git_transfer.transfer(call(guest, direction="pull"))
    assert caught.value.code == "usage"


def test_the_module(guest: Guest, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = SimpleNamespace(isActive=lambda: False)
    monkeypatch.setattr(git_transfer, "connect", lambda _uri: None)
    monkeypatch.setattr(git_transfer, "find_own_domain", lambda *_arguments: domain)
    monkeypatch.setattr(git_transfer, "guest_address", lambda _domain, _mac: "")
    monkeypatch.setattr(guest_agent, "limited_answers", contextlib.nullcontext)
    monkeypatch.setattr(git_transfer, "remote_of", lambda _instance, _files, _address: remote)
    with pytest.raises(VmwError, match="one is off") as caught:
        git_transfer.transfer(call(guest, direction="pull"))
    assert caught.value.hint == "start it with `vmw start one`"
    domain.isActive = lambda: True
    with pytest.raises(VmwError, match="does not tell its address"):
        git_transfer.transfer(call(guest, direction="pull"))
    monkeypatch.setattr(git_transfer, "guest_address", lambda _domain, _mac: ADDRESS)
    guest.commit("a")
    came = git_transfer.transfer(call(guest, direction="pull"))
    assert (came["changed"], came["branch"], came["commits"]) == (True, "vmw/one", 1)
    assert git_transfer.transfer(call(guest, direction="push"))["branches"] == ["main", "topic"]


def test_what_the_guest_borrows_is_kept_until_it_is_destroyed(guest: Guest) -> None:
    base = git(guest.worktree, "rev-parse", "HEAD")
    kept = git_share.kept_ref("one")
    before = git(main_of(guest), "rev-parse", kept)
    assert git(main_of(guest), "rev-parse", f"{kept}^@").split() == [base]
    commit(guest.worktree, "later")
    git_share.prepare(guest.instance, guest.files)
    assert git(main_of(guest), "rev-parse", kept) == before
    warnings: list[str] = []
    module = call(guest)
    module.warn = warnings.append
    instance.absent(module)
    assert not git(main_of(guest), "for-each-ref", "refs/vmw")
    assert warnings == []
    # Once more, when there is nothing left.
    git_share.release(guest.instance)


def test_a_rebase_and_gc_on_the_host_leave_the_guest_its_commit(guest: Guest, tmp_path: Path) -> None:
    base = commit(guest.worktree, "rebased")
    again = attach(tmp_path / "again", guest.worktree, read_layout(guest.worktree), "isolated")
    git(guest.worktree, "reset", "-q", "--hard", "main")

    def collect() -> None:
        git(guest.common, "reflog", "expire", "--expire=now", "--all")
        git(guest.common, "gc", "-q", "--prune=now")

    collect()
    assert again.git("cat-file", "-t", base) == "commit"
    git_share.release(again.instance)
    collect()
    with pytest.raises(subprocess.CalledProcessError):
        again.git("cat-file", "-t", base)


def test_every_borrowed_tip_is_kept(tmp_path: Path) -> None:
    main = tmp_path / "main"
    git(tmp_path, "init", "-q", "-b", "main", "main")
    names = ("refs/heads/gone", "refs/remotes/origin/gone", "refs/tags/light", "refs/tags/annotated", "refs/tags/nested")
    first = commit(main, "first")
    tips = [commit(main, name.replace("/", "-")) for name in names]
    git(main, "reset", "-q", "--hard", first)
    for name, tip in zip(names[:3], tips[:3], strict=True):
        git(main, "update-ref", name, tip)
    git(main, "tag", "-am", "x", "annotated", tips[3])
    git(main, "tag", "-am", "x", "inner", tips[4])
    git(main, "tag", "-am", "x", "nested", "inner")
    git(main, "tag", "tree", "HEAD^{tree}")
    guest = attach(tmp_path, main, read_layout(main), "isolated")
    kept = git_share.kept_ref("one")
    assert sorted(git(main, "rev-parse", f"{kept}^@").split()) == sorted([first, *tips])
    assert git(main, "log", "-1", "--format=%an %ae %at", kept) == "vmw vmw@localhost 0"
    git(main, "fsck", "--strict")
    for name in git(main, "for-each-ref", "--format=%(refname)", "refs/heads/gone", "refs/remotes", "refs/tags").split():
        git(main, "update-ref", "-d", name)
    git(main, "reflog", "expire", "--expire=now", "--all")
    git(main, "gc", "-q", "--prune=now")
    for tip in tips:
        assert guest.git("cat-file", "-t", tip) == "commit"


def test_a_ref_in_the_way_of_what_is_kept_is_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "main")
    commit(tmp_path / "main", "first")
    git(tmp_path / "main", "update-ref", f"{git_share.kept_ref('one')}/x", "HEAD")
    with pytest.raises(VmwError, match="cannot be kept from `git gc`") as caught:
        attach(tmp_path, tmp_path / "main", read_layout(tmp_path / "main"), "isolated")
    assert "for-each-ref refs/vmw` shows" in caught.value.hint


def test_nothing_is_kept_or_released_in_another_mode(tmp_path: Path) -> None:
    for mode in ("protected", "none"):
        (tmp_path / mode).mkdir()
        guest = make_guest(tmp_path / mode, mode)
        assert not git(main_of(guest), "for-each-ref", "refs/vmw")
        git(main_of(guest), "update-ref", git_share.kept_ref("one"), "HEAD")
        git_share.release(guest.instance)
        assert git(main_of(guest), "for-each-ref", "refs/vmw")


def test_nothing_is_kept_before_the_first_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "new")
    attach(tmp_path, tmp_path / "new", read_layout(tmp_path / "new"), "isolated")
    assert not git(tmp_path / "new", "for-each-ref")


def test_a_kept_commit_that_cannot_be_released_keeps_no_vm(guest: Guest) -> None:
    warnings: list[str] = []
    module = call(guest)
    module.warn = warnings.append
    (guest.common / "config").write_text("[broken")
    instance.absent(module)
    assert "stays kept in your repository" in warnings[0]
    assert not guest.files.directory.exists()
