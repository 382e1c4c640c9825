from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import jinja2
import pytest
import yaml
from wrapper_support import ROOT

from vmw import __version__
from vmw.errors import ExitCode, VmwError
from vmw.layout import find_layout
from vmw.settings import Settings, load_settings, log_dir


def test_defaults_are_those_of_the_inventory() -> None:
    inventory = yaml.safe_load((ROOT / "inventory" / "group_vars" / "all.yml").read_text())
    assert asdict(Settings()) == {name: inventory[name] for name in asdict(Settings())}


@pytest.mark.parametrize(
    ("uri", "mode"), [("qemu:///system", "proxy"), ("qemu+ssh://host/system", "proxy"), ("qemu:///session", "file")]
)
def test_keys_stay_on_the_host_where_its_proxy_can_tell_vms_apart(uri: str, mode: str) -> None:
    inventory = yaml.safe_load((ROOT / "inventory" / "group_vars" / "all.yml").read_text())
    assert jinja2.Template(inventory["vmw_keys"]).render(vmw_libvirt_uri=uri) == mode


def test_version_is_that_of_the_collection() -> None:
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == __version__


def test_no_file_means_defaults(home: Path) -> None:
    settings = load_settings()
    assert settings.state_dir == home / ".config" / "vmw"
    assert settings.system_libvirt


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "vmw_memory_mib: 8192\n"])
def test_a_file_without_these_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    assert load_settings(path) == Settings()


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("vmw_state_dir: /srv/vms\nvmw_libvirt_uri: qemu:///session\nvmw_bridge: lan0\n")
    settings = load_settings(path)
    assert settings == Settings("/srv/vms", "qemu:///session", "lan0")
    assert settings.state_dir == Path("/srv/vms")
    assert not settings.system_libvirt


@pytest.mark.parametrize(
    ("text", "mode"),
    [("off", "off"), ("'off'", "off"), ("no", "off"), ("forward", "forward"), ("filter", "filter"), ("", "forward")],
)
def test_what_is_lent_of_the_agent_is_read(tmp_path: Path, text: str, mode: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"vmw_ssh_agent: {text}\n")
    assert load_settings(path).vmw_ssh_agent == mode


@pytest.mark.parametrize(("text", "warm"), [("false", False), ("no", False), ("true", True), ("", True), ("'{{ x }}'", True)])
def test_how_new_vms_start_is_read(tmp_path: Path, text: str, *, warm: bool) -> None:
    path = tmp_path / "config.yml"
    path.write_text(f"vmw_warm_start: {text}\n")
    assert load_settings(path).vmw_warm_start is warm


def test_keys_of_the_agent_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text("vmw_ssh_agent_keys: [me@host key, SHA256:abc]\n")
    assert load_settings(path).vmw_ssh_agent_keys == ["me@host key", "SHA256:abc"]
    assert load_settings(tmp_path / "none").vmw_ssh_agent_keys == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vmw_ssh_agent: yes\n", "vmw_ssh_agent in .* must be one of forward, off, filter"),
        ("vmw_ssh_agent: '{{ x }}'\n", "must be one of"),
        ("vmw_ssh_agent: [off]\n", "must be one of"),
        ("vmw_ssh_agent_keys: me@host\n", "must be a list of plain strings"),
        ("vmw_ssh_agent_keys: [5]\n", "must be a list of plain strings"),
        ("vmw_ssh_agent_keys: ['{{ x }}']\n", "must be a list of plain strings"),
        ("vmw_bridge: [lan0]\n", "must be a plain string"),
        ("vmw_state_dir: '{{ x }}'\n", "must be a plain string"),
        ("vmw_bridge: 5\n", "must be a plain string"),
        ("- a\n", "holds no settings"),
        ("a: [\n", "no valid YAML"),
        ("vmw_state_dir: ~nosuchuser/x\n", "a user that does not exist: ~nosuchuser/x"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(VmwError) as caught:
        load_settings(path)
    assert re.search(message, caught.value.message)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "\n" not in caught.value.message


def test_logs_go_to_the_state_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert log_dir() == home / ".local" / "state" / "vmw" / "log"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert log_dir() == Path("/var/state/vmw/log")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert log_dir() == home / ".local" / "state" / "vmw" / "log"


def test_a_checkout_is_used_as_it_is() -> None:
    layout = find_layout()
    assert layout.root == ROOT
    assert layout.playbook("spawn").is_file()
    assert layout.ansible_cfg.is_file()
    assert layout.inventory.is_file()


def test_a_wheel_brings_the_collection(tmp_path: Path) -> None:
    layout = find_layout(tmp_path / "site-packages" / "vmw")
    assert layout.root == tmp_path / "site-packages" / "ansible_collections" / "vmw" / "worktree"
    assert layout.collections == tmp_path / "site-packages"
