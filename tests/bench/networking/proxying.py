"""The key proxy between a guest and an API's stand-in, all on loopback."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spawning.machine import run

from networking import client, servers
from networking.client import Way
from networking.figures import Measure, Section

if TYPE_CHECKING:
    import contextlib

ROOT = Path(__file__).resolve().parents[3]
INTERPRETERS = ("/usr/bin/python3", sys.executable, str(ROOT / "tests/.venv/bin/python"))
"""The proxy's own comes first."""

OLDEST_AIOHTTP = (3, 9)
"""What the proxy needs."""

NAME = "files.example.org"
GUEST = "127.0.0.2"
KEY, PLACEHOLDER = "sk-ant-of-nobody", "vmw-feature-x"
MANY = 20
REQUESTS, STREAMS, HANDSHAKES, CONNECTIONS = 200, 10, 10, 8
BULK_BYTES = 64 << 20
SECTION = Section(
    "proxy",
    "key proxy",
    {"direct": "no proxy", "proxy": "the proxy, 1 VM", "many": f"the proxy, {MANY} VMs"},
    {
        "small": Measure("small request", "s"),
        "rate": Measure(f"requests on {CONNECTIONS} connections", "/s"),
        "first": Measure("first event of a stream", "s"),
        "connect": Measure("connection with TLS", "s"),
        "bulk": Measure("download by that", "bit/s"),
    },
)


def interpreter() -> tuple[str, str]:
    """Return the Python that has a usable aiohttp, and the version of that; or nothing."""
    for program in INTERPRETERS:
        if shutil.which(program):
            argv = [program, "-c", "import aiohttp; print(aiohttp.__version__)"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            version = done.stdout.strip()
            if not done.returncode and tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_AIOHTTP:
                return program, version
    return "", ""


def obstacle() -> str:
    """Tell why the proxy cannot be measured here, or nothing."""
    if not shutil.which("openssl"):
        return "not installed: openssl"
    return (
        "" if interpreter()[0] else f"none of {', '.join(INTERPRETERS)} has aiohttp {'.'.join(map(str, OLDEST_AIOHTTP))} or newer"
    )


def write_state(state: Path, api: int, vms: int) -> None:
    """Write what the proxy reads: settings, keys, and the VMs' records and addresses.

    Args:
        state: The state directory.
        api: The port of the API's stand-in.
        vms: How many VMs there are; the first one is at the guest's address.
    """
    settings = {"schema": 1, "bridge": "br0", "upstreams": {"anthropic": f"https://127.0.0.1:{api}"}, "allow": [NAME]}
    rows = ["IP address       HW type     Flags       HW address            Mask     Device"]
    files = {"proxy/settings.json": json.dumps(settings), "secrets/default/secrets.env": f"ANTHROPIC_API_KEY={KEY}\n"}
    for number in range(vms):
        name, mac = f"vm{number}", f"52:54:00:00:00:{number:02x}"
        record = {"schema": 1, "name": name, "uuid": f"uuid-{number}", "mac": mac, "secrets_profile": "default"}
        record |= {"egress": {"mode": "allowlist", "allow": []}, "keys": {"mode": "proxy"}}
        files[f"instances/{name}/instance.json"] = json.dumps(record)
        address = f"127.0.0.{int(GUEST.rpartition('.')[2]) + number}"
        rows.append(f"{address:<16} 0x1         0x2         {mac}     *        br0")
    files["arp"] = "\n".join(rows) + "\n"
    for name, text in files.items():
        path = state / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Proxying:
    """The proxy for one VM, that for many, and the way without one.

    Args:
        directory: For all files.
        seconds: How long requests are made at once.
    """

    def __init__(self, directory: Path, *, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds
        self.ways: dict[str, Way] = {}

    def make(self, stack: contextlib.ExitStack) -> None:
        """Start everything; the stack ends it."""
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        run(
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2",
            "-subj", "/CN=vmw-bench", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1", "-keyout", key, "-out", certificate,
        )  # fmt: skip
        trust = ssl.create_default_context(cafile=str(certificate))
        programs = servers.PROGRAMS
        ports = stack.enter_context(servers.serving([sys.executable, "-B", programs / "api.py", certificate, key, KEY]))
        self.ways["direct"] = Way(ports["api"], "", KEY, trust, ports["bulk"], trust, NAME, tunnel=False, source=GUEST)
        for row, vms in (("proxy", 1), ("many", MANY)):
            state = self.directory / row
            write_state(state, ports["api"], vms)
            argv: list[str | Path] = [interpreter()[0], "-B", programs / "proxy.py", state, certificate, str(ports["bulk"])]
            port = stack.enter_context(servers.serving(argv))["port"]
            self.ways[row] = Way(port, "/anthropic", PLACEHOLDER, None, port, trust, NAME, tunnel=True, source=GUEST)

    def take(self, row: str) -> dict[str, float]:
        """Measure a way."""
        way = self.ways[row]
        return {
            "small": client.small(way, REQUESTS),
            "rate": client.many(way, CONNECTIONS, self.seconds),
            "first": client.first_event(way, STREAMS),
            "connect": client.tls(way, HANDSHAKES),
            "bulk": client.bulk(way, BULK_BYTES),
        }
