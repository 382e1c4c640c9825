"""A fresh host whose set-up is looked at, interrupted and carried on; meanwhile the story's host is being set up."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from testbed import cloudimage, container, hostimage, standins
from testbed.person import HOME, PASSWORD_FILE, PROMPT, STATE, Person, report
from testbed.story import FEATURE_X, FirstSpawn
from testbed.terminal import INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.container import Container
    from testbed.terminal import Terminal

UNPACKING = "^/usr/bin/dpkg .*--(unpack|configure)"
PACKAGES_S = 500
PART = f"{STATE}/images/.download"


@pytest.fixture(scope="module")
def newcomer(make_host: Callable[[str], Container], first_spawn: FirstSpawn) -> Iterator[Person]:
    """Give the user of a second host, which never gets a golden image."""
    name = f"e2e-unfinished-{os.getpid()}"
    try:
        host = make_host(name)
        host.configure(vmw_bridge_uplink="none")
        yield Person(host)
    finally:
        container.down(name)


def interrupt(terminal: Terminal, seconds: float) -> int:
    """Press Ctrl-C once and return the exit code."""
    terminal.type(INTERRUPT)
    return terminal.exit_code(seconds)


def type_password(terminal: Terminal, seconds: float = 60) -> None:
    terminal.wait_for(PROMPT, seconds)
    terminal.type(f"{hostimage.PASSWORD}\n")


def test_without_terminal_and_password_the_launcher_says_what_it_needs(newcomer: Person) -> None:
    done = newcomer.vmw("--version")
    assert done.returncode == 3, report(done)
    assert "error: " in done.stderr, report(done)
    assert "hint: " in done.stderr, report(done)


def test_launcher_makes_its_environment_with_a_password_file(newcomer: Person) -> None:
    done = newcomer.vmw("--version", env=PASSWORD_FILE, timeout=300)
    assert done.returncode == 0, report(done)
    assert re.fullmatch(r"vmw \d+\.\d+\.\d+\S*\n", done.stdout), report(done)
    assert newcomer.root("find /home/dev/vmw/.venv ! -user dev | head -3") == ""


def test_missing_worktree_is_refused_before_the_host_is_set_up(newcomer: Person) -> None:
    done = newcomer.vmw("spawn", "~/nowhere")
    assert done.returncode == 2, report(done)
    assert f"{HOME}/nowhere does not exist" in done.stderr, report(done)


def test_spawn_without_terminal_says_how_to_give_the_password(newcomer: Person) -> None:
    done = newcomer.vmw("spawn", FEATURE_X)
    assert done.returncode == 3, report(done)
    assert "ANSIBLE_BECOME_PASSWORD_FILE" in done.stderr, report(done)


def test_check_mode_works_before_the_first_run_and_changes_nothing(newcomer: Person) -> None:
    before = newcomer.host.snapshot()
    done = newcomer.playbook("host.yml", "--check", "--diff", env=PASSWORD_FILE)
    assert done.returncode == 0, report(done)
    assert re.search(r"changed=[1-9]\d* +unreachable=0 +failed=0", done.stdout), report(done)
    assert newcomer.host.snapshot() == before
    assert not newcomer.exists("/run/vmw")
    assert not newcomer.exists(f"{STATE}/secrets")


def test_doctor_names_the_command_that_sets_up_a_fresh_host(newcomer: Person) -> None:
    done = newcomer.vmw("doctor")
    assert done.returncode == 3, report(done)
    assert "mend: vmw host" in done.stdout.replace("~/vmw/vmw", "vmw").replace(f"{HOME}/vmw/vmw", "vmw"), report(done)


def test_list_on_a_fresh_host_is_empty(newcomer: Person) -> None:
    done = newcomer.vmw("list", "--json")
    assert done.returncode == 0, report(done)
    assert '"vms": []' in done.stdout, report(done)


def test_ctrl_c_while_packages_are_installed(newcomer: Person) -> None:
    with newcomer.terminal("~/vmw/vmw host") as terminal:
        type_password(terminal)
        # Not dpkg's short answers to questions of apt, nor the download before, which takes as long as the mirror likes.
        newcomer.root(f"until pgrep -f '{UNPACKING}'; do sleep 0.1; done", timeout=PACKAGES_S)
        assert interrupt(terminal, PACKAGES_S) == 130, terminal.text[-3000:]
        assert "interrupted" in terminal.text.lower()
        assert "hint: run `~/vmw/vmw host` again" in terminal.text.replace(HOME, "~"), terminal.text[-3000:]
    assert newcomer.leftovers() == ""


@pytest.fixture(scope="module")
def slow(newcomer: Person) -> str:
    """Have the image come slowly, and return its path as the stand-ins' log has it."""
    path = f"slow/2000/{standins.IMAGE_PATH}/{cloudimage.FILE}"
    newcomer.host.configure(vmw_bridge_uplink="none", vmw_base_image_url=f"{newcomer.host.url}/{path}")
    return path


def test_the_next_run_carries_on_and_ctrl_c_ends_the_download(newcomer: Person, slow: str) -> None:
    with newcomer.terminal("~/vmw/vmw host") as terminal:
        type_password(terminal)
        newcomer.root(f"until ls {PART}/*.part; do sleep 0.2; done", timeout=300)
        terminal.wait_for(r"[0-9.]+ [KM]iB of [0-9.]+ [MG]iB", 60)
        assert interrupt(terminal, 60) == 130, terminal.text[-3000:]
    assert newcomer.leftovers() == ""
    assert int(newcomer.root(f"stat --format=%s {PART}/*.part")) > 0
    assert not newcomer.exists(f"{STATE}/golden-image.qcow2")
    assert not newcomer.exists(f"{STATE}/progress.json")


def test_nat_network_serves_the_bridge(newcomer: Person) -> None:
    active = newcomer.virsh("net-list", "--all")
    assert re.search(r"^ *vmw +active +yes", active, re.MULTILINE), active
    assert "<bridge name='br0'" in newcomer.virsh("net-dumpxml", "vmw")
    assert re.search(r"inet \d+\.\d+\.\d+\.1/24", newcomer.root("ip -4 address show br0"))
    assert hostimage.NIC not in newcomer.root("ip -br link show master br0")


def has_no_image(person: Person) -> bool:
    """Tell whether nothing is there that could be taken for a golden image, or for one in the making."""
    # What was downloaded and the console of a bake that failed are kept for the next run and for the reader.
    names = set(person.root(f"ls -A {STATE}/images").split())
    return not person.exists(f"{STATE}/golden-image.qcow2") and names <= {".download", ".failed"}


def test_download_is_carried_on_and_ctrl_c_ends_the_bake(newcomer: Person, slow: str) -> None:
    log = newcomer.host.directory / "server.log"
    before = len(log.read_text())
    newcomer.host.configure(vmw_bridge_uplink="none")
    with newcomer.terminal("~/vmw/vmw image build") as terminal:
        newcomer.root("until virsh -c qemu:///system list --name | grep vmw-bake; do sleep 0.5; done", timeout=120)
        terminal.wait_for("Bake the golden image", 60)
        assert interrupt(terminal, 60) == 130, terminal.text[-3000:]
    assert re.search(rf"GET /{standins.IMAGE_PATH}/{cloudimage.FILE} .* 206 ", log.read_text()[before:]), (
        "no byte range was asked for"
    )
    assert newcomer.leftovers() == ""
    assert newcomer.domains() == []
    assert newcomer.root("pgrep -a qemu-system", check=False) == ""
    assert has_no_image(newcomer)


def test_wrong_checksum_is_refused_and_the_download_thrown_away(newcomer: Person) -> None:
    newcomer.host.configure(vmw_bridge_uplink="none", vmw_base_image_checksum="sha512:" + "0" * 128)
    done = newcomer.vmw("image", "build")
    assert done.returncode == 1, report(done)
    assert "SHA-512" in done.stderr, report(done)
    assert "hint: " in done.stderr, report(done)
    assert newcomer.root(f"find {PART} -name '*.part'") == ""
    assert has_no_image(newcomer)


def test_image_that_is_not_there_is_named(newcomer: Person) -> None:
    url = f"{newcomer.host.url}/{standins.IMAGE_PATH}/none.qcow2"
    newcomer.host.configure(vmw_bridge_uplink="none", vmw_base_image_url=url)
    done = newcomer.vmw("image", "build")
    assert done.returncode == 1, report(done)
    assert "none.qcow2" in done.stderr, report(done)
    assert "hint: " in done.stderr, report(done)


def test_failed_bake_names_its_step_and_shows_the_guests_output(newcomer: Person) -> None:
    log = newcomer.host.directory / "server.log"
    newcomer.host.configure(vmw_bridge_uplink="none", vmw_apt_mirror=f"{newcomer.host.url}/no-mirror")
    done = newcomer.vmw("image", "build", timeout=900)
    assert done.returncode == 1, report(done)
    assert "error: baking the golden image failed in the step 'Read the package lists'" in done.stderr, report(done)
    assert re.search(r"^ +\| .*404", done.stderr, re.MULTILINE), report(done)
    assert "hint: " in done.stderr, report(done)
    # The guest's request came through the NAT network.
    assert "/no-mirror/dists/bookworm/InRelease" in log.read_text()
    assert has_no_image(newcomer)
    assert newcomer.domains() == []
