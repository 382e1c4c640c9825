"""Attacks of root in the guest on the git of the host: each is shown to work where nothing protects, and then tried."""

from __future__ import annotations

import shlex

import pytest
from testbed.lab import ATTACKS, CONTROL, GUARDED, GUARDED_NAME, HOST_GIT, Attack, make_guarded
from testbed.person import HOME, Person, report


def places(common: str, worktree: str, host: str, marker: str) -> str:
    own = f"{common}/worktrees/{GUARDED_NAME}"
    return "; ".join(
        f"{name}={shlex.quote(value)}" for name, value in zip("GWIHM", (common, worktree, own, host, marker), strict=True)
    )


def come_back(person: Person, worktree: str, attack: Attack) -> str:
    """Do in the worktree what its user does, whatever fails of it, and return what was said."""
    done = person.sh(f"cd {worktree}\n{HOST_GIT}\n{attack.host}")
    return report(done)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_attack_works_only_without_the_protection(guarded: Person, attack: Attack) -> None:
    marker = f"{HOME}/marker"
    guarded.root(f"rm -f {marker}")
    # The control: an attacker who has the whole of the user's files, as when .git is shared as it is.
    make_guarded(guarded, CONTROL)
    variables = places(f"{CONTROL}/repo/.git", f"{CONTROL}/{GUARDED_NAME}", f"{CONTROL}/{GUARDED_NAME}", marker)
    guarded.sh(f"cd {CONTROL}/{GUARDED_NAME} && {variables}\n{attack.setting}\n{attack.script}")
    said = come_back(guarded, f"{CONTROL}/{GUARDED_NAME}", attack)
    assert guarded.exists(marker), f"the control did not work: {said}"
    guarded.root(f"rm -f {marker}")
    # The same by root in the guest.
    host_variables = places(f"{GUARDED}/repo/.git", f"{GUARDED}/{GUARDED_NAME}", f"{GUARDED}/{GUARDED_NAME}", marker)
    guarded.sh(f"cd {GUARDED}/{GUARDED_NAME} && {host_variables}\n{attack.setting}")
    guest_variables = places(f"{GUARDED}/repo/.git", "/home/claude/repo", f"{GUARDED}/{GUARDED_NAME}", marker)
    script = f"echo reached\n{guest_variables}\n{attack.script}"
    tried = guarded.ssh(GUARDED_NAME, f"sudo sh -c {shlex.quote(script)}")
    assert tried.stdout.startswith("reached\n"), report(tried)
    said = come_back(guarded, f"{GUARDED}/{GUARDED_NAME}", attack)
    found = guarded.exists(marker)
    guarded.root(f"rm -rf {marker} {GUARDED}/{GUARDED_NAME}/evil")
    assert not found, f"{report(tried)}\n{said}"
    # The host's git works all the same.
    assert guarded.sh(f"cd {GUARDED}/{GUARDED_NAME} && git log -1 --format=%s").stdout == "back\n", f"{report(tried)}\n{said}"
    assert guarded.sh(f"cat {GUARDED}/{GUARDED_NAME}/.git").stdout == f"gitdir: {GUARDED}/repo/.git/worktrees/{GUARDED_NAME}\n"
    guarded.sh(
        f"cd {GUARDED}/{GUARDED_NAME} && git config --unset diff.probe.textconv; git config --unset extensions.worktreeConfig"
    )


def test_guest_still_commits_after_all_of_that(guarded: Person) -> None:
    done = guarded.ssh(GUARDED_NAME, "cd repo && echo guest >> file && git commit -q -a -m guest && git log -1 --format='%s %an'")
    assert done.stdout == "guest dev\n", report(done)
    assert guarded.sh(f"cd {GUARDED}/repo && git log -1 --format='%s %an' topic").stdout == "guest dev\n"


@pytest.mark.parametrize(
    "name", ["config", "HEAD", "packed-refs", "hooks/pre-commit", "info/attributes", "objects/info/alternates"]
)
def test_root_in_the_guest_may_not_write(guarded: Person, name: str) -> None:
    path = f"{GUARDED}/repo/.git/{name}"
    before = guarded.sh(f"cat {path}").stdout
    done = guarded.ssh(
        GUARDED_NAME,
        f"sudo sh -c 'echo x > {path}'; sudo mv {path} {path}.x; sudo ln -s /etc/passwd {GUARDED}/repo/.git/refs/link",
    )
    assert "Read-only file system" in done.stderr, report(done)
    assert guarded.sh(f"cat {path}").stdout == before
    assert "Operation not permitted" in done.stderr, report(done)
    assert not guarded.exists(f"{GUARDED}/repo/.git/refs/link")
