from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.modules import bridge_filters

if TYPE_CHECKING:
    from pathlib import Path

FAKE = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  *--list*) exit {has_chain} ;;
  *--check*) exit {has_rule} ;;
esac
"""


def run_docker_script(directory: Path, *, has_chain: bool, has_rule: bool, ports: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """Run the script with programs in place of iptables that only write down what they are asked.

    Args:
        directory: For what it needs.
        has_chain: Whether Docker's chain is there.
        has_rule: Whether what is looked for in it is there.
        ports: The ports of the bridge.
    """
    log = directory / "log"
    log.touch()
    for name in ("iptables", "ip6tables"):
        program = directory / name
        program.write_text(FAKE.format(log=log, has_chain=int(not has_chain), has_rule=int(not has_rule)))
        program.chmod(0o755)
    script = directory / "script"
    for port in ports:
        (directory / "br7/brif" / port).mkdir(parents=True)
    text = bridge_filters.filter_files("br7")[bridge_filters.DOCKER_SCRIPT]
    script.write_text(text.replace("/sys/class/net", str(directory)))
    done = subprocess.run(["/bin/sh", script], env={"PATH": f"{directory}:/usr/bin"}, capture_output=True, text=True, check=True)
    return done.stdout, [line for line in log.read_text().splitlines() if "--insert" in line or "--delete" in line]


def test_rules_are_added_to_dockers_chain(tmp_path: Path) -> None:
    said, inserted = run_docker_script(tmp_path, has_chain=True, has_rule=False)
    assert len(inserted) == 4
    assert all("DOCKER-USER" in line and "br7" in line for line in inserted)
    assert len(said.splitlines()) == 4
    assert any("ESTABLISHED" in line and "--out-interface" in line for line in inserted)


@pytest.mark.parametrize(("has_chain", "has_rule"), [(True, True), (False, False)])
def test_rules_are_not_added_twice_nor_without_docker(tmp_path: Path, has_chain: bool, has_rule: bool) -> None:  # noqa: FBT001
    assert run_docker_script(tmp_path, has_chain=has_chain, has_rule=has_rule) == ("", [])


def test_vms_alone_on_the_bridge_are_routed(tmp_path: Path) -> None:
    _, inserted = run_docker_script(tmp_path, has_chain=True, has_rule=False, ports=("vmw-0a1b2c3d", "vnet3"))
    assert len(inserted) == 4
    assert not any("--delete" in line for line in inserted)


def test_neighbours_on_the_bridge_do_not_get_past_docker(tmp_path: Path) -> None:
    said, changed = run_docker_script(tmp_path, has_chain=True, has_rule=False, ports=("vmw-0a1b2c3d", "enp1s0"))
    inserted = [line for line in changed if "--insert" in line]
    assert len(inserted) == 2
    assert all("--in-interface br7 --out-interface br7" in line for line in inserted)
    assert [line for line in changed if "--delete" in line] == [
        "--wait --delete DOCKER-USER --in-interface br7 --jump ACCEPT"
    ] * 2
    assert len(said.splitlines()) == 4


def test_docker_runs_the_script_that_is_written() -> None:
    files = bridge_filters.filter_files("br0")
    assert f"/bin/sh {bridge_filters.DOCKER_SCRIPT}\n" in files["/etc/systemd/system/docker.service.d/vmw.conf"]


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("net.bridge.bridge-nf-call-iptables = 1\n", True),
        ("net.bridge.bridge-nf-call-ip6tables=1\n", True),
        ("  -net/bridge/bridge-nf-call-arptables = 1", True),
        ("net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1", True),
        ("# net.bridge.bridge-nf-call-iptables = 1\n", False),
        ("net.bridge.bridge-nf-call-iptables = 0\n", False),
        ("", False),
    ],
)
def test_file_that_asks_for_filtered_frames(text: str, asks: bool) -> None:  # noqa: FBT001
    assert bridge_filters.asks_for_filter(text) is asks


def test_own_settings_do_not_ask_for_filtered_frames() -> None:
    assert not any(bridge_filters.asks_for_filter(text) for text in bridge_filters.filter_files("br0").values())


def test_files_that_cannot_be_read_as_text_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_filters, "SYSCTL_DIRECTORIES", (str(tmp_path),))
    (tmp_path / "10-dangling.conf").symlink_to(tmp_path / "away")
    (tmp_path / "20-directory.conf").mkdir()
    asking = tmp_path / "30-latin1.conf"
    asking.write_bytes("# f\u00fcr Docker\nnet.bridge.bridge-nf-call-iptables = 1\n".encode("latin-1"))
    assert bridge_filters.asked_for(set()) == [str(asking)]
