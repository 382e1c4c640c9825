"""Repositories of every kind, and the attacks on a host's git that a guest can try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.person import HOME

if TYPE_CHECKING:
    from testbed.person import Person

LAB = f"{HOME}/Code/lab"

MAKE_LAB = f"""
set -eu
rm -rf {LAB}
mkdir -p {LAB}
cd {LAB}
git init -q lib
git -C lib commit -q --allow-empty -m lib
git init -q main
cd main
echo one > file
git add .
git commit -q -m one
git -c protocol.file.allow=always submodule --quiet add {LAB}/lib sub
git commit -q -m sub
git branch other
git pack-refs --all
git branch loose
cd ..
git clone -q --bare main proj.git
git -C proj.git worktree add -q -b topic {LAB}/bare-wt
git clone -q --bare main upstream.git
git clone -q main iso
git -C iso remote set-url origin https://someone:password@example.invalid/iso.git
git -C iso worktree add -q -b guarded '{LAB}/iso wt'
echo staged > '{LAB}/iso wt/staged'
git -C '{LAB}/iso wt' add staged
mkdir plain
echo plain > plain/file
"""


CONTROL = f"{HOME}/Code/control"
GUARDED = f"{HOME}/Code/guarded"
GUARDED_NAME = "guarded-wt"
"""A repository with one linked worktree, for attacks: one that no VM has, and one that a VM has."""


def make_guarded(person: Person, place: str) -> None:
    """Make a repository with a linked worktree anew."""
    person.sh(
        f"""
        set -eu
        rm -rf {place}
        git init -q {place}/repo
        cd {place}/repo
        echo one > file
        git add .
        git commit -q -m one
        git worktree add -q -b topic {place}/{GUARDED_NAME}
        git -C {place}/{GUARDED_NAME} commit -q --allow-empty -m two
        """,
        check=True,
    )


@dataclass(frozen=True)
class Attack:
    """What root in a guest does to have the host's git run, or write, something.

    Attributes:
        name: The attack.
        script: Its shell commands: G is the common directory, W the worktree, I the worktree's own git directory, as the attacker
            sees them; H is the worktree on the host, M the file whose appearance proves that the attack worked.
        setting: What the host's own configuration must say for it.
        host: What the user of the host does afterwards, in the worktree.
    """

    name: str
    script: str
    setting: str = ""
    host: str = ""


EVIL = """
rm -rf "$W/evil"
cp -r "$G" "$W/evil"
cp "$I/index" "$I/HEAD" "$W/evil/"
printf '[core]\\n\\tbare = false\\n\\tfsmonitor = "touch %s; false"\\n' "$M" >> "$W/evil/config"
"""
"""Put a copy of the repository into the worktree that runs a program at every `git status`."""

ATTACKS = (
    Attack("config", """printf '[core]\\n\\tfsmonitor = "touch %s; false"\\n' "$M" >> "$G/config" """),
    Attack(
        "config replaced", """printf '[core]\\n\\tfsmonitor = "touch %s; false"\\n' "$M" > "$G/c"; mv -f "$G/c" "$G/config" """
    ),
    Attack("commondir", EVIL + 'echo "$H/evil" > "$I/commondir"'),
    Attack("commondir replaced", EVIL + 'echo "$H/evil" > "$I/c"; mv -f "$I/c" "$I/commondir"'),
    Attack(
        "config.worktree",
        """printf '[core]\\n\\tfsmonitor = "touch %s; false"\\n' "$M" > "$I/config.worktree" """,
        setting="git config extensions.worktreeConfig true",
    ),
    Attack(
        "config.worktree replaced",
        """printf '[core]\\n\\tfsmonitor = "touch %s; false"\\n' "$M" > "$I/c"; mv -f "$I/c" "$I/config.worktree" """,
        setting="git config extensions.worktreeConfig true",
    ),
    Attack("git file", EVIL + 'rm -f "$W/.git"; echo "gitdir: $H/evil" > "$W/.git"'),
    Attack("git file moved away", EVIL + 'mv "$W/.git" "$W/.old"; cp -r "$W/evil" "$W/.git"'),
    Attack(
        "hook",
        """mkdir -p "$G/hooks"; printf '#!/bin/sh\\ntouch %s\\n' "$M" > "$G/hooks/pre-commit"; chmod +x "$G/hooks/pre-commit" """,
    ),
    Attack(
        "hooks moved away",
        """mv "$G/hooks" "$G/old"; mkdir -p "$G/hooks"; printf '#!/bin/sh\\ntouch %s\\n' "$M" > "$G/hooks/pre-commit"
        chmod +x "$G/hooks/pre-commit" """,
    ),
    Attack(
        "attributes",
        """mkdir -p "$G/info"; echo '* diff=probe' > "$G/info/attributes" """,
        setting="""git config diff.probe.textconv 'sh -c "touch '"$M"'; cat"' """,
    ),
    Attack(
        "worktree's directory moved away",
        EVIL + 'mv "$I" "$G/worktrees/old"; cp -r "$G/worktrees/old" "$I"; echo "$H/evil" > "$I/commondir"',
    ),
    Attack(
        "share's root replaced",
        EVIL + 'mv "$W" "$W.old" && mkdir "$W" && cp -r "$W.old/evil" "$W/.git"',
    ),
    Attack("link in the message's place", 'rm -f "$I/COMMIT_EDITMSG"; ln -s "$M" "$I/COMMIT_EDITMSG"'),
    Attack(
        "link in the log's place",
        'rm -f "$G/logs/refs/heads/next"; mkdir -p "$G/logs/refs/heads"; ln -s "$M" "$G/logs/refs/heads/next"',
        host="git branch -f next HEAD",
    ),
    Attack("link in HEAD's log's place", 'rm -f "$I/logs/HEAD"; mkdir -p "$I/logs"; ln -s "$M" "$I/logs/HEAD"'),
    Attack(
        "after a remount",
        """for place in "$G" "$I" "$W/.git"; do mount -o remount,rw "$place"; done 2>/dev/null
        printf '[core]\\n\\tfsmonitor = "touch %s; false"\\n' "$M" >> "$G/config" """,
    ),
)
"""What must fail. The three `replaced` need what git itself does with its files: a new one that is renamed over the old one."""

HOST_GIT = """
echo host >> file
git status
git diff
git log -1
git add -A -- ':!evil'
git commit -q -m back
git status
"""
"""What a user does who comes back to a worktree."""
