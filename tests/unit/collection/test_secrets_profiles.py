"""The secrets profiles, and how what was there before them becomes one."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import user_units
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.naming import check_profile
from ansible_collections.vmw.worktree.plugins.module_utils.secrets_profiles import (
    find_profile,
    is_made,
    make_profile,
    profile_files,
    profile_names,
    settle,
)
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import Daemon, ShareSpec, command_line, service_unit
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import secrets_profile as module

TEMPLATE = "ANTHROPIC_API_KEY=\n"
OLD_KEYS = "ANTHROPIC_API_KEY=sk-mine\n"
SHARE = ShareSpec("vmw:secrets", "", read_only=True, fresh=True)
DAEMON = Daemon("/usr/libexec/virtiofsd", frozenset({"readonly"}))
OUTSIDE = ["..", ".", "", "../x", "a/b", "/etc", "A", "a b", "-x", "x-", "a\n", "é", "x" * 64, ".hidden"]


@pytest.fixture(params=["vmw", "with blank", "100%", "$HOME"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """Return a state directory in a home without a service manager."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return State(tmp_path / request.param)


@pytest.fixture
def old(state: State) -> State:
    """Give it the secrets of the time before there were profiles."""
    state.secrets.mkdir(mode=0o700, parents=True)
    (state.secrets / "secrets.env").write_text(OLD_KEYS)
    (state.secrets / "secrets.env").chmod(0o600)
    (state.root / "secrets.env").symlink_to("secrets/secrets.env")
    return state


def unit_of(name: str, directory: Path) -> str:
    share = replace(SHARE, path=str(directory))
    return service_unit(name, share, command_line(DAEMON, share, 1, 1))


def write_unit(name: str, directory: Path) -> Path:
    path = Path("~/.config/systemd/user").expanduser() / f"vmw-{name}-secrets.service"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_of(name, directory))
    return path


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand for the user's service manager, and note what it is told."""
    told: list[list[str]] = []
    (tmp_path / "run/systemd").mkdir(parents=True)
    (tmp_path / "run/systemd/private").touch()
    monkeypatch.setattr(user_units, "command", lambda *argv, **_hint: told.append([*argv]))
    return told


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def names(directory: int) -> list[str]:
    """Return what is in a directory that is held by a descriptor."""
    return os.listdir(directory)


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "work", "a", "0", "work-2", "x" * 63])
def test_a_profile_is_a_label(name: str) -> None:
    assert check_profile(name) == name


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_secrets(state: State, name: str) -> None:
    for use in (check_profile, state.secrets_of, lambda name: find_profile(state, name)):
        with pytest.raises(VmwError, match="cannot name a secrets profile") as caught:
            use(name)
        assert caught.value.code == "usage"
    with pytest.raises(VmwError):
        make_profile(state, name, TEMPLATE)
    assert not state.root.exists()


# --- looking -------------------------------------------------------------------------------------------------------


def test_a_missing_profile_is_told_with_the_command_that_makes_it(state: State) -> None:
    make_profile(state, "default", TEMPLATE)
    with pytest.raises(VmwError) as caught:
        find_profile(state, "work")
    assert caught.value.code == "usage"
    assert str(state.secrets / "work/secrets.env") in caught.value.message
    assert "`vmw secrets work`" in caught.value.hint
    # What the hint says makes it.
    make_profile(state, "work", TEMPLATE)
    assert find_profile(state, "work") == state.secrets / "work/secrets.env"


@pytest.mark.parametrize(("place", "open_mode", "wanted"), [("work", 0o710, 700), ("work/secrets.env", 0o604, 600)])
def test_a_profile_that_others_can_read_is_refused(state: State, place: str, open_mode: int, wanted: int) -> None:
    make_profile(state, "work", TEMPLATE)
    path = state.secrets / place
    path.chmod(open_mode)
    with pytest.raises(VmwError, match="is open to others") as caught:
        find_profile(state, "work")
    assert caught.value.code == "usage"
    command = caught.value.hint.strip("`")
    assert command.startswith(f"chmod {wanted}")
    subprocess.run(["sh", "-c", command], check=True)
    find_profile(state, "work")


def test_a_directory_in_the_files_place_is_no_profile(state: State) -> None:
    (state.secrets / "work/secrets.env").mkdir(mode=0o700, parents=True)
    with pytest.raises(VmwError, match="does not exist"):
        find_profile(state, "work")


def test_profiles_are_the_directories_with_a_name(state: State) -> None:
    assert profile_names(state) == []
    make_profile(state, "work", TEMPLATE)
    make_profile(state, "home", TEMPLATE)
    (state.secrets / ".git").mkdir()
    (state.secrets / "Backup").mkdir()
    (state.secrets / "note").touch()
    assert profile_names(state) == ["default", "home", "work"]
    assert profile_files(state) == {name: state.secrets / name / "secrets.env" for name in ("default", "home", "work")}


def test_the_default_file_is_known_before_it_is_moved(old: State) -> None:
    assert profile_files(old) == {"default": old.secrets / "secrets.env"}
    settle(old)
    assert profile_files(old) == {"default": old.secrets / "default/secrets.env"}


# --- making --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["default", "work"])
def test_a_profile_is_made_once_and_private(state: State, profile: str) -> None:
    before = os.umask(0)
    try:
        assert not is_made(state, profile)
        assert make_profile(state, profile, TEMPLATE)
    finally:
        os.umask(before)
    for name in {"default", profile}:
        assert (state.secrets / name / "secrets.env").read_text() == TEMPLATE
        assert mode(state.secrets / name / "secrets.env") == 0o600
        assert mode(state.secrets / name) == 0o700
    assert mode(state.secrets) == 0o700
    assert (state.secrets / "secrets.env").readlink() == Path("default/secrets.env")
    assert is_made(state, profile)
    assert not make_profile(state, profile, TEMPLATE)


def test_an_existing_file_is_never_touched(state: State) -> None:
    make_profile(state, "work", TEMPLATE)
    for name in ("default", "work"):
        path = state.secrets / name / "secrets.env"
        path.write_text("MINE=1\n")
        path.chmod(0o640)
    assert not make_profile(state, "work", "other")
    for name in ("default", "work"):
        assert (state.secrets / name / "secrets.env").read_text() == "MINE=1\n"
        assert mode(state.secrets / name / "secrets.env") == 0o640


@pytest.mark.parametrize("place", [".", "default", "work"])
def test_open_directories_are_closed(state: State, place: str) -> None:
    make_profile(state, "work", TEMPLATE)
    (state.secrets / place).chmod(0o755)
    assert not is_made(state, "work")
    assert make_profile(state, "work", TEMPLATE)
    assert mode(state.secrets / place) == 0o700


def test_a_link_of_the_users_own_is_no_missing_file(state: State, tmp_path: Path) -> None:
    make_profile(state, "work", TEMPLATE)
    path = state.secrets / "work/secrets.env"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert not make_profile(state, "work", TEMPLATE)
    assert not (tmp_path / "elsewhere").exists()


# --- what was there before -----------------------------------------------------------------------------------------


def test_the_file_of_before_is_the_default_profiles(old: State) -> None:
    assert settle(old)
    assert (old.secrets / "default/secrets.env").read_text() == OLD_KEYS
    assert mode(old.secrets / "default/secrets.env") == 0o600
    assert mode(old.secrets) == mode(old.secrets / "default") == 0o700
    for path in (old.secrets / "secrets.env", old.root / "secrets.env"):
        assert path.is_symlink()
        assert path.read_text() == OLD_KEYS
    assert sorted(path.name for path in old.secrets.iterdir()) == ["default", "secrets.env"]
    assert sorted(path.name for path in (old.secrets / "default").iterdir()) == ["secrets.env"]
    assert not settle(old)
    assert not make_profile(old, "default", TEMPLATE)


def test_a_running_daemon_goes_on_with_the_default_profile_and_sees_no_other(old: State) -> None:
    """A bind holds the directory and not its name, as an open descriptor does."""
    held = os.open(old.secrets, os.O_RDONLY | os.O_DIRECTORY)
    # The control: what is made beside the file before is seen.
    (old.secrets / "seen").mkdir()
    assert sorted(names(held)) == ["secrets.env", "seen"]
    (old.secrets / "seen").rmdir()
    try:
        make_profile(old, "work", "WORK=1\n")
        make_profile(old, "later", "LATER=1\n")
        assert names(held) == ["secrets.env"]
        with pytest.raises(FileNotFoundError):
            os.open("work/secrets.env", os.O_RDONLY, dir_fd=held)
        # An editor writes a new file, through the links or in the directory itself.
        new = old.secrets / "default/.new"
        new.write_text("EDITED=1\n")
        new.rename((old.root / "secrets.env").resolve())
        descriptor = os.open("secrets.env", os.O_RDONLY, dir_fd=held)
        assert os.read(descriptor, 100) == b"EDITED=1\n"
        os.close(descriptor)
    finally:
        os.close(held)


def test_profiles_made_by_hand_before_leave_the_share_of_the_default_one(old: State) -> None:
    hand = old.secrets / "work/secrets.env"
    hand.parent.mkdir(mode=0o700)
    hand.write_text("WORK=1\n")
    hand.chmod(0o600)
    (old.secrets / "Backup").mkdir()
    held = os.open(old.secrets, os.O_RDONLY | os.O_DIRECTORY)
    assert "work" in names(held)
    # What a guest has seen it may hold.
    directory = os.open("work", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
    file = os.open("work/secrets.env", os.O_RDONLY, dir_fd=held)
    assert settle(old)
    assert hand.read_text() == "WORK=1\n"
    assert (mode(hand.parent), mode(hand)) == (0o700, 0o600)
    assert profile_names(old) == ["default", "work"]
    hand.write_text("WORK=2\n")
    assert names(directory) == []
    assert os.read(file, 100) == b"WORK=1\n"
    for descriptor in (directory, file):
        os.close(descriptor)
    assert sorted(path.name for path in old.secrets.iterdir()) == ["default", "secrets.env", "work"]
    # What is no profile goes with the file beside which it was.
    assert sorted(names(held)) == ["Backup", "secrets.env"]
    os.close(held)


def test_nothing_there_stays_nothing(state: State) -> None:
    assert not settle(state)
    assert not state.root.exists()


def test_secrets_behind_a_link_of_the_users_own_are_arranged_there(old: State, tmp_path: Path) -> None:
    elsewhere = tmp_path / "encrypted"
    old.secrets.rename(elsewhere)
    old.secrets.symlink_to(elsewhere)
    assert settle(old)
    assert old.secrets.readlink() == elsewhere
    assert (elsewhere / "default/secrets.env").read_text() == OLD_KEYS
    assert (old.root / "secrets.env").read_text() == OLD_KEYS
    assert not settle(old)


@pytest.mark.parametrize("step", ["partial", "moved", "in place", "taken out", "half copied", "copied", "linked"])
def test_an_interrupted_run_is_completed(old: State, step: str) -> None:
    (old.secrets / "work").mkdir(mode=0o700)
    (old.secrets / "work/secrets.env").write_text("WORK=1\n")
    partial = old.root / ".secrets.partial"
    partial.mkdir(mode=0o700)
    if step != "partial":
        old.secrets.rename(partial / "default")
    if step not in {"partial", "moved"}:
        partial.rename(old.secrets)
    if step == "linked":
        (old.secrets / "default/work").rename(old.secrets / "work")
    if step in {"taken out", "half copied", "copied"}:
        (old.secrets / "default/work").rename(old.secrets / "work.taken-out")
    if step == "half copied":
        (old.secrets / "work.partial").mkdir()
        (old.secrets / "work.partial/secrets.env").write_text("WO")
    if step == "copied":
        shutil.copytree(old.secrets / "work.taken-out", old.secrets / "work")
    assert settle(old)
    assert (old.secrets / "work/secrets.env").read_text() == "WORK=1\n"
    assert sorted(path.name for path in old.secrets.iterdir()) == ["default", "secrets.env", "work"]
    assert (old.root / "secrets.env").read_text() == OLD_KEYS
    assert sorted(path.name for path in (old.secrets / "default").iterdir()) == ["secrets.env"]
    assert profile_names(old) == ["default", "work"]
    assert not partial.exists()
    assert not settle(old)


def test_a_directory_that_cannot_be_moved_is_told(old: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_self: Path, _target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)
        with pytest.raises(VmwError, match="Device or resource busy") as caught:
            settle(old)
    command = caught.value.hint.split("`")[1]
    subprocess.run(["sh", "-c", command], check=True)
    assert settle(old)
    assert (old.root / "secrets.env").read_text() == OLD_KEYS
    assert (old.secrets / "secrets.env").is_symlink()


def test_a_file_in_the_links_place_is_the_default_profiles(old: State) -> None:
    settle(old)
    new = old.secrets / ".new"
    new.write_text("EDITED=1\n")
    new.rename(old.secrets / "secrets.env")
    assert not is_made(old, "default")
    assert settle(old)
    assert (old.secrets / "default/secrets.env").read_text() == "EDITED=1\n"
    assert (old.secrets / "secrets.env").readlink() == Path("default/secrets.env")
    # What it was is not lost, and no VM sees it.
    assert (old.secrets / "secrets.env.old").read_text() == OLD_KEYS
    assert not settle(old)


# --- units of before -----------------------------------------------------------------------------------------------


def test_units_of_before_are_led_to_the_default_profile(old: State, reloads: list[list[str]]) -> None:
    root = old.secrets.resolve()
    units = [write_unit(name, root) for name in ("one", "two-secrets")]
    other = write_unit("other", root.with_name("secrets2"))
    control = other.read_text()
    assert settle(old)
    assert [unit.read_text() for unit in units] == [unit_of(name, root / "default") for name in ("one", "two-secrets")]
    assert other.read_text() == control
    assert reloads == [["systemctl", "--user", "daemon-reload"]]
    assert not settle(old)
    assert len(reloads) == 1


def test_units_are_led_also_when_the_directory_is_in_order(old: State, reloads: list[list[str]]) -> None:
    settle(old)
    unit = write_unit("one", old.secrets.resolve())
    assert not is_made(old, "default")
    assert settle(old)
    assert unit.read_text() == unit_of("one", old.secrets.resolve() / "default")
    assert len(reloads) == 1


def test_units_of_other_profiles_stay(old: State, reloads: list[list[str]]) -> None:
    settle(old)
    unit = write_unit("one", old.secrets.resolve() / "work")
    text = unit.read_text()
    assert not settle(old)
    assert unit.read_text() == text
    assert reloads == []


def test_an_interrupted_run_tells_the_service_manager_again(old: State, reloads: list[list[str]]) -> None:
    settle(old)
    write_unit("one", old.secrets.resolve() / "default")
    (old.secrets / "secrets.env").unlink()
    assert settle(old)
    assert len(reloads) == 1


# --- the module ----------------------------------------------------------------------------------------------------


class Call:
    """Stand for the module's side of Ansible."""

    def __init__(self, state: State, profile: str, *, check_mode: bool = False) -> None:
        self.params = {"state_dir": str(state.root), "profile": profile, "template": TEMPLATE}
        self.check_mode = check_mode


def make(call: Any) -> dict[str, Any]:  # noqa: ANN401 - stands for a module
    return module.make(call)


def test_the_module_returns_the_path(state: State) -> None:
    path = str(state.secrets / "work/secrets.env")
    assert make(Call(state, "work", check_mode=True)) == {"changed": True, "secrets_file": path}
    assert not state.root.exists()
    assert make(Call(state, "work")) == {"changed": True, "secrets_file": path}
    assert Path(path).read_text() == TEMPLATE
    for check_mode in (True, False):
        assert make(Call(state, "work", check_mode=check_mode)) == {"changed": False, "secrets_file": path}


def test_check_mode_moves_nothing(old: State) -> None:
    assert make(Call(old, "default", check_mode=True))["changed"]
    assert not (old.secrets / "secrets.env").is_symlink()
    assert [path.name for path in old.secrets.iterdir()] == ["secrets.env"]


def test_the_module_refuses_what_is_no_name(state: State) -> None:
    for check_mode in (True, False):
        with pytest.raises(VmwError, match="cannot name a secrets profile"):
            make(Call(state, "../x", check_mode=check_mode))
