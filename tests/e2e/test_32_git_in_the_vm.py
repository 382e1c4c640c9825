"""git in the guest, for every kind of worktree and in every mode, and what the host sees of it: a story, in order."""

from __future__ import annotations

import json
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from testbed.lab import LAB, MAKE_LAB
from testbed.person import HOME, STATE, Person, report

if TYPE_CHECKING:
    from collections.abc import Iterator

BOOT_S = 900
VMS = {
    "main": ("main",),
    "sub": ("main/sub",),
    "bare-wt": ("bare-wt",),
    "iso": ("iso wt", "--name", "iso", "--git", "isolated"),
    "plain": ("plain",),
}
"""Worktree and options of each VM. `sub` lies in `main`, so it comes after `main` is gone."""

EVERYDAY = r"""
set -eu
cd ~/repo
git status --short > /dev/null
echo agent > agent
git add agent
git commit -q -m agent
git commit -q --amend -m 'agent, amended'
echo more >> agent
git diff --stat | grep -q agent
git stash -q
git stash pop -q
test -z "$(git stash list)"
git switch -q -c feature
git commit -q -a -m more
git switch -q -
git branch -q side HEAD
git merge -q --no-ff -m merge feature
git switch -q side
echo side > side
git add side
git commit -q -m side
git rebase -q feature
git switch -q -
git cherry-pick side > /dev/null
git revert --no-edit HEAD > /dev/null
git reset -q --hard HEAD~1
git tag v1
git tag -a -m two v2
git status --short
# Commits of the same second stand in no other sure order.
git log -3 --topo-order --format='%s|%an|%ae'
git fsck --no-dangling
"""


def spawn(person: Person, name: str) -> None:
    path, *options = VMS[name]
    done = person.vmw("spawn", f"{LAB}/{path}", *options, timeout=BOOT_S)
    assert done.returncode == 0, report(done)


def destroy(person: Person, *names: str) -> None:
    for name in names:
        done = person.vmw("destroy", "--yes", name)
        assert done.returncode == 0, report(done)


@pytest.fixture(scope="module")
def lab(ready: Person) -> Iterator[Person]:
    """Give the user with a VM for a worktree of each kind."""
    ready.sh(MAKE_LAB, check=True)
    together = [name for name in VMS if name != "sub"]
    with ThreadPoolExecutor(len(together)) as pool:
        list(pool.map(lambda name: spawn(ready, name), together))
    yield ready
    destroy(ready, *(name for name in VMS if name in ready.domains()))


def in_guest(person: Person, name: str, script: str) -> str:
    done = person.ssh(name, script, timeout=180)
    assert done.returncode == 0, report(done)
    return done.stdout


def listed(person: Person, name: str) -> dict[str, Any]:
    answer = json.loads(person.vmw("list", "--json").stdout)
    return next(vm for vm in answer["vms"] if vm["name"] == name)


@pytest.mark.parametrize(
    ("name", "kind", "mode", "branch"),
    [
        ("main", "main", "protected", "main"),
        ("bare-wt", "bare", "protected", "topic"),
        ("iso", "linked", "isolated", "guarded"),
        ("plain", "none", "none", None),
    ],
)
def test_the_kind_is_recognised_and_shown(lab: Person, name: str, kind: str, mode: str, branch: str | None) -> None:
    vm = listed(lab, name)
    assert (vm["git"], vm["git_mode"], vm["branch"]) == (kind, mode, branch)
    assert kind in lab.vmw("list").stdout


@pytest.mark.parametrize("name", ["main", "bare-wt", "iso"])
def test_everyday_git_works_in_the_guest(lab: Person, name: str) -> None:
    lines = in_guest(lab, name, EVERYDAY).splitlines()
    # Nothing stays uncommitted; what the host had staged went into the first commit.
    assert lines == ["side|dev|dev@localhost", "merge|dev|dev@localhost", "more|dev|dev@localhost"]


@pytest.mark.parametrize(("name", "repository"), [("main", "main"), ("bare-wt", "proj.git")])
def test_the_host_sees_the_commits_at_once(lab: Person, name: str, repository: str) -> None:
    branch = listed(lab, name)["branch"]
    assert lab.sh(f"cd {LAB}/{repository} && git log -1 --format=%s {branch}").stdout == "side\n"
    assert lab.sh(f"cd {LAB}/{repository} && git tag").stdout == "v1\nv2\n"
    assert lab.sh(f"cd {LAB}/{repository} && git fsck --no-dangling 2>/dev/null").stdout == ""


def test_a_worktrees_status_is_clean_on_both_sides(lab: Person) -> None:
    assert lab.sh(f"cd {LAB}/bare-wt && git status --short").stdout == ""
    assert in_guest(lab, "bare-wt", "cd repo; git status --short") == ""


def test_the_guest_sees_what_the_host_commits(lab: Person) -> None:
    lab.sh(f"cd {LAB}/bare-wt && echo host > host && git add host && git commit -q -m host && git branch hosts", check=True)
    # So long may the guest take what it has just read for true.
    time.sleep(2)
    assert in_guest(lab, "bare-wt", "cd repo; git log -1 --format=%s; git log -1 --format=%s hosts") == "host\nhost\n"


def test_the_guest_follows_when_the_host_packs(lab: Person) -> None:
    lab.sh(f"cd {LAB}/proj.git && git gc -q --prune=now && git remote set-url origin {LAB}/upstream.git && sleep 2", check=True)
    branches = in_guest(lab, "bare-wt", "cd repo; git branch --format='%(refname:short)'; git remote get-url origin; git fsck")
    assert "hosts" in branches.splitlines()
    assert f"{LAB}/upstream.git" in branches
    assert in_guest(lab, "bare-wt", "cd repo; git log -1 --format=%s") == "host\n"


def test_fetch_and_push_over_ssh_with_the_forwarded_agent(lab: Person) -> None:
    # Another guest stands for the server: it takes the user's key. Guests reach each other only when both may.
    for name in ("plain", "bare-wt"):
        opened = lab.vmw("net", name, "open")
        assert opened.returncode == 0, report(opened)
    in_guest(lab, "plain", "git init -q --bare upstream.git")
    url = f"claude@{lab.address('plain')}:upstream.git"
    script = f"""
    cd repo
    export GIT_SSH_COMMAND='ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes'
    git push -q {url} HEAD:refs/heads/pushed && git fetch -q {url} pushed && git rev-parse HEAD FETCH_HEAD
    """
    agent = "eval $(ssh-agent) > /dev/null; ssh-add -q ~/.ssh/id_ed25519"
    done = lab.sh(f"{agent}; ~/vmw/vmw ssh bare-wt {shlex.quote(script)}; kill $SSH_AGENT_PID")
    assert done.returncode == 0, report(done)
    one, other = done.stdout.split()
    assert one == other, report(done)
    assert in_guest(lab, "plain", "git -C upstream.git rev-parse pushed").strip() == one


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("git config a.b c", "Device or resource busy"),
        ("git remote add other x", "Device or resource busy"),
        ("git branch -D other", "Device or resource busy"),
        ("git gc", "Device or resource busy"),
        ("git pack-refs --all", "Device or resource busy"),
        ("git worktree add ../w", "Read-only file system"),
    ],
)
def test_what_a_protected_repository_does_not_allow_fails_cleanly(lab: Person, command: str, message: str) -> None:
    look = f"cd {LAB}/proj.git && git for-each-ref && cat config && git worktree list"
    before = lab.sh(look).stdout
    done = lab.ssh("bare-wt", f"cd repo && {command}")
    assert done.returncode != 0, report(done)
    assert message in done.stderr, report(done)
    # `git worktree add` makes its branch before it fails.
    lab.sh(f"git -C {LAB}/proj.git update-ref -d refs/heads/w")
    assert lab.sh(look).stdout == before
    assert lab.sh(f"cd {LAB}/proj.git && git fsck --no-dangling 2>/dev/null").stdout == ""


def test_prune_in_the_guest_keeps_every_worktree(lab: Person) -> None:
    lab.sh(f"cd {LAB}/proj.git && git worktree add -q -b second {LAB}/second", check=True)
    said = lab.ssh("bare-wt", "cd repo && git worktree prune; sudo git worktree prune --expire=now; git gc --prune=now")
    assert "failed to delete" in said.stderr, report(said)
    for path in ("second", "bare-wt"):
        assert lab.sh(f"cd {LAB}/{path} && git status --short && git log -1 --format=%s").returncode == 0
    assert "prunable" not in lab.sh(f"git -C {LAB}/proj.git worktree list").stdout


def test_a_main_checkout_keeps_its_own_index(lab: Person) -> None:
    # The guest has its own; `git reset` brings the host's up to date, and touches no file.
    assert lab.sh(f"cd {LAB}/main && git status --short").stdout != ""
    assert lab.sh(f"cd {LAB}/main && git reset -q && git status --short").stdout == ""
    assert in_guest(lab, "main", "cd repo && git status --short") == ""
    assert in_guest(lab, "main", "cd repo && git submodule status").endswith(" sub (heads/main)\n")


def test_nothing_of_the_hosts_git_is_writable_in_isolated_mode(lab: Person) -> None:
    before = lab.fingerprint(f"{LAB}/iso/.git")
    objects = f"{LAB}/iso/.git/objects"
    done = lab.ssh(
        "iso", f"sudo sh -c 'echo x > {objects}/x; mount -o remount,rw {objects}; echo x > {objects}/x; rm -rf {objects}/*'"
    )
    assert done.stderr.count("Read-only file system") > 2, report(done)
    in_guest(
        lab, "iso", "cd repo && git config a.b c && git branch mine && git branch -D mine && git gc -q && git fsck --no-dangling"
    )
    assert lab.fingerprint(f"{LAB}/iso/.git") == before
    assert lab.sh(f"cd '{LAB}/iso wt' && git log -1 --format=%s").stdout == "sub\n"


def test_passwords_of_remotes_stay_on_the_host(lab: Person) -> None:
    assert in_guest(lab, "iso", "cd repo; git remote get-url origin") == "https://example.invalid/iso.git\n"
    assert "password" not in in_guest(lab, "iso", "grep -r password ~/.repo-git/config || true")


def test_pull_brings_the_guests_commits_to_a_branch(lab: Person) -> None:
    # The host's git runs no hook for it, not even its own.
    marker = f"{LAB}/marker"
    hook = f"printf '#!/bin/sh\\ntouch {marker}\\n' > hooks/reference-transaction && chmod +x hooks/reference-transaction"
    lab.sh(f"cd {LAB}/iso/.git && {hook}", check=True)
    done = lab.vmw("git", "pull", "iso")
    assert done.returncode == 0, report(done)
    assert "vmw/iso" in done.stdout, report(done)
    assert not lab.exists(marker)
    lab.sh(f"rm {LAB}/iso/.git/hooks/reference-transaction", check=True)
    assert lab.sh(f"git -C {LAB}/iso log -1 --format='%s %an' vmw/iso").stdout == "side dev\n"
    assert lab.sh(f"git -C '{LAB}/iso wt' branch --show-current").stdout == "guarded\n"
    again = lab.vmw("git", "pull", "iso")
    assert again.returncode == 0, report(again)
    assert "all of them" in again.stderr, report(again)


def test_push_brings_the_hosts_commits_in(lab: Person) -> None:
    lab.sh(f"cd {LAB}/iso && git commit -q --allow-empty -m 'from the host'", check=True)
    done = lab.vmw("git", "push", "iso")
    assert done.returncode == 0, report(done)
    assert (
        in_guest(lab, "iso", "cd repo; git log -1 --format=%s host/main; git merge -q --no-edit host/main") == "from the host\n"
    )


def test_rewritten_commits_come_only_when_asked_for(lab: Person) -> None:
    in_guest(lab, "iso", "cd repo; git reset -q --hard HEAD~2; git commit -q --allow-empty -m rewritten")
    done = lab.vmw("git", "pull", "iso")
    assert done.returncode != 0, report(done)
    assert "--force" in done.stderr, report(done)
    assert lab.sh(f"git -C {LAB}/iso log -1 --format=%s vmw/iso").stdout == "side\n"
    done = lab.playbook("playbooks/git_pull.yml", "-e", '{"vmw_name": "iso", "vmw_git_force": true}')
    assert done.returncode == 0, report(done)
    assert lab.sh(f"git -C {LAB}/iso log -1 --format=%s vmw/iso").stdout == "rewritten\n"


def test_a_protected_repository_has_the_commits_already(lab: Person) -> None:
    done = lab.vmw("git", "pull", "bare-wt")
    assert done.returncode == 2, report(done)
    assert "in your repository already" in done.stderr, report(done)


def test_git_data_survives_a_restart(lab: Person) -> None:
    lab.virsh("destroy", "iso")
    done = lab.vmw("start", "iso", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert in_guest(lab, "iso", "cd repo; git log -1 --format=%s") == "rewritten\n"


def test_destroy_leaves_worktree_and_repository_as_they_are(lab: Person) -> None:
    in_guest(lab, "iso", "cd repo; git commit -q --allow-empty -m 'only here'")
    before = {path: lab.fingerprint(f"{LAB}/{path}") for path in ("main", "iso wt", "plain")}
    branches = lab.sh(f"git -C {LAB}/iso for-each-ref refs/heads refs/tags").stdout
    done = lab.vmw("destroy", "--yes", "iso")
    assert done.returncode == 0, report(done)
    assert "only in this VM" in done.stdout + done.stderr, report(done)
    destroy(lab, "main", "plain")
    assert {path: lab.fingerprint(f"{LAB}/{path}") for path in before} == before
    assert lab.sh(f"git -C {LAB}/iso for-each-ref refs/heads refs/tags").stdout == branches
    # What kept the borrowed commits is gone with the VM.
    assert lab.sh(f"git -C {LAB}/iso for-each-ref refs/vmw").stdout == ""
    assert lab.traces("iso") == lab.traces("main") == []


def test_a_submodule_by_itself(lab: Person) -> None:
    spawn(lab, "sub")
    assert (listed(lab, "sub")["git"], listed(lab, "sub")["git_mode"]) == ("submodule", "protected")
    in_guest(lab, "sub", "cd repo && git switch -q -c work && echo x > x && git add x && git commit -q -m 'in the submodule'")
    assert lab.sh(f"cd {LAB}/main/sub && git log -1 --format=%s work").stdout == "in the submodule\n"
    destroy(lab, "sub")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("git config core.repositoryformatversion 1; git config extensions.relativeWorktrees true", "relativeworktrees"),
        ("echo /elsewhere > .git/objects/info/alternates", "borrows objects"),
    ],
)
def test_what_the_guests_git_could_not_read_is_refused_in_words(lab: Person, setting: str, message: str) -> None:
    lab.sh(f"rm -rf {LAB}/odd; git init -q {LAB}/odd; cd {LAB}/odd; git commit -q --allow-empty -m one; {setting}", check=True)
    done = lab.vmw("spawn", f"{LAB}/odd")
    assert done.returncode == 2, report(done)
    assert message in done.stderr, report(done)
    assert "--git none" in done.stderr, report(done)
    assert not lab.exists(f"{STATE}/instances/odd")


def test_a_git_file_that_leads_elsewhere_is_refused(lab: Person) -> None:
    lab.sh(
        f"rm -rf {LAB}/stray; mkdir {LAB}/stray; echo 'gitdir: {LAB}/proj.git/worktrees/bare-wt' > {LAB}/stray/.git", check=True
    )
    done = lab.vmw("spawn", f"{LAB}/stray")
    assert done.returncode == 2, report(done)
    assert "belongs to" in done.stderr, report(done)
    assert not lab.exists(f"{HOME}/.config/vmw/instances/stray")
