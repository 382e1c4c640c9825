# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What work there is in a VM that is not committed, not pushed, or nowhere else, told without running what the guest left there.

git obeys the configuration of the directory that it runs in, and of every nested repository it comes upon. So it gets a
directory of its own here, with a configuration of its own, and into it come only bytes: the guest's HEAD and index, checked and
copied. Of the guest's repository git sees the objects, which it only reads; of the worktree the files, and no nested repository.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import re
import resource
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import guest_git, hostile_files
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import git_environment, read_config
from ansible_collections.vmw.worktree.plugins.module_utils.guest_git import ENTRIES_LIMIT, LINE_LIMIT, REFS_LIMIT, UnknownError
from ansible_collections.vmw.worktree.plugins.module_utils.index_entries import GITLINK, INDEX_BYTES
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import has_own_git_dir

if TYPE_CHECKING:
    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

TIME_LIMIT = 20.0
"""How long a look at one VM may take, in seconds: it stands before a question that somebody waits for."""

OUTPUT_LIMIT = 64 << 20
"""How much of git's output is read, in bytes: room for the paths of the largest worktrees."""

SETTINGS = {
    "core.bare": "false",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.untrackedCache": "false",
    # Written by whoever can write the objects, and believed without a look at them.
    "core.commitGraph": "false",
    "core.multiPackIndex": "false",
    # Another kernel wrote the index: the change time and the inode are not what this one sees.
    "core.trustctime": "false",
    "core.checkStat": "minimal",
    "core.safecrlf": "false",
    "submodule.recurse": "false",
    # With these, packs of any size get along with GIT_MEMORY.
    "core.packedGitWindowSize": "32m",
    "core.packedGitLimit": "256m",
    "protocol.allow": "never",
}
"""Configuration under which git looks: it runs nothing, fetches nothing and believes only what it reads itself."""

GIT_MEMORY = 2 << 30
"""How much address space git may use, in bytes: a compressed index, or an object, may unfold to far more than its size."""

FORM = re.compile(r"core\.(ignorecase|precomposeunicode|filemode|symlinks|autocrlf|eol)")
"""Settings of the host's repository by which git compares files; none names anything to run."""

EMPTY_TREE = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""The tree without files, which git knows without having it, by the length of its name in SHA-1 and in SHA-256."""

DIFF = ("--name-only", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")


@dataclass(frozen=True)
class Risk:
    """What of a VM's work is not safe elsewhere.

    Attributes:
        unknown: Why something could not be told; what was told before that holds.
        staged: Paths that are staged.
        unstaged: Paths that are changed and not staged.
        untracked: Paths, or directories as a whole, that git does not know.
        unpushed: Commits that no remote has, or ``None`` for a repository that follows no remote.
        only_guest: Commits that the host's repository does not have, and that are gone with the VM.
        only_elsewhere: Those of them on other branches than the one that is checked out.
        stashed: Whether a stash is gone with the VM.
    """

    unknown: str = ""
    staged: int = 0
    unstaged: int = 0
    untracked: int = 0
    unpushed: int | None = None
    only_guest: int = 0
    only_elsewhere: int = 0
    stashed: bool = False


@dataclass
class _Limit:
    """The time that is left."""

    seconds: float = TIME_LIMIT
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds

    def seconds_left(self) -> float:
        """Return the seconds that are left, below zero when there are none."""
        return self._end - time.monotonic()

    def check(self) -> None:
        """See that there is time.

        Raises:
            UnknownError: There is none.
        """
        if self.seconds_left() <= 0:
            message = f"it takes longer than {self.seconds:.0f} s to find out"
            raise UnknownError(message)


# --- git, in a directory of its own ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Git:
    """git with a directory that no guest can write."""

    directory: Path
    worktree: str
    limit: _Limit

    def run(self, *argv: str, words: bytes = b"", good: tuple[int, ...] = (0,)) -> bytes:
        """Run git and return what it printed.

        Args:
            argv: The command.
            words: What it reads.
            good: Exit codes that are none of a failure.

        Raises:
            UnknownError: It failed, said too much, or time is up.
        """
        environment = {
            **git_environment(),
            "GIT_DIR": str(self.directory),
            "GIT_WORK_TREE": self.worktree,
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            # Each thread would reserve 64 MiB or more of the address space.
            "MALLOC_ARENA_MAX": "2",
        }
        return _run(["git", *argv], environment, self.limit, words, good)


def _run(argv: list[str], environment: dict[str, str], limit: _Limit, words: bytes = b"", good: tuple[int, ...] = (0,)) -> bytes:
    with tempfile.TemporaryFile() as said:
        said.write(words)
        said.seek(0)
        try:
            process = subprocess.Popen(
                argv, cwd="/", env=environment, stdin=said, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except FileNotFoundError as error:
            message = "git is not installed"
            raise UnknownError(message) from error
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (GIT_MEMORY, GIT_MEMORY))
        # The largest that it writes is the index.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (INDEX_BYTES, INDEX_BYTES))
    timer = threading.Timer(max(limit.seconds_left(), 0), process.kill)
    timer.start()
    with process:
        output = process.stdout.read(OUTPUT_LIMIT + 1) if process.stdout else b""
        if len(output) > OUTPUT_LIMIT:
            process.kill()
    timer.cancel()
    limit.check()
    if len(output) > OUTPUT_LIMIT:
        message = "there are too many paths"
        raise UnknownError(message)
    if process.returncode not in good:
        message = f"git cannot read it (`git {next(word for word in argv[1:] if not word.startswith('-'))}`)"
        raise UnknownError(message)
    return output


def _host_refs(common: str, limit: _Limit) -> dict[str, str]:
    """Return the refs of the host's repository, whose configuration is the host's own."""
    argv = ["git", f"--git-dir={common}", "for-each-ref", "--format=%(objectname) %(refname)"]
    # A name may have any blank but the ASCII ones: git-check-ref-format(1).
    lines = os.fsdecode(_run(argv, git_environment(), limit)).split("\n")
    return {name: value for value, _, name in (line.partition(" ") for line in lines if line)}


def _borrow_private(files: InstanceFiles, common: str, objects: Path) -> None:
    """Let git see the objects of a guest's private repository, and nothing beside them: neither alternates nor lists of commits.

    Raises:
        UnknownError: The guest has its repository borrow from elsewhere, so that more would be needed.
    """
    with guest_git.opened(str(files.git_dir)) as git_dir, guest_git.opened("objects", git_dir) as directory:
        with guest_git.opened("info", directory) as info:
            alternates = guest_git.read(info, "alternates", LINE_LIMIT)
        if alternates != os.fsencode(f"{common}/objects\n"):
            message = "its repository borrows objects from elsewhere"
            raise UnknownError(message)
        names = [f"{number:02x}" for number in range(256)]
        for name in (*names, "pack"):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    (objects / name).symlink_to(files.git_dir / "objects" / name)


def _make_directory(instance: Instance, files: InstanceFiles, target: Path, settings: dict[str, str], head: str) -> None:
    """Make the directory in which git looks at a VM's work.

    Args:
        instance: The VM.
        files: Its files.
        target: An empty directory.
        settings: The configuration of the host's repository.
        head: The commit that is checked out, or nothing.
    """
    common = Path(instance.git.common_dir)
    form = settings.get("extensions.objectformat", "sha1")
    own = {key: value for key, value in settings.items() if FORM.fullmatch(key) and re.fullmatch("[a-z]+", value)}
    values = {**own, **SETTINGS, "core.repositoryformatversion": "0"}
    if form == "sha256":
        values |= {"core.repositoryformatversion": "1", "extensions.objectformat": form}
    lines = (f"[{key.partition('.')[0]}]\n\t{key.partition('.')[2]} = {value}\n" for key, value in values.items())
    (target / "config").write_text("".join(lines))
    for name in ("refs", "info", "objects/info"):
        (target / name).mkdir(parents=True)
    (target / "objects/info/alternates").write_text(f"{common}/objects\n")
    (target / "HEAD").write_text(f"{head or 'ref: refs/heads/none'}\n")
    private = instance.git.mode == "isolated"
    if private:
        _borrow_private(files, str(common), target / "objects")
    length = 64 if form == "sha256" else 40
    shallow = guest_git.shallow([common, files.git_dir] if private else [common], length)
    if shallow:
        (target / "shallow").write_text(shallow)
    with contextlib.suppress(FileNotFoundError), guest_git.opened(str(common / "info")) as info:
        (target / "info/exclude").write_bytes(guest_git.read(info, "exclude", REFS_LIMIT) or b"")


def _copy_index(git_dir: Path, target: Path, limit: _Limit) -> None:
    """Copy a guest's index, and of the shared ones the one that it is a part of.

    Args:
        git_dir: The directory with the index.
        target: The directory that gets the copy.
        limit: The time that is left.

    Raises:
        UnknownError: One is no regular file, both together are too long, or time is up.
        OSError: One is a link, or may not be read.
    """
    with guest_git.opened(str(git_dir)) as directory:
        left = _copy_part(directory, "index", target, INDEX_BYTES)
        limit.check()
        with os.scandir(directory) as listing:
            names = {entry.name for entry in itertools.islice(listing, ENTRIES_LIMIT)}
        base = _shared_index(target / "index", names, limit)
        if base:
            _copy_part(directory, base, target, left)
            limit.check()


def _copy_part(directory: int, name: str, target: Path, left: int) -> int:
    """Copy a part of an index if it is there, and return how many bytes the others may have."""
    try:
        with hostile_files.open_file(name, directory) as source, (target / name).open("xb") as copy:
            hostile_files.copy(source, copy, left)
            return left - copy.tell()
    except FileNotFoundError:
        return left
    except hostile_files.NotAFileError as error:
        message = f"its {name} is no file"
        raise UnknownError(message) from error
    except hostile_files.TooLargeError as error:
        message = f"its {name} is too long"
        raise UnknownError(message) from error


def _shared_index(index: Path, names: set[str], limit: _Limit) -> str:
    """Return which of some files is the one that a split index builds on, or nothing: gitformat-index(5), "Split index"."""
    shared = sorted(name for name in names if re.fullmatch(r"sharedindex\.([0-9a-f]{40}|[0-9a-f]{64})", name))
    if not shared or not index.exists() or not index.stat().st_size:
        return ""
    with index.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in shared:
            limit.check()
            # By its digest, which nothing else has.
            if content.find(bytes.fromhex(name.partition(".")[2])) >= 0:
                return name
    return ""


# --- looking -----------------------------------------------------------------------------------------------------


def _revisions(wanted: list[str], known: list[str]) -> bytes:
    return "".join([*(f"{value}\n" for value in wanted), *(f"^{value}\n" for value in known)]).encode()


def _count(git: _Git, wanted: list[str], known: list[str]) -> int:
    """Return how many commits are reachable from some values and not from others; known ones may be missing here."""
    return int(git.run("rev-list", "--count", "--ignore-missing", "--stdin", words=_revisions(wanted, known)) or 0)


def _check_there(git: _Git, values: list[str]) -> None:
    """See that objects are there.

    Raises:
        UnknownError: One is not.
    """
    found = git.run("cat-file", "--batch-check", words=_revisions(values, []))
    if any(line.endswith(b" missing") for line in found.splitlines()):
        message = "its repository lacks objects"
        raise UnknownError(message)


def _nested(git: _Git) -> set[bytes]:
    """Return the nested repositories in the index."""
    entries = git.run("ls-files", "--stage", "-z").split(b"\0")
    return {entry.partition(b"\t")[2] for entry in entries if entry.startswith(GITLINK)}


def _forget_nested(git: _Git, length: int) -> set[bytes]:
    """Take the nested repositories out of the index, for git to visit none of them, and return them."""
    nested = _nested(git)
    if nested:
        none = b"0" * length
        git.run("update-index", "-z", "--index-info", words=b"".join(b"0 %s\t%s\0" % (none, path) for path in nested))
        if _nested(git):
            message = "its index is broken"
            raise UnknownError(message)
    return nested


def _paths(git: _Git, *argv: str) -> set[bytes]:
    return {path.rstrip(b"/") for path in git.run(*argv).split(b"\0") if path}


def _look_at_worktree(git: _Git, head: str, length: int, risk: Risk) -> Risk:
    nested = _forget_nested(git, length)
    # 1 is that of files that are not as the index has them.
    git.run("update-index", "-q", "--unmerged", "--ignore-submodules", "--refresh", good=(0, 1))
    others = ("ls-files", "-z", "--others", "--exclude-standard", "--directory", "--no-empty-directory")
    risk = replace(risk, unstaged=len(_paths(git, "diff-files", *DIFF, "--")), untracked=len(_paths(git, *others) - nested))
    try:
        return replace(risk, staged=len(_paths(git, "diff-index", "--cached", *DIFF, head or EMPTY_TREE[length], "--")))
    except UnknownError as error:
        # The commit that is checked out may be what is missing.
        return replace(risk, unknown=risk.unknown or _reason(error))


def _look_at_commits(  # noqa: PLR0913, PLR0917 - all of what was read
    git: _Git, instance: Instance, head: tuple[str, bool], refs: dict[str, str], host: dict[str, str], settings: dict[str, str]
) -> Risk:
    commit, detached = head
    mine = [commit] if commit else []
    private = instance.git.mode == "isolated"
    branches = [value for name, value in refs.items() if name.startswith("refs/heads/")] if private else []
    stash = [refs["refs/stash"]] if private and "refs/stash" in refs else []
    _check_there(git, [*mine, *branches, *stash])
    unpushed = None
    # What the host has sent stands among the remotes of a private repository.
    remotes = [
        value for name, value in refs.items() if name.startswith("refs/remotes/") and not name.startswith("refs/remotes/host/")
    ]
    # Without a place for what a remote has, as in a bare clone, nothing is known of it.
    if remotes or any(re.fullmatch(r"remote\..*\.fetch", key) for key in settings):
        unpushed = _count(git, mine, remotes) if mine else 0
    known = list(host.values())
    # Otherwise every commit stays on the host, by a branch or by the worktree's own HEAD.
    lost = [*mine, *branches] if private else mine if detached and has_own_git_dir(instance) else []
    total = _count(git, lost, known) if lost else 0
    elsewhere = _count(git, branches, [*known, *mine]) if total else 0
    return Risk(
        unpushed=unpushed,
        only_guest=total,
        only_elsewhere=elsewhere,
        stashed=bool(stash) and _count(git, stash, known) > 0,
    )


def _look(instance: Instance, files: InstanceFiles, limit: _Limit, target: Path) -> Risk:
    common = instance.git.common_dir
    settings = read_config(Path(common, "config"))
    length = 64 if settings.get("extensions.objectformat") == "sha256" else 40
    host = _host_refs(common, limit)
    refs = guest_git.private_refs(files.git_dir, length) if instance.git.mode == "isolated" else host
    place = files.git_dir if has_own_git_dir(instance) else Path(instance.git.git_dir)
    head = guest_git.head_of(place, refs, length)
    _make_directory(instance, files, target, settings, head[0])
    git = _Git(target, instance.worktree, limit)
    try:
        risk = _look_at_commits(git, instance, head, refs, host, settings)
    except UnknownError as error:
        # What is in the worktree can be told without them.
        risk = Risk(unknown=_reason(error))
    try:
        _copy_index(place, target, limit)
        return _look_at_worktree(git, head[0], length, risk)
    except (UnknownError, OSError) as error:
        return replace(risk, unknown=risk.unknown or _reason(error))


def _reason(error: Exception) -> str:
    # A message may have a name in it that the guest made.
    return f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else hostile_files.printable(str(error))


def work_at_risk(instance: Instance, files: InstanceFiles, seconds: float = TIME_LIMIT) -> Risk:
    """Tell what of a VM's work is not safe elsewhere, whether it runs or not.

    Args:
        instance: The VM.
        files: Its files.
        seconds: How long it may take.

    Returns:
        What was found; what could not be told is named in it, and nothing is raised for it.
    """
    if instance.git.mode == "none" or (has_own_git_dir(instance) and not files.git_dir.exists()):
        return Risk()
    try:
        with tempfile.TemporaryDirectory(prefix="vmw-git-") as target:
            return _look(instance, files, _Limit(seconds), Path(target))
    except (UnknownError, VmwError, OSError, ValueError) as error:
        return Risk(unknown=_reason(error))


# --- wording -----------------------------------------------------------------------------------------------------


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _only_here(instance: Instance, risk: Risk) -> str:
    name = instance.name
    if instance.git.mode != "isolated":
        way = f"`vmw ssh {name} -- git -C repo branch NEW` keeps what is checked out there"
        return f"{_many(risk.only_guest, 'commit')} on no branch go with this VM: {way}"
    verb = "exists" if risk.only_guest == 1 else "exist"
    said = f"{_many(risk.only_guest, 'commit')} {verb} only in this VM"
    it = "it" if risk.only_guest == 1 else "them"
    if not risk.only_elsewhere:
        return f"{said}: `vmw git pull {name}` brings {it} over"
    return f"{said}, {risk.only_elsewhere} not on its current branch: `vmw git pull {name} --branch BRANCH` brings {it} over"


def warnings(instance: Instance, risk: Risk) -> list[str]:
    """Return what to tell about a VM's work, the worst first, in one or two lines."""
    lines = []
    if risk.only_guest:
        lines.append(_only_here(instance, risk))
    if risk.stashed:
        lines.append(
            f"a stash exists only in this VM: `vmw ssh {instance.name} -- git -C repo stash branch NEW` makes a branch of it"
        )
    counts = ((risk.staged, "staged"), (risk.unstaged, "changed"), (risk.untracked, "untracked"))
    parts = [f"{count} {what}" for count, what in counts if count]
    said = [f"{', '.join(parts)} in {instance.worktree}"] if parts else []
    said += [f"{_many(risk.unpushed, 'commit')} in no remote"] if risk.unpushed else []
    if said:
        lines.append(f"{instance.name} has uncommitted or unpushed work: {'; '.join(said)}")
    if risk.unknown:
        lines.append(f"vmw could not tell what work of {instance.name} is not safe elsewhere: {risk.unknown}")
    return lines
