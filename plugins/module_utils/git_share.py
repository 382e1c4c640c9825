# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What of a worktree's git data a new VM gets, and the files on the host by which it gets it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import (
    WORKTREE_KINDS,
    GitLayout,
    Kind,
    read_config,
    read_settings,
    run_git,
    unknown_extensions,
    user_setting,
)
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import NotAFileError, TooLargeError, copy, open_file
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import (
    MIRRORED,
    NO_GIT,
    guest_git_dir,
    guest_worktree,
    has_own_git_dir,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import write_file
from ansible_collections.vmw.worktree.plugins.module_utils.worktree import check_place, check_text, overlap

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
    from ansible_collections.vmw.worktree.plugins.module_utils.state import State

MASKED_HEAD = "ref: refs/heads/vmw/host\n"
"""Content of the HEAD that stands over the host's own: with the real one git would refuse the guest the host's branch."""

KEPT_SETTINGS = (
    r"remote\..*\.(url|pushurl|fetch|push|tagopt|promisor|partialclonefilter)",
    r"branch\..*\.(remote|merge|rebase)",
    r"core\.(ignorecase|precomposeunicode|filemode|symlinks|autocrlf|eol|sparsecheckout|sparsecheckoutcone)",
    r"extensions\.(objectformat|partialclone)",
    r"index\.sparse",
)
"""Settings of a repository that a private git directory has too: how files and remotes are meant, nothing that runs."""

PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/]*@")
"""The password in a URL: RFC 3986, section 3.2.1."""

TOKEN = re.compile(r"(?<=http://|ttps://)[^/@]*@", re.IGNORECASE)
"""The user in a web URL, which is the password where a token is one."""


PARTS = ("HEAD", "config", "packed-refs", "refs", "logs", "objects", "objects/info", "objects/pack", "worktrees")
"""What a share shows of a repository, and must be in it: a link would show another place."""

PRIVATE = 0o600
"""Mode of the copies: a repository's configuration may have passwords in it."""

COPY_LIMIT = 256 << 20
"""The largest file that is copied, in bytes; git's index of a million files has about 100 MB."""


def _copy(source: Path, target: Path) -> bool:
    """Copy a file of the host's git directory, which a guest may have written when that was not protected yet.

    Raises:
        VmwError: It is a link, no file, or too large.
    """
    try:
        with open_file(source) as reader, target.open("xb") as writer:
            copy(reader, writer, COPY_LIMIT)
    except FileNotFoundError:
        return False
    except (OSError, NotAFileError, TooLargeError) as error:
        message = f"{source} is a link, no file, too large or closed, so it is not copied"
        raise VmwError(message, "`--git none` makes a VM without git", "usage") from error
    return True


def without_password(url: str) -> str:
    """Return a URL, or a setting with one, without what logs in."""
    return TOKEN.sub("", PASSWORD.sub(r"\1@", url))


def _identity(worktree: Path, key: str) -> str:
    """Return the user's name or address, as it holds in a worktree."""
    return user_setting(key, worktree).decode(errors="replace").strip()


def _check(layout: GitLayout, guest_user: str, state: State) -> None:
    """Refuse what the guest's git could not use, or could only use at the host's cost.

    Raises:
        VmwError: With the reason.
    """
    common = Path(layout.common_dir)
    without = "`--git none` (the playbook's `vmw_git_mode`) makes a VM without git"
    check_place(common, state.root.resolve())
    extensions = unknown_extensions(layout)
    if extensions:
        message = f"{common} has the extension {extensions[0]}, which the guest's git does not know"
        raise VmwError(message, without, "usage")
    for name in PARTS:
        if Path(common, name).is_symlink():
            message = f"{common}/{name} is a link, and vmw follows none"
            raise VmwError(message, without, "usage")
    if os.path.lexists(common / "objects/info/alternates"):
        message = f"{common} borrows objects of another repository, which the guest could not see"
        raise VmwError(message, f"`git repack -a -d` there, then remove objects/info/alternates; {without}", "usage")
    for taken in ("repo", ".secrets", ".repo-git", ".ssh"):
        if overlap(common, Path("/home", guest_user, taken)):
            message = f"{common} cannot be at its own path in the guest, which has its {taken} there"
            raise VmwError(message, without, "usage")


def choose(worktree: Path, layout: GitLayout, mode: str, guest_user: str, state: State) -> GitShare:
    """Decide what of a worktree's git data a new VM gets.

    Args:
        worktree: Its real path.
        layout: Where its git data is.
        mode: ``protected``, ``isolated`` or ``none``.
        guest_user: The guest's user.
        state: The state directory's layout.

    Raises:
        VmwError: It cannot be shared in this mode.
    """
    user = {"user_name": _identity(worktree, "user.name"), "user_email": _identity(worktree, "user.email")}
    if layout.kind is Kind.NONE:
        return GitShare(**user)
    check_text(layout.git_dir)
    if mode != "none":
        _check(layout, guest_user, state)
    return GitShare(mode=mode, kind=layout.kind.value, git_dir=layout.git_dir, common_dir=layout.common_dir, **user)


def prepare(instance: Instance, files: InstanceFiles) -> None:
    """Make on the host what the shares of git data need, and what git itself would make there sooner or later.

    Args:
        instance: The VM.
        files: Its files.

    Raises:
        VmwError: git cannot read the repository.
    """
    git = instance.git
    if git.kind == Kind.NONE.value:
        return
    files.git_masks.mkdir(mode=0o700, exist_ok=True)
    if git.kind != Kind.MAIN.value:
        target = guest_git_dir(instance) if has_own_git_dir(instance) else git.git_dir
        write_file(files.git_masks / "dot-git", f"gitdir: {target}\n", PRIVATE)
    elif git.mode == "none":
        (files.git_masks / NO_GIT).mkdir(exist_ok=True)
    if git.mode == "protected":
        _prepare_common(instance, files)
    if has_own_git_dir(instance) and not files.git_dir.is_dir():
        _make_own_git_dir(instance, files)


def _prepare_common(instance: Instance, files: InstanceFiles) -> None:
    git = instance.git
    for name in ("logs", "objects/info"):
        Path(git.common_dir, name).mkdir(exist_ok=True)
    for name in (*MIRRORED, "HEAD"):
        # The daemon's unit fills it, also when libvirt starts the VM.
        (files.git_masks / name).touch(mode=PRIVATE)
    if git.kind not in WORKTREE_KINDS:
        write_file(files.git_masks / "masked-HEAD", MASKED_HEAD, PRIVATE)
        return
    # The guest could make it otherwise, and extensions.worktreeConfig would have the host's git read it.
    Path(git.git_dir, "config.worktree").touch()
    write_file(files.git_masks / "commondir", f"{git.common_dir}\n", PRIVATE)
    # The guest's own path, or `git worktree prune` there would take this worktree for one that is gone.
    write_file(files.git_masks / "gitdir", f"{guest_worktree(instance)}/.git\n", PRIVATE)


def _make_own_git_dir(instance: Instance, files: InstanceFiles) -> None:
    """Make the guest's own HEAD and index from the host's; a directory that is there already is the guest's."""
    git = instance.git
    partial = files.git_dir.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    host = Path(git.git_dir)
    for path in (host / "HEAD", host / "index", *host.glob("sharedindex.*")):
        _copy(path, partial / path.name)
    if os.path.lexists(host / "info/sparse-checkout"):
        (partial / "info").mkdir()
        _copy(host / "info/sparse-checkout", partial / "info/sparse-checkout")
    if git.mode == "isolated":
        _make_private_repository(git, partial)
    else:
        write_file(partial / "commondir", f"{git.common_dir}\n")
        write_file(partial / "gitdir", f"{guest_worktree(instance)}/.git\n")
        worktree_config = partial / "config.worktree"
        if _copy(host / "config.worktree", worktree_config) and "core.worktree" in read_config(worktree_config):
            # A submodule's, relative to the host's git directory.
            run_git("config", f"--file={worktree_config}", "--unset-all", "core.worktree")
    if git.mode == "isolated":
        _keep(instance)
    partial.replace(files.git_dir)


def kept_ref(name: str) -> str:
    """Return the ref that keeps what an isolated guest builds on; ``vmw/NAME`` alone would hide the branch of that name."""
    return f"refs/vmw/base/{name}"


def _keep(instance: Instance) -> None:
    """Keep all that the guest may build on from the host's `git gc`, whatever becomes of the branches: it borrows the objects.

    Raises:
        VmwError: git cannot keep it.
    """
    git, repository = instance.git, f"--git-dir={instance.git.common_dir}"
    revisions = ["--branches", "--tags", "--remotes"]
    with contextlib.suppress(VmwError):
        # There may be no commit yet.
        revisions.append(run_git(f"--git-dir={git.git_dir}", "rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip())
    try:
        tips = run_git(repository, "rev-list", "--no-walk=unsorted", *revisions).split()
        if not tips:
            return
        # Written as text, for a command line has no room for the tips of a large repository: git-commit-tree(1).
        tree = run_git(repository, "hash-object", "-t", "tree", "-w", os.devnull).strip()
        who = "vmw <vmw@localhost> 0 +0000"
        head = [f"tree {tree}", *(f"parent {tip}" for tip in tips), f"author {who}", f"committer {who}"]
        with tempfile.NamedTemporaryFile("w", prefix="vmw-keep-") as text:
            text.write("\n".join([*head, "", f"What the VM {instance.name} builds on", ""]))
            text.flush()
            kept = run_git(repository, "hash-object", "-t", "commit", "-w", "--no-filters", text.name).strip()
        run_git(repository, "-c", "core.hooksPath=/dev/null", "update-ref", kept_ref(instance.name), kept)
    except VmwError as error:
        message = f"what {instance.name} would build on cannot be kept from `git gc` in {git.common_dir}: {error.message}"
        shown = f"`git --git-dir={shlex.quote(git.common_dir)} for-each-ref refs/vmw`"
        hint = f"{shown} shows what stands in the way of {kept_ref(instance.name)}; `git update-ref -d` removes it"
        raise VmwError(message, hint, "usage") from error


def release(instance: Instance) -> None:
    """Remove from the host's repository what was kept there for a VM; nothing where the repository itself is gone.

    Raises:
        VmwError: git fails.
    """
    git = instance.git
    if git.mode == "isolated" and Path(git.common_dir).is_dir():
        run_git(f"--git-dir={git.common_dir}", "-c", "core.hooksPath=/dev/null", "update-ref", "-d", kept_ref(instance.name))


def _make_private_repository(git: GitShare, directory: Path) -> None:
    """Fill a git directory of the guest's own, which borrows the host's objects and has its branches as they are now."""
    common = Path(git.common_dir)
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (directory / name).mkdir(parents=True)
    write_file(directory / "objects/info/alternates", f"{common}/objects\n")
    _copy(common / "shallow", directory / "shallow")
    form = "--format=%(if)%(symref)%(then)%(else)%(objectname) %(refname)%(end)"
    refs = run_git(f"--git-dir={common}", "for-each-ref", form, "refs/heads", "refs/remotes", "refs/tags")
    # A name may have any byte and every blank but the ASCII ones: git-check-ref-format(1).
    packed = "".join(f"{line}\n" for line in refs.split("\n") if line)
    (directory / "packed-refs").write_bytes(packed.encode(errors="surrogateescape"))
    settings = read_settings(common / "config")
    if dict(settings).get("extensions.worktreeconfig") == "true" and Path(git.git_dir, "config.worktree").is_file():
        settings += read_settings(Path(git.git_dir, "config.worktree"))
    config = directory / "config"
    version = "1" if any(key.startswith("extensions.") for key, _ in settings) else "0"
    run_git("config", f"--file={config}", "core.repositoryformatversion", version)
    run_git("config", f"--file={config}", "core.bare", "false")
    for key, value in settings:
        if any(re.fullmatch(pattern, key, re.IGNORECASE) for pattern in KEPT_SETTINGS):
            run_git("config", f"--file={config}", "--add", without_password(key), without_password(value))
