from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import accelerator
from ansible_collections.vmw.worktree.plugins.modules import kvm_acceleration

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Module:
    """What the module under test needs of Ansible; `modprobe` makes the device, as the kernel would."""

    device: Path
    check_mode: bool = False
    modprobe: str | None = "/sbin/modprobe"
    error: str = ""
    ran: list[list[str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def get_bin_path(self, name: str, opt_dirs: list[str]) -> str | None:  # noqa: ARG002 - as Ansible calls it
        return self.modprobe

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        self.ran.append(argv)
        if self.error:
            return 1, "", self.error
        self.device.touch()
        return 0, "", ""

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class Machine:
    module: Module
    boot: Path
    cpu_info: Path

    def configure(self) -> dict[str, Any]:
        return kvm_acceleration.configure(cast("Any", self.module))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(Module(tmp_path / "kvm"), tmp_path / "modules-load.d/vmw.conf", tmp_path / "cpuinfo")
    made.cpu_info.write_text("model name\t: a CPU\nflags\t\t: fpu vme vmx sse\n")
    monkeypatch.setattr(accelerator, "CPU_INFO", made.cpu_info)
    monkeypatch.setattr(accelerator, "KVM_DEVICE", made.module.device)
    monkeypatch.setattr(kvm_acceleration, "MODULES_LOAD", made.boot)
    return made


@pytest.mark.parametrize(("flag", "driver"), [("vmx", "kvm_intel"), ("svm", "kvm_amd")])
def test_cpus_driver_is_loaded_now_and_at_boot(machine: Machine, flag: str, driver: str) -> None:
    machine.cpu_info.write_text(f"flags\t\t: fpu {flag} sse\n")
    result = machine.configure()
    assert (result["changed"], result["virt_type"], result["reason"]) == (True, "kvm", "")
    assert machine.module.ran == [["/sbin/modprobe", driver]]
    assert machine.boot.read_text().splitlines()[-1] == driver
    assert machine.module.warnings == []


def test_second_run_changes_nothing(machine: Machine) -> None:
    machine.configure()
    result = machine.configure()
    assert not result["changed"]
    assert result["diff"]["before"] == result["diff"]["after"]
    assert len(machine.module.ran) == 1


def test_check_mode_changes_nothing_and_tells_it(machine: Machine) -> None:
    machine.module.check_mode = True
    result = machine.configure()
    assert result["changed"]
    assert result["diff"]["after"].endswith("kvm_intel\n")
    assert machine.module.ran == []
    assert not machine.boot.exists()
    assert machine.module.warnings == []


def test_cpu_without_virtualisation_is_no_failure(machine: Machine) -> None:
    machine.cpu_info.write_text("flags\t\t: fpu sse\n")
    machine.module.device.touch()
    result = machine.configure()
    assert (result["changed"], result["virt_type"]) == (False, "qemu")
    assert "neither vmx nor svm" in machine.module.warnings[0]
    assert not machine.boot.exists()


def test_driver_that_does_not_load_is_no_failure(machine: Machine) -> None:
    machine.module.error = "modprobe: ERROR: could not insert 'kvm_intel': Operation not supported\n"
    result = machine.configure()
    assert result["virt_type"] == "qemu"
    assert "Operation not supported" in machine.module.warnings[0]


def test_machine_without_modprobe_is_no_failure(machine: Machine) -> None:
    machine.module.modprobe = None
    assert machine.configure()["virt_type"] == "qemu"
    machine.module.device.touch()
    assert machine.configure()["virt_type"] == "kvm"
