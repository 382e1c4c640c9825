"""Which directories a VM gets for every kind of worktree and every mode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import prepare
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Keys
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import (
    GIT,
    GIT_DIR,
    REPO,
    SECRETS,
    TAGS,
    GuestShare,
    has_own_git_dir,
    shares_of,
)
from records import recorded
from repositories import KINDS, git, worktree

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
    from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Bind

MODES = ("protected", "isolated", "none")
RW = "rw,nosuid,nodev,nofail"
RO = "ro,nosuid,nodev,noexec,nofail"
PARTS = ("config", "packed-refs", "shallow", "HEAD", "hooks", "info", "objects/info", "worktrees", "modules")
"""What of a common directory a guest that can write it could have the host's git run, or lose the host's work with."""

OWN_PARTS = ("commondir", "gitdir", "config.worktree")


@pytest.fixture(params=[(kind, mode) for kind in KINDS for mode in MODES], ids="-".join)
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Instance, InstanceFiles]:
    """Return a VM that is prepared, for every kind and mode."""
    kind, mode = request.param
    return prepared(kind, mode, tmp_path)


def prepared(kind: str, mode: str, root: Path) -> tuple[Instance, InstanceFiles]:
    instance, files = recorded(worktree(kind, root), root, mode)
    prepare(instance, files)
    return instance, files


def by_tag(vm: tuple[Instance, InstanceFiles]) -> dict[str, GuestShare]:
    return {share.spec.tag: share for share in shares_of(*vm)}


def effective(binds: tuple[Bind, ...], target: str) -> Bind | None:
    """Return the bind through which a path in a share is reached: the last one that holds it."""
    path = PurePosixPath(target)
    return next((each for each in reversed(binds) if path.is_relative_to(each.target)), None)


# --- shares and mountpoints ----------------------------------------------------------------------------------------


def test_the_worktree_and_the_secrets_are_always_shared(vm: tuple[Instance, InstanceFiles]) -> None:
    instance, files = vm
    shares = by_tag(vm)
    repo, secrets = shares[REPO], shares[SECRETS]
    assert (repo.spec.path, repo.mountpoint, repo.options) == (instance.worktree, "/home/claude/repo", RW)
    assert not repo.spec.read_only
    assert not repo.spec.scratch
    keys = str(files.state.secrets / "default")
    assert (secrets.spec.path, secrets.mountpoint, secrets.options) == (keys, "/home/claude/.secrets", RO)
    assert secrets.spec.read_only


def test_a_vm_whose_keys_stay_on_the_host_is_shown_a_copy_that_is_followed(vm: tuple[Instance, InstanceFiles]) -> None:
    instance, files = vm
    assert by_tag(vm)[SECRETS].spec.follower == ""
    shares = by_tag((replace(instance, keys=Keys("proxy")), files))
    secrets = shares[SECRETS].spec
    assert (secrets.path, secrets.follower, secrets.fresh) == (str(files.guest_secrets), "vmw-keys.service", True)
    assert all(share.spec.follower == "" for tag, share in shares.items() if tag != SECRETS)


def test_a_vm_is_shown_its_own_profile_alone(vm: tuple[Instance, InstanceFiles]) -> None:
    instance, files = vm
    shares = by_tag((replace(instance, secrets_profile="work"), files))
    assert shares[SECRETS].spec.path == str(files.state.secrets / "work")
    assert shares[SECRETS].spec.read_only
    assert shares[SECRETS].mountpoint == "/home/claude/.secrets"
    for share in shares.values():
        for path in (share.spec.path, *(each.source for each in share.spec.binds)):
            for other in (files.state.secrets, files.state.secrets / "default", files.state.secrets / "works"):
                assert not other.is_relative_to(path), share


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc"])
def test_a_record_with_a_profile_that_is_none_shares_nothing(tmp_path: Path, name: str) -> None:
    instance, files = prepared("none", "none", tmp_path)
    with pytest.raises(VmwError, match="cannot name a secrets profile"):
        shares_of(replace(instance, secrets_profile=name), files)


@pytest.mark.parametrize(
    ("kind", "mode", "tags"),
    [
        ("none", "protected", []),
        ("none", "isolated", []),
        ("none", "none", []),
        ("main", "protected", [GIT]),
        ("main", "isolated", [GIT]),
        ("main", "none", []),
        ("linked", "protected", [GIT]),
        ("linked", "isolated", [GIT, GIT_DIR]),
        ("linked", "none", []),
        ("bare", "protected", [GIT]),
        ("bare", "isolated", [GIT, GIT_DIR]),
        ("bare", "none", []),
        ("submodule", "protected", [GIT, GIT_DIR]),
        ("submodule", "isolated", [GIT, GIT_DIR]),
        ("submodule", "none", []),
    ],
)
def test_each_kind_and_mode_has_its_shares(tmp_path: Path, kind: str, mode: str, tags: list[str]) -> None:
    shares = shares_of(*prepared(kind, mode, tmp_path))
    assert [share.spec.tag for share in shares] == [REPO, SECRETS, *tags]


def test_every_tag_is_known_and_names_one_share(vm: tuple[Instance, InstanceFiles]) -> None:
    shares = shares_of(*vm)
    assert len(by_tag(vm)) == len(shares)
    assert set(by_tag(vm)) <= set(TAGS)
    assert len({share.mountpoint for share in shares}) == len(shares)


def test_no_share_can_make_programs_that_run_as_root_or_devices(vm: tuple[Instance, InstanceFiles]) -> None:
    for share in shares_of(*vm):
        assert {"nosuid", "nodev", "nofail"} <= set(share.options.split(","))
        assert share.options.startswith("ro," if share.spec.read_only else "rw,")


@pytest.mark.parametrize("kind", KINDS)
def test_protected_mode_shares_the_common_directory_at_its_own_path(tmp_path: Path, kind: str) -> None:
    instance, files = prepared(kind, "protected", tmp_path)
    share = by_tag((instance, files))[GIT]
    assert (share.spec.path, share.mountpoint, share.options) == (instance.git.common_dir, instance.git.common_dir, RW)
    assert share.spec.scratch
    assert share.spec.plain


@pytest.mark.parametrize("kind", KINDS)
def test_isolated_mode_shares_nothing_of_the_repository_but_its_objects_to_read(tmp_path: Path, kind: str) -> None:
    instance, files = prepared(kind, "isolated", tmp_path)
    share = by_tag((instance, files))[GIT]
    objects = f"{instance.git.common_dir}/objects"
    assert (share.spec.path, share.mountpoint, share.options) == (objects, objects, RO)
    assert share.spec.read_only
    assert not share.spec.binds


@pytest.mark.parametrize(("kind", "mode"), [("submodule", "protected"), *((kind, "isolated") for kind in KINDS[1:])])
def test_a_git_directory_of_the_guests_own_is_one_without_links(tmp_path: Path, kind: str, mode: str) -> None:
    instance, files = prepared(kind, mode, tmp_path)
    share = by_tag((instance, files))[GIT_DIR]
    assert (share.spec.path, share.mountpoint, share.options) == (str(files.git_dir), "/home/claude/.repo-git", RW)
    assert share.spec.plain
    assert has_own_git_dir(instance)


# --- what the guest may write --------------------------------------------------------------------------------------


def test_every_bind_shows_something_over_something_of_its_kind(vm: tuple[Instance, InstanceFiles]) -> None:
    for share in shares_of(*vm):
        for each in share.spec.binds:
            source = Path(each.source)
            assert source.exists(), each
            assert str(source.resolve()) == each.source
            below = Path(share.spec.path, each.target)
            assert share.spec.scratch or below.is_dir() == source.is_dir(), each


def test_parents_come_before_their_children(vm: tuple[Instance, InstanceFiles]) -> None:
    for share in shares_of(*vm):
        targets = [PurePosixPath(each.target) for each in share.spec.binds]
        assert len(set(targets)) == len(targets)
        for place, target in enumerate(targets):
            assert not any(later in target.parents for later in targets[place:])


def test_the_guest_cannot_change_where_the_worktrees_git_data_is(vm: tuple[Instance, InstanceFiles]) -> None:
    instance, files = vm
    (bind,) = by_tag(vm)[REPO].spec.binds
    assert bind.target == ".git"
    if instance.git.kind == "main" and instance.git.mode != "none":
        assert (bind.source, bind.read_only) == (str(files.git_dir), False)
    else:
        assert bind.read_only
        assert Path(bind.source).parent == files.git_masks


def test_a_plain_directory_has_nothing_in_its_way(tmp_path: Path) -> None:
    assert by_tag(prepared("none", "protected", tmp_path))[REPO].spec.binds == ()


@pytest.mark.parametrize("kind", KINDS)
def test_objects_refs_and_logs_alone_are_written(tmp_path: Path, kind: str) -> None:
    instance, files = prepared(kind, "protected", tmp_path)
    binds = by_tag((instance, files))[GIT].spec.binds
    own = {str(Path(instance.git.git_dir).relative_to(instance.git.common_dir))} - {"."}
    assert {each.target for each in binds if not each.read_only} == {"objects", "refs", "logs"} | own


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_hosts_git_would_follow_is_read_only(tmp_path: Path, kind: str) -> None:
    """Whatever is bound is bound read-only, and the rest is never on the host at all."""
    instance, files = prepared(kind, "protected", tmp_path)
    common = Path(instance.git.common_dir)
    spec = by_tag((instance, files))[GIT].spec
    assert spec.scratch
    place = Path(instance.git.git_dir).relative_to(common)
    for part in (*PARTS, *(str(place / name) for name in OWN_PARTS)):
        bind = effective(spec.binds, part)
        assert bind is None or bind.read_only, part
    for part in ("config", "packed-refs", "HEAD", "hooks", "info", "objects/info"):
        bind = effective(spec.binds, part)
        assert bind is not None, part


def test_no_writable_bind_leads_to_what_the_hosts_git_would_follow(vm: tuple[Instance, InstanceFiles]) -> None:
    instance, _ = vm
    common, own = Path(instance.git.common_dir), Path(instance.git.git_dir)
    kept = [*(common / part for part in PARTS), *(own / part for part in OWN_PARTS), Path(instance.worktree, ".git")]
    for share in shares_of(*vm):
        for each in share.spec.binds:
            for path in kept if not each.read_only else ():
                if path.exists() and path.is_relative_to(each.source):
                    bind = effective(share.spec.binds, str(PurePosixPath(each.target) / path.relative_to(each.source)))
                    assert bind is not None
                    assert bind.read_only, (each, path)


@pytest.mark.parametrize("kind", ["linked", "bare"])
def test_a_worktree_cannot_write_the_directories_of_others(tmp_path: Path, kind: str) -> None:
    path = worktree(kind, tmp_path)
    git(path, "worktree", "add", "--quiet", "-b", "second", tmp_path / "second")
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    binds = by_tag((instance, files))[GIT].spec.binds
    other = effective(binds, "worktrees/second/HEAD")
    own = effective(binds, f"worktrees/{path.name}/HEAD")
    assert other is not None
    assert own is not None
    assert other.read_only
    assert not own.read_only


@pytest.mark.parametrize(("kind", "source"), [("main", "masked-HEAD"), ("submodule", "masked-HEAD"), ("linked", "HEAD")])
def test_another_head_stands_over_the_hosts_own(tmp_path: Path, kind: str, source: str) -> None:
    instance, files = prepared(kind, "protected", tmp_path)
    spec = by_tag((instance, files))[GIT].spec
    bind = effective(spec.binds, "HEAD")
    assert bind is not None
    assert bind.source == str(files.git_masks / source)
    mirrored = {Path(each.source).name for each in spec.mirrors}
    assert ("HEAD" in mirrored) == (kind == "linked")


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_git_replaces_are_shown_by_copies(tmp_path: Path, kind: str) -> None:
    instance, files = prepared(kind, "protected", tmp_path)
    spec = by_tag((instance, files))[GIT].spec
    assert {"config", "packed-refs"} <= {Path(each.source).name for each in spec.mirrors}
    for each in spec.mirrors:
        assert Path(each.source).parent == Path(instance.git.common_dir)
        assert Path(each.copy).parent == files.git_masks
        bind = effective(spec.binds, Path(each.source).name)
        assert bind is not None
        assert bind.source == each.copy


def test_a_shallow_repository_shows_where_it_ends(tmp_path: Path) -> None:
    path = worktree("main", tmp_path)
    (path / ".git/shallow").write_text(git(path, "rev-parse", "HEAD") + "\n")
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    assert f"{path}/.git/shallow" in {each.source for each in by_tag((instance, files))[GIT].spec.mirrors}


def test_other_worktrees_inside_a_bare_repository_are_not_shown(tmp_path: Path) -> None:
    path = worktree("bare", tmp_path)
    bare = tmp_path / "bare.git"
    git(bare, "worktree", "add", "--quiet", "-b", "inner", "feature/inner")
    (bare / "feature/inner/.env").write_text("TOKEN=x\n")
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    assert effective(by_tag((instance, files))[GIT].spec.binds, "feature/inner/.env") is None


def test_links_in_the_common_directory_are_not_shown(tmp_path: Path) -> None:
    path = worktree("main", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (path / ".git/rr-cache").symlink_to(tmp_path / "elsewhere")
    instance, files = recorded(path, tmp_path, "protected")
    prepare(instance, files)
    assert effective(by_tag((instance, files))[GIT].spec.binds, "rr-cache") is None


def test_shares_are_told_also_when_the_repository_is_gone(tmp_path: Path) -> None:
    instance, files = prepared("linked", "protected", tmp_path)
    (tmp_path / "main").rename(tmp_path / "moved")
    assert by_tag((instance, files))[GIT].mountpoint == instance.git.common_dir
