"""The one task that has every layer of a VM, with layers that only note what they are asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible_collections.vmw.worktree.plugins.module_utils import (
    fork,
    guest_agent,
    guest_clock,
    passt_units,
    readiness,
    state,
)
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers import (
    cloud_init,
    disk,
    domain,
    egress,
    instance,
    virtiofsd,
    whole,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import domain_save
from module_docs import documented_options
from records import record

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Clock, Part

ROOT = Path(__file__).parents[3]
EVERY_LAYER = ["instance", "disk", "egress", "cloud_init", "virtiofsd", "domain"]


class Layers:
    """Stand for the layers: each says whether it changes anything, and notes its parameters."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand in for all of them."""
        self.files = InstanceFiles(State(root), "one")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.changing: set[str] = set()
        self.check_mode = False
        self.warnings: list[str] = []
        self.started: dict[str, Any] = {
            "instance": {"name": "one", "address": "192.0.2.7"},
            "start": "cold",
            "diff": {"after": "x"},
        }
        monkeypatch.setattr(instance, "present", self.noting("instance", {"instance": record().as_dict()}))
        monkeypatch.setattr(egress, "present", self.noting("egress", {}))
        monkeypatch.setattr(disk, "make", self.noting("disk", {}))
        monkeypatch.setattr(cloud_init, "make", self.noting("cloud_init", {}))
        served = {"sockets": {"vmw:repo": "/r"}, "mountpoints": ["/m"]}
        monkeypatch.setattr(virtiofsd, "present", self.noting("virtiofsd", served))
        monkeypatch.setattr(domain, "running", self.start)

    def noting(self, layer: str, told: dict[str, Any]) -> Callable[[Part], dict[str, Any]]:
        def work(part: Part) -> dict[str, Any]:
            assert part.check_mode == self.check_mode
            part.warn(layer)
            self.asked.append((layer, part.params))
            return {"changed": layer in self.changing, **told}

        return work

    def start(self, part: Part, clock: Clock) -> dict[str, Any]:
        clock.note("QEMU start")
        return {**self.noting("domain", {})(part), **self.started}

    def run(self, **parameters: object) -> dict[str, Any]:
        values = {"state_dir": str(self.files.state.root), "worktree": None, "name": None, "egress": "internet", "timeout": 0}
        return whole.running(
            SimpleNamespace(params={**values, **parameters}, check_mode=self.check_mode, warn=self.warnings.append)
        )


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layers:
    return Layers(tmp_path, monkeypatch)


def test_a_worktree_gets_every_layer_in_order(host: Layers) -> None:
    result = host.run(worktree="/w")
    assert [layer for layer, _ in host.asked] == EVERY_LAYER
    assert {parameters["name"] for _, parameters in host.asked[1:]} == {"one"}
    assert host.asked[2][1]["mode"] == ""
    assert host.asked[-1][1]["sockets"] == {"vmw:repo": "/r"}
    assert host.asked[-1][1]["mountpoints"] == ["/m"]
    assert [phase["phase"] for phase in result["timings"]] == [*EVERY_LAYER[:-1], "QEMU start"]
    assert (result["start"], result["diff"], result["changed"]) == ("cold", {"after": "x"}, False)
    assert (result["instance"]["address"], result["instance"]["uuid"]) == ("192.0.2.7", record().uuid)


@pytest.mark.parametrize("module", [domain_save, fork, guest_agent, guest_clock, passt_units, readiness, state])
def test_who_waits_for_a_vm_looks_ten_times_a_second_or_more(module: ModuleType) -> None:
    intervals = {name: value for name, value in vars(module).items() if name.endswith("POLL_SECONDS")}
    assert intervals
    assert max(intervals.values()) <= 0.1


@pytest.mark.parametrize("layer", EVERY_LAYER)
def test_a_change_of_any_layer_is_one(host: Layers, layer: str) -> None:
    host.changing = {layer}
    assert host.run(worktree="/w")["changed"]


def test_a_recorded_vm_keeps_its_disk_and_its_seed(host: Layers) -> None:
    host.files.save(record())
    for path in (host.files.disk, host.files.seed, host.files.host_key.with_suffix(".pub")):
        path.touch()
    host.run(name="one")
    assert [layer for layer, _ in host.asked] == ["egress", "virtiofsd", "domain"]


def test_a_half_made_one_is_not_started(host: Layers) -> None:
    host.files.save(record())
    with pytest.raises(VmwError, match=r"lacks disk\.qcow2"):
        host.run(name="one")
    assert host.asked == []


@pytest.mark.parametrize("check_mode", [True, False])
def test_every_layer_knows_of_check_mode_and_can_warn(host: Layers, *, check_mode: bool) -> None:
    host.check_mode = check_mode
    host.run(worktree="/w")
    assert host.warnings == EVERY_LAYER


@pytest.mark.parametrize("layer", ["disk", "egress", "cloud_init", "virtiofsd", "domain"])
@pytest.mark.parametrize("check_mode", [True, False])
def test_a_layer_that_fails_leaves_no_half_fork(
    host: Layers, monkeypatch: pytest.MonkeyPatch, layer: str, *, check_mode: bool
) -> None:
    def fail(*_arguments: object) -> None:
        message = f"no {layer}"
        raise VmwError(message)

    given_up: list[tuple[InstanceFiles, str]] = []
    modules = {"disk": disk, "egress": egress, "cloud_init": cloud_init, "virtiofsd": virtiofsd, "domain": domain}
    function = {"disk": "make", "cloud_init": "make", "domain": "running"}.get(layer, "present")
    monkeypatch.setattr(modules[layer], function, fail)
    monkeypatch.setattr(fork, "abandon", lambda *vm: given_up.append(vm))
    host.check_mode = check_mode
    with pytest.raises(VmwError, match=f"no {layer}"):
        host.run(worktree="/w")
    assert given_up == ([] if check_mode else [(host.files, record().uuid)])


def test_what_failed_first_is_told(host: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        message = "no disk"
        raise VmwError(message)

    def fail_again(*_vm: object) -> None:
        message = "full"
        raise OSError(message)

    monkeypatch.setattr(disk, "make", fail)
    monkeypatch.setattr(fork, "abandon", fail_again)
    with pytest.raises(VmwError, match="no disk"):
        host.run(worktree="/w")


def test_without_a_worktree_and_a_name_there_is_no_vm(host: Layers) -> None:
    with pytest.raises(VmwError) as caught:
        host.run(worktree="")
    assert caught.value.code == "not_found"


def specified(role: str) -> dict[str, Any]:
    """Return what a role takes, without the words about it."""
    text = (ROOT / f"roles/{role}/meta/argument_specs.yml").read_text()
    options = yaml.safe_load(text)["argument_specs"]["main"]["options"]
    keys = ("type", "choices", "default")
    return {name.removeprefix(f"{role}_"): {key: option.get(key) for key in keys} for name, option in options.items()}


def test_the_roles_agree_on_what_a_vm_is_made_of() -> None:
    one, layer = specified("spawn"), specified("instance")
    assert {name: one[name] for name in layer} == layer
    assert one.keys() == documented_options("vm").keys() - {"timeout"} | {"wait_timeout"}


def test_before_anything_is_made_the_record_is_told(host: Layers) -> None:
    host.started = {"start": "none"}
    result = host.run(worktree="/w")
    assert result["instance"] == record().as_dict()
    assert result["diff"] == {}
