# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What work there is in a VM that is not committed, not pushed, or nowhere else, told without running what the guest left there.

git obeys the configuration of the directory that it runs in, and of every nested repository it comes upon. So it gets a
directory of its own here, with a configuration of its own, and into it come only bytes: the guest's HEAD and index, checked and
copied. Of the guest's repository git sees the objects, which it only reads; of the worktree the files, and no nested repository.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import git_environment, read_config
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import has_own_git_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles

TIME_LIMIT = 20.0
"""How long a look at one VM may take, in seconds: it stands before a question that somebody waits for."""

OUTPUT_LIMIT = 64 << 20
"""How much of git's output is read, in bytes: room for the paths of the largest worktrees."""

INDEX_LIMIT = 256 << 20
REFS_LIMIT = 32 << 20
LINE_LIMIT = 4096
"""Largest index, list of packed refs, and file with one value that are read, in bytes."""

ENTRIES_LIMIT = 20_000
DEPTH_LIMIT = 16
"""How many loose refs a guest may have, and how deep."""

SHARED_INDEXES = 16
"""How many parts of a split index are copied; git removes old ones after two weeks."""

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
    "protocol.allow": "never",
}
"""Configuration under which git looks: it runs nothing, fetches nothing and believes only what it reads itself."""

FORM = re.compile(r"core\.(ignorecase|precomposeunicode|filemode|symlinks|autocrlf|eol)")
"""Settings of the host's repository by which git compares files; none names anything to run."""

EMPTY_TREE = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""The tree without files, which git knows without having it, by the length of its name in SHA-1 and in SHA-256."""

DIFF = ("--name-only", "-z", "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
GITLINK = b"160000 "
"""How the line of a nested repository starts in `git ls-files --stage`."""


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


class _UnknownError(Exception):
    """Something cannot be told, and why."""


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
            _UnknownError: There is none.
        """
        if self.seconds_left() <= 0:
            message = f"it takes longer than {self.seconds:.0f} s to find out"
            raise _UnknownError(message)


# --- reading what the guest can write ----------------------------------------------------------------------------


@contextlib.contextmanager
def _directory(name: str, parent: int | None = None) -> Iterator[int]:
    """Open a directory that is no link."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(directory: int, name: str, limit: int) -> bytes | None:
    """Return the content of a file in a directory, or ``None`` when there is none.

    Raises:
        _UnknownError: It is a link, no regular file, or too long.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"its {name} cannot be read: {error.strerror}"
        raise _UnknownError(message) from error
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            message = f"its {name} is no file"
            raise _UnknownError(message)
        content = handle.read(limit + 1)
    if len(content) > limit:
        message = f"its {name} is too long"
        raise _UnknownError(message)
    return content


def _value(content: bytes | None, length: int) -> str:
    """Return an object's name from a file's content, or nothing where it is none."""
    text = (content or b"").decode(errors="replace").strip()
    return text if len(text) == length and set(text) <= set("0123456789abcdef") else ""


def _loose_refs(parent: int, path: str, length: int, found: dict[str, str]) -> None:
    """Add the refs in a directory to those that were found; symbolic ones lead to others, which are found themselves."""
    with _directory(path.rpartition("/")[2], parent) as directory:
        entries: list[tuple[str, bool]] = []
        with os.scandir(directory) as listing:
            for entry in listing:
                if len(found) + len(entries) >= ENTRIES_LIMIT or path.count("/") >= DEPTH_LIMIT:
                    message = "it has too many refs"
                    raise _UnknownError(message)
                entries.append((entry.name, entry.is_dir(follow_symlinks=False)))
        for entry_name, is_directory in entries:
            if is_directory:
                _loose_refs(directory, f"{path}/{entry_name}", length, found)
            elif not entry_name.endswith(".lock"):
                content = _read(directory, entry_name, LINE_LIMIT)
                value = _value(content, length)
                if value:
                    found[f"{path}/{entry_name}"] = value
                elif content is not None and not content.startswith(b"ref: "):
                    message = "it has a broken ref"
                    raise _UnknownError(message)


def _private_refs(git_dir: Path, length: int) -> dict[str, str]:
    """Return the refs of a guest's private repository."""
    with _directory(str(git_dir)) as directory:
        packed = _read(directory, "packed-refs", REFS_LIMIT) or b""
        pattern = re.compile(rb"^([0-9a-f]{%d}) (refs/[^\n]+)$" % length, re.MULTILINE)
        refs = {os.fsdecode(name): value.decode() for value, name in pattern.findall(packed)}
        loose: dict[str, str] = {}
        _loose_refs(directory, "refs", length, loose)
    return {**refs, **loose}


def _head(git_dir: Path, refs: dict[str, str], length: int) -> tuple[str, bool]:
    """Return the commit of a HEAD, or nothing before the first one, and whether it is on no branch."""
    with _directory(str(git_dir)) as directory:
        content = _read(directory, "HEAD", LINE_LIMIT)
    if content is not None and content.startswith(b"ref: refs/"):
        return refs.get(os.fsdecode(content[5:].rstrip(b"\n")), ""), False
    value = _value(content, length)
    if not value:
        message = "its HEAD is broken"
        raise _UnknownError(message)
    return value, True


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
            _UnknownError: It failed, said too much, or time is up.
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
            raise _UnknownError(message) from error
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
        raise _UnknownError(message)
    if process.returncode not in good:
        message = f"git cannot read it (`git {next(word for word in argv[1:] if not word.startswith('-'))}`)"
        raise _UnknownError(message)
    return output


def _host_refs(common: str, limit: _Limit) -> dict[str, str]:
    """Return the refs of the host's repository, whose configuration is the host's own."""
    argv = ["git", f"--git-dir={common}", "for-each-ref", "--format=%(objectname) %(refname)"]
    lines = os.fsdecode(_run(argv, git_environment(), limit)).splitlines()
    return {name: value for value, _, name in (line.partition(" ") for line in lines)}


def _copy_index(git_dir: Path, target: Path) -> None:
    """Copy a guest's index, and the parts that a split one has."""
    with _directory(str(git_dir)) as directory, os.scandir(directory) as listing:
        shared = [entry.name for entry in listing if re.fullmatch(r"sharedindex\.[0-9a-f]{40,64}", entry.name)]
        for name in ("index", *shared[:SHARED_INDEXES]):
            content = _read(directory, name, INDEX_LIMIT)
            if content is not None:
                (target / name).write_bytes(content)


def _shallow(directories: list[Path], length: int) -> str:
    """Return where history was cut off, for git to look for nothing before it."""
    values: dict[str, None] = {}
    for each in directories:
        with _directory(str(each)) as directory:
            lines = (_read(directory, "shallow", REFS_LIMIT) or b"").splitlines()
        values.update(dict.fromkeys(value for value in (_value(line, length) for line in lines) if value))
    return "".join(f"{value}\n" for value in values)


def _borrow_private(files: InstanceFiles, common: str, objects: Path) -> None:
    """Let git see the objects of a guest's private repository, and nothing beside them: neither alternates nor lists of commits.

    Raises:
        _UnknownError: The guest has its repository borrow from elsewhere, so that more would be needed.
    """
    with _directory(str(files.git_dir)) as git_dir, _directory("objects", git_dir) as directory:
        with _directory("info", directory) as info:
            alternates = _read(info, "alternates", LINE_LIMIT)
        if alternates != os.fsencode(f"{common}/objects\n"):
            message = "its repository borrows objects from elsewhere"
            raise _UnknownError(message)
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
    shallow = _shallow([common, files.git_dir] if private else [common], length)
    if shallow:
        (target / "shallow").write_text(shallow)
    with contextlib.suppress(FileNotFoundError), _directory(str(common / "info")) as info:
        (target / "info/exclude").write_bytes(_read(info, "exclude", REFS_LIMIT) or b"")


# --- looking -----------------------------------------------------------------------------------------------------


def _revisions(wanted: list[str], known: list[str]) -> bytes:
    return "".join([*(f"{value}\n" for value in wanted), *(f"^{value}\n" for value in known)]).encode()


def _count(git: _Git, wanted: list[str], known: list[str]) -> int:
    """Return how many commits are reachable from some values and not from others; known ones may be missing here."""
    return int(git.run("rev-list", "--count", "--ignore-missing", "--stdin", words=_revisions(wanted, known)) or 0)


def _check_there(git: _Git, values: list[str]) -> None:
    """See that objects are there.

    Raises:
        _UnknownError: One is not.
    """
    found = git.run("cat-file", "--batch-check", words=_revisions(values, []))
    if any(line.endswith(b" missing") for line in found.splitlines()):
        message = "its repository lacks objects"
        raise _UnknownError(message)


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
            raise _UnknownError(message)
    return nested


def _paths(git: _Git, *argv: str) -> set[bytes]:
    return {path.rstrip(b"/") for path in git.run(*argv).split(b"\0") if path}


def _look_at_worktree(git: _Git, head: str, length: int, risk: Risk) -> Risk:
    nested = _forget_nested(git, length)
    # 1 is that of files that are not as the index has them.
    git.run("update-index", "-q", "--unmerged", "--ignore-submodules", "--refresh", good=(0, 1))
    others = ("ls-files", "-z", "--others", "--exclude-standard", "--directory", "--no-empty-directory")
    return replace(
        risk,
        staged=len(_paths(git, "diff-index", "--cached", *DIFF, head or EMPTY_TREE[length], "--")),
        unstaged=len(_paths(git, "diff-files", *DIFF, "--")),
        untracked=len(_paths(git, *others) - nested),
    )


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
    refs = _private_refs(files.git_dir, length) if instance.git.mode == "isolated" else host
    place = files.git_dir if has_own_git_dir(instance) else Path(instance.git.git_dir)
    head = _head(place, refs, length)
    _make_directory(instance, files, target, settings, head[0])
    git = _Git(target, instance.worktree, limit)
    risk = _look_at_commits(git, instance, head, refs, host, settings)
    try:
        _copy_index(place, target)
        return _look_at_worktree(git, head[0], length, risk)
    except (_UnknownError, OSError) as error:
        return replace(risk, unknown=_reason(error))


def _reason(error: Exception) -> str:
    return f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


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
    except (_UnknownError, VmwError, OSError, ValueError) as error:
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
