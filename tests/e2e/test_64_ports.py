"""Published ports: a guest's server on the host's loopback, for as long as the VM runs and whatever starts it."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest
from testbed.person import HOME, Person, report
from testbed.story import PROJECT, SMALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

BOOT_S = 400
OPEN_S = 120
GUEST = 3000
HOST = 18080
UNITS = f"{HOME}/.config/systemd/user"
UNIT = f"vmw-feature-x-port-{HOST}.service"
WANTS = f"{UNITS}/vmw-feature-x-repo.service.wants"
THIRD = f"{PROJECT}/worktrees/third"
PAGE = 'print("hello")\n'
SERVER_S = 30


def answers(port: int) -> str:
    """Return a shell command that tells whether a server of the same machine answers."""
    return f"curl --silent --output /dev/null --noproxy '*' --max-time 5 http://127.0.0.1:{port}/"


def until(condition: str) -> str:
    """Return a shell command that waits for a condition, and fails when it does not come."""
    return f'timeout {SERVER_S} sh -c "until {condition}; do sleep 0.2; done"'


def serve(person: Person) -> None:
    """Start a server that only the guest itself reaches: what the host sees has come through ssh."""
    server = f"python3 -m http.server {GUEST} --bind 127.0.0.1 --directory repo"
    done = person.ssh("feature-x", f"(setsid {server} >/dev/null 2>&1 &); {until(answers(GUEST))}")
    assert done.returncode == 0, report(done)


def fetch(person: Person, address: str = "127.0.0.1", port: int = HOST) -> Done:
    return person.sh(f"curl --silent --show-error --globoff --noproxy '*' --max-time 20 http://{address}:{port}/hello.py")


def fetch_in_time(person: Person) -> str:
    """Return the page as soon as the port is open, without asking vmw."""
    deadline = time.monotonic() + OPEN_S
    while True:
        done = fetch(person)
        if done.returncode == 0 or time.monotonic() > deadline:
            assert done.returncode == 0, report(done) + person.root(f"journalctl --no-pager -n 30 _SYSTEMD_USER_UNIT={UNIT}")
            return done.stdout
        time.sleep(1)


def check_closed(person: Person) -> None:
    """See that a connection is refused at once, and that nothing runs for the port."""
    # Not 28, which is curl's word for an answer that does not come.
    done = fetch(person)
    assert done.returncode == 7, report(done)
    assert person.sh(f"systemctl --user is-active {UNIT}").stdout == "inactive\n"
    assert person.root(f"pgrep -af '[:]{HOST}:localhost'", check=False) == ""


def listed(person: Person, *words: str) -> list[dict[str, object]]:
    done = person.vmw("port", *words, "--json")
    assert done.returncode == 0, report(done)
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    ports: list[dict[str, object]] = answer["ports"]
    return ports


def row(state: str) -> dict[str, object]:
    return {"name": "feature-x", "guest_port": GUEST, "host_port": HOST, "address": "127.0.0.1", "state": state}


def changes(done: Done) -> int:
    """Return how many tasks of a playbook that came to its end changed something."""
    found = re.search(r"changed=(\d+) +unreachable=0 +failed=0", done.stdout)
    assert found, report(done)
    return int(found[1])


def check_refused(done: Done, code: int, words: str) -> None:
    assert done.returncode == code, report(done)
    assert words in done.stderr, report(done)
    assert "hint: " in done.stderr, report(done)
    assert "Traceback" not in done.stderr + done.stdout, report(done)


@pytest.fixture(scope="module")
def published(feature_x: Person) -> Iterator[Person]:
    """Give the user with a server in the running VM and its port published."""
    serve(feature_x)
    control = fetch(feature_x)
    assert control.returncode == 7, report(control)
    done = feature_x.vmw("port", "feature-x", f"{GUEST}:{HOST}")
    assert done.returncode == 0, report(done)
    assert done.stdout == f"127.0.0.1:{HOST}\n"
    yield feature_x
    feature_x.vmw("port", "feature-x", f"{GUEST}:{HOST}", "--remove")


def test_a_published_port_is_open_at_once(published: Person) -> None:
    assert fetch(published).stdout == PAGE
    assert fetch(published, "[::1]").stdout == PAGE
    assert fetch(published, "localhost").stdout == PAGE


def test_it_listens_at_loopback_alone(published: Person) -> None:
    rows = published.root(f"ss -Htln 'sport = :{HOST}'").splitlines()
    assert sorted(line.split()[3] for line in rows) == [f"127.0.0.1:{HOST}", f"[::1]:{HOST}"]
    address = published.root("ip -4 -o address show dev br0").split()[3].partition("/")[0]
    done = fetch(published, address)
    assert done.returncode == 7, report(done)


def test_many_connections_at_once_are_carried(published: Person) -> None:
    done = published.sh(
        f"for i in $(seq 40); do curl -s --noproxy '*' --max-time 30 http://127.0.0.1:{HOST}/hello.py & done; wait", timeout=120
    )
    assert done.stdout == PAGE * 40, report(done)


def test_the_list_shows_it(published: Person) -> None:
    assert listed(published) == [row("open")]
    assert listed(published, "feature-x") == [row("open")]
    done = published.vmw("port")
    assert re.search(rf"^feature-x +{GUEST} +127\.0\.0\.1:{HOST} +open$", done.stdout, re.MULTILINE), report(done)


def test_publishing_again_is_no_error(published: Person) -> None:
    began = published.sh(f"systemctl --user show --property=MainPID {UNIT}").stdout
    done = published.vmw("port", "feature-x", f"{GUEST}:{HOST}")
    assert done.returncode == 0, report(done)
    assert "published already" in done.stderr
    assert published.sh(f"systemctl --user show --property=MainPID {UNIT}").stdout == began


def test_what_cannot_be_is_refused_in_words(published: Person) -> None:
    check_refused(published.vmw("port", "feature-x", "80"), 2, "below 1024")
    check_refused(published.vmw("port", "feature-x", "70000"), 2, "is no port")
    check_refused(published.vmw("port", "feature-x", "http"), 2, "is no port")
    check_refused(published.vmw("port", "feature-x", "--remove"), 2, "which port")
    check_refused(published.vmw("port", "nothing", "3000"), 4, "no VM named")
    check_refused(published.vmw("port", "nothing"), 4, "no VM named")
    check_refused(published.vmw("port", "feature-x", f"4000:{HOST}"), 5, f"port {GUEST} of feature-x is published there")
    assert listed(published) == [row("open")]


def test_a_port_of_another_program_is_refused(published: Person) -> None:
    taker = f"python3 -m http.server {HOST + 1} --bind 127.0.0.1 >/dev/null 2>&1"
    publish = f"~/vmw/vmw port feature-x {GUEST}:{HOST + 1}"
    done = published.sh(f"{taker} & {until(answers(HOST + 1))}; {publish}; code=$?; kill $!; exit $code")
    check_refused(done, 5, "taken by another program")
    assert listed(published) == [row("open")]


def test_the_guest_gets_neither_agent_nor_port(published: Person) -> None:
    main = published.sh(f"systemctl --user show --property=MainPID --value {UNIT}").stdout.strip()
    command = published.root(f"tr '\\0' ' ' < /proc/{main}/cmdline")
    assert "-F none" in command
    assert "ForwardAgent=no" in command
    sockets = published.ssh("feature-x", "ls -d /tmp/ssh-* 2>/dev/null; ss -Htln", options="-a")
    assert "/tmp/ssh-" not in sockets.stdout, report(sockets)
    assert str(HOST) not in sockets.stdout, report(sockets)


def test_nothing_listens_while_the_vm_is_off(published: Person) -> None:
    done = published.vmw("stop", "feature-x")
    assert done.returncode == 0, report(done)
    check_closed(published)
    assert listed(published) == [row("closed")]
    done = published.vmw("port", "feature-x", f"{GUEST}:{HOST}")
    assert "opens when feature-x runs" in done.stderr, report(done)
    check_closed(published)


def test_it_is_open_again_after_a_start(published: Person) -> None:
    done = published.vmw("start", "feature-x", timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    serve(published)
    assert fetch_in_time(published) == PAGE


def test_it_is_open_again_after_virsh_start_and_another_service_manager_of_the_user(published: Person) -> None:
    published.virsh("destroy", "feature-x")
    check_closed(published)
    # What a reboot of the host does to it; the VM is off then.
    published.root("systemctl restart user@$(id -u dev).service")
    check_closed(published)
    published.virsh("start", "feature-x")
    # The shares are alive; this only waits.
    assert published.vmw("start", "feature-x", timeout=BOOT_S).returncode == 0
    serve(published)
    assert fetch_in_time(published) == PAGE


def test_it_is_open_again_after_the_guest_started_itself_anew(published: Person) -> None:
    boot = published.ssh("feature-x", "cat /proc/sys/kernel/random/boot_id").stdout
    published.ssh("feature-x", "sudo systemctl --no-block reboot")
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        time.sleep(2)
        seen = published.ssh("feature-x", "cat /proc/sys/kernel/random/boot_id") if published.lookup("feature-x") else None
        if seen and seen.returncode == 0 and seen.stdout != boot:
            break
    serve(published)
    assert fetch_in_time(published) == PAGE


def test_a_server_that_does_not_run_closes_the_connection(published: Person) -> None:
    done = published.ssh("feature-x", f"pkill -f '[h]ttp.server {GUEST}'; {until('! ' + answers(GUEST))}")
    assert done.returncode == 0, report(done)
    done = fetch(published)
    assert done.returncode in {52, 56}, report(done)
    serve(published)
    assert fetch(published).stdout == PAGE


def test_suspend_and_resume_keep_it(published: Person) -> None:
    assert published.vmw("suspend", "feature-x").returncode == 0
    check_closed(published)
    assert published.vmw("resume", "feature-x", timeout=BOOT_S).returncode == 0
    assert fetch_in_time(published) == PAGE


def test_logs_show_the_ports_journal(published: Person) -> None:
    done = published.vmw("logs", "feature-x")
    assert done.returncode == 0, report(done)
    assert f"port {GUEST} of feature-x" in done.stdout + done.stderr, report(done)


def test_remove(published: Person) -> None:
    done = published.vmw("port", "feature-x", str(GUEST), "--remove")
    assert done.returncode == 0, report(done)
    assert f"{GUEST}:{HOST} of feature-x is published no more" in done.stderr
    check_closed(published)
    assert not published.exists(f"{UNITS}/{UNIT}")
    assert not published.exists(WANTS)
    assert listed(published) == []
    done = published.vmw("port", "feature-x", str(GUEST), "--remove")
    assert done.returncode == 0, report(done)
    assert "was not published" in done.stderr


def test_playbook_does_the_same(published: Person) -> None:
    words = ("-e", "vmw_name=feature-x", "-e", f"vmw_port={GUEST}:{HOST}")
    check = published.playbook("playbooks/port.yml", "--check", "--diff", *words, cwd="/")
    assert changes(check) == 1, report(check)
    assert f"+127.0.0.1:{HOST} -> {GUEST}" in check.stdout, report(check)
    assert not published.exists(f"{UNITS}/{UNIT}")
    assert changes(published.playbook("playbooks/port.yml", *words, cwd="/")) == 1
    assert fetch(published).stdout == PAGE
    assert changes(published.playbook("playbooks/port.yml", *words, cwd="/")) == 0
    absent = (*words, "-e", "vmw_port_state=absent")
    assert changes(published.playbook("playbooks/port.yml", *absent, cwd="/")) == 1
    assert changes(published.playbook("playbooks/port.yml", *absent, cwd="/")) == 0
    assert not published.exists(f"{UNITS}/{UNIT}")


def test_destroy_removes_the_ports_and_leaves_those_of_others(published: Person) -> None:
    assert published.vmw("port", "feature-x", f"{GUEST}:{HOST}").returncode == 0
    done = published.vmw("spawn", THIRD, "--no-wait", *SMALL)
    assert done.returncode == 0, report(done)
    try:
        check_refused(published.vmw("port", "third", f"80:{HOST}"), 5, f"port {GUEST} of feature-x is published there")
        # It may not be reachable yet; the unit is there all the same.
        done = published.vmw("port", "third", f"80:{HOST + 2}")
        assert done.returncode == 0, report(done)
        assert published.exists(f"{UNITS}/vmw-third-port-{HOST + 2}.service")
    finally:
        done = published.vmw("destroy", "third", "--yes")
    assert done.returncode == 0, report(done)
    assert published.traces("third") == []
    loaded = published.sh("systemctl --user list-units --all --plain --no-legend 'vmw-third-*'")
    assert loaded.stdout == "", report(loaded)
    assert fetch(published).stdout == PAGE
