"""The story's things: a project with worktrees, and the first command that its user types."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from testbed import hostimage
from testbed.person import HOME, PROMPT

if TYPE_CHECKING:
    from testbed.person import Person
    from testbed.terminal import Terminal

PROJECT = f"{HOME}/Code/project"
FEATURE_X = f"{PROJECT}/worktrees/feature-x"
FEATURE_TWO = f"{PROJECT}/worktrees/feature two"
CLONE = f"{HOME}/Code/plain-clone"
CLONE_NAME = "plain-clone"
"""A worktree with a `.git` directory of its own, of which the VM behind NAT is."""

COLD = os.environ.get("VMW_E2E_START") == "cold"
"""Every VM boots, by the setting `vmw_warm_start: false`, where it would be a fork of a template."""

SMALL = ("--memory", "1024", "--cpus", "2")
FIRST_SPAWN = "cd vmw && ./vmw spawn ~/Code/project/worktrees/feature-x"
FIRST_SPAWN_S = 1800

MAKE_PROJECT = f"""
set -eu
git config --global user.name dev
git config --global user.email dev@localhost
git config --global init.defaultBranch main
mkdir -p {PROJECT}
cd {PROJECT}
git init -q
printf 'print("hello")\\n' > hello.py
mkdir bin
printf '#!/bin/sh\\necho tool\\n' > bin/tool
chmod 755 bin/tool
ln -s bin/tool tool
git add .
git commit -q -m Start
git worktree add -q worktrees/feature-x
git worktree add -q -b feature-two 'worktrees/feature two'
git worktree add -q -b other elsewhere/feature-x
git worktree add -q -b third worktrees/third
"""


@dataclass(frozen=True)
class Spawned:
    """What the first command of all showed, and how it ended."""

    lines: list[str]
    exit_code: int
    seconds: float


class FirstSpawn:
    """The first command of all, which runs while other tests do their work."""

    def __init__(self, dev: Person) -> None:
        self.dev = dev
        self.terminal: Terminal | None = None
        self.begun = time.monotonic()
        self.result: Spawned | None = None
        self.kept = dev.host.directory / "first-spawn.json"
        if self.kept.exists():
            self.result = Spawned(**json.loads(self.kept.read_text()))
        else:
            self.terminal = dev.terminal(FIRST_SPAWN)
            self.terminal.wait_for(PROMPT, 60)
            self.terminal.type(f"{hostimage.PASSWORD}\n")

    def finish(self) -> Spawned:
        """Wait for the end."""
        if self.result is None:
            assert self.terminal is not None
            exit_code = self.terminal.exit_code(max(1, FIRST_SPAWN_S - (time.monotonic() - self.begun)))
            self.result = Spawned(self.terminal.lines, exit_code, self.terminal.seconds)
            if exit_code == 0:
                self.kept.write_text(json.dumps(asdict(self.result)))
        return self.result
