"""The module that changes a VM's network policy: in what order, and what a guest is told."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import guest_agent, packet_filter, passt_units
from ansible_collections.vmw.worktree.plugins.module_utils.egress import FIRST_PROXY_PORT, Egress
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.guest_agent import Ended
from ansible_collections.vmw.worktree.plugins.module_utils.instance import InstanceFiles
from ansible_collections.vmw.worktree.plugins.module_utils.layers import egress as module
from ansible_collections.vmw.worktree.plugins.module_utils.layers.task import Part
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from records import record, session_record

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://192.168.177.1:47123"


CARD = (
    "<domain><devices><interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='vmw-1b671a64'/></interface>"
    "</devices></domain>"
)


@dataclass
class Host:
    """Stands for the filter, libvirt and the guest's agent."""

    running: bool = True
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    refusal: VmwError | None = None
    told: list[str] = field(default_factory=list)
    answer: Ended = field(default_factory=lambda: Ended(0, ""))
    xml: str = CARD

    def ask(self, verb: str, **values: Any) -> dict[str, Any]:  # noqa: ANN401 - as the real one
        if self.refusal:
            raise self.refusal
        name = values["name"]
        if verb == "remove":
            return {"ok": True, "changed": self.known.pop(name, None) is not None}
        changed = self.known.get(name) != values
        self.known[name] = values
        return {"ok": True, "changed": changed}

    def call(self, _domain: object, *_argv: str, stdin: str, timeout: float) -> Ended:
        assert timeout > 0
        self.told.append(stdin)
        return self.answer

    def XMLDesc(self) -> str:  # noqa: N802 - libvirt's name
        return self.xml


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(packet_filter, "ask", host.ask)
    monkeypatch.setattr(guest_agent, "call", host.call)
    monkeypatch.setattr(module, "connect", lambda _uri: None)
    monkeypatch.setattr(module, "find_own_domain", lambda *_words: host)
    monkeypatch.setattr(module, "is_running", lambda domain: domain.running)
    monkeypatch.setattr(module, "bridge_address", lambda _bridge: "192.168.177.1")
    return host


@pytest.fixture
def files(tmp_path: Path) -> InstanceFiles:
    files = InstanceFiles(State(tmp_path / "vmw"), "one")
    files.save(record())
    return files


def task(files: InstanceFiles, warnings: list[str], *, check_mode: bool = False, **values: object) -> Part:
    """Return a task that asks for a policy."""
    parameters = {"mode": "", "allow": [], "forbid": [], "proxy_port": 47123, **values}
    return Part({"state_dir": str(files.state.root), "name": "one", **parameters}, check_mode, warnings.append)


def call(files: InstanceFiles, *, check_mode: bool = False, **values: object) -> tuple[dict[str, Any], list[str]]:
    """Run the module and return its results and warnings."""
    warnings: list[str] = []
    work = module.absent if values.get("state") == "absent" else module.present
    return work(task(files, warnings, check_mode=check_mode, **values)), warnings


def test_a_policy_is_enforced_and_written_down(host: Host, files: InstanceFiles) -> None:
    result, warnings = call(files, mode="offline")
    assert result["changed"]
    assert result["egress"]["mode"] == "offline"
    assert host.known["one"]["mode"] == "offline"
    assert files.load().egress == Egress("offline")
    assert result["diff"] == {"before": "internet\n", "after": "offline\n"}
    assert warnings == []
    again, _ = call(files)
    assert not again["changed"]
    assert again["egress"]["mode"] == "offline"


def test_what_the_filter_refuses_is_not_written_down(host: Host, files: InstanceFiles) -> None:
    host.refusal = VmwError("no")
    with pytest.raises(VmwError, match="no"):
        call(files, mode="open")
    assert files.load().egress == Egress("internet")


def test_check_mode_asks_nobody(host: Host, files: InstanceFiles) -> None:
    host.refusal = VmwError("it was asked")
    result, _ = call(files, check_mode=True, mode="allowlist", allow=["a.org"])
    assert result["changed"]
    assert result["diff"]["after"] == "allowlist\na.org\n"
    assert files.load().egress == Egress("internet")


def test_a_running_guest_is_told_its_proxy_and_that_it_needs_none(host: Host, files: InstanceFiles) -> None:
    call(files, mode="allowlist")
    assert f"https_proxy={URL}" in host.told[0]
    assert files.load().egress.told == URL
    call(files, allow=["a.org"])
    assert len(host.told) == 1
    call(files, mode="internet")
    assert URL not in host.told[1]
    assert files.load().egress == Egress("internet", ["a.org"])


def test_a_guest_that_is_off_is_told_when_it_runs(host: Host, files: InstanceFiles) -> None:
    host.running = False
    _, warnings = call(files, mode="allowlist")
    assert host.told == warnings == []
    host.running = True
    call(files)
    assert host.told == []
    for _ in range(2):
        module.tell_guest(task(files, warnings), files, host, 47123)
    assert f"https_proxy={URL}" in host.told[0]
    assert len(host.told) == 1
    assert files.load().egress.told == URL


def test_a_guest_that_could_not_be_led_to_the_proxy_is_refused_before_anything_changes(
    host: Host, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_address(_bridge: str) -> str:
        message = "br0 has no IPv4 address"
        raise VmwError(message, code="host_not_ready")

    monkeypatch.setattr(module, "bridge_address", no_address)
    for check_mode in (True, False):
        with pytest.raises(VmwError, match="no IPv4 address"):
            call(files, mode="allowlist", check_mode=check_mode)
    assert files.load().egress == Egress("internet")
    assert host.known == {}


def test_the_port_is_the_one_with_which_the_proxy_was_set_up(files: InstanceFiles) -> None:
    state = files.state
    assert module.port_of_proxy(state, 0) == FIRST_PROXY_PORT + os.getuid() % 1000
    settings = state.root / "proxy/settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"schema": 1, "address": "192.168.177.1", "port": 47555}))
    assert module.port_of_proxy(state, 0) == 47555
    assert module.port_of_proxy(state, 47123) == 47123


def test_a_guest_that_does_not_listen_is_warned_of_in_words_that_are_safe(host: Host, files: InstanceFiles) -> None:
    host.answer = Ended(1, "no\x1b[2J room\n")
    _, (warning,) = call(files, mode="allowlist")
    assert "do not know their way" in warning
    assert "\x1b" not in warning
    assert files.load().egress == Egress("allowlist")


@pytest.mark.parametrize("target", ["<target dev='vnet3'/>", '<target dev="vnet3"/>', ""])
def test_a_card_of_before_is_warned_of_whenever_somebody_asks(host: Host, files: InstanceFiles, target: str) -> None:
    host.xml = host.xml.replace("<target dev='vmw-1b671a64'/>", target)
    for _ in range(2):
        _, (warning,) = call(files, mode="offline")
        assert "until it is started again" in warning


def test_what_cannot_be_written_down_is_not_enforced(host: Host, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    call(files, mode="offline")

    def full(_files: InstanceFiles, _instance: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(InstanceFiles, "save", full)
    with pytest.raises(OSError, match="No space"):
        call(files, mode="open")
    assert host.known["one"]["mode"] == "offline"


def test_what_lets_less_through_is_enforced_all_the_same(
    host: Host, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(files, mode="open", allow=["a.org"])

    def full(_files: InstanceFiles, _instance: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(InstanceFiles, "save", full)
    with pytest.raises(VmwError, match="one is offline now, which could not be written down: No space") as caught:
        call(files, mode="offline")
    assert "brings open back" in caught.value.hint
    assert host.known["one"]["mode"] == "offline"
    with pytest.raises(VmwError, match="allowlist now"):
        call(files, mode="allowlist", allow=["b.org"])
    assert host.known["one"]["mode"] == "allowlist"
    with pytest.raises(OSError, match="No space"):
        call(files, allow=["b.org"])
    assert host.known["one"]["mode"] == "open"


def test_a_filter_that_does_not_answer_keeps_no_vm_from_going(host: Host, files: InstanceFiles) -> None:
    host.refusal = VmwError("it is broken")
    result, (warning,) = call(files, state="absent")
    assert not result["changed"]
    assert "may still know one" in warning


def test_a_vm_that_goes_is_forgotten_once(host: Host, files: InstanceFiles) -> None:
    call(files)
    assert call(files, state="absent", check_mode=True)[0]["changed"]
    assert "one" in host.known
    assert call(files, state="absent")[0]["changed"]
    assert not call(files, state="absent")[0]["changed"]
    assert dataclasses.asdict(files.load().egress)["mode"] == "internet"


@pytest.fixture
def passt(monkeypatch: pytest.MonkeyPatch, files: InstanceFiles) -> dict[str, int]:
    """Make the VM one of the user's own libvirt, and return whose network is served, with their ports."""
    served: dict[str, int] = {}

    def present(name: str, ssh_port: int, *, check_mode: bool) -> bool:
        changed = served.get(name) != ssh_port
        if not check_mode:
            served[name] = ssh_port
        return changed

    files.save(session_record(22017))
    monkeypatch.setattr(passt_units, "is_connected", lambda name: name in served)
    monkeypatch.setattr(module, "can_bind", lambda _address, _port: not served)
    monkeypatch.setattr(passt_units, "present", present)
    monkeypatch.setattr(passt_units, "absent", lambda name: served.pop(name, None) is not None)
    return served


def test_passt_serves_a_vm_of_the_users_own_libvirt(host: Host, files: InstanceFiles, passt: dict[str, int]) -> None:
    host.refusal = VmwError("the filter was asked")
    assert call(files, check_mode=True)[0]["changed"]
    assert passt == {}
    result, warnings = call(files, mode="open")
    assert (result["changed"], result["egress"]["mode"], warnings) == (True, "open", [])
    assert passt == {"one": 22017}
    assert not call(files)[0]["changed"]


def test_a_port_that_somebody_else_has_is_told(
    host: Host, files: InstanceFiles, passt: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "can_bind", lambda address, port: (address, port) != ("127.0.0.1", 22017))
    with pytest.raises(VmwError, match="port 22017") as caught:
        call(files)
    assert caught.value.code == "conflict"
    assert passt == {}


@pytest.mark.parametrize("values", [{"mode": "offline"}, {"mode": "internet"}, {"allow": ["a.org"]}, {"forbid": ["a.org"]}])
def test_what_passt_cannot_enforce_is_refused(
    host: Host, files: InstanceFiles, passt: dict[str, int], values: dict[str, Any]
) -> None:
    with pytest.raises(VmwError, match="qemu:///session") as caught:
        call(files, **values)
    assert caught.value.code == "usage"
    assert passt == {}
    assert files.load().egress == Egress("open")


def test_its_network_goes_without_the_filter(host: Host, files: InstanceFiles, passt: dict[str, int]) -> None:
    call(files)
    host.refusal = VmwError("the filter was asked")
    result, warnings = call(files, state="absent")
    assert (result, warnings, passt) == ({"changed": True}, [], {})
