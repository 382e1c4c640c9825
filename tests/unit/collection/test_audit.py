"""What a hostile guest can leave in a worktree, in real trees and with a real git."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import audit, hostile_files, index_entries, tree_items, tree_scan
from ansible_collections.vmw.worktree.plugins.module_utils.audit import Finding, GitPlaces, compare, fingerprint
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.hostile_files import printable, resolve
from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance, InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.module_utils.tree_kinds import DIRECTORIES, FILES, KINDS, OUTPUT, PARTS, SUFFIXES
from ansible_collections.vmw.worktree.plugins.modules import audit as module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ESCAPE = "\x1b[2J"


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """See that whatever happened, no file stays open."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are what counts
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) == 0  # noqa: PTH208


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a worktree with a little in it."""
    directory = tmp_path / "tree"
    (directory / "src" / "deep").mkdir(parents=True)
    (directory / "src" / "main.py").write_text("print()\n")
    return directory


def git(directory: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run git as a person would, without settings of the machine's."""
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **identity, **environment}
    return subprocess.run(["git", *argv], cwd=directory, env=clean, check=True, capture_output=True, text=True)


def repository(directory: Path, *options: str) -> Path:
    """Make a repository with one commit."""
    directory.mkdir(parents=True, exist_ok=True)
    git(directory, "init", "-q", "-b", "main", *options)
    git(directory, "commit", "-q", "--allow-empty", "-m", "x")
    return directory


def found(tree: Path, attack: Callable[[], object], **places: Any) -> list[tuple[str, str, str]]:  # noqa: ANN401 - of GitPlaces
    """Return kind, path and change of what an attack brings."""
    git_places = GitPlaces(**places)
    before = fingerprint(tree, git=git_places)
    assert compare(before, fingerprint(tree, git=git_places)) == []
    attack()
    return [
        (each.kind, each.path, each.change) for each in compare(json.loads(json.dumps(before)), fingerprint(tree, git=git_places))
    ]


def write(path: Path, text: str = "x") -> Callable[[], object]:
    """Return an attack that writes a file."""

    def attack() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return attack


def test_ordinary_work_is_clean(tree: Path) -> None:
    def work() -> None:
        (tree / "src" / "main.py").write_text("print(1)\n")
        (tree / "src" / "new.py").write_text("")
        (tree / "src" / "link").symlink_to("deep/../main.py")
        (tree / "src" / "dangling").symlink_to("deep/nothing")
        (tree / "package.json").write_text('{"name": "x"}')
        (tree / ".gitattributes").write_text("*.sh text eol=lf\n# filter=none\n")
        (tree / "CLAUDE.md").write_text("x")
        (tree / ".claude").mkdir()
        (tree / ".claude" / "history").write_text("x")

    assert found(tree, work) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (".gitmodules", "gitmodules"),
        (".envrc", "shell"),
        ("src/deep/.envrc", "shell"),
        (".direnv/flake-profile.rc", "shell"),
        ("mise.toml", "shell"),
        (".vscode/tasks.json", "editor"),
        (".idea/a/b.xml", "editor"),
        (".devcontainer/devcontainer.json", "editor"),
        ("x.code-workspace", "editor"),
        (".nvim.lua", "editor"),
        (".claude/settings.local.json", "agent"),
        (".claude/hooks/x.sh", "agent"),
        (".claude/commands/x.md", "agent"),
        (".mcp.json", "agent"),
        (".cursor/mcp.json", "agent"),
        ("Makefile", "build-file"),
        ("src/GNUmakefile", "build-file"),
        ("Justfile", "build-file"),
        ("Taskfile.yml", "build-file"),
        (".npmrc", "package-manager"),
        (".yarn/releases/yarn.cjs", "package-manager"),
        (".husky/pre-commit", "hooks"),
        (".githooks/a/b", "hooks"),
        (".pre-commit-config.yaml", "hook-configuration"),
        ("lefthook.yml", "hook-configuration"),
        (".gitconfig", "git-configuration"),
    ],
)
def test_files_that_run_are_found_new_and_changed(tree: Path, path: str, kind: str) -> None:
    assert found(tree, write(tree / path)) == [(kind, path, "new")]
    assert found(tree, write(tree / path, "y")) == [(kind, path, "changed")]
    assert found(tree, lambda: (tree / path).chmod(0o755)) == [(kind, path, "changed")]
    assert found(tree, (tree / path).unlink) == []


def test_every_kind_is_explained() -> None:
    kinds = {*FILES.values(), *SUFFIXES.values(), *DIRECTORIES.values(), *OUTPUT.values(), *(kind for kind, _ in PARTS.values())}
    assert kinds <= set(KINDS)
    assert all(name == name.lower() for table in (FILES, SUFFIXES, DIRECTORIES, OUTPUT, PARTS) for name in table)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (None, '{"scripts": {"postinstall": "x"}}', "new"),
        ('{"scripts": {"a": "b"}}', '{"scripts": {"a": "c"}}', "changed"),
        ('{"scripts": {"a": "b"}}', '{"version": "2",\n "scripts": {"a": "b"}}', None),
        ('{"scripts": {"a": "b"}}', '{"scripts": ', "changed"),
        (None, "[" * 100_000, "new"),
        (None, " " * (2 << 20), "new"),
    ],
)
def test_of_a_package_the_scripts_count(tree: Path, before: str | None, after: str, change: str | None) -> None:
    if before:
        (tree / "package.json").write_text(before)
    expected = [("package-scripts", "package.json", change)] if change else []
    assert found(tree, write(tree / "package.json", after)) == expected


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("* text\n", "* text\n*.c filter=evil\n", "new"),
        ("*.c filter=lfs\n", "*.c filter=lfs\n*.d text\n", None),
        ("*.c filter=lfs\n", "* filter=lfs\n", "changed"),
        ("", "[attr]m merge=evil\n", "new"),
        ("", "* diff=evil -text\n", "new"),
        ("", "a\x0c# filter=evil\n", "new"),
    ],
)
def test_of_attributes_the_drivers_count(tree: Path, before: str, after: str, change: str | None) -> None:
    (tree / "src" / ".gitattributes").write_text(before)
    expected = [("gitattributes", "src/.gitattributes", change)] if change else []
    assert found(tree, write(tree / "src" / ".gitattributes", after)) == expected


def test_output_of_programs_is_one_finding_each_and_found_by_any_change(tree: Path) -> None:
    module_file = tree / "node_modules" / "a" / "index.js"
    for path in (module_file, tree / "node_modules" / "a" / "package.json", tree / "venv" / "bin" / "activate"):
        write(path, '{"scripts": {"a": "b"}}')()

    def forge() -> None:
        status = module_file.stat()
        module_file.write_text('{"scripts": {"a": "c"}}')
        os.utime(module_file, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert found(tree, forge) == [("dependencies", "node_modules", "changed")]
    assert found(tree, write(tree / "node_modules" / "b" / ".envrc")) == [("dependencies", "node_modules", "changed")]
    assert found(tree, write(tree / ".venv" / "x")) == [("dependencies", ".venv", "new")]
    shutil.rmtree(tree / "node_modules")
    assert found(tree, lambda: shutil.rmtree(tree / "venv")) == []


def test_bytecode_is_one_finding_that_goes_with_it(tree: Path) -> None:
    before = fingerprint(tree, git=GitPlaces())
    for place in (tree, tree / "src"):
        write(place / "__pycache__" / "main.cpython-311.pyc")()
    (finding,) = compare(before, fingerprint(tree, git=GitPlaces()))
    assert (finding.kind, finding.path) == ("bytecode", "**/__pycache__")
    command = finding.detail.split("`")[1]
    subprocess.run(["sh", "-c", command], cwd=tree, check=True)
    assert compare(before, fingerprint(tree, git=GitPlaces())) == []


def test_nothing_of_a_nested_repository_runs_but_it_is_found(tree: Path, tmp_path: Path) -> None:
    outer = repository(tree)
    index = outer / ".git" / "index"
    git(outer, "add", "src")
    marker = tmp_path / "marker"
    nested = outer / "src" / "nested"

    def attack() -> None:
        repository(nested)
        git(outer, "add", "src/nested")
        git(nested, "config", "core.fsmonitor", f"touch '{marker}'; false")

    findings = found(outer, attack, index=index)
    assert ("nested-git", "src/nested/.git", "new") in findings
    assert ("gitlink", "src/nested", "new") in findings
    assert len(findings) == 2
    assert not marker.exists()
    # The attack is real: git in the worktree runs it.
    git(outer, "status")
    assert marker.exists()


def test_a_gitlink_counts_once_whatever_its_commit(tree: Path) -> None:
    repository(tree)
    nested = repository(tree / "n")
    git(tree, "add", "n")

    def commit() -> None:
        git(nested, "commit", "-q", "--allow-empty", "-m", "y")
        git(tree, "add", "n")

    assert found(tree, commit, index=tree / ".git" / "index") == []


def test_an_index_of_sha256(tree: Path) -> None:
    repository(tree, "--object-format=sha256")
    places: dict[str, Any] = {"index": tree / ".git" / "index", "object_format": "sha256"}

    def add() -> None:
        repository(tree / "n", "--object-format=sha256")
        git(tree, "add", "n")

    assert ("gitlink", "n", "new") in found(tree, add, **places)


@pytest.mark.parametrize("what", ["empty", "garbage", "link", "fifo", "directory", "split", "sparse", "huge"])
def test_an_index_that_cannot_be_read_is_told_each_time(
    tree: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    if what == "empty":
        index.touch()
    elif what == "garbage":
        index.write_bytes(b"DIRC" + bytes(range(100)))
    elif what == "link":
        index.symlink_to(tree / "src" / "main.py")
    elif what == "fifo":
        os.mkfifo(index)
    elif what == "directory":
        index.mkdir()
    elif what == "split":
        repository(tree)
        git(tree, "add", "src")
        git(tree, "update-index", "--split-index")
        shutil.copy(tree / ".git" / "index", index)
    elif what == "sparse":
        repository(tree)
        write(tree / "other" / "x")()
        git(tree, "add", "src", "other")
        git(tree, "commit", "-q", "-m", "x")
        git(tree, "sparse-checkout", "set", "--cone", "--sparse-index", "src")
        shutil.copy(tree / ".git" / "index", index)
    else:
        index.write_bytes(b"x" * 100)
        monkeypatch.setattr(index_entries, "INDEX_BYTES", 99)
    places = GitPlaces(index=index)
    now = fingerprint(tree, git=places)
    (finding,) = compare(now, now)
    assert (finding.kind, finding.path) == ("index-unreadable", str(index))
    assert finding.detail


def test_a_missing_index_has_no_gitlinks(tree: Path, tmp_path: Path) -> None:
    assert found(tree, lambda: None, index=tmp_path / "none") == []


def test_git_that_hangs_is_ended(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(index_entries, "INDEX_SECONDS", 0.2)
    (tmp_path / "index").touch()
    began = time.monotonic()
    with pytest.raises(VmwError, match="too long"):
        list(index_entries.gitlinks(tmp_path / "index", "sha1"))
    assert time.monotonic() - began < 10


def test_a_repository_as_a_file_or_link(tree: Path) -> None:
    assert found(tree, write(tree / "src" / ".git", "gitdir: ../x\n")) == [("nested-git", "src/.git", "new")]
    (tree / "src" / ".git").unlink()
    assert found(tree, lambda: (tree / "src" / ".git").symlink_to("deep")) == [("nested-git", "src/.git", "new")]


def test_what_changes_in_a_nested_repository_is_named(tree: Path) -> None:
    nested = repository(tree / "src" / "n")
    before = fingerprint(tree, git=GitPlaces())
    git(nested, "config", "core.fsmonitor", "x")
    write(nested / ".git" / "hooks" / "post-checkout")()
    git(nested, "symbolic-ref", "HEAD", "refs/heads/other")
    (finding,) = compare(before, fingerprint(tree, git=GitPlaces()))
    assert finding == Finding("nested-git", "src/n/.git", "changed", "HEAD, config, hooks/post-checkout")


def test_of_the_worktrees_own_repository_a_branch_is_ordinary_work(tree: Path) -> None:
    repository(tree)
    assert found(tree, lambda: git(tree, "switch", "-q", "-c", "work")) == []
    assert found(tree, lambda: git(tree, "config", "core.pager", "x")) == [("worktree-git", ".git", "changed")]
    assert found(tree, write(tree / ".git/rebase-merge/git-rebase-todo", "exec x\n")) == [("worktree-git", ".git", "changed")]
    assert found(tree, lambda: shutil.rmtree(tree / ".git")) == [("worktree-git", ".git", "changed")]
    assert found(tree, write(tree / ".git", "gitdir: /x\n")) == [("worktree-git", ".git", "new")]


@pytest.mark.parametrize("names", [("HEAD", "objects/", "refs/", "config"), ("HEAD", "commondir", "config")])
def test_a_bare_repository_in_disguise(tree: Path, names: tuple[str, ...]) -> None:
    def hide() -> None:
        for name in names:
            path = tree / "src" / "deep" / name
            path.mkdir() if name.endswith("/") else path.touch()

    assert found(tree, hide) == [("bare-repository", "src/deep", "new")]
    assert found(tree, write(tree / "src/deep/config", "[core]\n")) == [("bare-repository", "src/deep", "changed")]


def test_a_bare_repository_of_git(tree: Path) -> None:
    findings = found(tree, lambda: git(tree, "init", "-q", "--bare", "node_modules/x"))
    assert findings == [("bare-repository", "node_modules/x", "new"), ("dependencies", "node_modules", "new")]


@pytest.mark.parametrize(
    ("target", "leaves"),
    [
        ("/etc/passwd", True),
        ("../../x", True),
        ("..", False),
        ("deep/../../src/main.py", False),
        ("deep/../../../tree/src/main.py", True),
        ("up/x", True),
        ("up2", True),
        ("back/src/main.py", False),
        ("loop", False),
        ("none/../../../x", True),
        ("a/" * 1900, False),
        ("main.py", False),
    ],
)
def test_links_that_leave_the_tree(tree: Path, target: str, leaves: bool) -> None:  # noqa: FBT001 - a parameter
    (tree / "src" / "up").symlink_to("../..")
    (tree / "src" / "up2").symlink_to("up/y")
    (tree / "src" / "back").symlink_to("..")
    (tree / "src" / "loop").symlink_to("loop")
    expected = [("symlink", "src/link", "new")] if leaves else []
    assert found(tree, lambda: (tree / "src" / "link").symlink_to(target)) == expected


def test_a_link_changes_with_the_links_on_its_way(tree: Path) -> None:
    (tree / "src" / "link").symlink_to("deep/x")

    def swap() -> None:
        (tree / "src" / "deep").rmdir()
        (tree / "src" / "deep").symlink_to("/etc")

    assert found(tree, swap) == [("symlink", "src/deep", "new"), ("symlink", "src/link", "new")]


def test_links_by_names_that_run(tree: Path) -> None:
    write(tree / "conf" / "envrc")()
    assert found(tree, lambda: (tree / ".envrc").symlink_to("conf/envrc")) == [("shell", ".envrc", "new")]
    assert found(tree, write(tree / "conf" / "envrc", "y")) == [("shell", ".envrc", "changed")]
    write(tree / "conf" / "code" / "tasks.json")()
    (tree / ".vscode").symlink_to("conf/code")
    assert found(tree, write(tree / "conf/code/tasks.json", "y")) == [("editor", "conf/code/tasks.json", "changed")]


def test_links_by_names_that_run_lead_on(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tree / "two" / "x")()
    (tree / "one").mkdir()
    (tree / "one" / "two").symlink_to("../two")
    (tree / ".claude").symlink_to("one")
    assert found(tree, write(tree / "two" / "x", "y")) == [("agent", "two/x", "changed")]
    monkeypatch.setattr(tree_scan, "FOLLOWED", 1)
    assert "scan-incomplete" in {each.kind for each in compare(None, fingerprint(tree, git=GitPlaces()))}


def test_special_files_and_modes(tree: Path) -> None:
    def attack() -> None:
        os.mkfifo(tree / "fifo")
        os.mkfifo(tree / "Makefile")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tree / "socket"))
        (tree / "tool").touch()
        (tree / "tool").chmod(0o4755)
        (tree / "src").chmod(0o2755)

    assert found(tree, attack) == [
        ("special-file", "Makefile", "new"),
        ("special-file", "fifo", "new"),
        ("special-file", "socket", "new"),
        ("setuid", "tool", "new"),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_another_user(tree: Path) -> None:
    def attack() -> None:
        write(tree / "src" / "deep" / "x")()
        for path in (tree / "src" / "deep", tree / "src" / "deep" / "x"):
            os.chown(path, 12345, -1)

    assert found(tree, attack) == [("foreign-owner", "src/deep", "new")]


def test_what_cannot_be_read_is_told_each_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hostile_files.open_directory

    def refuse(name: str, directory: int | None = None) -> int:
        if name == "deep":
            raise PermissionError(13, "Permission denied")
        return real(name, directory)

    monkeypatch.setattr(tree_scan, "open_directory", refuse)
    now = fingerprint(tree, git=GitPlaces())
    assert compare(now, now) == [Finding("unreadable", "src/deep", "new", "Permission denied")]


def test_a_directory_that_becomes_a_link_is_not_followed(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere / ".envrc")()
    real = hostile_files.open_directory

    def swap(name: str, directory: int | None = None) -> int:
        if name == "deep":
            (tree / "src" / "deep").rmdir()
            (tree / "src" / "deep").symlink_to(elsewhere)
        return real(name, directory)

    monkeypatch.setattr(tree_scan, "open_directory", swap)
    (finding,) = [each for each in compare(None, fingerprint(tree, git=GitPlaces())) if each.kind != "no-fingerprint"]
    assert (finding.kind, finding.path) == ("unreadable", "src/deep")


def test_a_file_that_becomes_something_else_is_not_followed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / ".envrc").touch()
    real = hostile_files.read

    def swap(name: str, directory: int | None) -> hostile_files.Content:
        (tree / ".envrc").unlink()
        (tree / ".envrc").symlink_to("/etc/shadow")
        return real(name, directory)

    monkeypatch.setattr(tree_scan, "read", swap)
    assert ("unreadable", ".envrc") in {(each.kind, each.path) for each in compare(None, fingerprint(tree, git=GitPlaces()))}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\nb", "a\\x0ab"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\xff", "\\xff"),
        ("\x85".encode(), "\\u0085"),
        (b"\x85", "\\x85"),
        ("\u202e".encode(), "\\u202e"),
        ("\U000e0041".encode(), "\\U000e0041"),
        (b"a\\x0ab", "a\\\\x0ab"),
        ("ü".encode(), "ü"),
    ],
)
def test_names_that_no_terminal_should_see(tree: Path, name: bytes, shown: str) -> None:
    findings = found(tree, lambda: (tree / os.fsdecode(name)).symlink_to("/" + os.fsdecode(name)))
    assert findings == [("symlink", shown, "new")]
    now = fingerprint(tree, git=GitPlaces())
    text = json.dumps(now, ensure_ascii=False)
    assert text.encode().decode() == text
    assert text.isprintable()
    assert printable(os.fsdecode(name)) == shown


def test_the_search_ends(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = os.open(tree, os.O_RDONLY)
    for _ in range(tree_scan.DEPTH + 300):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    findings = compare(None, fingerprint(tree, git=GitPlaces()))
    assert [each.detail for each in findings if each.kind == "unreadable"] == ["too deep to be looked at"]
    monkeypatch.setattr(tree_scan, "ENTRIES", 100)
    assert "scan-incomplete" in {each.kind for each in compare(None, fingerprint(tree, git=GitPlaces()))}
    monkeypatch.setattr(tree_scan, "ENTRIES", 10_000)
    monkeypatch.setattr(tree_scan, "SCAN_SECONDS", -1.0)
    now = fingerprint(tree, git=GitPlaces())
    assert ("scan-incomplete", "it takes too long") in {(each.kind, each.detail) for each in compare(now, now)}
    shutil.rmtree(tree, ignore_errors=True)


def test_many_findings_are_counted_and_few_are_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_items, "KEPT", 300)
    before = fingerprint(tree, git=GitPlaces())
    for number in range(1000):
        (tree / f"l{number}").symlink_to("/x")
    now = fingerprint(tree, git=GitPlaces())
    findings = compare(before, now)
    assert len(findings) == audit.LISTED + 2
    assert audit.counts(findings) == {"symlink": 1000}
    assert len(now["items"]["symlink"]) == 300
    # Whatever was kept of it, too many things never make a clean tree.
    assert audit.counts(compare(now, now)) == {"symlink": 700}


def test_a_large_file_is_compared_by_what_a_guest_cannot_set(tree: Path) -> None:
    large = tree / "Makefile"
    large.write_bytes(b"x" * (2 << 20))
    status = large.stat()

    def forge() -> None:
        with large.open("r+b") as handle:
            handle.write(b"y")
        os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert found(tree, forge) == [("build-file", "Makefile", "changed")]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("tools/git", "tools/git/pre-commit"),
        ("./tools//git/", "tools/git/pre-commit"),
        ("TREE/tools/git", "tools/git/pre-commit"),
        ("node_modules/h", "node_modules/h/pre-commit"),
        ("via", "tools/git/pre-commit"),
    ],
)
def test_hooks_in_the_tree(tree: Path, value: str, path: str) -> None:
    (tree / "via").symlink_to("tools/git")
    (tree / path).parent.mkdir(parents=True)
    hooks_path = value.replace("TREE", str(tree))
    assert ("hooks", path, "new") in found(tree, write(tree / path), hooks_path=hooks_path)


@pytest.mark.parametrize("value", ["", "/dev/null", "~/hooks", "../hooks", "none"])
def test_hooks_elsewhere(tree: Path, value: str) -> None:
    assert found(tree, write(tree / "pre-commit"), hooks_path=value) == []


@pytest.fixture
def linked(tree: Path, tmp_path: Path) -> dict[str, Any]:
    """Make the tree a linked worktree, and return where its repository is."""
    main = repository(tmp_path / "main")
    shutil.rmtree(tree)
    git(main, "worktree", "add", "-q", str(tree))
    common = main / ".git"
    own = common / "worktrees" / "tree"
    pinned = (common / "config", common / "hooks", common / "info" / "attributes", tree / ".git")
    return {"index": own / "index", "git_dir": own, "pinned": pinned}


def test_ordinary_git_in_a_linked_worktree_is_clean(tree: Path, linked: dict[str, Any]) -> None:
    def work() -> None:
        write(tree / "x")()
        git(tree, "add", "x")
        git(tree, "commit", "-q", "-m", "x")
        git(tree, "switch", "-q", "-c", "other")

    assert found(tree, work, **linked) == []


def test_what_a_guest_leaves_in_the_worktrees_git_directory(tree: Path, linked: dict[str, Any]) -> None:
    own: Path = linked["git_dir"]

    def attack() -> None:
        (own / "rebase-merge").mkdir()
        (own / "rebase-merge" / "git-rebase-todo").write_text("exec x\n")
        (own / "commondir").write_text("/x\n")
        (own / "config.worktree").write_text("[core]\n\tfsmonitor = x\n")
        (own / "MERGE_HEAD").symlink_to("logs/HEAD")
        os.mkfifo(own / "FETCH_HEAD")
        git(own, "init", "-q", "--bare", str(own / "modules" / "m"), GIT_DIR=str(own / "modules" / "m"))

    assert found(tree, attack, **linked) == [
        ("git-dir-file", f"{own}/commondir", "changed"),
        ("git-dir-file", f"{own}/config.worktree", "new"),
        ("git-dir-link", f"{own}/MERGE_HEAD", "new"),
        ("git-operation", f"{own}/rebase-merge", "new"),
        ("git-modules", f"{own}/modules", "new"),
        ("bare-repository", f"{own}/modules/m", "new"),
        ("special-file", f"{own}/FETCH_HEAD", "new"),
    ]
    assert found(tree, write(own / "rebase-merge" / "git-rebase-todo", "exec y\n"), **linked) == [
        ("git-operation", f"{own}/rebase-merge", "changed")
    ]


def test_a_git_directory_that_is_gone_or_a_link(tree: Path, linked: dict[str, Any]) -> None:
    own: Path = linked["git_dir"]

    def move() -> None:
        own.rename(own.with_name("moved"))
        own.symlink_to("moved")

    assert ("unreadable", str(own), "new") in found(tree, move, **linked)


def test_pinned_files(tree: Path, linked: dict[str, Any]) -> None:
    config, hooks, attributes, dot_git = linked["pinned"]

    def attack() -> None:
        config.write_text("x")
        write(hooks / "pre-commit")()
        write(attributes)()
        dot_git.unlink()
        dot_git.symlink_to(config)

    findings = found(tree, attack, **linked)
    assert {("pinned", str(config), "changed"), ("pinned", str(hooks), "changed")} <= set(findings)
    assert {("pinned", str(attributes), "new"), ("pinned", str(dot_git), "changed")} <= set(findings)
    assert found(tree, attributes.unlink, **linked) == [("pinned", str(attributes), "changed")]


def test_without_a_fingerprint_everything_is_present(tree: Path) -> None:
    write(tree / "Makefile")()
    findings = compare(None, fingerprint(tree, git=GitPlaces()))
    assert [(each.kind, each.change) for each in findings] == [("no-fingerprint", "present"), ("build-file", "present")]


def test_a_link_cannot_lead_the_resolver_astray(tree: Path) -> None:
    root = os.open(tree, os.O_RDONLY)
    try:
        assert resolve(root, ["src"], "deep/./..//main.py") == ["src", "main.py"]
        assert resolve(root, [], "..") is None
        assert resolve(root, [], "x" * 5000) is None
    finally:
        os.close(root)


@pytest.fixture
def files(tree: Path, tmp_path: Path) -> InstanceFiles:
    """Record a VM for the tree."""
    files = InstanceFiles(State(tmp_path / "vmw"), "one")
    files.save(
        Instance(
            schema=1,
            name="one",
            uuid="0c3a1f3e-4e0b-4c53-8a0e-3f6f7f0f7d11",
            mac="52:54:00:aa:bb:cc",
            worktree=str(tree),
            created="2026-11-20T10:00:00+00:00",
            memory_mib=4096,
            vcpus=4,
            disk_gib=20,
            bridge="br0",
            guest_user="claude",
            uid=1000,
            authorized_keys=[],
            generation="g1",
            virt_type="kvm",
            libvirt_uri="qemu:///session",
        )
    )
    return files


def test_the_module(files: InstanceFiles, tree: Path) -> None:
    call: Any = SimpleNamespace(params={"state_dir": str(files.state.root), "name": "one"})
    audit.take(files, files.read())
    assert files.fingerprint.stat().st_mode & 0o777 == 0o600
    assert files.made_here(files.fingerprint.name)
    assert module.look(call) == {"changed": False, "clean": True, "findings": [], "counts": {}, "summary": "", "listing": ""}
    write(tree / ".envrc")()
    (tree / "l").symlink_to(f"/{ESCAPE}")
    result = module.look(call)
    assert result["counts"] == {"shell": 1, "symlink": 1}
    assert result["clean"] is False
    assert result["findings"][0] == {"kind": "shell", "path": ".envrc", "change": "new", "detail": "", "count": 1}
    assert result["summary"].endswith("could run on this machine (1 shell, 1 symlink)")
    assert result["listing"].splitlines()[1:] == ["  shell  .envrc", "  symlink  l  -> /\\x1b[2J"]
    assert "\x1b" not in json.dumps(result, ensure_ascii=False)
    files.leaving.touch()
    assert module.look(call)["clean"] is False


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99, "items": {}}', '{"schema": 1}'])
def test_a_fingerprint_that_is_none(files: InstanceFiles, text: str) -> None:
    files.fingerprint.write_text(text)
    assert [each.kind for each in audit.findings(files, files.read())] == ["no-fingerprint"]


def test_a_worktree_that_is_gone(files: InstanceFiles, tree: Path) -> None:
    shutil.rmtree(tree)
    with pytest.raises(VmwError, match="cannot be looked at"):
        audit.findings(files, files.read())
    tree.symlink_to("/etc")
    with pytest.raises(VmwError, match="cannot be looked at"):
        audit.findings(files, files.read())


def test_a_large_tree_takes_no_time(tree: Path) -> None:
    for number in range(100):
        directory = tree / "node_modules" / str(number)
        directory.mkdir(parents=True)
        for file in range(50):
            (directory / str(file)).touch()
        (directory / "link").symlink_to("../0/1")
    began = time.process_time()
    fingerprint(tree, git=GitPlaces())
    # A tenth of 50,000 files, which may take two seconds.
    assert time.process_time() - began < 1
