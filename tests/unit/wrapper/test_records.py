"""The VMs that are recorded on this host, as the commands look for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wrapper_support import FakeAnsible

from vmw import cli
from vmw.runner import playbook
from vmw.services import group, host, records
from vmw.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def test_a_worktree_has_a_vm_or_none(make_vm: Callable[..., Path]) -> None:
    state = load_settings().state_dir
    worktree = Path("/home/dev/one")
    assert not records.has_vm(state, worktree)
    (make_vm("torn") / "instance.json").write_text("{")
    make_vm("one", worktree=str(worktree))
    assert records.has_vm(state, worktree)
    assert not records.has_vm(state, worktree.parent)


def test_what_the_settings_cannot_have_is_no_matter_for_a_vm_that_is_there(
    make_vm: Callable[..., Path], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps its libvirt, which may be another one than that of new VMs."""
    fake = FakeAnsible(results={"instance": {"name": "one", "worktree": str(home / "one")}})
    monkeypatch.setattr(playbook.PlaybookRunner, "run", fake.run)
    monkeypatch.setattr(host, "missing", lambda _settings: [])
    monkeypatch.setattr(group, "reexec_argv", lambda _command: None)
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh/id_ed25519.pub").write_text("ssh-ed25519 AAAA dev@host\n")
    worktree = home / "one"
    worktree.mkdir()
    make_vm("seen")
    (home / ".config/vmw/config.yml").write_text("vmw_libvirt_uri: qemu:///session\n")
    assert cli.run(["spawn", str(worktree), "--egress", "internet"]) == 2
    assert fake.runs == []
    assert "qemu:///session" in capsys.readouterr().err
    make_vm("one", worktree=str(worktree))
    assert cli.run(["spawn", str(worktree), "--egress", "internet"]) == 0
    assert fake.runs[0].extra_vars["vmw_egress"] == "internet"
