"""What a new VM gets of a worktree's git data, and what is made for it: with real repositories."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import git_share
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import (
    GitLayout,
    Kind,
    read_config,
    read_layout,
    read_settings,
)
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import MASKED_HEAD, choose, prepare, without_password
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import recorded
from repositories import ENVIRONMENT, KINDS, git, repository, snapshot, worktree

MODES = ("protected", "isolated")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for the home of a user with an empty git configuration."""
    directory = tmp_path / "home"
    directory.mkdir()
    for name in ("GIT_CONFIG_GLOBAL", "GIT_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(directory))
    return directory


def chosen(path: Path, mode: str = "protected", guest_user: str = "claude") -> GitShare:
    return choose(path, read_layout(path), mode, guest_user, State(path.parent.parent / "state"))


def refusal(path: Path, mode: str = "protected") -> str:
    """Return the message of the refusal that must come."""
    with pytest.raises(VmwError) as caught:
        chosen(path, mode)
    assert caught.value.code == "usage"
    assert "--git none" in caught.value.hint
    return caught.value.message


# --- what is chosen ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_a_plain_directory_gets_nothing_in_any_mode(tmp_path: Path, mode: str) -> None:
    assert chosen(worktree("none", tmp_path), mode) == GitShare()


@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_mode_and_layout_are_kept(tmp_path: Path, kind: str, mode: str) -> None:
    path = worktree(kind, tmp_path)
    layout, share = read_layout(path), chosen(path, mode)
    assert (share.mode, share.kind) == (mode, kind)
    assert (share.git_dir, share.common_dir) == (layout.git_dir, layout.common_dir)


@pytest.mark.parametrize("mode", MODES)
def test_borrowed_objects_are_refused(tmp_path: Path, mode: str) -> None:
    main = repository(tmp_path / "main")
    git(tmp_path, "clone", "--quiet", "--shared", main, tmp_path / "clone")
    assert "borrows objects" in refusal(tmp_path / "clone", mode)
    assert chosen(tmp_path / "clone", "none").mode == "none"


@pytest.mark.parametrize("mode", MODES)
def test_an_unknown_extension_is_refused(tmp_path: Path, mode: str) -> None:
    main = repository(tmp_path / "main")
    git(main, "config", "extensions.relativeWorktrees", "true")
    assert "relativeworktrees" in refusal(main, mode)
    assert chosen(main, "none").mode == "none"


@pytest.fixture
def common_dirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a repository be where the tests cannot make one."""
    monkeypatch.setattr(git_share, "unknown_extensions", lambda _layout: [])


def chosen_at(common: str, worktree: Path) -> GitShare:
    layout = GitLayout(Kind.LINKED, f"{common}/worktrees/x", common)
    return choose(worktree, layout, "protected", "claude", State(worktree / "state"))


@pytest.mark.parametrize("place", ["/repo", "/repo/.git", "/.secrets/x", "/.repo-git", "/.ssh", ""])
def test_a_repository_in_the_place_of_the_guests_own_directories_is_refused(
    tmp_path: Path, common_dirs: None, place: str
) -> None:
    with pytest.raises(VmwError, match="cannot be at its own path"):
        chosen_at(f"/home/claude{place}", tmp_path)


@pytest.mark.parametrize("place", ["/repository", "/repo2", "/.repo-git2", "2/repo"])
def test_a_repository_beside_the_guests_own_directories_works(tmp_path: Path, common_dirs: None, place: str) -> None:
    assert chosen_at(f"/home/claude{place}", tmp_path).common_dir == f"/home/claude{place}"


def test_a_repository_that_holds_vmws_own_directory_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    state = State(tmp_path / "main/.git/vmw")
    with pytest.raises(VmwError, match="overlaps vmw's own directory"):
        choose(linked, read_layout(linked), "protected", "claude", state)


@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("name", [b"a\nb", b"caf\xe9"])
def test_a_repository_whose_path_no_unit_could_carry_is_refused(tmp_path: Path, mode: str, name: bytes) -> None:
    # Over a link, whose own name is harmless.
    real = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    main = repository(tmp_path / "link/main")
    git(main, "worktree", "add", "--quiet", "-b", "work", tmp_path / "wt")
    private = Path(real, "main/.git/worktrees/wt")
    (tmp_path / "wt/.git").write_text(f"gitdir: {tmp_path}/link/main/.git/worktrees/wt\n")
    (private / "gitdir").write_text(f"{tmp_path}/wt/.git\n")
    with pytest.raises(VmwError) as caught:
        chosen(tmp_path / "wt", mode)
    assert caught.value.code == "usage"


# --- the user's name -----------------------------------------------------------------------------------------------


def test_without_a_name_there_is_none(tmp_path: Path) -> None:
    share = chosen(repository(tmp_path / "main"))
    assert (share.user_name, share.user_email) == ("", "")


def test_the_users_own_name_is_taken(tmp_path: Path, home: Path) -> None:
    (home / ".gitconfig").write_text('[user]\n\tname = Jörg \\"J\\" # not a comment\'s\n\temail = j@host\n')
    share = chosen(repository(tmp_path / "main"), "none")
    assert (share.user_name, share.user_email) == ('Jörg "J"', "j@host")


@pytest.mark.parametrize("kind", KINDS)
def test_the_repositorys_name_comes_first(tmp_path: Path, home: Path, kind: str) -> None:
    (home / ".gitconfig").write_text("[user]\n\tname = Global\n\temail = g@host\n")
    path = worktree(kind, tmp_path)
    git(path, "config", "user.email", "local@host")
    share = chosen(path)
    assert (share.user_name, share.user_email) == ("Global", "local@host")


def test_a_name_for_a_directory_of_repositories_is_taken(tmp_path: Path, home: Path) -> None:
    (home / "work").write_text("[user]\n\temail = work@host\n")
    (home / ".gitconfig").write_text(f'[user]\n\temail = g@host\n[includeIf "gitdir:{tmp_path}/job/"]\n\tpath = work\n')
    assert chosen(repository(tmp_path / "job/main")).user_email == "work@host"
    assert chosen(repository(tmp_path / "play/main")).user_email == "g@host"


# --- what is prepared ----------------------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, str]:
    """Return what a directory holds, without times, which git renews on objects that it would write again."""
    return {path: content for path, (_, _, content) in snapshot(directory).items()}


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_nothing_is_made_for_a_plain_directory(tmp_path: Path, mode: str) -> None:
    instance, files = recorded(worktree("none", tmp_path), tmp_path, mode)
    prepare(instance, files)
    assert names(files.directory) == {"instance.json"}


@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_preparing_twice_makes_nothing_anew(tmp_path: Path, kind: str, mode: str) -> None:
    instance, files = recorded(worktree(kind, tmp_path), tmp_path, mode)
    prepare(instance, files)
    before = snapshot(files.directory)
    host = contents(Path(instance.git.common_dir))
    prepare(instance, files)
    after = snapshot(files.directory)
    # The daemon's unit fills the copies, which are touched here.
    copies = {f"git-masks/{name}" for name in ("config", "packed-refs", "shallow", "HEAD")}
    assert {path: entry for path, entry in after.items() if path not in copies} == {
        path: entry for path, entry in before.items() if path not in copies
    }
    assert contents(Path(instance.git.common_dir)) == host


@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_repository_stays_as_it_is(tmp_path: Path, kind: str, mode: str) -> None:
    path = worktree(kind, tmp_path)
    common = Path(read_layout(path).common_dir)
    git(path, "config", "core.logAllRefUpdates", "false")
    (path / "a").write_text("staged\n")
    git(path, "add", "a")
    repository_before, worktree_before = snapshot(common), snapshot(path)
    prepare(*recorded(path, tmp_path, mode))
    after = snapshot(common)
    assert {name: entry for name, entry in after.items() if name in repository_before} == repository_before
    own = str(Path(read_layout(path).git_dir).relative_to(common) / "config.worktree")
    kept = {"refs/vmw", "refs/vmw/base", "refs/vmw/base/one"}
    allowed = {"protected": {"logs", "objects/info", own}, "isolated": kept}.get(mode, set())
    # What keeps the borrowed commits is a commit itself, and its empty tree.
    added = {name for name in set(after) - set(repository_before) if not re.match(r"objects/[0-9a-f]{2}(/|$)", name)}
    assert added <= allowed
    if kind != "main":
        assert snapshot(path) == worktree_before


@pytest.mark.parametrize("kind", ["linked", "bare"])
def test_a_worktree_shares_its_own_directory_in_protected_mode(tmp_path: Path, kind: str) -> None:
    instance, files = recorded(worktree(kind, tmp_path), tmp_path, "protected")
    prepare(instance, files)
    assert not files.git_dir.exists()
    masks = {path.name: path.read_text() for path in files.git_masks.iterdir()}
    assert masks["dot-git"] == f"gitdir: {instance.git.git_dir}\n"
    assert masks["commondir"] == f"{instance.git.common_dir}\n"
    assert masks["gitdir"] == "/home/claude/repo/.git\n"
    assert {"config", "packed-refs", "shallow", "HEAD"} <= set(masks)
    assert Path(instance.git.git_dir, "config.worktree").is_file()


@pytest.mark.parametrize("kind", ["main", "submodule"])
def test_others_get_a_head_and_an_index_of_their_own_in_protected_mode(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    assert (files.git_masks / "masked-HEAD").read_text() == MASKED_HEAD
    assert names(files.git_dir) == {"HEAD", "index", "commondir", "gitdir"}
    assert (files.git_dir / "HEAD").read_text() == "ref: refs/heads/work\n"
    assert (files.git_dir / "commondir").read_text() == f"{instance.git.common_dir}\n"
    assert (files.git_dir / "gitdir").read_text() == "/home/claude/repo/.git\n"


@pytest.mark.parametrize("kind", ["main", "submodule"])
def test_a_head_of_its_own_works_on_the_hosts_branches(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    inner = (f"--git-dir={files.git_dir}", f"--work-tree={path}")
    assert git(tmp_path, *inner, "status", "--short") == ""
    git(tmp_path, *inner, "switch", "--quiet", "--create", "guest")
    git(tmp_path, *inner, "commit", "--quiet", "--allow-empty", "--message", "guest")
    assert git(path, "log", "--format=%s", "-1", "guest") == "guest"
    assert git(path, "rev-parse", "--abbrev-ref", "HEAD") == "work"


def test_a_submodules_own_configuration_does_not_lead_to_the_hosts_worktree(tmp_path: Path) -> None:
    path = worktree("submodule", tmp_path)
    git(path, "sparse-checkout", "set", "dir")
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    assert read_config(files.git_dir / "config.worktree")["core.sparsecheckout"] == "true"
    assert "core.worktree" not in read_config(files.git_dir / "config.worktree")
    assert "core.worktree" in read_config(Path(instance.git.git_dir, "config.worktree"))


@pytest.mark.parametrize("kind", ["linked", "bare", "submodule"])
def test_without_git_the_pointer_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    instance, files = recorded(worktree(kind, tmp_path), tmp_path, "none")
    prepare(instance, files)
    assert names(files.directory) == {"instance.json", "git-masks"}
    assert names(files.git_masks) == {"dot-git"}


def test_without_git_a_main_checkout_shows_an_empty_directory(tmp_path: Path) -> None:
    instance, files = recorded(worktree("main", tmp_path), tmp_path, "none")
    prepare(instance, files)
    assert not names(files.git_masks / "empty")
    assert not files.git_dir.exists()


def test_what_the_guest_has_already_is_left_alone(tmp_path: Path) -> None:
    path = worktree("main", tmp_path)
    instance, files = recorded(path, tmp_path, "isolated")
    prepare(instance, files)
    (files.git_dir / "HEAD").write_text("ref: refs/heads/guest\n")
    git(path, "commit", "--quiet", "--allow-empty", "--message", "later")
    prepare(instance, files)
    assert (files.git_dir / "HEAD").read_text() == "ref: refs/heads/guest\n"


def test_an_interrupted_run_is_taken_up(tmp_path: Path) -> None:
    instance, files = recorded(worktree("main", tmp_path), tmp_path, "isolated")
    (files.directory / "git.partial/objects").mkdir(parents=True)
    assert files.made_here("git.partial")
    prepare(instance, files)
    assert not (files.directory / "git.partial").exists()
    assert (files.git_dir / "HEAD").is_file()


# --- the private repository of isolated mode -----------------------------------------------------------------------


class Private:
    """A worktree's private repository, used as the guest would use it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        instance, files = recorded(path, root, "isolated")
        prepare(instance, files)
        self.directory = files.git_dir
        self.common = Path(instance.git.common_dir)
        self.masks = files.git_masks

    def git(self, *argv: str) -> str:
        return git(self.path, f"--git-dir={self.directory}", f"--work-tree={self.path}", *argv)


@pytest.mark.parametrize("kind", KINDS)
def test_status_log_and_commit_work_and_the_host_does_not_see_it(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    private = Private(path, tmp_path)
    assert private.git("status", "--short", "--branch") == "## work"
    assert private.git("log", "--format=%s") == "two\none"
    before = contents(private.common)
    (path / "a").write_text("guest\n")
    private.git("commit", "--quiet", "--all", "--message", "guest")
    assert private.git("log", "--format=%s", "-1") == "guest"
    assert private.git("fsck", "--no-dangling") == ""
    assert contents(private.common) == before


@pytest.mark.parametrize("kind", ["linked", "bare", "submodule"])
def test_the_pointer_leads_to_the_guests_own_place(tmp_path: Path, kind: str) -> None:
    private = Private(worktree(kind, tmp_path), tmp_path)
    assert (private.masks / "dot-git").read_text() == "gitdir: /home/claude/.repo-git\n"


def test_the_hosts_branches_and_tags_are_there(tmp_path: Path) -> None:
    path = worktree("linked", tmp_path)
    private = Private(path, tmp_path)
    form = "--format=%(refname) %(objectname) %(*objectname)"
    kinds = ("refs/heads", "refs/tags")
    assert private.git("for-each-ref", form, *kinds) == git(path, "for-each-ref", form, *kinds)


def test_remote_branches_are_there_without_their_symbolic_head(tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", repository(tmp_path / "main"), tmp_path / "clone")
    assert "refs/remotes/origin/HEAD" in git(tmp_path / "clone", "for-each-ref")
    assert Private(tmp_path / "clone", tmp_path).git("for-each-ref", "--format=%(refname)", "refs/remotes") == (
        "refs/remotes/origin/main\nrefs/remotes/origin/side"
    )


def test_refs_of_other_tools_are_not_there(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "update-ref", "refs/stash", "HEAD")
    git(main, "update-ref", "refs/notes/x", "HEAD")
    assert "stash" not in Private(main, tmp_path).git("for-each-ref")


@pytest.mark.parametrize("name", [b"caf\xe9", "a\u2028b".encode(), "a\u0085b".encode(), "日本".encode(), b"a%b"])
def test_any_name_of_a_branch_comes_over(tmp_path: Path, name: bytes) -> None:
    main = repository(tmp_path / "main")
    git(main, "update-ref", f"refs/heads/{os.fsdecode(name)}", "HEAD")
    listing = Private(main, tmp_path).git("for-each-ref", "--format=%(refname)")
    assert f"refs/heads/{os.fsdecode(name)}" in listing.split("\n")


def test_staged_changes_are_there(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    (main / "a").write_text("staged\n")
    git(main, "add", "a")
    (main / "dir/b").write_text("not staged\n")
    private = Private(main, tmp_path)
    assert private.git("status", "--short") == "M  a\n M dir/b"
    assert private.git("show", ":a") == "staged"


def test_a_split_index_comes_over_whole(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "update-index", "--split-index")
    assert list((main / ".git").glob("sharedindex.*"))
    assert Private(main, tmp_path).git("status", "--short") == ""


def test_an_unborn_branch_works(tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "--quiet")
    (main / "a").write_text("one\n")
    git(main, "add", "a")
    private = Private(main, tmp_path)
    assert private.git("status", "--short") == "A  a"
    private.git("commit", "--quiet", "--message", "first")
    assert private.git("log", "--format=%s") == "first"


def test_a_detached_head_works(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "switch", "--quiet", "--detach", "HEAD~1")
    private = Private(main, tmp_path)
    assert private.git("rev-parse", "HEAD") == git(main, "rev-parse", "HEAD")
    assert private.git("rev-parse", "--abbrev-ref", "HEAD") == "HEAD"


def test_a_sha256_repository_works(tmp_path: Path) -> None:
    private = Private(repository(tmp_path / "main", "--object-format=sha256"), tmp_path)
    assert private.git("status", "--short") == ""
    private.git("commit", "--quiet", "--allow-empty", "--message", "guest")
    assert len(private.git("rev-parse", "HEAD")) == 64


def test_a_shallow_clone_works(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{main}", tmp_path / "clone")
    private = Private(tmp_path / "clone", tmp_path)
    assert private.git("log", "--format=%s") == "two"
    assert private.git("fsck", "--no-dangling") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_checkout_works(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    git(path, "sparse-checkout", "set", "--no-cone", "/dir/")
    assert not (path / "a").exists()
    private = Private(path, tmp_path)
    assert private.git("status", "--short") == ""
    private.git("sparse-checkout", "disable")
    assert (path / "a").exists()


HOSTILE = {
    "core.fsmonitor": "touch /tmp/x",
    "core.hooksPath": "/tmp/hooks",
    "core.sshCommand": "touch /tmp/x",
    "core.editor": "touch /tmp/x",
    "core.pager": "touch /tmp/x",
    "core.worktree": "/",
    "core.attributesFile": "/tmp/x",
    "filter.x.smudge": "touch /tmp/x",
    "filter.x.clean": "touch /tmp/x",
    "filter.x.process": "touch /tmp/x",
    "diff.external": "touch /tmp/x",
    "diff.x.textconv": "touch /tmp/x",
    "merge.x.driver": "touch /tmp/x",
    "credential.helper": "!touch /tmp/x",
    "credential.https://host.helper": "store",
    "http.extraHeader": "Authorization: secret",
    "url.https://u:p@host/.insteadOf": "x:",
    "include.path": "/tmp/x",
    "includeIf.gitdir:/.path": "/tmp/x",
    "alias.st": "!touch /tmp/x",
    "gpg.program": "touch",
    "remote.origin.uploadpack": "touch /tmp/x",
    "remote.origin.receivepack": "touch /tmp/x",
    "remote.origin.proxy": "http://u:p@host",
    "remote.origin.vcs": "x",
    "submodule.x.update": "!touch /tmp/x",
    "remote.origin.url.core.fsmonitor": "x",
}


@pytest.mark.parametrize("kind", ["main", "linked"])
def test_no_setting_that_runs_anything_comes_over(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    config = Path(read_layout(path).common_dir, "config")
    for key, value in HOSTILE.items():
        git(tmp_path, "config", "--file", config, key, value)
    private = Private(path, tmp_path)
    assert set(read_config(private.directory / "config")) <= {
        "core.repositoryformatversion",
        "core.bare",
        "core.filemode",
        *(key for key in read_config(config) if key.startswith("remote.") and key.endswith((".url", ".fetch"))),
    }
    assert "/tmp/x" not in (private.directory / "config").read_text()


def test_no_setting_of_the_worktree_that_runs_anything_comes_over(tmp_path: Path) -> None:
    path = worktree("linked", tmp_path)
    git(path, "config", "extensions.worktreeConfig", "true")
    git(path, "config", "--worktree", "core.fsmonitor", "touch /tmp/x")
    git(path, "config", "--worktree", "core.autocrlf", "input")
    settings = read_config(Private(path, tmp_path).directory / "config")
    assert settings["core.autocrlf"] == "input"
    assert "core.fsmonitor" not in settings
    assert "extensions.worktreeconfig" not in settings


def test_hooks_attributes_and_excludes_do_not_come_over(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    (main / ".git/info/attributes").write_text("* filter=x\n")
    (main / ".git/hooks/post-commit").write_text("#!/bin/sh\n")
    private = Private(main, tmp_path)
    assert not (private.directory / "hooks").exists()
    assert not (private.directory / "info/attributes").exists()


def test_remotes_and_upstreams_come_over_with_every_value(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "remote", "add", "my.fork", "git@host:x.git")
    git(main, "config", "--add", "remote.my.fork.fetch", "+refs/pull/*/head:refs/remotes/my/pr/*")
    git(main, "config", "branch.main.remote", "my.fork")
    git(main, "config", "branch.main.merge", "refs/heads/main")
    wanted = ("remote.", "branch.")
    settings = read_settings(Private(main, tmp_path).directory / "config")
    assert [each for each in settings if each[0].startswith(wanted)] == [
        each for each in read_settings(main / ".git/config") if each[0].startswith(wanted)
    ]


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://host/x.git", "https://host/x.git"),
        ("https://me:secret@host/x.git", "https://host/x.git"),
        ("https://me:sec@ret@host/x.git", "https://host/x.git"),
        ("https://secret@host:8443/x.git", "https://host:8443/x.git"),
        ("HTTP://me:secret@host/x.git", "HTTP://host/x.git"),
        ("https://:secret@host/x.git", "https://host/x.git"),
        ("ssh://git@host:22/x.git", "ssh://git@host:22/x.git"),
        ("ssh://git:secret@host/x.git", "ssh://git@host/x.git"),
        ("git@host:x.git", "git@host:x.git"),
        ("https://host/a:b@c", "https://host/a:b@c"),
        ("/srv/a:b@c", "/srv/a:b@c"),
    ],
)
def test_what_logs_in_is_taken_out_of_urls(url: str, clean: str) -> None:
    assert without_password(url) == clean


def test_no_password_comes_over(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    git(main, "config", "remote.origin.url", "https://me:secret@host/x.git")
    git(main, "config", "remote.origin.pushurl", "https://secret@host/x.git")
    git(main, "config", "branch.main.remote", "https://me:secret@host/x.git")
    git(main, "config", "remote.https://me:secret@host/x.git.promisor", "true")
    private = Private(main, tmp_path)
    assert "secret" not in (private.directory / "config").read_text()
    assert private.git("remote", "get-url", "origin") == "https://host/x.git"


def test_preparing_runs_nothing_that_the_repository_names(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    ran = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external", "alias.config", "alias.for-each-ref"):
        git(main, "config", key, f"!{script}" if key.startswith("alias") else str(script))
    command = ["git", "status", "--short"]
    subprocess.run(command, cwd=main, env=ENVIRONMENT, check=False, capture_output=True)
    assert ran.exists()
    ran.unlink()
    Private(main, tmp_path)
    assert not ran.exists()
