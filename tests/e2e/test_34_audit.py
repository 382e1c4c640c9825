"""`vmw audit` on a worktree that a hostile guest has had, and what it tells of the attacks that nothing can prevent."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from testbed.lab import CONTROL, GUARDED, GUARDED_NAME, make_guarded
from testbed.person import HOME, Person, report

MARKER = f"{HOME}/marker"
WORKTREE = f"{GUARDED}/{GUARDED_NAME}"

NESTED = r"""
git init -q "$W/nested"
git -C "$W/nested" -c user.name=x -c user.email=x@localhost commit -q --allow-empty -m x
printf '[core]\n\tfsmonitor = "touch %s; false"\n' "$M" >> "$W/nested/.git/config"
git -C "$W" add nested
"""
"""A gitlink with a repository of the attacker's: the host's `git status` of the worktree enters it."""

HIDDEN_BARE = r"""
git init -q --bare "$W/docs"
printf '[core]\n\tbare = false\n\tworktree = ..\n\tfsmonitor = "touch %s; false"\n' "$M" >> "$W/docs/config"
"""
"""A bare repository in a directory that looks like any other."""

HOOKS = r"""
mkdir -p "$W/.husky"
printf '#!/bin/sh\ntouch %s\n' "$M" > "$W/.husky/pre-commit"
chmod +x "$W/.husky/pre-commit"
"""
"""Where the repository has `core.hooksPath = .husky`, as many do."""


def audit(person: Person) -> tuple[int, list[dict[str, Any]]]:
    done = person.vmw("audit", GUARDED_NAME, "--json")
    assert done.returncode in {0, 1}, report(done)
    return done.returncode, json.loads(done.stdout)["findings"]


@pytest.fixture(scope="module")
def returned(guarded: Person) -> Person:
    """Give the user with a worktree as it was when its VM was made, and a hook that is the user's own choice."""
    guarded.ssh(GUARDED_NAME, "cd repo && git reset -q --hard && git clean -qfdx")
    guarded.sh(f"cd {GUARDED}/repo && git config core.hooksPath .husky", check=True)
    return guarded


def test_a_worktree_as_it_was_is_clean(returned: Person) -> None:
    assert audit(returned) == (0, [])
    text = returned.vmw("audit", GUARDED_NAME)
    assert text.returncode == 0, report(text)


@pytest.mark.parametrize(
    ("script", "kind", "path", "host"),
    [
        (NESTED, "nested-git", "nested/.git", "git status"),
        (NESTED, "gitlink", "nested", "git status"),
        (HIDDEN_BARE, "bare-repository", "docs", "cd docs && git status"),
        (HOOKS, "hooks", ".husky", "git commit -q --allow-empty -m x"),
    ],
    ids=["nested", "gitlink", "bare", "hooks"],
)
def test_what_would_run_is_found_before_it_runs(returned: Person, script: str, kind: str, path: str, host: str) -> None:
    returned.root(f"rm -f {MARKER}")
    # The control: it runs where nobody looks first.
    make_guarded(returned, CONTROL)
    place = f"{CONTROL}/{GUARDED_NAME}"
    returned.sh(f"cd {CONTROL}/repo && git config core.hooksPath .husky; W={place}; M={MARKER}\n{script}\ncd {place}\n{host}")
    assert returned.exists(MARKER)
    returned.root(f"rm -f {MARKER}")
    done = returned.ssh(GUARDED_NAME, f"W=~/repo; M={MARKER}\n{script}")
    code, findings = audit(returned)
    assert code == 1, report(done)
    assert any(each["kind"] == kind and each["path"].startswith(path) for each in findings), f"{findings} {report(done)}"
    assert not returned.exists(MARKER)
    text = returned.vmw("audit", GUARDED_NAME)
    assert text.returncode == 1
    assert path in text.stdout
    returned.ssh(
        GUARDED_NAME, "cd repo && git rm -q --cached -f nested; git reset -q --hard; sudo git clean -qffdx; git -C . status"
    )
    assert audit(returned) == (0, [])


def test_special_files_and_links_are_found(returned: Person) -> None:
    script = (
        "cd ~/repo; ln -s /etc/passwd link; ln -s ../../.. up; mkfifo fifo; cp /bin/true setuid; sudo chmod 4755 setuid; "
        "mkdir -p .vscode; echo '{}' > .vscode/tasks.json; echo x > .envrc; "
        """echo '{"scripts": {"test": "evil"}}' > package.json; printf 'all:\\n\\tevil\\n' > Makefile"""
    )
    returned.ssh(GUARDED_NAME, script)
    _, findings = audit(returned)
    found = {each["path"] for each in findings}
    wanted = {"link", "up", "fifo", "setuid", ".vscode/tasks.json", ".envrc", "package.json", "Makefile"}
    assert wanted <= found | {".vscode/tasks.json" for path in found if path.startswith(".vscode")}, f"{sorted(found)}"


def test_the_playbook_tells_the_same(returned: Person) -> None:
    done = returned.playbook("playbooks/audit.yml", "-e", f"vmw_name={GUARDED_NAME}")
    assert done.returncode == 0, report(done)
    assert ".envrc" in done.stdout, report(done)


def test_stop_and_destroy_show_what_was_found_and_remove_nothing_of_it(returned: Person) -> None:
    returned.ssh(GUARDED_NAME, "cd ~/repo && echo uncommitted >> file")
    done = returned.vmw("stop", GUARDED_NAME)
    assert done.returncode == 0, report(done)
    assert "could run on this machine" in done.stdout + done.stderr, report(done)
    assert "uncommitted or unpushed work: 1 changed" in done.stdout + done.stderr, report(done)
    before = returned.fingerprint(WORKTREE)
    repository = returned.fingerprint(f"{GUARDED}/repo")
    # Also without a VM that runs.
    assert audit(returned)[0] == 1
    done = returned.vmw("destroy", "--yes", GUARDED_NAME)
    assert done.returncode == 0, report(done)
    assert "could run on this machine" in done.stdout + done.stderr, report(done)
    assert returned.fingerprint(WORKTREE) == before
    assert returned.fingerprint(f"{GUARDED}/repo") == repository
    assert returned.traces(GUARDED_NAME) == []
    assert returned.vmw("audit", GUARDED_NAME).returncode == 4
    returned.sh(f"rm -f {shlex.quote(WORKTREE)}/setuid")
