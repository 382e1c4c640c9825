"""Where git data is found, and which layouts are refused: with real repositories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import (
    GitLayout,
    Kind,
    branch,
    read_config,
    read_layout,
    run_git,
    unknown_extensions,
)
from repositories import KINDS, git, repository, worktree


def refusal(path: Path) -> str:
    """Return the message of the refusal that must come."""
    with pytest.raises(VmwError) as caught:
        read_layout(path)
    assert caught.value.code == "usage"
    assert caught.value.hint
    return caught.value.message


# --- what is found -------------------------------------------------------------------------------------------------


def test_a_plain_directory_has_no_git_data(tmp_path: Path) -> None:
    assert read_layout(tmp_path) == GitLayout(Kind.NONE)


def test_a_directory_named_dot_git_is_not_yet_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert read_layout(tmp_path) == GitLayout(Kind.NONE)


def test_a_directory_inside_a_main_checkout_has_no_git_data_of_its_own(tmp_path: Path) -> None:
    assert read_layout(worktree("main", tmp_path) / "dir") == GitLayout(Kind.NONE)


def test_a_main_checkout_holds_everything(tmp_path: Path) -> None:
    main = worktree("main", tmp_path)
    assert read_layout(main) == GitLayout(Kind.MAIN, f"{main}/.git", f"{main}/.git")


def test_a_linked_worktree_has_a_directory_in_the_repository(tmp_path: Path) -> None:
    common = f"{tmp_path}/main/.git"
    assert read_layout(worktree("linked", tmp_path)) == GitLayout(Kind.LINKED, f"{common}/worktrees/linked", common)


def test_a_main_checkout_with_linked_worktrees_is_one_still(tmp_path: Path) -> None:
    worktree("linked", tmp_path)
    assert read_layout(tmp_path / "main").kind is Kind.MAIN


def test_a_worktree_of_a_bare_repository_is_told_apart(tmp_path: Path) -> None:
    common = f"{tmp_path}/bare.git"
    assert read_layout(worktree("bare", tmp_path)) == GitLayout(Kind.BARE, f"{common}/worktrees/wt", common)


def hidden_bare(root: Path) -> Path:
    """Make a directory that holds a bare repository in .bare, a .git file that names it, and a worktree."""
    main = repository(root / "main")
    project = root / "proj"
    project.mkdir()
    git(root, "clone", "--quiet", "--bare", main, project / ".bare")
    (project / ".git").write_text("gitdir: ./.bare\n")
    git(project, "worktree", "add", "--quiet", "-b", "work", "wt")
    return project


def test_worktrees_beside_a_hidden_bare_repository_work(tmp_path: Path) -> None:
    project = hidden_bare(tmp_path)
    assert read_layout(project / "wt") == GitLayout(Kind.BARE, f"{project}/.bare/worktrees/wt", f"{project}/.bare")


def test_the_directory_around_a_hidden_bare_repository_is_no_worktree(tmp_path: Path) -> None:
    assert refusal(hidden_bare(tmp_path))


def test_a_worktree_inside_its_bare_repository_works(tmp_path: Path) -> None:
    bare = worktree("bare", tmp_path).parent / "bare.git"
    git(bare, "worktree", "add", "--quiet", "-b", "inner", "inner")
    assert read_layout(bare / "inner") == GitLayout(Kind.BARE, f"{bare}/worktrees/inner", str(bare))


def test_a_submodule_has_a_repository_in_the_other_one(tmp_path: Path) -> None:
    modules = f"{tmp_path}/super/.git/modules/sub"
    assert read_layout(worktree("submodule", tmp_path)) == GitLayout(Kind.SUBMODULE, modules, modules)


def test_a_submodule_that_names_its_worktree_in_a_configuration_of_its_own_works(tmp_path: Path) -> None:
    sub = worktree("submodule", tmp_path)
    git(sub, "sparse-checkout", "set", "dir")
    modules = tmp_path / "super/.git/modules/sub"
    assert "core.worktree" not in read_config(modules / "config")
    assert read_layout(sub) == GitLayout(Kind.SUBMODULE, str(modules), str(modules))


def test_a_worktree_of_a_submodule_is_a_linked_one(tmp_path: Path) -> None:
    git(worktree("submodule", tmp_path), "worktree", "add", "--quiet", "-b", "other", tmp_path / "wt")
    modules = f"{tmp_path}/super/.git/modules/sub"
    assert read_layout(tmp_path / "wt") == GitLayout(Kind.LINKED, f"{modules}/worktrees/wt", modules)


def test_a_git_directory_apart_from_its_worktree_is_one_like_a_submodules(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    git(tmp_path, "init", "--quiet", "--separate-git-dir", tmp_path / "apart", tmp_path / "w")
    git(tmp_path / "w", "config", "core.worktree", tmp_path / "w")
    assert read_layout(tmp_path / "w") == GitLayout(Kind.SUBMODULE, f"{tmp_path}/apart", f"{tmp_path}/apart")


def test_a_worktree_that_was_made_over_a_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    worktree("linked", tmp_path / "link")
    common = f"{tmp_path}/real/main/.git"
    assert (tmp_path / "real/linked/.git").read_text().startswith(f"gitdir: {tmp_path}/")
    assert read_layout(tmp_path / "real/linked") == GitLayout(Kind.LINKED, f"{common}/worktrees/linked", common)


def test_the_links_of_a_worktree_may_lead_over_a_link(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    private = tmp_path / "real/main/.git/worktrees/linked"
    (linked / ".git").write_text(f"gitdir: {tmp_path}/link/main/.git/worktrees/linked\n")
    (private / "gitdir").write_text(f"{tmp_path}/link/linked/.git\n")
    assert read_layout(linked).git_dir == str(private)


def test_relative_links_work(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    expected = read_layout(linked)
    (linked / ".git").write_text("gitdir: ../main/.git/worktrees/linked\n")
    Path(expected.git_dir, "gitdir").write_text("../../../../linked/.git\n")
    assert read_layout(linked) == expected


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_link_in_the_place_of_dot_git_is_refused(tmp_path: Path) -> None:
    main = worktree("main", tmp_path / "r")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").symlink_to(main / ".git")
    assert "is a link" in refusal(tmp_path / "w")


def test_a_dangling_link_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / ".git").symlink_to("nowhere")
    assert "is a link" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"gitdir:",
        b"gitdir: ",
        b"gitdir: nowhere\n",
        b"gitdir: /etc/passwd\n",
        b"ref: refs/heads/main\n",
        b"gitdir: /caf\xe9\n",
        b"gitdir: a\0b\n",
        b"gitdir: /tmp\n[Service]\n",
        b"gitdir: /" + b"x" * 5000,
    ],
)
def test_a_dot_git_file_that_git_would_not_write_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".git").write_bytes(content)
    assert refusal(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / ".git").open("wb") as handle:
        handle.truncate(1 << 40)
    assert "not what git writes" in refusal(tmp_path)


def test_a_fifo_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".git")
    assert refusal(tmp_path)


def test_a_dot_git_file_that_leads_to_another_worktrees_directory_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").write_text((linked / ".git").read_text())
    # git itself is led astray.
    assert git(tmp_path / "w", "rev-parse", "--abbrev-ref", "HEAD") == "work"
    assert f"belongs to {linked}/.git" in refusal(tmp_path / "w")


@pytest.mark.parametrize("kind", ["main", "bare"])
def test_a_dot_git_file_that_leads_to_a_whole_repository_is_refused(tmp_path: Path, kind: str) -> None:
    common = read_layout(worktree(kind, tmp_path / "r")).common_dir
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").write_text(f"gitdir: {common}\n")
    assert "does not name" in refusal(tmp_path / "w")


def test_a_dot_git_file_that_leads_to_another_submodule_is_refused(tmp_path: Path) -> None:
    sub = worktree("submodule", tmp_path / "r")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/.git").write_text(f"gitdir: {read_layout(sub).git_dir}\n")
    assert "does not name" in refusal(tmp_path / "w")


def test_a_worktree_that_names_another_one_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    git(tmp_path / "main", "worktree", "add", "--quiet", "-b", "second", tmp_path / "second")
    Path(read_layout(linked).git_dir, "gitdir").write_text(f"{tmp_path}/second/.git\n")
    assert "belongs to" in refusal(linked)


@pytest.mark.parametrize("content", ["", "nowhere/.git\n", "a\0b\n"])
def test_a_worktree_that_names_none_is_refused(tmp_path: Path, content: str) -> None:
    linked = worktree("linked", tmp_path)
    Path(read_layout(linked).git_dir, "gitdir").write_text(content)
    assert refusal(linked)


@pytest.mark.parametrize("name", ["gitdir", "commondir"])
def test_a_link_in_the_place_of_a_pointer_is_refused(tmp_path: Path, name: str) -> None:
    linked = worktree("linked", tmp_path)
    pointer = Path(read_layout(linked).git_dir, name)
    pointer.rename(pointer.with_suffix(".real"))
    pointer.symlink_to(pointer.with_suffix(".real"))
    assert "cannot be read" in refusal(linked)


def test_a_moved_worktree_is_refused_with_the_way_out(tmp_path: Path) -> None:
    worktree("linked", tmp_path).rename(tmp_path / "moved")
    with pytest.raises(VmwError) as caught:
        read_layout(tmp_path / "moved")
    assert "git worktree repair" in caught.value.hint
    git(tmp_path / "main", "worktree", "repair", tmp_path / "moved")
    assert read_layout(tmp_path / "moved").kind is Kind.LINKED


def test_a_common_directory_elsewhere_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    other = repository(tmp_path / "other")
    Path(read_layout(linked).git_dir, "commondir").write_text(f"{other}/.git\n")
    assert "is no worktree of" in refusal(linked)


@pytest.mark.parametrize("content", ["", ".", "..", "../../..", "/", "nowhere", "a\0b"])
def test_a_common_directory_that_holds_no_such_worktree_is_refused(tmp_path: Path, content: str) -> None:
    linked = worktree("linked", tmp_path)
    Path(read_layout(linked).git_dir, "commondir").write_text(content)
    assert refusal(linked)


def test_a_common_directory_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    (tmp_path / "main/.git/HEAD").unlink()
    assert "is no repository" in refusal(linked)


def test_a_main_checkout_with_a_common_directory_elsewhere_is_refused(tmp_path: Path) -> None:
    main = worktree("main", tmp_path / "r")
    other = repository(tmp_path / "other")
    (main / ".git/commondir").write_text(f"{other}/.git\n")
    assert "has a commondir" in refusal(main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = worktree(kind, tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert "is not yours" in refusal(path)


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory away")
def test_a_repository_that_was_given_away_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    os.chown(tmp_path / "main/.git", 12345, 12345)
    assert "is not yours" in refusal(linked)


def test_a_repository_inside_its_own_worktree_is_refused(tmp_path: Path) -> None:
    """The guest could write its configuration through the share of the worktree."""
    (tmp_path / "w").mkdir()
    git(tmp_path, "init", "--quiet", "--separate-git-dir", tmp_path / "w/.bare", tmp_path / "w")
    git(tmp_path / "w", "config", "core.worktree", tmp_path / "w")
    assert "inside" in refusal(tmp_path / "w")


def test_a_common_directory_inside_the_worktree_is_refused(tmp_path: Path) -> None:
    main = repository(tmp_path / "main")
    (tmp_path / "w").mkdir()
    git(tmp_path, "clone", "--quiet", "--bare", main, tmp_path / "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "--quiet", "-b", "work", tmp_path / "w")
    (tmp_path / "bare.git").rename(tmp_path / "w/bare.git")
    (tmp_path / "w/.git").write_text(f"gitdir: {tmp_path}/w/bare.git/worktrees/w\n")
    assert git(tmp_path / "w", "rev-parse", "--abbrev-ref", "HEAD") == "work"
    assert "inside" in refusal(tmp_path / "w")


def test_a_configuration_that_git_cannot_read_is_refused(tmp_path: Path) -> None:
    linked = worktree("linked", tmp_path)
    (tmp_path / "main/.git/config").write_text("[core\n")
    assert "git failed" in refusal(linked)


# --- configuration -------------------------------------------------------------------------------------------------


def test_settings_are_read_as_git_means_them(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text('[Core]\n\tBare\n[remote "A b"]\n\turl = one\n\turl = "two \\n three"\n[x]\n\tempty =\n')
    assert read_config(file) == {"core.bare": "true", "remote.A b.url": "two \n three", "x.empty": ""}


def test_what_a_configuration_includes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("[core]\n\tbare = true\n")
    (tmp_path / "config").write_text(f"[include]\n\tpath = {tmp_path}/other\n")
    assert "core.bare" not in read_config(tmp_path / "config")


def test_git_runs_without_the_users_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[user]\n\tname = me\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert "user.name" not in run_git("config", "--list", "--name-only").splitlines()


def test_git_runs_nothing_to_fetch_what_a_repository_lacks(tmp_path: Path) -> None:
    """A repository that says its objects are elsewhere has git run what it names, to get them."""
    main = worktree("main", tmp_path / "r")
    ran = tmp_path / "ran"
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "evil",
        "remote.evil.url": f"ext::touch {ran}",
        "remote.evil.promisor": "true",
        "protocol.ext.allow": "always",
    }
    for key, value in settings.items():
        git(main, "config", key, value)
    command = [f"--git-dir={main}/.git", "cat-file", "-e", "1" * 40]
    with pytest.raises(AssertionError):
        git(tmp_path, *command)
    assert ran.exists()
    ran.unlink()
    with pytest.raises(VmwError):
        run_git(*command)
    assert not ran.exists()


def test_no_git_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmwError) as caught:
        run_git("version")
    assert caught.value.code == "host_not_ready"


# --- extensions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "name"), [("relativeWorktrees", "relativeworktrees"), ("refStorage", "refstorage")])
def test_an_extension_that_the_guests_git_does_not_know_is_named(tmp_path: Path, setting: str, name: str) -> None:
    main = worktree("main", tmp_path)
    git(main, "config", f"extensions.{setting}", "true")
    assert unknown_extensions(read_layout(main)) == [name]


def test_an_extension_that_was_never_heard_of_is_named(tmp_path: Path) -> None:
    main = worktree("main", tmp_path)
    git(main, "config", "extensions.a.b", "1")
    assert unknown_extensions(read_layout(main)) == ["a.b"]


def test_extensions_that_the_guests_git_knows_pass(tmp_path: Path) -> None:
    main = repository(tmp_path / "main", "--object-format=sha256")
    git(main, "config", "extensions.worktreeConfig", "true")
    assert unknown_extensions(read_layout(main)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_repository_has_no_unknown_extension(tmp_path: Path, kind: str) -> None:
    assert unknown_extensions(read_layout(worktree(kind, tmp_path))) == []


# --- the branch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_branch_is_the_worktrees_own(tmp_path: Path, kind: str) -> None:
    assert branch(read_layout(worktree(kind, tmp_path))) == "work"


def test_a_plain_directory_has_no_branch(tmp_path: Path) -> None:
    assert branch(read_layout(tmp_path)) == ""


def test_a_branch_may_have_several_parts(tmp_path: Path) -> None:
    main = worktree("main", tmp_path)
    git(main, "switch", "--quiet", "--create", "feature/日本")
    assert branch(read_layout(main)) == "feature/日本"


def test_an_unborn_branch_has_a_name(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "--initial-branch=young")
    assert branch(read_layout(tmp_path)) == "young"


def test_a_detached_head_is_told_by_its_commit(tmp_path: Path) -> None:
    main = worktree("main", tmp_path)
    git(main, "switch", "--quiet", "--detach", "side")
    assert branch(read_layout(main)) == git(main, "rev-parse", "HEAD")[:8]


@pytest.mark.parametrize("content", [b"ref: refs/heads/\xff", b"x" * 5000, b""])
def test_a_head_that_is_none_has_no_branch(tmp_path: Path, content: bytes) -> None:
    layout = read_layout(worktree("main", tmp_path))
    Path(layout.git_dir, "HEAD").write_bytes(content)
    assert branch(layout) == ""


def test_a_head_that_leads_elsewhere_or_nowhere_is_not_followed(tmp_path: Path) -> None:
    layout = read_layout(worktree("main", tmp_path / "r"))
    head = Path(layout.git_dir, "HEAD")
    (tmp_path / "secret").write_text("password")
    head.unlink()
    assert branch(layout) == ""
    head.symlink_to(tmp_path / "secret")
    assert branch(layout) == ""
    head.unlink()
    os.mkfifo(head)
    assert branch(layout) == ""
    head.unlink()
    head.mkdir()
    assert branch(layout) == ""
