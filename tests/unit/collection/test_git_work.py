"""What is told of a VM's work, and that nothing which the guest left there is run for it. With the real git."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import git_work as work
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import Kind, read_layout
from ansible_collections.vmw.worktree.plugins.module_utils.git_work import Risk, warnings, work_at_risk
from ansible_collections.vmw.worktree.plugins.module_utils.guest_git import UnknownError
from ansible_collections.vmw.worktree.plugins.modules import git_work
from git_support import Guest, attach, commit, git, make_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CASES = [
    ("protected", Kind.LINKED),
    ("protected", Kind.MAIN),
    ("protected", Kind.BARE),
    ("isolated", Kind.LINKED),
    ("isolated", Kind.MAIN),
    ("isolated", Kind.BARE),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].value}")
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Guest:
    return make_guest(tmp_path, *request.param)


@pytest.fixture
def isolated(tmp_path: Path) -> Guest:
    return make_guest(tmp_path, "isolated")


def look(guest: Guest) -> Risk:
    return work_at_risk(guest.instance, guest.files)


def dirty(guest: Guest) -> None:
    """Leave two staged, one changed and three untracked paths."""
    for name in ("a", "b"):
        (guest.worktree / name).write_text(name)
        guest.git("add", name)
    (guest.worktree / "first").write_text("changed")
    (guest.worktree / "directory").mkdir()
    for name in ("directory/x", "directory/y", "new", "newer", "ignored.o"):
        (guest.worktree / name).write_text(name)
    (guest.common / "info").mkdir(exist_ok=True)
    (guest.common / "info/exclude").write_text("*.o\n")


def test_nothing_to_tell(guest: Guest) -> None:
    risk = look(guest)
    assert risk == Risk()
    assert warnings(guest.instance, risk) == []


def test_uncommitted_work(guest: Guest) -> None:
    dirty(guest)
    before = {path: path.read_bytes() for path in guest.head_dir.iterdir() if path.is_file()}
    risk = look(guest)
    assert (risk.staged, risk.unstaged, risk.untracked, risk.unknown) == (2, 1, 3, "")
    assert before == {path: path.read_bytes() for path in guest.head_dir.iterdir() if path.is_file()}
    assert "2 staged, 1 changed, 3 untracked" in warnings(guest.instance, risk)[0]


def test_a_touched_file_is_no_change(guest: Guest) -> None:
    os.utime(guest.worktree / "first", (1, 1))
    assert look(guest).unstaged == 0


def test_before_the_first_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main", "new")
    tree = tmp_path / "new"
    for mode in ("protected", "isolated"):
        guest = attach(tmp_path / mode, tree, read_layout(tree), mode)
        (tree / "a").write_text("a")
        guest.git("add", "a")
        risk = look(guest)
        assert (risk.staged, risk.only_guest, risk.unknown) == (1, 0, "")


@pytest.mark.parametrize("mode", ["protected", "isolated"])
def test_sha256(tmp_path: Path, mode: str) -> None:
    guest = make_guest(tmp_path, mode, made_with=("--object-format=sha256",))
    dirty(guest)
    guest.git("commit", "-qm", "More")
    nested(guest, tmp_path / "unused")
    risk = look(guest)
    assert (risk.staged, risk.unstaged, risk.untracked, risk.unknown) == (0, 1, 3, "")
    assert risk.only_guest == (2 if mode == "isolated" else 0)


def test_commits_that_no_remote_has(guest: Guest, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "hub")
    git(guest.common, "config", "remote.origin.url", str(tmp_path / "hub"))
    git(guest.common, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    assert look(guest).unpushed == 1
    guest.git("push", "-q", str(tmp_path / "hub"), "HEAD:refs/heads/topic")
    guest.git("fetch", "-q", str(tmp_path / "hub"), "refs/heads/topic:refs/remotes/origin/topic")
    assert look(guest).unpushed == 0
    guest.commit("a")
    guest.commit("b")
    risk = look(guest)
    assert risk.unpushed == 2
    assert "2 commits in no remote" in warnings(guest.instance, risk)[-1]


def test_commits_that_only_the_guest_has(isolated: Guest) -> None:
    guest = isolated
    guest.commit("a")
    assert warnings(guest.instance, look(guest)) == ["1 commit exists only in this VM: `vmw git pull one` brings it over"]
    guest.commit("b")
    guest.commit("c")
    risk = look(guest)
    assert risk == Risk(only_guest=3)
    assert warnings(guest.instance, risk) == ["3 commits exist only in this VM: `vmw git pull one` brings them over"]
    guest.git("checkout", "-q", "--detach", "main")
    assert look(guest) == Risk(only_guest=3, only_elsewhere=3)
    guest.commit("d")
    guest.git("pack-refs", "--all")
    risk = look(guest)
    assert risk == Risk(only_guest=4, only_elsewhere=3)
    assert "4 commits exist only in this VM, 3 not on its current branch" in warnings(guest.instance, risk)[0]
    # As a pull does.
    git(guest.common, "fetch", "-q", str(guest.files.git_dir), "HEAD:refs/heads/vmw/one", "topic:refs/heads/kept")
    assert look(guest) == Risk()


def test_a_branch_whose_name_ends_a_line_hides_no_commit(isolated: Guest) -> None:
    git(isolated.common, "branch", "x\u2028HEAD", "main")
    isolated.commit("a")
    assert look(isolated) == Risk(only_guest=1)


def test_a_stash(isolated: Guest) -> None:
    (isolated.worktree / "first").write_text("changed")
    isolated.git("stash", "-q")
    risk = look(isolated)
    assert risk == Risk(stashed=True)
    assert warnings(isolated.instance, risk)[0].startswith("a stash exists only in this VM")


def test_a_protected_guest_leaves_its_commits_on_the_host(tmp_path: Path) -> None:
    guest = make_guest(tmp_path, "protected", Kind.MAIN)
    guest.commit("a")
    assert look(guest) == Risk()
    guest.git("checkout", "-q", "--detach")
    guest.commit("b")
    risk = look(guest)
    assert risk == Risk(only_guest=1)
    assert "1 commit on no branch" in warnings(guest.instance, risk)[0]


@pytest.mark.parametrize("mode", ["protected", "isolated"])
def test_a_shallow_repository(tmp_path: Path, mode: str) -> None:
    git(tmp_path, "init", "-q", "-b", "main", "hub")
    for name in ("a", "b", "c"):
        commit(tmp_path / "hub", name)
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path}/hub", "project")
    guest = attach(tmp_path, tmp_path / "project", read_layout(tmp_path / "project"), mode)
    guest.commit("d")
    assert look(guest) == Risk(unpushed=1, only_guest=1 if mode == "isolated" else 0)


def test_a_split_index(guest: Guest) -> None:
    guest.git("update-index", "--split-index")
    dirty(guest)
    assert look(guest).staged == 2


def test_without_git_there_is_nothing_to_tell(tmp_path: Path) -> None:
    guest = make_guest(tmp_path, "none")
    (guest.worktree / "a").touch()
    assert look(guest) == Risk()


# --- hostile guests ----------------------------------------------------------------------------------------------


def marker_script(directory: Path) -> tuple[Path, Path]:
    """Return a program, and the file that it makes when it is run."""
    marker, script = directory / "marker", directory / "attack"
    script.write_text(f"#!/bin/sh\ntouch '{marker}'\ncat\n")
    script.chmod(0o755)
    return script, marker


def nested(guest: Guest, script: Path) -> None:
    """Put a nested repository into the index, whose configuration names a program."""
    sub = guest.worktree / "sub"
    sub.mkdir(exist_ok=True)
    git(sub, "init", "-q", f"--object-format={guest.git('rev-parse', '--show-object-format')}")
    commit(sub, "x")
    git(sub, "config", "core.fsmonitor", str(script))
    guest.git("-c", "advice.addEmbeddedRepo=false", "add", "sub")
    guest.git("commit", "-qm", "Nest")


def plain_status(guest: Guest) -> None:
    """Run git as a person would in the worktree, with the guest's HEAD and index."""
    subprocess.run(
        ["git", "status"],
        cwd=guest.worktree,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **guest.environment()},
        capture_output=True,
        check=False,
    )


def test_a_nested_repository_runs_nothing(guest: Guest, tmp_path: Path) -> None:
    script, marker = marker_script(tmp_path)
    nested(guest, script)
    marker.unlink(missing_ok=True)
    plain_status(guest)
    assert marker.exists()
    marker.unlink()
    (guest.worktree / "sub/x").write_text("changed")
    risk = look(guest)
    assert (risk.staged, risk.unstaged, risk.untracked, risk.unknown) == (0, 0, 0, "")
    assert not marker.exists()


def test_an_untracked_nested_repository_runs_nothing(guest: Guest, tmp_path: Path) -> None:
    script, marker = marker_script(tmp_path)
    nested(guest, script)
    guest.git("rm", "-q", "--cached", "sub")
    guest.git("commit", "-qm", "Forget")
    marker.unlink(missing_ok=True)
    assert look(guest).untracked == 1
    assert not marker.exists()


def test_a_filter_runs_nothing(guest: Guest, tmp_path: Path) -> None:
    script, marker = marker_script(tmp_path)
    # As one that the person uses elsewhere.
    for config in {guest.common / "config", guest.head_dir / "config"}:
        if config.exists():
            git(tmp_path, "config", f"--file={config}", "filter.evil.clean", str(script))
    (guest.worktree / ".gitattributes").write_text("first filter=evil diff=evil\n")
    (guest.worktree / "first").write_text("other")
    plain_status(guest)
    os.utime(guest.worktree / "first", (1, 1))
    marker.unlink(missing_ok=True)
    plain_status(guest)
    assert marker.exists()
    marker.unlink()
    os.utime(guest.worktree / "first", (2, 2))
    assert look(guest).unstaged == 1
    assert not marker.exists()


def test_a_private_repository_runs_nothing(isolated: Guest, tmp_path: Path) -> None:
    script, marker = marker_script(tmp_path)
    for key in ("core.fsmonitor", "core.alternateRefsCommand", "core.sshCommand", "diff.external"):
        isolated.git("config", key, str(script))
    hooks = isolated.files.git_dir / "hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "fsmonitor-watchman"):
        (hooks / name).symlink_to(script)
    marker.unlink(missing_ok=True)
    plain_status(isolated)
    assert marker.exists()
    marker.unlink()
    (isolated.worktree / "new").touch()
    assert look(isolated) == Risk(untracked=1)
    assert not marker.exists()


def _link(path: Path) -> None:
    target = path.with_name(f"{path.name}.real")
    path.rename(target)
    path.symlink_to(target)


def _fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _garbage(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(b"DIRC" + os.urandom(1000))


def _directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


BREAKS = [_link, _fifo, _garbage, _directory]


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_hostile_index_is_told_and_the_commits_with_it(guest: Guest, spoil: Callable[[Path], None]) -> None:
    guest.commit("a")
    spoil(guest.head_dir / "index")
    risk = look(guest)
    assert risk.unknown
    assert risk.only_guest == (1 if guest.instance.git.mode == "isolated" else 0)
    assert "could not tell" in warnings(guest.instance, risk)[-1]


@pytest.mark.parametrize("spoil", BREAKS)
def test_a_hostile_head_is_told(guest: Guest, spoil: Callable[[Path], None]) -> None:
    spoil(guest.head_dir / "HEAD")
    assert look(guest).unknown


@pytest.mark.parametrize("name", ["packed-refs", "refs/heads/topic", "shallow"])
@pytest.mark.parametrize("spoil", [_link, _fifo, _directory])
def test_hostile_refs_are_told(isolated: Guest, spoil: Callable[[Path], None], name: str) -> None:
    isolated.commit("a")
    path = isolated.files.git_dir / name
    path.touch()
    spoil(path)
    risk = look(isolated)
    # An empty directory in the place of a ref is none.
    assert risk.unknown or (spoil is _directory and name == "refs/heads/topic")


def test_a_name_that_a_terminal_would_obey_is_told_in_print(isolated: Guest) -> None:
    os.mkfifo(isolated.files.git_dir / "refs/heads/\r\x1b[2Kx")
    risk = look(isolated)
    assert risk.unknown == "its \\x0d\\x1b[2Kx is no file"
    assert all(line.isprintable() for line in warnings(isolated.instance, risk))


def test_a_guest_that_borrows_from_elsewhere_is_told(isolated: Guest, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "other")
    alternates = isolated.files.git_dir / "objects/info/alternates"
    alternates.write_text(f"{alternates.read_text()}{tmp_path}/other/.git/objects\n")
    assert look(isolated).unknown == "its repository borrows objects from elsewhere"


def test_of_a_guests_objects_only_the_objects_are_seen(isolated: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated.commit("a")
    isolated.git("repack", "-q", "-d")
    isolated.git("commit-graph", "write", "--reachable")
    isolated.commit("b")
    shutil.rmtree(isolated.files.git_dir / "objects/ab", ignore_errors=True)
    (isolated.files.git_dir / "objects/ab").symlink_to(tmp_path)
    seen: list[str] = []
    real = work._borrow_private

    def note(*arguments: Any) -> None:  # noqa: ANN401
        real(*arguments)
        seen.extend(sorted(path.name for path in arguments[2].iterdir()))

    monkeypatch.setattr(work, "_borrow_private", note)
    look(isolated)
    assert "pack" in seen
    assert "info" in seen
    assert "ab" not in seen


def test_a_path_that_leads_out_of_the_worktree_is_only_counted(isolated: Guest, tmp_path: Path) -> None:
    isolated.git("rm", "-q", "--cached", "first")
    value = isolated.git("hash-object", "-w", "first")
    index = isolated.files.git_dir / "index"
    isolated.git("update-index", "--add", "--cacheinfo", f"100644,{value},XXXoutside")
    index.write_bytes(index.read_bytes().replace(b"XXXoutside", b"../outside"))
    look(isolated)
    assert not (tmp_path / "outside").exists()


def test_of_a_split_index_only_what_it_names_is_copied(isolated: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolated.git("update-index", "--split-index")
    for number in range(6):
        with (isolated.files.git_dir / f"sharedindex.{number:040x}").open("wb") as sparse:
            sparse.truncate(64 << 20)
    dirty(isolated)
    (isolated.worktree / "link").touch()
    isolated.git("add", "link")
    target = tmp_path / "target"
    target.mkdir()
    work._copy_index(isolated.files.git_dir, target, work._Limit(20))
    assert sorted(path.stat().st_size < 4096 for path in target.iterdir()) == [True, True]
    assert look(isolated).staged == 3
    size = sum(path.stat().st_size for path in target.iterdir())
    for limit, unknown in ((size, ""), (size - 1, "is too long")):
        monkeypatch.setattr(work, "INDEX_BYTES", limit)
        shutil.rmtree(target)
        target.mkdir()
        if unknown:
            with pytest.raises(UnknownError, match=unknown):
                work._copy_index(isolated.files.git_dir, target, work._Limit(20))
        else:
            work._copy_index(isolated.files.git_dir, target, work._Limit(20))
    monkeypatch.undo()
    with pytest.raises(UnknownError, match="takes longer"):
        work._copy_index(isolated.files.git_dir, tmp_path, work._Limit(0))


def test_missing_objects_are_told(isolated: Guest) -> None:
    (isolated.files.git_dir / "refs/heads/lost").write_text("1" * 40 + "\n")
    assert look(isolated).unknown == "its repository lacks objects"


@pytest.mark.parametrize(("ref", "staged"), [("lost", 2), ("topic", 0)])
def test_uncommitted_work_is_told_where_objects_are_missing(isolated: Guest, ref: str, staged: int) -> None:
    dirty(isolated)
    (isolated.files.git_dir / "refs/heads" / ref).write_text("1" * 40 + "\n")
    risk = look(isolated)
    assert risk == Risk(unknown="its repository lacks objects", staged=staged, unstaged=1, untracked=3)


def test_git_has_so_much_memory_and_room_and_no_more() -> None:
    argv = ["sh", "-c", "sleep 0.3; ulimit -v; ulimit -f"]
    said = work._run(argv, {"PATH": os.environ["PATH"]}, work._Limit(20))
    assert [int(each) for each in said.split()] == [(2 << 30) // 1024, (256 << 20) // 512]


def test_it_ends_in_time(isolated: Guest) -> None:
    risk = work_at_risk(isolated.instance, isolated.files, 0)
    assert risk.unknown == "it takes longer than 0 s to find out"


def test_a_file_that_never_answers_ends_in_time(isolated: Guest) -> None:
    pack = isolated.files.git_dir / "objects/pack"
    os.mkfifo(pack / f"pack-{'1' * 40}.idx")
    (pack / f"pack-{'1' * 40}.pack").touch()
    assert work_at_risk(isolated.instance, isolated.files, 2).unknown == "it takes longer than 2 s to find out"


def test_a_repository_that_is_gone_is_told(guest: Guest) -> None:
    guest.common.rename(guest.common.with_name("moved"))
    assert look(guest).unknown


def call(guest: Guest, said: list[str], **parameters: object) -> Any:  # noqa: ANN401 - stands for an AnsibleModule
    values = {"state_dir": str(guest.files.state.root), "name": "one", "timeout": 20}
    return SimpleNamespace(params={**values, **parameters}, check_mode=False, warn=said.append)


def test_the_module(isolated: Guest) -> None:
    isolated.commit("a")
    said: list[str] = []
    # Also of a VM that is being removed.
    isolated.files.leaving.touch()
    assert git_work.tell(call(isolated, said)) == {"changed": False, "work": asdict(Risk(only_guest=1))}
    assert len(said) == 1
    assert git_work.tell(call(isolated, said, name="none")) == {"changed": False}
    assert git_work.tell(call(isolated, said, name="../x")) == {"changed": False}
    assert len(said) == 1
