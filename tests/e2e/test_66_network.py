"""What a hostile VM on the LAN reaches under each policy; whatever is refused is reached under `open`, or seen to be there."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from testbed import forge
from testbed.network import INSIDE_NAME, PUBLIC_NAME
from testbed.person import Person, report
from testbed.terminal import INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.person import Done

BOOT_S = 400
HOST_PORT = 8099
METADATA = "169.254.169.254"
DONE, REFUSED, TIMED_OUT = 0, 7, 28
"""curl's exit codes: it got an answer; somebody said no; nobody answered."""


def curl(person: Person, url: str, *options: str, name: str = "feature-x") -> Done:
    """Fetch something in the guest, past any proxy unless the options say otherwise."""
    words = " ".join(options) if options else "--noproxy '*'"
    return person.ssh(name, f"curl --silent --show-error --globoff --insecure --max-time 5 {words} {url}")


def policy(person: Person, *words: str) -> None:
    done = person.vmw("net", "feature-x", *words)
    assert done.returncode == 0, report(done)


@pytest.fixture(scope="module")
def network(feature_x: Person) -> Iterator[Person]:
    """Give the user with the first VM running, a web server on all of the host's addresses, and metadata's address on the LAN."""
    link = feature_x.host.network.link
    subprocess.run(["ip", "address", "add", f"{METADATA}/32", "dev", link], check=True)
    unit = "systemd-run --quiet --collect --unit=e2e-web --property=WorkingDirectory=/srv"
    feature_x.root(f"{unit} python3 -m http.server {HOST_PORT} --bind ::")
    feature_x.root(
        f"curl -s --retry 20 --retry-connrefused --retry-delay 1 --noproxy '*' -o /dev/null http://127.0.0.1:{HOST_PORT}/"
    )
    yield feature_x
    feature_x.root("systemctl stop e2e-web.service", check=False)
    subprocess.run(["ip", "address", "delete", f"{METADATA}/32", "dev", link], check=False)
    feature_x.vmw("net", "feature-x", "internet")
    feature_x.vmw("net", "forbid", "feature-x", PUBLIC_NAME, f"*.{PUBLIC_NAME}", INSIDE_NAME)


def targets(person: Person) -> dict[str, str]:
    """Return what no VM should reach, by what it is. At metadata's address nobody listens, so whoever gets there is told no."""
    lan = person.host.network.gateway
    found = {"the router's page": f"http://{lan}/debian-12/SHA512SUMS", "metadata": f"http://{METADATA}/"}
    for link in json.loads(person.root("ip -json address")):
        for address in link["addr_info"]:
            if address["scope"] == "global":
                local = f"[{address['local']}]" if address["family"] == "inet6" else address["local"]
                found[f"the host at {address['local']}"] = f"http://{local}:{HOST_PORT}/"
    (bridge,) = json.loads(person.root("ip -json -6 address show dev br0 scope link"))
    card = person.ssh("feature-x", "ls /sys/class/net | grep -v lo").stdout.strip()
    found["the host's link-local address"] = f"http://[{bridge['addr_info'][0]['local']}%25{card}]:{HOST_PORT}/"
    return found


def reached(person: Person, urls: dict[str, str], *, name: str = "feature-x") -> set[str]:
    """Return which of some places answer a guest, in whatever way; all are tried at once."""
    tries = [
        f"(curl --silent --output /dev/null --globoff --noproxy '*' --max-time 5 '{url}'; echo {number} $?) &"
        for number, url in enumerate(urls.values())
    ]
    done = person.ssh(name, f"{' '.join(tries)} wait")
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert len(codes) == len(urls), report(done)
    return {what for number, what in enumerate(urls) if int(codes[str(number)]) != TIMED_OUT}


def test_a_new_vm_has_the_default_policy(feature_x: Person) -> None:
    done = feature_x.vmw("net", "feature-x")
    assert done.stdout == "internet\n", report(done)
    (tap,) = re.findall(r"<target dev='(vmw-[0-9a-f]{8})'", feature_x.virsh("dumpxml", "feature-x"))
    assert tap == f"vmw-{feature_x.record('feature-x')['uuid'][:8]}"
    assert tap in feature_x.root("nft list table bridge vmw")


def test_the_internet_is_reached_and_nothing_near(network: Person) -> None:
    near = targets(network)
    assert len(near) >= 4
    done = curl(network, f"{network.host.public_url}/debian-12/SHA512SUMS")
    assert done.returncode == DONE, report(done)
    by_name = curl(network, f"http://{PUBLIC_NAME}/debian-12/SHA512SUMS")
    assert by_name.stdout == done.stdout, report(by_name)
    assert reached(network, near) == set()


def test_the_log_tells_what_was_refused(network: Person) -> None:
    done = network.vmw("net", "log", "feature-x", "--json")
    assert done.returncode == 0, report(done)
    rows = {(row["address"], row["port"]): row for row in json.loads(done.stdout)["refused"]}
    row = rows[network.host.network.gateway, 80]
    assert row["protocol"] == "tcp"
    assert row["count"] >= 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["time"])
    assert (METADATA, 80) in rows
    assert any(port == HOST_PORT for _, port in rows)
    shown = network.vmw("net", "log", "feature-x").stdout
    assert re.search(rf"^\S+Z +{re.escape(network.host.network.gateway)} +tcp +80 +\d+$", shown, re.MULTILINE)


def test_the_log_can_be_followed(network: Person) -> None:
    with network.terminal("~/vmw/vmw net log feature-x --follow --json") as terminal:
        terminal.wait_for(r'"port": 80,', 60)
        curl(network, f"http://{network.host.network.gateway}:81/")
        terminal.wait_for(r'"port": 81,', 60)
        terminal.type(INTERRUPT)
        assert terminal.exit_code(30) == 130


def test_under_open_all_of_it_is_reached_and_so_is_the_vm(network: Person) -> None:
    near = targets(network)
    assert not can_connect(network, 22)
    policy(network, "open")
    assert reached(network, near) == set(near)
    assert can_connect(network, 22)
    policy(network, "internet")
    assert not can_connect(network, 22)


def can_connect(person: Person, port: int) -> bool:
    """Tell whether a neighbour on the LAN, which the build machine is, gets through to the guest."""
    with closing(socket.socket()) as stream:
        stream.settimeout(5)
        try:
            stream.connect((person.address("feature-x"), port))
        except TimeoutError:
            return False
        return True


@contextmanager
def listening(link: str) -> Iterator[list[bytes]]:
    """Collect the frames that arrive on the LAN's end of the host's network card."""
    frames: list[bytes] = []
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))) as raw:
        raw.bind((link, 0))
        raw.settimeout(0.5)
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    frames.append(raw.recv(2048))
                except TimeoutError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield frames
            # What was sent last is on its way.
            time.sleep(2)
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("mode", ["internet", "open"])
def test_forged_frames_do_not_leave_the_host(network: Person, mode: str) -> None:
    policy(network, mode)
    mine = network.address("feature-x")
    program = Path(forge.__file__).read_text()
    network.ssh("feature-x", f"cat >forge.py <<'END'\n{program}\nEND")
    with listening(network.host.network.link) as frames:
        card = "$(ls /sys/class/net | grep -v lo)"
        done = network.ssh("feature-x", f"sudo python3 forge.py {card} {mine} {network.host.network.gateway}")
        assert done.returncode == 0, report(done)
    seen = {word for word in forge.WORDS for frame in frames if word in frame}
    assert seen == {forge.CONTROL}
    policy(network, "internet")


def test_offline_leaves_nothing_but_the_hosts_own_connections(network: Person) -> None:
    done = network.playbook("playbooks/net.yml", "-e", "vmw_name=feature-x", "-e", "vmw_net_mode=offline")
    assert done.returncode == 0, report(done)
    assert network.vmw("net", "feature-x").stdout == "offline\n"
    far = {**targets(network), "the internet": f"{network.host.public_url}/debian-12/SHA512SUMS"}
    assert reached(network, far) == set()
    assert network.ssh("feature-x", f"getent ahostsv4 {PUBLIC_NAME}").returncode != 0
    again = network.playbook("playbooks/net.yml", "-e", "vmw_name=feature-x", "-e", "vmw_net_mode=offline")
    assert "changed=0 " in again.stdout, report(again)


def test_the_policy_outlives_the_rules_and_a_restart(network: Person) -> None:
    public = f"{network.host.public_url}/debian-12/SHA512SUMS"
    policy(network, "offline")
    assert curl(network, public).returncode == TIMED_OUT
    # What a boot does, and a reload of the host's own nftables rules.
    network.root("nft delete table bridge vmw; nft delete table inet vmw; systemctl restart vmw-filter.service")
    assert curl(network, public).returncode == TIMED_OUT
    network.virsh("destroy", "feature-x")
    network.virsh("start", "feature-x")
    assert network.vmw("start", "feature-x", timeout=BOOT_S).returncode == 0
    assert curl(network, public).returncode == TIMED_OUT
    policy(network, "internet")
    assert curl(network, public).returncode == DONE


def test_a_vm_that_the_filter_does_not_know_reaches_nothing(network: Person) -> None:
    public = f"{network.host.public_url}/debian-12/SHA512SUMS"
    assert curl(network, public).returncode == DONE
    policies = "/var/lib/vmw-filter/$(id -u dev)"
    network.root(f"mv {policies} {policies}.away && systemctl restart vmw-filter.service")
    done = network.ssh("feature-x", "true", options="-o ConnectTimeout=5")
    network.root(f"rm -rf {policies} && mv {policies}.away {policies} && systemctl restart vmw-filter.service")
    assert done.returncode == 255, report(done)
    # Its address was forgotten with it, until it asks for one as at its start.
    mac = network.record("feature-x")["mac"]
    for state in ("down", "up"):
        network.virsh("domif-setlink", "feature-x", mac, state)
    deadline = time.monotonic() + 60
    while curl(network, public).returncode != DONE:
        assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def listed(network: Person, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """Give the user with the VM under its allow-list, and a TLS server at the public address."""
    with tls_server(network.host.network.public, tmp_path_factory.mktemp("tls")):
        policy(network, "allowlist")
        yield network


@contextmanager
def tls_server(address: str, directory: Path) -> Iterator[None]:
    """Serve one page over TLS, whatever name is asked for."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*argv, "-subj", f"/CN={PUBLIC_NAME}", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server((address, 443))

    def answer(stream: socket.socket) -> None:
        try:
            with context.wrap_socket(stream, server_side=True) as secure:
                secure.recv(4096)
                secure.sendall(b"HTTP/1.0 200 OK\r\n\r\nover TLS\n")
        except OSError:
            # The proxy has hung up, as some tests want.
            stream.close()

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(stream,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def fetch(person: Person, url: str, *options: str) -> Done:
    """Fetch something in the guest as its programs do: by the proxy of their environment."""
    return curl(person, url, "--write-out '\\n%{http_code} %{http_connect}'", *options)


def status(done: Done) -> str:
    return done.stdout.rpartition("\n")[2]


def test_only_named_hosts_are_reached(listed: Person) -> None:
    done = fetch(listed, f"http://{PUBLIC_NAME}/debian-12/SHA512SUMS")
    assert status(done).startswith("403"), report(done)
    assert status(fetch(listed, f"https://{PUBLIC_NAME}/")) == "000 403"
    allowed = listed.vmw("net", "allow", "feature-x", PUBLIC_NAME)
    assert allowed.returncode == 0, report(allowed)
    done = fetch(listed, f"http://{PUBLIC_NAME}/debian-12/SHA512SUMS")
    assert status(done).startswith("200"), report(done)
    done = fetch(listed, f"https://{PUBLIC_NAME}/")
    assert (done.stdout.splitlines()[0], status(done)) == ("over TLS", "200 200"), report(done)
    # Nothing below the name, until that is allowed.
    assert status(fetch(listed, f"https://www.{PUBLIC_NAME}/")) == "000 403"
    assert listed.vmw("net", "allow", "feature-x", f"*.{PUBLIC_NAME}").returncode == 0
    assert status(fetch(listed, f"https://www.{PUBLIC_NAME}/")) == "200 200"


def test_there_is_no_way_around_the_proxy(listed: Person) -> None:
    public = listed.host.network.public
    assert curl(listed, f"{listed.host.public_url}/debian-12/SHA512SUMS").returncode == TIMED_OUT
    assert curl(listed, f"https://{public}/").returncode == TIMED_OUT
    # Names are asked for by the host: no packet of the guest's own leaves, so none carries anything out.
    assert listed.ssh("feature-x", f"getent ahostsv4 {PUBLIC_NAME}").returncode != 0
    for server in (listed.host.network.gateway, public):
        assert dns(listed, server) == "silence"
    policy(listed, "internet")
    for server in (listed.host.network.gateway, public):
        assert dns(listed, server) == "answer"
    policy(listed, "allowlist")


def dns(person: Person, server: str) -> str:
    """Ask a DNS server by a packet of the guest's own making."""
    query = "".join(f"{len(part):02x}{part.encode().hex()}" for part in PUBLIC_NAME.split("."))
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(4)\n"
        f"s.sendto(bytes.fromhex('beef01000001000000000000{query}0000010001'), ('{server}', 53))\n"
        "try: s.recv(512); print('answer')\nexcept OSError: print('silence')"
    )
    return person.ssh("feature-x", f'python3 -c "{script}"').stdout.strip()


@pytest.mark.parametrize(
    "url",
    [
        "https://{public}/dns-query?dns=AAAA",
        "http://{public}/",
        "http://{inside}/",
        "http://0x0bd50101/",
        "https://169.254.169.254/",
        "https://[::1]/",
        "https://localhost/",
        "https://{name}:22/",
    ],
)
def test_addresses_and_other_ports_are_no_names(listed: Person, url: str) -> None:
    network = listed.host.network
    # Its own names a program asks past the proxy, unless told otherwise.
    done = fetch(listed, f"'{url.format(public=network.public, inside=network.gateway, name=PUBLIC_NAME)}'", "--noproxy ''")
    assert "403" in status(done), report(done)


def test_an_allowed_name_that_leads_inside_is_refused(listed: Person) -> None:
    assert listed.sh(f"getent ahostsv4 {INSIDE_NAME}").stdout.split()[0] == listed.host.network.gateway
    assert listed.vmw("net", "allow", "feature-x", INSIDE_NAME).returncode == 0
    for url in (f"http://{INSIDE_NAME}/debian-12/SHA512SUMS", f"https://{INSIDE_NAME}/"):
        assert "403" in status(fetch(listed, url))


def test_another_name_behind_an_allowed_one_is_cut_off(listed: Person) -> None:
    assert listed.vmw("net", "allow", "feature-x", PUBLIC_NAME, f"*.{PUBLIC_NAME}").returncode == 0
    # Two names at one address, as at a content network: the tunnel is to the allowed one, and TLS asks for the other.
    other = fetch(listed, "https://other.example/", f"--connect-to other.example:443:{PUBLIC_NAME}:443")
    assert other.returncode != DONE, report(other)
    assert "over TLS" not in other.stdout
    same = fetch(listed, f"https://{PUBLIC_NAME}/", f"--connect-to {PUBLIC_NAME}:443:{PUBLIC_NAME}:443")
    assert same.stdout.startswith("over TLS\n"), report(same)


def test_the_names_that_were_refused_are_in_the_log(listed: Person) -> None:
    deadline = time.monotonic() + 30
    hosts: dict[tuple[str, int], Any] = {}
    while "other.example" not in str(hosts) and time.monotonic() < deadline:
        rows = json.loads(listed.vmw("net", "log", "feature-x", "--json").stdout)["refused"]
        hosts = {(row["host"], row["port"]): row for row in rows if row["host"]}
        time.sleep(1)
    assert hosts[f"www.{PUBLIC_NAME}", 443]["count"] >= 1
    assert {(INSIDE_NAME, 80), (INSIDE_NAME, 443)} <= set(hosts)


def test_taking_a_name_back_acts_at_once(listed: Person) -> None:
    assert listed.vmw("net", "forbid", "feature-x", PUBLIC_NAME).returncode == 0
    assert status(fetch(listed, f"https://{PUBLIC_NAME}/")) == "000 403"
    assert status(fetch(listed, f"https://www.{PUBLIC_NAME}/")) == "200 200"


def test_the_proxy_serves_nobody_else(listed: Person) -> None:
    record = listed.record("feature-x")
    address, _, port = record["egress"]["told"].removeprefix("http://").partition(":")
    # The VM's own way works, so the proxy listens.
    assert fetch(listed, f"https://www.{PUBLIC_NAME}/").returncode == DONE
    with closing(socket.socket()) as stream:
        stream.settimeout(5)
        with pytest.raises(TimeoutError):
            stream.connect((address, int(port)))


def test_a_vm_without_a_list_needs_no_proxy(listed: Person) -> None:
    policy(listed, "internet")
    assert listed.ssh("feature-x", "env | grep -i _proxy").stdout == ""
    done = curl(listed, f"http://{PUBLIC_NAME}/debian-12/SHA512SUMS", "--max-time 5")
    assert done.returncode == DONE, report(done)
