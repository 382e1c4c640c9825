"""The instance record, and how a worktree finds its VM."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import BaseImage, Manifest
from ansible_collections.vmw.worktree.plugins.module_utils.instance import (
    GitShare,
    Instance,
    InstanceFiles,
    Keys,
    all_instances,
    files_of,
)
from ansible_collections.vmw.worktree.plugins.module_utils.layers import instance as module
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

GENERATION = "20261124-093012-5f0c1a9e"
SIZES = {"memory_mib": 4096, "vcpus": 4, "disk_gib": 20}
PARAMETERS: dict[str, Any] = {
    **SIZES,
    "bridge": "br0",
    "guest_user": "claude",
    "git_mode": "protected",
    "egress": "internet",
    "keys": "file",
    "secrets_profile": "default",
    "secrets": "",
    "virt_type": "qemu",
    "libvirt_uri": "qemu:///system",
}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """Return a state directory with a golden image, in a home with an SSH key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA dev@host\n")
    state = State(tmp_path / "vmw")
    (state.images / GENERATION).mkdir(parents=True)
    (state.images / GENERATION / "disk.qcow2").touch()
    manifest = Manifest(
        schema=1,
        generation=GENERATION,
        created="2026-11-24T09:30:12+00:00",
        base_image=BaseImage("http://x", "0" * 128),
        debian="12",
        kernel="6.1.0",
        cmdline="root=x",
        node="24.0.0",
        claude_code="1.0.0",
        virtual_size=10 << 30,
        guest_user="claude",
        inputs="0",
    )
    (state.images / GENERATION / "manifest.json").write_text(json.dumps(manifest.as_dict()))
    state.golden_image.symlink_to(f"images/{GENERATION}/disk.qcow2")
    return state


def saved(state: State, worktree: str, name: str) -> Instance:
    """Record a VM."""
    instance = module.new_record(PARAMETERS, state, Path(worktree), name)
    InstanceFiles(state, name).save(instance)
    return instance


def test_a_record_comes_back_as_it_was_saved(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    assert files.load() == instance
    assert files.record.stat().st_mode & 0o777 == 0o600
    assert files.directory.stat().st_mode & 0o777 == 0o700


def test_fields_of_a_later_version_are_passed_over(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    files.record.write_text(json.dumps({**instance.as_dict(), "schema": 2, "new": 1}))
    assert files.load().name == "w"


def test_a_record_of_the_time_before_git_was_shared_shares_none(state: State) -> None:
    saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    files.record.write_text(json.dumps({key: value for key, value in files.load().as_dict().items() if key != "git"}))
    assert files.load().git == GitShare()


def test_a_record_of_the_time_before_profiles_has_the_default_one(state: State) -> None:
    saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    data = {key: value for key, value in files.load().as_dict().items() if key != "secrets_profile"}
    files.record.write_text(json.dumps(data))
    assert files.load().secrets_profile == "default"
    assert files.load().schema == 1


def test_a_record_of_the_time_before_policies_has_the_default_ones(state: State) -> None:
    saved(state, "/w", "w")
    files = files_of(str(state.root), "w")
    data = {key: value for key, value in files.load().as_dict().items() if key not in {"egress", "keys"}}
    files.record.write_text(json.dumps(data))
    assert files.load().egress == Egress("internet", [])
    assert files.load().keys.mode == "file"


@pytest.mark.parametrize("mode", ["internet", "offline"])
def test_a_new_vm_has_the_policy_that_was_asked_for(state: State, mode: str) -> None:
    instance = module.new_record({**PARAMETERS, "egress": mode}, state, Path("/w"), "w")
    assert instance.egress == Egress(mode)
    assert instance.tap == f"vmw-{instance.uuid[:8]}"


def profile(state: State, name: str) -> Path:
    """Make a secrets profile, and return its file."""
    directory = state.secrets / name
    directory.mkdir(mode=0o700, parents=True)
    path = directory / "secrets.env"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize(
    ("asked", "setting", "expected"),
    [("", "default", "default"), ("", "work", "work"), ("work", "default", "work"), ("default", "work", "default")],
)
def test_what_is_asked_for_comes_before_the_setting(state: State, asked: str, setting: str, expected: str) -> None:
    profile(state, "work")
    parameters = {**PARAMETERS, "secrets": asked, "secrets_profile": setting}
    instance = module.new_record(parameters, state, Path("/w"), "w")
    assert instance.secrets_profile == expected
    files = InstanceFiles(state, "w")
    files.save(instance)
    assert files.load() == instance
    assert json.loads(files.record.read_text())["secrets_profile"] == expected


@pytest.mark.parametrize("parameter", ["secrets", "secrets_profile"])
@pytest.mark.parametrize("name", ["work", "..", "../x", "a/b", "/etc", ".", "A", "a b", "-x", "{{ x }}", "x\n"])
def test_a_profile_that_is_none_makes_no_vm(state: State, parameter: str, name: str) -> None:
    (state.root / "x").mkdir()
    (state.root / "x/secrets.env").touch(mode=0o600)
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, parameter: name}, state, Path("/w"), "w")
    assert caught.value.code == "usage"
    if name == "work":
        assert "`vmw secrets work`" in caught.value.hint
        assert str(state.secrets / "work/secrets.env") in caught.value.message
    else:
        assert "cannot name a secrets profile" in caught.value.message
    assert not state.instances.exists()


def test_another_profile_than_a_vm_was_made_with_is_a_conflict(state: State) -> None:
    instance = dataclasses.replace(saved(state, "/w", "w"), secrets_profile="work")
    for same in ("", "work"):
        module.check_profile_kept(instance, same)
    for other in ("default", "home"):
        with pytest.raises(VmwError) as caught:
            module.check_profile_kept(instance, other)
        assert caught.value.code == "conflict"
        assert "'work'" in caught.value.message
        assert f"'{other}'" in caught.value.message
        assert "`vmw start w`" in caught.value.hint
        assert "`vmw destroy w`" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "setting", "told"),
    [("", "work", False), ("", "default", True), ("work", "default", False), ("work", "home", False)],
)
def test_a_setting_for_new_vms_is_no_conflict(state: State, asked: str, setting: str, *, told: bool) -> None:
    instance = dataclasses.replace(saved(state, "/w", "w"), secrets_profile="work")
    call = Call(state, "w")
    call.params |= {**PARAMETERS, "secrets": asked, "secrets_profile": setting}
    module.tell_kept(call, instance)
    words = "w was made with the secrets profile work and keeps it; default applies to new VMs"
    assert call.warnings == ([words] if told else [])


def test_what_is_shared_of_git_comes_back_without_fields_of_a_later_version(state: State) -> None:
    git = GitShare("isolated", "linked", "/g/worktrees/w", "/g", "Jörg", "j@host")
    instance = dataclasses.replace(saved(state, "/w", "w"), git=git)
    files = files_of(str(state.root), "w")
    files.save(instance)
    assert files.load() == instance
    data = instance.as_dict()
    files.record.write_text(json.dumps({**data, "git": {**data["git"], "new": 1}}))
    assert files.load().git == git


def test_a_new_record_has_an_identity_of_its_own(state: State) -> None:
    first, second = (module.new_record(PARAMETERS, state, Path("/w"), "w") for _ in range(2))
    assert first.uuid != second.uuid
    # The card's address stays with the name, so that the network's does.
    assert first.mac == second.mac
    files_of(str(state.root), "w").directory.mkdir(parents=True)
    files_of(str(state.root), "w").save(first)
    assert module.new_record(PARAMETERS, state, Path("/w"), "w").mac != first.mac
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", first.mac)
    assert first.generation == GENERATION
    assert first.authorized_keys == ["ssh-ed25519 AAAA dev@host"]


def test_the_same_worktree_has_one_vm(state: State) -> None:
    instance = saved(state, "/w", "w")
    assert module.existing_record(state, Path("/w"), "") == instance
    assert module.existing_record(state, Path("/w"), "w") == instance
    assert module.existing_record(state, Path("/other"), "") is None


def test_a_second_name_for_a_worktree_is_a_conflict(state: State) -> None:
    saved(state, "/w", "w")
    with pytest.raises(VmwError) as caught:
        module.existing_record(state, Path("/w"), "w2")
    assert caught.value.code == "conflict"


def test_a_name_taken_by_another_worktree_names_both_paths(state: State) -> None:
    saved(state, "/one/w", "w")
    with pytest.raises(VmwError) as caught:
        module.existing_record(state, Path("/two/w"), "")
    assert caught.value.code == "conflict"
    assert "/one/w" in caught.value.message
    assert "/two/w" in caught.value.message
    assert "--name" in caught.value.hint


@pytest.mark.parametrize("size", [{"memory_mib": 100}, {"vcpus": 0}, {"disk_gib": 1}, {"memory_mib": -1}])
def test_sizes_that_no_guest_runs_with_are_refused(state: State, size: dict[str, int]) -> None:
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, **size}, state, Path("/w"), "w")
    assert caught.value.code == "usage"


def test_a_disk_smaller_than_the_image_is_refused(state: State) -> None:
    assert module.new_record({**PARAMETERS, "disk_gib": 10}, state, Path("/w"), "w").disk_gib == 10
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, "disk_gib": 9}, state, Path("/w"), "w")
    assert caught.value.code == "usage"
    assert "10 GiB" in caught.value.message


def test_a_full_disk_is_said_before_anything_is_made(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 62)
    with pytest.raises(VmwError) as caught:
        module.new_record(PARAMETERS, state, Path("/w"), "w")
    assert "free" in caught.value.message
    assert not state.instances.exists()


def test_no_golden_image_is_said(state: State) -> None:
    state.golden_image.unlink()
    with pytest.raises(VmwError) as caught:
        module.golden_image(state, "claude")
    assert caught.value.code == "host_not_ready"


def test_a_golden_image_elsewhere_is_not_ours(state: State, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").touch()
    state.golden_image.unlink()
    state.golden_image.symlink_to(tmp_path / "disk.qcow2")
    with pytest.raises(VmwError):
        module.golden_image(state, "claude")


@pytest.mark.parametrize(("user", "code"), [("root", "usage"), ("A b", "usage"), ("-x", "usage"), ("agent", "host_not_ready")])
def test_a_user_that_the_golden_image_was_not_made_for_is_refused(state: State, user: str, code: str) -> None:
    with pytest.raises(VmwError) as caught:
        module.new_record({**PARAMETERS, "guest_user": user}, state, Path("/w"), "w")
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "\n\n", "ssh-ed25519-cert-v01@openssh.com AAAA me\n", "# a comment\n", "-----BEGIN-----\n"])
def test_what_cannot_log_in_is_no_key(state: State, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    directory = state.root.parent / ".ssh"
    (directory / "id_x.pub").write_text(text)
    assert module.authorized_keys(directory) == ["ssh-ed25519 AAAA dev@host"]
    (directory / "id_ed25519.pub").unlink()
    with pytest.raises(VmwError):
        module.authorized_keys(directory)


@pytest.mark.parametrize("worktree", ["/one/w/worktrees/x", "/one"])
def test_a_worktree_that_another_vm_can_change_is_refused(state: State, worktree: str) -> None:
    saved(state, "/one/w", "w")
    with pytest.raises(VmwError) as caught:
        module.existing_record(state, Path(worktree), "x")
    assert caught.value.code == "conflict"
    assert "/one/w" in caught.value.message
    assert worktree in caught.value.message
    assert module.existing_record(state, Path("/one/w2"), "x") is None


REPOSITORY = {"mode": "protected", "kind": "linked", "git_dir": "/code/p/.git/worktrees/w", "common_dir": "/code/p/.git"}
COVERED = {"mode": "protected", "kind": "main", "git_dir": "/code/p/.git", "common_dir": "/code/p/.git"}


@pytest.mark.parametrize(
    ("worktree", "git", "refused"),
    [
        ("/code", {}, True),
        ("/code/p/.git/x", {}, False),
        ("/code/p", COVERED, False),
        ("/code/p", {**COVERED, "kind": "none"}, True),
        ("/code", {**COVERED, "git_dir": "/code/.git", "common_dir": "/code/.git"}, True),
    ],
)
def test_a_repository_that_another_vm_can_write_is_refused(
    state: State, worktree: str, git: dict[str, str], *, refused: bool
) -> None:
    outer = saved(state, worktree, "outer")
    outer = dataclasses.replace(outer, git=GitShare(**git))
    InstanceFiles(state, "outer").save(outer)
    new = dataclasses.replace(outer, name="new", worktree="/elsewhere/w", git=GitShare(**REPOSITORY))
    for known, asked in ((outer, new), (new, outer)):
        for name in ("outer", "new"):
            InstanceFiles(state, name).record.unlink(missing_ok=True)
        InstanceFiles(state, known.name).save(known)
        if refused:
            with pytest.raises(VmwError, match="lies in") as caught:
                module.check_repositories(state, asked)
            assert caught.value.code == "conflict"
        else:
            module.check_repositories(state, asked)


def test_what_a_guest_has_closed_and_nested_is_removed_all_the_same(tmp_path: Path) -> None:
    deep = tmp_path / "git"
    deep.mkdir()
    (deep / "link").symlink_to(tmp_path)
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    deep.chmod(0)
    module.remove_tree(deep)
    assert list(tmp_path.iterdir()) == []


def test_a_vm_that_is_leaving_is_not_started_again(state: State) -> None:
    saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    assert files.load().name == "w"
    files.leaving.touch()
    with pytest.raises(VmwError) as caught:
        files.load()
    assert caught.value.code == "conflict"
    assert "vmw destroy w" in caught.value.hint


class Call:
    """Stand for the module's side of Ansible."""

    check_mode = False

    def __init__(self, state: State, name: str) -> None:
        self.params: dict[str, Any] = {"state_dir": str(state.root), "name": name}
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_removal_takes_what_was_made_here_and_the_record_last(state: State) -> None:
    saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    for path in (files.disk, files.console, files.directory / "console.log.0", files.directory / "disk.partial", files.refused):
        path.touch()
    for path in (files.usage, files.directory / ".usage.json.4711"):
        path.touch()
    for directory in (files.seed_sources, files.git_dir, files.git_masks, files.directory / "git.partial"):
        directory.mkdir()
        (directory / "x").touch()
    assert module.leaving(Call(state, "w")) == {"changed": True}
    assert module.leaving(Call(state, "w")) == {"changed": False}
    assert module.absent(Call(state, "w")) == {"changed": True}
    assert not files.directory.exists()
    assert module.absent(Call(state, "w")) == {"changed": False}


def test_removal_refuses_what_was_not_made_here(state: State, tmp_path: Path) -> None:
    saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    (files.directory / "notes.txt").touch()
    for work in (module.leaving, module.absent):
        with pytest.raises(VmwError, match=r"notes\.txt") as caught:
            work(Call(state, "w"))
        assert caught.value.code == "conflict"
    assert files.record.exists()
    elsewhere = tmp_path / "precious"
    elsewhere.mkdir()
    (elsewhere / "disk.qcow2").touch()
    (state.instances / "x").symlink_to(elsewhere)
    with pytest.raises(VmwError, match="is a link"):
        module.absent(Call(state, "x"))
    assert (elsewhere / "disk.qcow2").exists()


def test_no_key_at_all_is_said_with_the_way_out(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (state.root.parent / ".ssh" / "id_ed25519.pub").unlink()
    with pytest.raises(VmwError) as caught:
        module.authorized_keys(state.root.parent / ".ssh")
    assert caught.value.code == "host_not_ready"
    assert "ssh-keygen" in caught.value.hint


def test_what_is_left_of_a_lost_vm_is_not_built_upon(state: State) -> None:
    files = InstanceFiles(state, "w")
    module.refuse_remains(files, has_domain=False)
    files.directory.mkdir(parents=True)
    (files.directory / ".instance.json.x1").touch()
    module.refuse_remains(files, has_domain=False)
    for has_domain, remains in ((True, False), (False, True)):
        if remains:
            files.disk.touch()
        with pytest.raises(VmwError) as caught:
            module.refuse_remains(files, has_domain=has_domain)
        assert caught.value.code == "conflict"
        assert "vmw destroy w" in caught.value.hint


def test_the_host_key_is_made_once_and_pinned(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    assert module.write_identity(files, instance)
    key = files.host_key.read_text()
    assert not module.write_identity(files, instance)
    assert files.host_key.read_text() == key
    public = files.host_key.with_suffix(".pub").read_text().split()
    assert files.known_hosts.read_text().split() == ["w", *public[:2]]
    assert "HostKeyAlias w" in files.ssh_config.read_text()


@pytest.mark.parametrize(("forward", "shown"), [(True, "yes"), (False, "no")])
def test_plain_ssh_forwards_the_agent_when_it_is_to(state: State, *, forward: bool, shown: str) -> None:
    instance = saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    module.write_identity(files, instance, forward_agent=not forward)
    assert module.write_identity(files, instance, forward_agent=forward)
    assert not module.write_identity(files, instance, forward_agent=forward)
    done = subprocess.run(["ssh", "-G", "-F", files.ssh_config, "w.local"], capture_output=True, text=True, check=True)
    assert f"forwardagent {shown}" in done.stdout.splitlines()
    assert "user claude" in done.stdout.splitlines()


@pytest.mark.parametrize(("value", "expected"), [(False, "off"), ("off", "off"), ("filter", "filter"), ("forward", "forward")])
def test_a_bare_off_of_yaml_is_understood(value: object, expected: str) -> None:
    """Ansible's own rule for choices; without it `vmw_ssh_agent: off` would be refused."""
    specification = {"ssh_agent": {"type": "str", "choices": ["forward", "off", "filter"], "default": "forward"}}
    result = ArgumentSpecValidator(specification).validate({"ssh_agent": value})
    assert result.error_messages == []
    assert result.validated_parameters["ssh_agent"] == expected


def test_half_a_host_key_is_made_anew(state: State) -> None:
    instance = saved(state, "/w", "w")
    files = InstanceFiles(state, "w")
    module.write_identity(files, instance)
    files.host_key.unlink()
    assert module.write_identity(files, instance)
    files.host_key.with_suffix(".pub").unlink()
    assert module.write_identity(files, instance)
    private = subprocess.run(["ssh-keygen", "-y", "-f", files.host_key], capture_output=True, text=True, check=True)
    assert private.stdout.split()[:2] == files.known_hosts.read_text().split()[1:]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".", "a\n", "A"])
def test_no_name_leads_out_of_the_instances(state: State, name: str) -> None:
    with pytest.raises(VmwError) as caught:
        files_of(str(state.root), name)
    assert caught.value.code == "not_found"


def test_a_broken_record_is_said_and_passed_over(state: State) -> None:
    saved(state, "/w", "w")
    saved(state, "/x", "x")
    files = files_of(str(state.root), "w")
    files.record.write_text("{")
    with pytest.raises(VmwError) as caught:
        files.load()
    assert "vmw destroy w" in caught.value.hint
    assert [instance.name for instance in all_instances(state)] == ["x"]


SESSION = {**PARAMETERS, "libvirt_uri": "qemu:///session", "egress": "open"}


def test_a_vm_of_the_users_own_libvirt_gets_a_port_that_no_other_has(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_bind", lambda _address, _port: True)
    monkeypatch.setattr(module, "unit_directory", lambda: state.root)
    assert saved(state, "/w", "w").ssh_port == 0
    first = module.new_record(SESSION, state, Path("/a"), "one")
    InstanceFiles(state, "one").save(first)
    assert InstanceFiles(state, "one").load() == first
    assert first.is_session
    # A name leads to a port, and this one is the first VM's.
    second = module.new_record(SESSION, state, Path("/b"), "one")
    assert second.ssh_port not in {0, first.ssh_port}


def test_a_record_of_the_time_before_has_no_port(state: State) -> None:
    told = saved(state, "/w", "w").as_dict()
    del told["ssh_port"]
    assert Instance.from_dict(told).ssh_port == 0


def test_plain_ssh_finds_it_at_its_port(state: State) -> None:
    instance = dataclasses.replace(saved(state, "/w", "w"), libvirt_uri="qemu:///session", ssh_port=22017)
    files = InstanceFiles(state, "w")
    module.write_identity(files, instance)
    shown = subprocess.run(["ssh", "-G", "-F", files.ssh_config, "w.local"], capture_output=True, text=True, check=True).stdout
    assert {"hostname 127.0.0.1", "port 22017", "hostkeyalias w"} <= set(shown.splitlines())


@pytest.mark.parametrize("values", [{"egress": "internet"}, {"egress": "offline"}, {"keys": "proxy"}])
def test_what_the_users_own_libvirt_cannot_have_is_refused(state: State, values: dict[str, str]) -> None:
    with pytest.raises(VmwError, match="qemu:///session") as caught:
        module.new_record({**SESSION, **values}, state, Path("/w"), "w")
    assert caught.value.code == "usage"


def test_a_policy_that_nobody_enforces_is_never_passed_over(state: State) -> None:
    instance = dataclasses.replace(saved(state, "/w", "w"), libvirt_uri="qemu:///session", ssh_port=22017, egress=Egress("open"))
    call = Call(state, "w")
    for asked, told in (("offline", 1), ("internet", 1), ("open", 0)):
        call.warnings.clear()
        call.params |= {**PARAMETERS, "secrets": "", "secrets_profile": "default", "egress": asked}
        module.tell_kept(call, instance)
        assert sum("reaches what you reach" in text for text in call.warnings) == told


def test_settings_of_the_users_own_libvirt_are_no_wish_for_other_vms(state: State) -> None:
    instance = dataclasses.replace(saved(state, "/w", "w"), keys=Keys("proxy"))
    call = Call(state, "w")
    call.params |= {**SESSION, "secrets": "", "secrets_profile": "default", "keys": "file"}
    module.tell_kept(call, instance)
    assert call.warnings == []


def test_a_vm_whose_keys_nobody_could_put_in_is_not_made(state: State) -> None:
    parameters = {**PARAMETERS, "keys": "proxy"}
    profile = state.secrets_of("default")
    profile.mkdir(mode=0o700, parents=True)
    (profile / "secrets.env").touch(0o644)
    with pytest.raises(VmwError, match="open to others"):
        module.new_record(parameters, state, Path("/w"), "w")
    (profile / "secrets.env").chmod(0o600)
    with pytest.raises(VmwError, match="not set up") as caught:
        module.new_record(parameters, state, Path("/w"), "w")
    assert caught.value.code == "host_not_ready"
    (state.root / "proxy").mkdir()
    (state.root / "proxy/settings.json").write_text('{"address": "10.0.0.1", "port": 47000}')
    assert module.new_record(parameters, state, Path("/w"), "w").keys == Keys("proxy")
