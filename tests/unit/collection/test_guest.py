"""What a console log and a CPU tell."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import accelerator
from ansible_collections.vmw.worktree.plugins.module_utils.accelerator import cpu_virtualisation, virt_type
from ansible_collections.vmw.worktree.plugins.module_utils.console import TAIL_BYTES, read_console, trouble
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = "processor : 0\nflags\t\t: fpu sse avx\n"
INTEL = "processor : 0\nflags\t\t: fpu vmx avx\nvmx flags : ept\n"
AMD = "flags : fpu svm\n"


@pytest.mark.parametrize(("text", "flag"), [(PLAIN, ""), (INTEL, "vmx"), (AMD, "svm"), ("flags: svm_lock\n", "")])
def test_the_cpu_tells_its_extension(text: str, flag: str) -> None:
    assert cpu_virtualisation(text) == flag


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand for the machine's /proc/cpuinfo and /dev/kvm."""
    monkeypatch.setattr(accelerator, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(accelerator, "KVM_DEVICE", tmp_path / "kvm")
    (tmp_path / "cpuinfo").write_text(INTEL)
    (tmp_path / "kvm").touch()
    return tmp_path


def test_kvm_where_it_can_be_had(machine: Path) -> None:
    assert virt_type("auto") == "kvm"
    assert virt_type("kvm") == "kvm"
    assert virt_type("qemu") == "qemu"
    (machine / "kvm").unlink()
    assert virt_type("auto") == "qemu"


def test_a_device_without_the_cpu_flag_is_not_enough(machine: Path) -> None:
    (machine / "cpuinfo").write_text(PLAIN)
    assert virt_type("auto") == "qemu"
    with pytest.raises(VmwError) as caught:
        virt_type("kvm")
    assert caught.value.code == "host_not_ready"
    assert "vmx" in caught.value.message


def test_a_device_kept_from_the_user_is_still_qemus(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.is_dir()

    def denied(*_arguments: object) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert virt_type("auto") == "kvm"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n", "VFS: Unable to mount root fs"),
        ("You are in emergency mode. After logging in", "emergency"),
        ("(initramfs) ", "root file system"),
    ],
)
def test_a_guest_that_is_stuck_is_seen(text: str, words: str) -> None:
    assert words in trouble(text)


def test_an_ordinary_boot_is_no_trouble() -> None:
    assert trouble("[  OK  ] Started ssh.service\nfeature-x login: ") == ""


def test_the_end_of_the_console_log_is_read(tmp_path: Path) -> None:
    assert read_console(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"start" + b"x" * TAIL_BYTES + b"\xff end")
    text = read_console(tmp_path / "log")
    assert text.endswith(" end")
    assert "start" not in text
