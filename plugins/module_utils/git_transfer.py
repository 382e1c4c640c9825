# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Carry commits between the host's repository and a guest's private one, by a git that trusts nothing of what the guest says.

git runs beside the host's repository alone, whose configuration no guest can write, and never in the worktree. What comes over
the wire are objects, which git checks, and one value for one branch.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import GitLayout, Kind, branch, git_environment
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import guest_worktree
from ansible_collections.vmw.worktree.plugins.module_utils.ssh_command import git_ssh_command

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

BOUNDARY = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    # Where objects are borrowed, git has a shell list the refs of that place: git-config(1), which gives it the path as well.
    "core.alternateRefsCommand": "true",
    "fetch.bundleURI": "",
    "fetch.fsckObjects": "true",
    "transfer.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "protocol.ssh.allow": "always",
    # With these, packs of any size get along with GIT_MEMORY.
    "core.packedGitWindowSize": "32m",
    "core.packedGitLimit": "256m",
    "core.bigFileThreshold": "64m",
    "pack.threads": "2",
    "pack.windowMemory": "128m",
}
"""Settings under which git meets a guest: it runs nothing, checks every object and speaks by ssh alone."""

GIT_MEMORY = 2 << 30
"""How much address space git may use, in bytes: an object that a guest made may unfold to any size."""

PRINTED_LIMIT = 1 << 20
COMPLAINTS_LIMIT = 64 << 10
"""How much git may print and complain when a guest speaks through it, in bytes, before it is ended."""

END_SECONDS = 5.0
"""How long git may take to remove its temporary files when it is ended."""

FETCH = (
    *("--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-gc", "--no-auto-maintenance", "--no-prune"),
    *("--no-prune-tags", "--no-write-commit-graph", "--refmap=", "--no-progress"),
)
PUSH = ("--porcelain", "--no-verify", "--no-follow-tags", "--recurse-submodules=no", "--no-signed", "--no-progress")

PULLED = "vmw"
"""Directory of the host's branches in which the guests' commits arrive."""

INCOMING = "refs/vmw/incoming"
"""Where a guest's commit stands until it is known what it would change."""

PUSHED = "refs/remotes/host"
"""Where the guest finds the host's branches."""

SAID_LENGTH = 300
"""How much of git's own words a message has, in characters."""

ADVICE = ("Please make sure you have the correct access", "and the repository exists.", "From ", "To ", "hint: ")
"""How lines of git's start that say nothing of the failure."""


@dataclass(frozen=True)
class Remote:
    """A guest's repository.

    Attributes:
        url: Its address for git.
        ssh: The command in place of ssh, for a shell.
    """

    url: str
    ssh: str


@dataclass(frozen=True)
class Transfer:
    """What was carried, or would be.

    Attributes:
        changed: Whether anything was.
        branch: The host's branch that took the commits; empty for a push.
        commits: How many commits came; ``None`` where only the transfer itself would tell, and for a push.
        branches: The host's branches that are new or other in the guest.
        look: The command that shows what came, and where to run it.
    """

    changed: bool
    branch: str = ""
    commits: int | None = None
    branches: list[str] = field(default_factory=list)
    look: str = ""


def remote_of(instance: Instance, files: InstanceFiles, address: str) -> Remote:
    """Return the guest's repository at the address where its own SSH server is to be, on the record's port."""
    url = f"ssh://{address}{guest_worktree(instance)}/.git"
    return Remote(url, git_ssh_command(instance.name, instance.guest_user, files.known_hosts, instance.ssh_port))


def check_mode_of(instance: Instance) -> None:
    """Refuse a VM whose commits need no carrying, or cannot be carried.

    Raises:
        VmwError: It has no private repository.
    """
    if instance.git.mode == "protected":
        message = f"the commits of {instance.name} are in your repository already"
        raise VmwError(message, f"`vmw git` is for VMs made with `--git isolated`; {instance.name} is protected", "usage")
    if instance.git.mode != "isolated":
        message = f"{instance.name} has no git data"
        raise VmwError(message, "`vmw git` is for VMs made with `--git isolated` (the playbook's `vmw_git_mode`)", "usage")


def pull(instance: Instance, remote: Remote, name: str = "", *, force: bool = False, dry: bool = False) -> Transfer:
    """Fetch the guest's commits into the branch of the host that is kept for this VM.

    Args:
        instance: The VM.
        remote: Its repository.
        name: The guest's branch, by default what it has checked out.
        force: Whether commits that were fetched before may be left out of the branch.
        dry: Whether to look only.

    Raises:
        VmwError: The guest has no such branch, the host's cannot be moved, or the guest cannot be reached.
    """
    common = instance.git.common_dir
    target = f"{PULLED}/{instance.name}"
    source = _checked_branch(name) if name else "HEAD"
    _check_target(common, target)
    old = _commit(common, f"refs/heads/{target}")
    if dry:
        new = _offered(instance, remote, source)
        known = new == old or _commit(common, new) == new
        count = _count(common, new, old, target) if known else None
        return Transfer(new != old, target, count, look=_look(instance, target))
    incoming = f"{INCOMING}/{instance.name}"
    _git(common, "update-ref", "-d", incoming)
    try:
        done = _git(common, "fetch", *FETCH, "--", remote.url, f"{source}:{incoming}", remote=remote)
        if done.returncode:
            raise _fetch_failure(instance, name, done.stderr)
        new = _commit(common, incoming)
        if not new:
            raise _nothing(instance, name)
        if old and not force:
            _check_follows(instance, name, old, new, target)
        if new != old:
            _move(common, target, old, new)
    finally:
        _git(common, "update-ref", "-d", incoming)
    return Transfer(new != old, target, _count(common, new, old, target), look=_look(instance, target))


def _check_target(common: str, target: str) -> None:
    """See that a branch can be moved: by the host's own refs and worktrees, for what the guest's side says may be made up.

    Raises:
        VmwError: Another branch's name is in its way, or a worktree has it checked out.
    """
    named = _git(common, "for-each-ref", "--count=1", "--format=%(refname)", f"refs/heads/{target}/").stdout.rstrip("\n")
    taken = named.removeprefix("refs/heads/")
    if not _git(common, "show-ref", "--verify", "--quiet", f"refs/heads/{PULLED}").returncode:
        taken = PULLED
    if taken:
        message = f"your branch {printable(taken)} is in the way: the commits would come to {target}"
        hint = (
            f"rename your branch `{printable(taken)}`: `git --git-dir={shlex.quote(common)} branch -m {shlex.quote(taken)} NEW`"
        )
        raise VmwError(message, hint, "conflict")
    place = ""
    # git-worktree(1), "Porcelain Format": each worktree begins with its path.
    for line in _git(common, "worktree", "list", "--porcelain").stdout.split("\n"):
        word, _, value = line.partition(" ")
        place = value if word == "worktree" else place
        if line == f"branch refs/heads/{target}":
            message = f"your branch {target} is checked out at {printable(place)}, where git would change files under your hands"
            raise VmwError(message, "check out another branch there, pull, and merge it", "conflict")


def _check_follows(instance: Instance, name: str, old: str, new: str, target: str) -> None:
    """See that no commit that came before would be left out.

    Raises:
        VmwError: One would, or git cannot tell.
    """
    done = _git(instance.git.common_dir, "merge-base", "--is-ancestor", old, new)
    if done.returncode == 1:
        again = f"vmw git pull {instance.name}{f' --branch {shlex.quote(name)}' if name else ''} --force"
        message = f"your branch {target} has commits that the guest's does not have: it was rewritten there, or is another branch"
        raise VmwError(message, f"`git branch KEEP {target}` keeps them; `{again}` then replaces the branch", "conflict")
    if done.returncode:
        message = f"git could not compare {target} with what came: {_said(done.stderr)}"
        raise VmwError(message)


def _move(common: str, target: str, old: str, new: str) -> None:
    """Set a branch, provided that it is as it was.

    Raises:
        VmwError: It is not, or git refuses.
    """
    done = _git(common, "update-ref", "-m", "vmw git pull", f"refs/heads/{target}", new, old or "0" * len(new))
    if done.returncode:
        message = f"git could not set your branch {target}: {_said(done.stderr)}"
        raise VmwError(message, "does another git work there at the moment? Pull once more", "conflict")


def push(instance: Instance, remote: Remote, name: str = "", *, dry: bool = False) -> Transfer:
    """Send the host's branches to the guest, where they stand beside its own and change none of them.

    Args:
        instance: The VM.
        remote: Its repository.
        name: The one branch of the host to send, by default all but those that came from guests.
        dry: Whether to look only.

    Raises:
        VmwError: There is no such branch, the guest refuses, or it cannot be reached.
    """
    common = instance.git.common_dir
    if name:
        source = _checked_branch(name)
        if not _commit(common, source):
            message = f"your repository has no branch {name!r}"
            raise VmwError(message, f"`git --git-dir={shlex.quote(common)} branch` shows which it has", "usage")
        names = [name]
    else:
        # A name may have any blank but the ASCII ones: git-check-ref-format(1).
        listed = _git(common, "for-each-ref", "--format=%(refname)", "refs/heads").stdout.split("\n")
        names = [each.removeprefix("refs/heads/") for each in listed if each and not each.startswith(f"refs/heads/{PULLED}/")]
    if not names:
        return Transfer(changed=False)
    refspecs = [f"+refs/heads/{each}:{PUSHED}/{each}" for each in names]
    options = (*PUSH, "--dry-run") if dry else PUSH
    done = _git(common, "push", *options, "--", remote.url, *refspecs, remote=remote)
    # git-push(1), "Output": flag, from:to, summary, with tabs between.
    lines = [parts for parts in (line.split("\t") for line in done.stdout.split("\n")) if len(parts) == 3]  # noqa: PLR2004
    refused = [parts for parts in lines if parts[0] == "!"]
    if refused:
        message = f"the guest did not take {_short(refused[0][1])}: {printable(refused[0][2])[:SAID_LENGTH]}"
        raise VmwError(message, f"`vmw ssh {instance.name}`, then look at ~/repo with git")
    if done.returncode:
        raise _unreachable(instance, "send to", done.stderr)
    sent = [_short(parts[1]) for parts in lines if parts[0] != "="]
    return Transfer(bool(sent), branches=sent)


def _short(pair: str) -> str:
    """Return the host's branch of a pair of refs."""
    return printable(pair.partition(":")[0].removeprefix("refs/heads/"))


def _checked_branch(name: str) -> str:
    """Return the whole name of a branch.

    Raises:
        VmwError: No branch can have that name.
    """
    done = _git("", "check-ref-format", f"refs/heads/{name}")
    if done.returncode or name.startswith("-"):
        message = f"{printable(name)!r} cannot be a branch's name"
        raise VmwError(message, "name a branch as `git branch` shows it", "usage")
    return f"refs/heads/{name}"


def _git(common: str, *argv: str, remote: Remote | None = None) -> subprocess.CompletedProcess[str]:
    """Run git beside a repository of the host's; the surrogates of a name that is no UTF-8 go in and out as they are."""
    # What a partial clone lacks is not fetched from where it says.
    environment = {**git_environment(), "GIT_ALLOW_PROTOCOL": "ssh" if remote else "none"}
    options = [word for key, value in BOUNDARY.items() for word in ("-c", f"{key}={value}")]
    if common:
        options.append(f"--git-dir={common}")
    if remote:
        # ssh finds its keys by them.
        environment.update({name: os.environ[name] for name in ("HOME", "SSH_AUTH_SOCK") if name in os.environ})
        environment.update(GIT_SSH_COMMAND=remote.ssh, GIT_SSH_VARIANT="ssh", GIT_TERMINAL_PROMPT="0")
    # Each thread would reserve 64 MiB or more of the address space.
    environment["MALLOC_ARENA_MAX"] = "2"
    try:
        process = subprocess.Popen(
            ["git", *options, *argv],
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        message = "git is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready") from error
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (GIT_MEMORY, GIT_MEMORY))
    printed, complaints = _heard(process, *((PRINTED_LIMIT, COMPLAINTS_LIMIT) if remote else (sys.maxsize, sys.maxsize)))
    texts = (each.decode("utf-8", "surrogateescape") for each in (printed, complaints))
    return subprocess.CompletedProcess(argv, process.returncode, *texts)


def _heard(process: subprocess.Popen[bytes], *limits: int) -> tuple[bytes, bytes]:
    """Return what a process prints and complains until it ends, or until one of both is too much and it is ended."""
    assert process.stdout is not None  # noqa: S101 - it was started with pipes
    assert process.stderr is not None  # noqa: S101
    heard = bytearray(), bytearray()
    with process, selectors.DefaultSelector() as selector:
        try:
            for number, stream in enumerate((process.stdout, process.stderr)):
                selector.register(stream, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    block = os.read(key.fd, 1 << 16)
                    heard[key.data].extend(block)
                    if not block:
                        selector.unregister(key.fileobj)
                    if len(heard[key.data]) > limits[key.data]:
                        _end(process)
                        return b"", b"it was ended, for it said too much"
        except BaseException:
            _end(process)
            raise
    return bytes(heard[0]), bytes(heard[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End git, and by it ssh, which gets a signal from git and loses its pipes."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    process.kill()


def _commit(common: str, name: str) -> str:
    """Return the commit that a name leads to, or nothing."""
    return _git(common, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").stdout.strip()


def _count(common: str, new: str, old: str, target: str) -> int:
    """Return how many commits a branch has that it had not, or at first that the repository had not."""
    known = [old] if old else [f"--exclude=refs/heads/{target}", "--all"]
    return int(_git(common, "rev-list", "--count", new, "--not", *known).stdout.strip() or 0)


def _offered(instance: Instance, remote: Remote, source: str) -> str:
    """Return the commit that a guest has for a ref.

    Raises:
        VmwError: It has none, or cannot be reached.
    """
    done = _git(instance.git.common_dir, "ls-remote", "--", remote.url, source, remote=remote)
    if done.returncode:
        raise _unreachable(instance, "ask", done.stderr)
    for line in done.stdout.split("\n"):
        value, _, ref = line.partition("\t")
        if ref == source and value and set(value) <= set("0123456789abcdef"):
            return value
    raise _nothing(instance, source.removeprefix("refs/heads/"))


def _nothing(instance: Instance, name: str) -> VmwError:
    if name in {"", "HEAD"}:
        return VmwError(f"{instance.name} has no commit yet", f"`vmw ssh {instance.name}`, then commit in ~/repo")
    hint = f"`vmw ssh {instance.name} -- git -C repo branch` shows which it has"
    return VmwError(f"{instance.name} has no branch {name!r}", hint, "usage")


def _own_lines(stderr: str) -> list[str]:
    """Return what git and ssh themselves said, without what git passes on from the other side."""
    lines = (line.strip() for line in stderr.split("\n"))
    return [line for line in lines if line and not line.startswith(("remote:", *ADVICE))]


def _said(stderr: str) -> str:
    return printable("; ".join(_own_lines(stderr)))[:SAID_LENGTH] or "it gave no reason"


def _unreachable(instance: Instance, verb: str, stderr: str) -> VmwError:
    hint = f"does `vmw ssh {instance.name} -- git -C repo status` work? A key with a passphrase must be in your SSH agent"
    return VmwError(f"git could not {verb} {instance.name}: {_said(stderr)}", hint)


def _fetch_failure(instance: Instance, name: str, stderr: str) -> VmwError:
    if any("couldn't find remote ref" in line for line in _own_lines(stderr)):
        return _nothing(instance, name)
    return _unreachable(instance, "fetch from", stderr)


def _look(instance: Instance, target: str) -> str:
    """Return the command that shows what came, for the main checkout and not the worktree, which the guest can write."""
    common = Path(instance.git.common_dir)
    place = common.parent if common.name == ".git" and instance.git.kind in {Kind.MAIN.value, Kind.LINKED.value} else common
    mine = branch(GitLayout(Kind.MAIN, str(common), str(common))) or "HEAD"
    return f"git -C {shlex.quote(str(place))} log {shlex.quote(f'{mine}..{target}')}"
