"""The disk of a new VM: of a template, or empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers import disk as overlay
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import record

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.vmw.worktree.plugins.module_utils.instance import Instance


@pytest.fixture
def instance() -> Instance:
    return record()


NO_FILE = "`cp` failed: No such file or directory"


@pytest.fixture
def files(tmp_path: Path, instance: Instance) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path), instance.name)
    files.directory.mkdir(parents=True)
    return files


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    monkeypatch.setattr(overlay, "connect", lambda uri: uri)
    monkeypatch.setattr(overlay, "backing_file", lambda *_arguments: "backing")
    monkeypatch.setattr(overlay, "create_overlay", lambda *_arguments: made.append("overlay"))
    monkeypatch.setattr(overlay, "begin", lambda *_arguments: made.append("fork"))
    monkeypatch.setattr(overlay, "find_template", lambda *_arguments: ("template", ""))
    return made


def test_a_warm_vm_is_a_fork(files: InstanceFiles, instance: Instance, made: list[str]) -> None:
    assert overlay.create(files, instance, warm=True) == ""
    assert made == ["fork"]


def test_a_cold_one_is_not_though_it_was_begun_as_one(files: InstanceFiles, instance: Instance, made: list[str]) -> None:
    files.fork.touch()
    assert overlay.create(files, instance, warm=False) == ""
    assert made == ["overlay"]
    assert not files.fork.exists()


@pytest.mark.parametrize("reason", ["", "it was saved with another QEMU"])
def test_without_a_template_a_warm_one_starts_cold(
    files: InstanceFiles, instance: Instance, made: list[str], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(overlay, "find_template", lambda *_arguments: (None, reason))
    assert overlay.create(files, instance, warm=True) == reason
    assert made == ["overlay"]


@pytest.mark.parametrize("error", [VmwError(NO_FILE), OSError(NO_FILE)])
def test_a_template_that_goes_meanwhile_means_a_cold_start_and_its_reason(
    files: InstanceFiles, instance: Instance, made: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def begin(*_arguments: Any) -> None:  # noqa: ANN401
        raise error

    monkeypatch.setattr(overlay, "begin", begin)
    assert overlay.create(files, instance, warm=True) == NO_FILE
    assert made == ["overlay"]
