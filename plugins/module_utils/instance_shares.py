# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Which directories a VM gets, what of them it may change, and where it mounts them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import WORKTREE_KINDS, Kind
from ansible_collections.vmw.worktree.plugins.module_utils.instance import PROXY
from ansible_collections.vmw.worktree.plugins.module_utils.key_proxy import FOLLOWER
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Bind, Mirror, ShareSpec

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

# A tag with a colon: cloud-init takes it for a network device and keeps its hands off it.
REPO = "vmw:repo"
SECRETS = "vmw:secrets"
GIT = "vmw:git"
GIT_DIR = "vmw:gitdir"
TAGS = (REPO, SECRETS, GIT, GIT_DIR)
"""Every tag that a VM can have, for their units to be found when the record is lost."""

WRITABLE = ("objects", "refs", "logs")
"""What of a repository's common directory git has to write for commits, branches and their logs."""

DIRECTORIES = (*WRITABLE, "branches", "hooks", "info", "lfs", "modules", "remotes", "rr-cache", "worktrees")
"""Directories of git's and git-lfs's in a common directory: a bare repository may hold other worktrees too."""

KEPT = ("config", "packed-refs")
"""Files of the common directory that are read-only whether the host has them or not, so that the guest's git makes none."""

MIRRORED = (*KEPT, "shallow")
"""Files of the common directory that the guest reads, and that git replaces with each change."""

NO_GIT = "empty"
"""Name of the mask that stands over a main checkout's ``.git`` where the guest gets no git data."""


@dataclass(frozen=True)
class GuestShare:
    """A share, and where the guest mounts it.

    Attributes:
        spec: The share.
        mountpoint: The directory in the guest.
        options: Mount options.
    """

    spec: ShareSpec
    mountpoint: str
    options: str = "rw,nosuid,nodev,nofail"


def home_of(instance: Instance) -> str:
    """Return the home directory of the guest's user."""
    return f"/home/{instance.guest_user}"


def guest_worktree(instance: Instance) -> str:
    """Return where the guest has the worktree."""
    return f"{home_of(instance)}/repo"


def guest_git_dir(instance: Instance) -> str:
    """Return where the guest has a git directory of its own that cannot stand in the worktree itself."""
    return f"{home_of(instance)}/.repo-git"


def has_own_git_dir(instance: Instance) -> bool:
    """Tell whether the guest's HEAD and index are its own: the host's cannot be shared without the files beside them."""
    git = instance.git
    return git.mode == "isolated" or (git.mode == "protected" and git.kind not in WORKTREE_KINDS)


def shares_of(instance: Instance, files: InstanceFiles) -> list[GuestShare]:
    """Return the shares of a VM."""
    git = instance.git
    repo = ShareSpec(REPO, instance.worktree, read_only=False, binds=_over_dot_git(instance, files))
    proxied = instance.keys.mode == PROXY
    keys = files.guest_secrets if proxied else files.state.secrets_of(instance.secrets_profile)
    # Fresh, as a login right after an edit gets the new keys.
    secrets = ShareSpec(SECRETS, str(keys), read_only=True, fresh=True, follower=FOLLOWER if proxied else "")
    shares = [
        GuestShare(repo, guest_worktree(instance)),
        GuestShare(secrets, f"{home_of(instance)}/.secrets", "ro,nosuid,nodev,noexec,nofail"),
    ]
    if git.mode == "protected":
        shares.append(GuestShare(_common_share(instance, files), git.common_dir))
    if git.mode == "isolated":
        objects = f"{git.common_dir}/objects"
        shares.append(GuestShare(ShareSpec(GIT, objects, read_only=True), objects, "ro,nosuid,nodev,noexec,nofail"))
    if has_own_git_dir(instance) and git.kind != Kind.MAIN.value:
        own = ShareSpec(GIT_DIR, str(files.git_dir), read_only=False, binds=_submodules(instance, ""), plain=True)
        shares.append(GuestShare(own, guest_git_dir(instance)))
    return shares


def _over_dot_git(instance: Instance, files: InstanceFiles) -> tuple[Bind, ...]:
    """Return what stands in the share of the worktree over its ``.git``, so that the guest cannot change where that leads."""
    if instance.git.kind == Kind.NONE.value:
        return ()
    if instance.git.kind != Kind.MAIN.value:
        return (Bind(str(files.git_masks / "dot-git"), ".git", read_only=True),)
    if instance.git.mode == "none":
        return (Bind(str(files.git_masks / NO_GIT), ".git", read_only=True),)
    return (Bind(str(files.git_dir), ".git", read_only=False), *_submodules(instance, ".git/"))


def _submodules(instance: Instance, place: str) -> tuple[Bind, ...]:
    """Return what shows the submodules' git directories beside a HEAD and index of the guest's own: git looks for them there."""
    modules = Path(instance.git.git_dir, "modules")
    return (Bind(str(modules), f"{place}modules", read_only=True),) if modules.is_dir() else ()


def _common_share(instance: Instance, files: InstanceFiles) -> ShareSpec:
    """Return the share of the repository's common directory.

    Its root is not the directory itself, in which git has to lock packed-refs for every ref that it deletes, but a file system in
    memory on which the directory's parts stand: so git works, and nothing that the guest makes there is ever seen by the host.
    """
    common, git = Path(instance.git.common_dir), instance.git
    linked = git.kind in WORKTREE_KINDS
    mirrored = (*MIRRORED, "HEAD") if linked else MIRRORED
    mirrors = tuple(
        Mirror(str(common / name), str(files.git_masks / name)) for name in mirrored if name in KEPT or (common / name).is_file()
    )
    binds = [Bind(str(path), path.name, read_only=path.name not in WRITABLE) for path in _directories(common)]
    # Where alternates are named: git would read objects from wherever they say.
    binds.append(Bind(str(common / "objects/info"), "objects/info", read_only=True))
    binds += [Bind(each.copy, Path(each.copy).name, read_only=True) for each in mirrors]
    if linked:
        own = Path(git.git_dir)
        place = str(own.relative_to(common))
        binds += [
            Bind(str(own), place, read_only=False),
            Bind(str(files.git_masks / "commondir"), f"{place}/commondir", read_only=True),
            Bind(str(files.git_masks / "gitdir"), f"{place}/gitdir", read_only=True),
            Bind(str(own / "config.worktree"), f"{place}/config.worktree", read_only=True),
        ]
    else:
        binds.append(Bind(str(files.git_masks / "masked-HEAD"), "HEAD", read_only=True))
    return ShareSpec(GIT, str(common), read_only=False, binds=tuple(binds), plain=True, scratch=True, mirrors=mirrors)


def _directories(common: Path) -> list[Path]:
    """Return git's directories in a repository's common directory, without links; none when it is gone."""
    try:
        return sorted(path for path in common.iterdir() if path.name in DIRECTORIES and path.is_dir() and not path.is_symlink())
    except OSError:
        return []
