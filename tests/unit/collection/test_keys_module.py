"""The module that limits what a VM does with the host's keys."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles, Keys
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import keys as module
from records import record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path / "vmw"), "one")
    files.save(dataclasses.replace(record(), keys=Keys("proxy", daily_tokens=9)))
    return files


def call(files: InstanceFiles, *, check_mode: bool = False, **values: object) -> dict[str, Any]:
    parameters = {"revoked": None, "daily_requests": None, "daily_tokens": None, **values}
    ansible: Any = SimpleNamespace(
        params={"state_dir": str(files.state.root), "name": "one", **parameters}, check_mode=check_mode
    )
    return module.change(ansible)


def test_a_change_is_written_down_and_keeps_the_rest(files: InstanceFiles) -> None:
    result = call(files, revoked=True)
    assert result["changed"]
    assert files.load().keys == Keys("proxy", revoked=True, daily_requests=0, daily_tokens=9)
    assert not call(files, revoked=True)["changed"]
    assert call(files, revoked=False, daily_tokens=0)["keys"] == dataclasses.asdict(Keys("proxy"))


def test_check_mode_only_says(files: InstanceFiles) -> None:
    result = call(files, check_mode=True, daily_requests=3)
    assert result["changed"]
    assert "daily_requests: 3\n" in result["diff"]["after"]
    assert files.load().keys.daily_requests == 0


def test_a_limit_is_not_below_nothing(files: InstanceFiles) -> None:
    with pytest.raises(VmwError, match="not below 0") as caught:
        call(files, daily_tokens=-1)
    assert caught.value.code == "usage"


def test_a_vm_that_has_read_its_keys_cannot_be_cut_off(files: InstanceFiles) -> None:
    files.save(dataclasses.replace(files.load(), keys=Keys()))
    with pytest.raises(VmwError, match="reads its keys itself") as caught:
        call(files, revoked=True)
    assert caught.value.code == "conflict"
