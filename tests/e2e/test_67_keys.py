"""Keys that stay on the host: the real client in the guest works with a placeholder, and the key is nowhere but in its file."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING

import pytest
from testbed import hostimage
from testbed.api import INPUT_TOKENS, OUTPUT_TOKENS, PAUSE_S, WORDS, Api
from testbed.network import PUBLIC_NAME
from testbed.person import HOME, PASSWORD_FILE, SSH_OPTIONS, STATE, Person, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

BOOT_S = 600
API_PORT = 8790
WORKTREE = f"{HOME}/Code/keyed"
NAME = "keyed"
# Drawn anew, as they must stand in no file of the checkout either.
KEY = f"sk-ant-planted-{secrets.token_hex(8)}"
TOKEN = f"planted-for-no-api-{secrets.token_hex(8)}"
PROFILE = f"{STATE}/secrets/keyed/secrets.env"
TIMED_OUT = 28
QUESTION = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]})


@pytest.fixture(scope="module")
def api(ready: Person) -> Iterator[Api]:
    """Give the stand-in of the API, to which the host's settings lead."""
    api = Api(ready.host.network.public, API_PORT)
    api.start()
    upstreams = {"anthropic": f"http://{PUBLIC_NAME}:{API_PORT}", "openai": f"http://{PUBLIC_NAME}:{API_PORT}"}
    ready.host.configure(vmw_proxy_upstreams=upstreams)
    done = ready.vmw("host", env=PASSWORD_FILE, timeout=600)
    assert done.returncode == 0, report(done)
    yield api
    api.stop()
    ready.host.configure()


@pytest.fixture(scope="module")
def keyed(feature_x: Person, api: Api) -> Iterator[Person]:
    """Give the user with a VM that has a profile of its own, whose keys stay on the host."""
    feature_x.sh(f"git init -q {WORKTREE} && cd {WORKTREE} && git commit -q --allow-empty -m Start", check=True)
    assert feature_x.vmw("secrets", NAME).returncode == 0
    # By its input, for the journal has commands.
    text = f"ANTHROPIC_API_KEY={KEY}\nDEPLOY_TOKEN={TOKEN}\n"
    feature_x.host.run(f"cat > {PROFILE}", user=hostimage.USER, stdin=text)
    done = feature_x.vmw("spawn", WORKTREE, "--keys", "proxy", "--secrets", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    assert done.stderr.count(f"{NAME} reads DEPLOY_TOKEN itself") == 1, report(done)
    yield feature_x
    assert feature_x.vmw("destroy", "--yes", NAME).returncode == 0
    feature_x.sh(f"rm -rf {STATE}/secrets/keyed {WORKTREE}", check=True)


def ask(person: Person, *options: str, name: str = NAME) -> Done:
    """Send a request to the API as a program in the guest does that obeys its variables."""
    words = " ".join(options)
    return person.ssh(
        name,
        f"curl -sS --max-time 20 --write-out '\\n%{{http_code}}' {words} -H \"x-api-key: $ANTHROPIC_API_KEY\" "
        f"-H 'content-type: application/json' -d '{QUESTION}' $ANTHROPIC_BASE_URL/v1/messages",
    )


def status(done: Done) -> str:
    return done.stdout.rpartition("\n")[2]


def test_the_guest_has_a_placeholder_and_the_way_to_the_proxy(keyed: Person) -> None:
    seen = keyed.ssh(NAME, "env; cat ~/.secrets/secrets.env").stdout
    assert KEY not in seen
    # For this one the proxy has no API: in the environment, and in the file.
    assert seen.count(f"DEPLOY_TOKEN={TOKEN}\n") == 2
    assert re.search(r"^ANTHROPIC_API_KEY=\S+$", seen, re.MULTILINE)
    assert re.search(r"^ANTHROPIC_BASE_URL=http://\S+/anthropic$", seen, re.MULTILINE)


def test_the_host_puts_the_key_in(keyed: Person, api: Api) -> None:
    done = ask(keyed)
    assert status(done) == "200", report(done)
    assert json.loads(done.stdout.rpartition("\n")[0])["content"][0]["text"] == "".join(WORDS)
    request = api.requests[-1]
    assert (request.path, request.headers["x-api-key"]) == ("/v1/messages", KEY)
    assert request.body["messages"] == [{"role": "user", "content": "Hi"}]


def test_the_real_client_works_and_streams(keyed: Person, api: Api) -> None:
    asked = len(api.requests)
    done = keyed.ssh(NAME, "cd repo && timeout 150 claude -p --output-format text 'Say hello'", timeout=180)
    assert done.stdout.strip() == "".join(WORDS), report(done)
    mine = api.requests[asked:]
    assert any(request.body.get("stream") for request in mine)
    assert {request.headers.get("x-api-key") for request in mine} == {KEY}
    assert all("claude" in request.headers.get("user-agent", "") for request in mine)


def test_each_piece_arrives_when_it_was_sent(keyed: Person) -> None:
    script = (
        "import json, os, time, urllib.request\n"
        f"body = {QUESTION!r}.replace('{{', '{{\"stream\": true, ', 1).encode()\n"
        "url = os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages'\n"
        "request = urllib.request.Request(url, body, {'content-type': 'application/json', 'x-api-key': 'x'})\n"
        "with urllib.request.urlopen(request) as answer:\n"
        "    print([time.time() for line in answer if b'text_delta' in line and line.startswith(b'data:')])\n"
    )
    done = keyed.ssh(NAME, f"python3 - <<'END'\n{script}\nEND")
    times = json.loads(done.stdout)
    assert len(times) == len(WORDS), report(done)
    # All at once, at the end, would be no stream.
    assert times[-1] - times[0] > PAUSE_S


def test_requests_and_tokens_are_counted(keyed: Person) -> None:
    before = counted(keyed)
    assert status(ask(keyed)) == "200"
    after = counted(keyed)
    assert after["requests"] == before["requests"] + 1
    assert after["input_tokens"] == before["input_tokens"] + INPUT_TOKENS
    assert after["output_tokens"] == before["output_tokens"] + OUTPUT_TOKENS


def counted(person: Person) -> dict[str, int]:
    """Return today's numbers once the proxy has written them."""
    person.sh("sleep 2")
    days: list[dict[str, int]] = json.loads(person.vmw("keys", NAME, "--json").stdout)["days"]
    return days[-1]


def test_a_vm_is_cut_off_at_once(keyed: Person, api: Api) -> None:
    asked = len(api.requests)
    done = keyed.vmw("keys", "revoke", NAME)
    assert done.returncode == 0, report(done)
    answer = ask(keyed)
    assert status(answer) == "403", report(answer)
    assert json.loads(answer.stdout.rpartition("\n")[0])["type"] == "error"
    assert len(api.requests) == asked
    done = keyed.playbook("playbooks/keys.yml", "-e", f"vmw_name={NAME}", "-e", '{"vmw_keys_revoked": false}')
    assert done.returncode == 0, report(done)
    assert status(ask(keyed)) == "200"


def test_a_day_has_a_limit(keyed: Person) -> None:
    made = counted(keyed)["requests"]
    assert keyed.vmw("keys", "limit", NAME, "--requests", str(made + 1)).returncode == 0
    assert [status(ask(keyed)) for _ in range(2)] == ["200", "429"]
    assert keyed.vmw("keys", "limit", NAME, "--requests", "0").returncode == 0
    assert status(ask(keyed)) == "200"


@pytest.fixture
def reader(keyed: Person) -> Iterator[str]:
    """Give the name of a VM that reads its keys itself."""
    worktree = f"{HOME}/Code/reader"
    keyed.sh(f"git init -q {worktree} && cd {worktree} && git commit -q --allow-empty -m Start", check=True)
    done = keyed.vmw("spawn", worktree, "--keys", "file", "--secrets", NAME, timeout=BOOT_S)
    assert done.returncode == 0, report(done)
    yield "reader"
    assert keyed.vmw("destroy", "--yes", "reader").returncode == 0
    keyed.sh(f"rm -rf {worktree}", check=True)


def test_no_other_vm_gets_keys(keyed: Person, reader: str) -> None:
    url = keyed.ssh(NAME, "echo $ANTHROPIC_BASE_URL").stdout.strip()
    look = f"curl -s -o /dev/null --max-time 5 --write-out '%{{http_code}}' -d x {url}/v1/messages; echo \" $?\""
    assert keyed.ssh(reader, look).stdout == f"000 {TIMED_OUT}\n"
    # Where the filter lets it through, the proxy knows it.
    assert keyed.vmw("net", reader, "open").returncode == 0
    assert keyed.ssh(reader, look).stdout == "403 0\n"


def write_profile(person: Person, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in (f"ANTHROPIC_API_KEY={KEY}", f"DEPLOY_TOKEN={TOKEN}", *lines))
    person.host.run(f"cat > {PROFILE}", user=hostimage.USER, stdin=text)


def test_a_gateway_of_the_profiles_own_gets_its_key_and_nobody_else(keyed: Person, api: Api) -> None:
    try:
        write_profile(keyed, f"ANTHROPIC_BASE_URL=http://{PUBLIC_NAME}:{API_PORT}/gateway")
        shown = keyed.ssh(NAME, "echo $ANTHROPIC_BASE_URL").stdout
        assert re.fullmatch(r"http://[0-9.]+:[0-9]+/anthropic\n", shown)
        asked = len(api.requests)
        assert status(ask(keyed)) == "200"
        assert [(each.path, each.headers["x-api-key"]) for each in api.requests[asked:]] == [("/gateway/v1/messages", KEY)]
        write_profile(keyed, "ANTHROPIC_BASE_URL=gateway.example")
        done = ask(keyed)
        assert status(done) == "404", report(done)
        assert "ANTHROPIC_BASE_URL of the secrets profile keyed is no http:// or https:// address" in done.stdout
        assert len(api.requests) == asked + 1
        told = keyed.vmw("start", NAME, timeout=BOOT_S)
        assert "the proxy refuses" in told.stderr, report(told)
    finally:
        write_profile(keyed)
    assert status(ask(keyed)) == "200"


def test_offline_ends_that_way_too(keyed: Person) -> None:
    assert keyed.vmw("net", NAME, "offline").returncode == 0
    assert ask(keyed).returncode == TIMED_OUT
    assert keyed.vmw("net", NAME, "internet").returncode == 0
    assert status(ask(keyed)) == "200"


def test_the_key_is_nowhere_but_in_its_file(keyed: Person) -> None:
    # The pattern comes by the input, or the search would find itself in the journal.
    places = f"{HOME} /etc /run /var/log /var/lib/libvirt /var/lib/vmw-filter /usr/local /tmp"
    look = f"grep -rlaF --devices=skip -f - {places} 2>/dev/null"
    assert keyed.host.run(look, stdin=f"{KEY}\n", check=False, timeout=300).stdout.split() == [PROFILE]
    assert KEY not in keyed.root("journalctl --no-pager -o cat -b", timeout=300)
    arguments = keyed.root("cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'", check=False)
    assert KEY not in arguments
    assert NAME in arguments
    # In the guest all files, and a control that is there to be found. In one go, for to read all of them takes a guest long.
    control = f"vmw-{NAME}"
    search = "sudo grep -roahF --devices=skip --exclude-dir=proc --exclude-dir=sys -f - / 2>/dev/null"
    config = f"-F {STATE}/instances/{NAME}/ssh_config {SSH_OPTIONS}"
    found = keyed.host.run(
        f"ssh {config} {NAME}.local '{search}'", user=hostimage.USER, stdin=f"{KEY}\n{control}\n", check=False, timeout=400
    )
    assert set(found.stdout.split()) == {control}, report(found)
