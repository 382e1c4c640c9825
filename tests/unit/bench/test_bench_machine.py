"""What the spawn benchmark reads of the machine, and how it runs programs."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from spawning import machine
from spawning.machine import BenchError, Ended, Login, Programs

IF_INET6 = """\
fe80000000000000bcd05efffed7a898 03 40 20 80      br0
00000000000000000000000000000001 01 80 10 80       lo
"""
ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.7         0x1         0x2         52:54:00:aa:bb:cc     *        br0
10.0.0.8         0x1         0x0         52:54:00:aa:bb:cc     *        br0
10.0.0.9         0x1         0x2         52:54:00:aa:bb:cd     *        br0
"""


def test_link_local_address_follows_the_mac() -> None:
    assert machine.link_local("52:54:00:ab:cd:ef", "br0") == "fe80::5054:ff:feab:cdef%br0"


@pytest.mark.parametrize(("bridge", "speaks"), [("br0", True), ("lo", False), ("br1", False)])
def test_bridge_with_an_own_link_local_address(bridge: str, *, speaks: bool) -> None:
    assert machine.has_link_local(bridge, IF_INET6) is speaks


def test_neighbours_are_those_that_answered() -> None:
    assert machine.neighbours("52:54:00:aa:bb:cc", ARP) == ["10.0.0.7"]


def test_program_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(BenchError, match=r"exit status 3: .*sorry"):
        machine.run(sys.executable, "-c", "import sys; print('sorry', file=sys.stderr); sys.exit(3)")


def test_missing_program_is_told() -> None:
    with pytest.raises(BenchError, match="vmw-no-such-program is not installed"):
        machine.run("vmw-no-such-program")


def test_use_of_a_program_and_its_children_is_measured() -> None:
    child = "import sys; memory = bytes(40 << 20); sum(range(10 ** 6)); print('done')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    ended = Programs().run([sys.executable, "-c", parent]).checked("parent")
    assert ended.output == "done\n"
    assert ended.cpu_seconds > 0
    assert ended.peak_kib > 40 << 10


def test_program_that_takes_too_long_is_ended() -> None:
    ended = Programs().run([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)
    assert ended.code != 0
    assert "ended by the bench" in ended.complaint


def test_all_programs_can_be_ended_at_once() -> None:
    programs = Programs()
    codes: list[int] = []
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    threads = [threading.Thread(target=lambda: codes.append(programs.run(argv).code)) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(programs._running) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    programs.end_all()
    for thread in threads:
        thread.join(10)
    assert len(codes) == 2
    assert 0 not in codes


class OnlyTwo(Login):
    """Somebody who is let in at one address alone."""

    def run(self, address: str, *command: str) -> Ended:
        assert command == ("true",)
        return Ended(0 if address == "two" else 255, "", "Permission denied", 0, 0)


def test_wait_for_ssh_tells_what_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "says_ssh", {"one": True, "none": False}.__getitem__)
    with pytest.raises(BenchError, match="one: Permission denied"):
        machine.wait_for_ssh(lambda: ["none", "one"], OnlyTwo("dev", ()), 0.1)


def test_wait_for_ssh_returns_the_address_that_let_us_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "says_ssh", bool)
    assert machine.wait_for_ssh(lambda: ["one", "two"], OnlyTwo("dev", ()), 5) == "two"
