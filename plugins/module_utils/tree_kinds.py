# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What in a worktree runs, or leads out of it, when somebody comes back to it: the one table of names."""

from __future__ import annotations

KINDS = {
    "no-fingerprint": "without it nothing can be compared: all that matters is listed, also what was there before",
    "scan-incomplete": "the rest of the tree was not looked at, and may hold anything",
    "unreadable": "could not be looked at, and may hold anything",
    "index-unreadable": "git itself could not read the index, so nested repositories in it are unknown",
    "pinned": "configuration in the worktree that your repository includes",
    "git-dir-file": "say which repository the worktree belongs to, and how git behaves in it",
    "git-dir-link": "links where git keeps none: git on the host would write or read through them",
    "git-operation": "a rebase or the like is under way: continuing it on the host runs what its list says",
    "git-modules": "repositories of submodules inside the worktree's own git directory",
    "worktree-git": "decides what git runs in the worktree: its configuration, hooks, and where the repository is",
    "nested-git": "a repository of its own: git, prompts and editors run what its configuration says when they come by",
    "bare-repository": "looks like a repository to git, which then runs what its configuration says",
    "git-configuration": "configuration that a repository may include",
    "gitlink": "a nested repository that git enters for `git status` and `git diff`",
    "gitmodules": "says where submodules come from and how they are updated",
    "gitattributes": "names drivers that git runs for checkout, diff or merge, where your configuration has them",
    "hooks": "run by git when you commit, merge, check out or push",
    "hook-configuration": "says what hooks run",
    "shell": "run by your shell, direnv or mise when you enter the directory",
    "editor": "run or obeyed by an editor, IDE or debugger that opens the directory",
    "agent": "run or obeyed by a coding agent that starts in the directory",
    "build-file": "run when you build",
    "package-scripts": "run by npm, yarn or pnpm, some of them at every install",
    "package-manager": "says what package managers load, and from where",
    "dependencies": "installed by the VM, in no diff: remove and install again before you use it here",
    "bytecode": "compiled by the VM, in no diff, and preferred to the source: remove it before you run Python here",
    "symlink": "leads out of the worktree: what writes or reads there does so elsewhere on your machine",
    "special-file": "FIFOs, sockets and devices make programs hang or worse",
    "setuid": "runs with its owner's rights for whoever starts it",
    "foreign-owner": "belongs to another user",
}
"""What each kind of finding means, in the order in which they are shown."""

ALWAYS = ("scan-incomplete", "unreadable", "index-unreadable")
"""Kinds that are no better for having been there before."""

FILES = {
    ".gitmodules": "gitmodules",
    ".gitattributes": "gitattributes",
    ".gitconfig": "git-configuration",
    ".envrc": "shell",
    ".tool-versions": "shell",
    "mise.toml": "shell",
    ".mise.toml": "shell",
    "mise.local.toml": "shell",
    ".rtx.toml": "shell",
    ".pre-commit-config.yaml": "hook-configuration",
    ".pre-commit-config.yml": "hook-configuration",
    "lefthook.yml": "hook-configuration",
    "lefthook.yaml": "hook-configuration",
    "lefthook.json": "hook-configuration",
    "lefthook.toml": "hook-configuration",
    ".lefthook.yml": "hook-configuration",
    ".lefthook.yaml": "hook-configuration",
    "lefthook-local.yml": "hook-configuration",
    ".huskyrc": "hook-configuration",
    ".huskyrc.json": "hook-configuration",
    ".huskyrc.js": "hook-configuration",
    ".nvim.lua": "editor",
    ".nvimrc": "editor",
    ".exrc": "editor",
    ".vimrc": "editor",
    ".lvimrc": "editor",
    ".dir-locals.el": "editor",
    ".dir-locals-2.el": "editor",
    ".devcontainer.json": "editor",
    ".gdbinit": "editor",
    ".lldbinit": "editor",
    ".mcp.json": "agent",
    "makefile": "build-file",
    "gnumakefile": "build-file",
    "justfile": "build-file",
    ".justfile": "build-file",
    "taskfile.yml": "build-file",
    "taskfile.yaml": "build-file",
    "taskfile.dist.yml": "build-file",
    "taskfile.dist.yaml": "build-file",
    "package.json": "package-scripts",
    ".npmrc": "package-manager",
    ".yarnrc": "package-manager",
    ".yarnrc.yml": "package-manager",
    ".pnpmfile.cjs": "package-manager",
    "bunfig.toml": "package-manager",
}
"""Files by their names in lower case, at any depth."""

SUFFIXES = {".code-workspace": "editor"}

DIRECTORIES = {
    ".husky": "hooks",
    ".githooks": "hooks",
    ".hooks": "hooks",
    ".lefthook": "hooks",
    ".direnv": "shell",
    ".mise": "shell",
    ".vscode": "editor",
    ".idea": "editor",
    ".fleet": "editor",
    ".zed": "editor",
    ".devcontainer": "editor",
    ".vim": "editor",
    ".cursor": "agent",
    ".cargo": "build-file",
}
"""Directories by their names in lower case, at any depth: every file below counts."""

PARTS = {
    ".claude": ("agent", ("settings", "hooks", "commands", "agents", "skills", "plugins")),
    ".yarn": ("package-manager", ("releases", "plugins")),
}
"""Directories of which only entries count whose names start in one of these ways."""

OUTPUT = {"node_modules": "dependencies", ".venv": "dependencies", "venv": "dependencies", "__pycache__": "bytecode"}
"""Directories that programs fill: compared as a whole, and not searched for a project's files."""


def kind_of(name: str) -> str:
    """Return the kind of a file's name in lower case, or an empty string."""
    return FILES.get(name) or next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), "")
