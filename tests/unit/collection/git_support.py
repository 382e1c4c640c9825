"""Repositories for the tests of git's modules, made with the real git, and the VM that has one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import GitLayout, Kind, read_layout
from ansible_collections.vmw.worktree.plugins.module_utils.git_share import prepare
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare, Instance, InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import has_own_git_dir
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

USER = {f"GIT_{who}_{what}": f"{who}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENVIRONMENT = {**USER, "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

SSH = """#!/bin/sh
# Stands in for ssh: notes how it was called, and runs the command here, in the guest's place.
printf '%s\\n' "$*" >>'{calls}'
for command; do :; done
exec env -i PATH="$PATH" sh -c "$(printf %s "$command" | sed "s#/home/claude/repo/.git#{repository}#")"
"""


def git(where: Path, *argv: str, **environment: str) -> str:
    """Run git in a directory and return what it printed."""
    done = subprocess.run(
        ["git", *argv], cwd=where, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(where: Path, name: str, content: str = "", **environment: str) -> str:
    """Commit a file and return the commit."""
    Path(environment.get("GIT_WORK_TREE", where), name).write_text(content or name)
    git(where, "add", name, **environment)
    git(where, "commit", "-qm", f"Add {name}", **environment)
    return git(where, "rev-parse", "HEAD", **environment)


@dataclass(frozen=True)
class Guest:
    """A VM with its worktree, and git as the guest would run it."""

    instance: Instance
    files: InstanceFiles

    @property
    def worktree(self) -> Path:
        return Path(self.instance.worktree)

    @property
    def common(self) -> Path:
        return Path(self.instance.git.common_dir)

    @property
    def head_dir(self) -> Path:
        return self.files.git_dir if has_own_git_dir(self.instance) else Path(self.instance.git.git_dir)

    def environment(self) -> dict[str, str]:
        return {"GIT_DIR": str(self.head_dir), "GIT_WORK_TREE": str(self.worktree)}

    def git(self, *argv: str) -> str:
        return git(self.worktree, *argv, **self.environment())

    def commit(self, name: str, content: str = "") -> str:
        return commit(self.worktree, name, content, **self.environment())

    def ssh(self, directory: Path) -> str:
        """Write the stand-in for ssh and return its path; its calls are noted in ``ssh.calls`` beside it."""
        script = directory / "ssh"
        script.write_text(SSH.format(calls=directory / "ssh.calls", repository=self.head_dir))
        script.chmod(0o755)
        return str(script)


def make_guest(directory: Path, mode: str, kind: Kind = Kind.LINKED, *, made_with: tuple[str, ...] = ()) -> Guest:
    """Make a repository with a commit, and a VM for it or for a linked worktree of it.

    Args:
        directory: Where all of it goes.
        mode: The VM's git mode.
        kind: ``main``, ``linked`` or ``bare``.
        made_with: Options for git-init.
    """
    main = directory / "project"
    main.mkdir()
    git(main, "init", "-q", "-b", "main", *made_with)
    commit(main, "first")
    worktree = main
    if kind is not Kind.MAIN:
        worktree = directory / "one"
        if kind is Kind.BARE:
            git(directory, "clone", "-q", "--bare", "project", "bare.git")
            main = directory / "bare.git"
        git(main, "worktree", "add", "-q", "-b", "topic", str(worktree))
    layout = read_layout(worktree)
    assert layout.kind is kind
    return attach(directory, worktree, layout, mode)


def attach(directory: Path, worktree: Path, layout: GitLayout, mode: str) -> Guest:
    """Make a VM for a worktree."""
    instance = Instance(
        schema=1,
        name="one",
        uuid="0c3a1f3e-4e0b-4c53-8a0e-3f6f7f0f7d11",
        mac="52:54:00:aa:bb:cc",
        worktree=str(worktree),
        created="2026-11-20T10:00:00+00:00",
        memory_mib=4096,
        vcpus=4,
        disk_gib=20,
        bridge="br0",
        guest_user="claude",
        uid=os.getuid(),
        authorized_keys=[],
        generation="g1",
        virt_type="kvm",
        libvirt_uri="test:///default",
    )
    share = GitShare(mode, layout.kind.value, layout.git_dir, layout.common_dir)
    files = InstanceFiles(State(directory / "state"), "one")
    instance = replace(instance, git=share)
    files.save(instance)
    prepare(instance, files)
    return Guest(instance, files)
