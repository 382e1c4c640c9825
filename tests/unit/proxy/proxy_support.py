"""A world for the proxy on loopback: VMs by address, names that lead to real servers, and an API's stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from vmw_proxy.dial import Dialer
from vmw_proxy.server import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

KEY = "sk-ant-the-real-one"
TOKEN = "token-the-real-one"
OPENAI_KEY = "sk-proj-the-real-one"
PLACEHOLDER = "vmw-feature-x"

GUEST = "127.0.0.2"
STRANGER = "127.0.0.9"
PUBLIC = "93.184.216.34"
PUBLIC6 = "2606:2800:220:1::1"

SSE: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {"id": "msg_1", "usage": {"input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 1}},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'say "usage"'}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop"},
]

UNTOLD: list[dict[str, Any]] = [{"type": "chunk", "choices": [{"delta": {"content": "word"}}]}] * 3
"""A stream of Chat Completions as it is where the client does not ask for the usage."""


def make_certificate(directory: Path, *names: str) -> tuple[Path, Path]:
    """Make a certificate that vouches for itself; return its file and that of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    began = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / f"{names[0]}.pem", directory / f"{names[0]}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files[1].write_bytes(key.private_bytes(*plain))
    return files


@dataclass
class Got:
    """A request as a server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class World:
    """The proxy with all that is around it."""

    state: Path
    trust: ssl.SSLContext
    names: dict[str, list[str]] = field(default_factory=dict)
    seen: list[Got] = field(default_factory=list)
    connected: list[tuple[str, int]] = field(default_factory=list)
    port: int = 0
    echo: int = 0
    http: int = 0
    api: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)
    pause: float = 0
    proxy: Proxy = field(init=False)

    # --- what the user wrote -----------------------------------------------------------------------------------------

    def vm(self, name: str = "feature-x", address: str = GUEST, **changes: object) -> Path:
        """Record a VM whose card is at an address, or change its record."""
        directory = self.state / "instances" / name
        directory.mkdir(parents=True, exist_ok=True)
        mac = "52:54:00:aa:bb:{:02x}".format(int(address.rpartition(".")[2]))
        record = {"schema": 1, "name": name, "uuid": f"uuid-{name}", "mac": mac.upper(), "secrets_profile": "default", **changes}
        (directory / "instance.json").write_text(json.dumps(record))
        table = self.state / "arp"
        head = "IP address       HW type     Flags       HW address            Mask     Device\n"
        rows = table.read_text() if table.exists() else head
        if address not in rows:
            table.write_text(f"{rows}{address:<16} 0x1         0x2         {mac}     *        br0\n")
        return directory

    def settings(self, *allow: str) -> None:
        """Write the proxy's settings."""
        file = self.state / "proxy" / "settings.json"
        file.parent.mkdir(exist_ok=True)
        upstreams = {"anthropic": f"https://127.0.0.1:{self.api}", "openai": f"https://127.0.0.1:{self.api}"}
        partial = file.with_name("partial")
        partial.write_text(json.dumps({"schema": 1, "port": 1, "bridge": "br0", "upstreams": upstreams, "allow": list(allow)}))
        partial.replace(file)

    def secrets(self, text: str, profile: str = "default") -> None:
        """Write a profile's keys."""
        directory = self.state / "secrets" / profile
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "secrets.env").write_text(text)

    def noted(self, file: str, name: str = "feature-x") -> dict[str, Any]:
        """Return what the proxy noted for a VM; what waits to be written is."""
        self.proxy._notes.flush()
        path = self.state / "instances" / name / file
        data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return data

    def refused(self, name: str = "feature-x") -> list[tuple[str, int, str, int]]:
        """Return the refusals that the proxy noted for a VM."""
        entries = self.noted("refused.json", name).get("refused", [])
        return [(entry["host"], entry["port"], entry["reason"], entry["count"]) for entry in entries]

    # --- what the network does ---------------------------------------------------------------------------------------

    def resolve(self, name: str, _port: int) -> list[str]:
        """Look a name up."""
        if name not in self.names:
            message = "no such name"
            raise OSError(message)
        return self.names[name]

    def route(self, address: str, port: int) -> tuple[str, int]:
        """Lead an address to the server that plays its part."""
        self.connected.append((address, port))
        return "127.0.0.1", {443: self.echo, 80: self.http}.get(port, 1)

    # --- what a guest does -------------------------------------------------------------------------------------------

    async def open(self, address: str = GUEST) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the proxy as a guest."""
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0), limit=1 << 20)

    async def say(self, text: bytes, address: str = GUEST) -> tuple[int, bytes]:
        """Send a request as it is and return the answer's status and all that follows."""
        reader, writer = await self.open(address)
        writer.write(text)
        whole = await reader.read()
        writer.close()
        return int(whole.split(b" ", 2)[1]), whole

    async def connect(self, target: str, address: str = GUEST) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for a tunnel."""
        reader, writer = await self.open(address)
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), reader, writer

    async def secure(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Begin TLS in a tunnel, asking for a server name."""
        context = ssl.create_default_context(cafile=str(self.state / "ca.pem"))
        context.check_hostname = False
        await writer.start_tls(context, server_hostname=name)
        return reader, writer

    async def ask(
        self, path: str, body: bytes | None = b'{"model": "m"}', headers: dict[str, str] | None = None, address: str = GUEST
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request to an API of the proxy."""
        lines = {"Host": "proxy", "Connection": "close", "x-api-key": PLACEHOLDER, **(headers or {})}
        if body is not None:
            lines["Content-Length"] = str(len(body))
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        status, whole = await self.say(head.encode() + b"\r\n" + (body or b""), address)
        text, _, rest = whole.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in text.decode().split("\r\n")[1:])
        if fields.get("Transfer-Encoding") == "chunked":
            rest = unchunked(rest)
        return status, {name.lower(): value for name, value in fields.items()}, rest


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that the other side does; the story's own time-out ends it."""
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def unchunked(data: bytes) -> bytes:
    """Return what chunks carry."""
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return whole


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and `bye` after the last of it."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
        writer.close()


def _api(world: World) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        world.seen.append(
            Got(request.method, request.raw_path, {name.lower(): value for name, value in request.headers.items()}, body)
        )
        if request.path.endswith("/stream") or b'"stream"' in body:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", "Set-Cookie": "a=b"})
            await response.prepare(request)
            for number, event in enumerate(UNTOLD if b'"untold"' in body else SSE):
                await asyncio.sleep(world.pause if number else 0)
                await response.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                if number == 0:
                    await world.held.wait()
            return response
        if b'"untold"' in body:
            return web.json_response({"status": "queued", "background": True, "usage": None})
        if request.path.endswith("/denied"):
            return web.json_response({"error": f"{request.headers.get('x-api-key')} is wrong"}, status=401)
        if request.path.endswith("/chat"):
            return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})
        headers = {
            "Set-Cookie": "session=1",
            "anthropic-organization-id": "org",
            "x-echo": request.headers.get("x-api-key", ""),
            "request-id": "r",
        }
        return web.json_response({"size": len(body), "usage": {"input_tokens": 10, "output_tokens": 5}}, headers=headers)

    return answer


def _web(world: World) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        world.seen.append(
            Got(request.method, request.raw_path, {name.lower(): value for name, value in request.headers.items()}, body)
        )
        return web.Response(text=f"{request.method} {request.headers['Host']} {request.raw_path} {len(body)}")

    return answer


async def _start(stack: contextlib.AsyncExitStack, server: web.Server, tls: ssl.SSLContext | None = None) -> int:
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port: int = runner.addresses[0][1]
    return port


def play(tmp_path: Path, story: Callable[[World], Awaitable[None]]) -> None:
    """Make a world with one VM, and tell a story in it."""

    async def whole() -> None:
        certificate, key = make_certificate(tmp_path, "ca")
        assert certificate == tmp_path / "ca.pem"
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(certificate, key)
        trust = ssl.create_default_context(cafile=str(certificate))
        world = World(tmp_path, trust)
        async with contextlib.AsyncExitStack() as stack:
            echo = await asyncio.start_server(_echo, "127.0.0.1", 0, ssl=served)
            stack.callback(echo.close)
            world.echo = echo.sockets[0].getsockname()[1]
            world.http = await _start(stack, web.Server(_web(world)))
            world.api = await _start(stack, web.Server(_api(world)), served)
            proxy = Proxy(tmp_path, tmp_path / "arp", Dialer(world.resolve, world.route), trust)
            world.proxy = proxy
            stack.push_async_callback(proxy.close)
            world.settings("github.com", "*.githubusercontent.com", "apt.example.org")
            world.vm(egress={"mode": "allowlist", "allow": []}, keys={"mode": "proxy"})
            world.secrets(f"ANTHROPIC_API_KEY={KEY}\n")
            for name in ("github.com", "raw.githubusercontent.com", "apt.example.org", "evil.example"):
                world.names[name] = [PUBLIC]
            world.port = await _start(stack, proxy.server)
            async with asyncio.timeout(60):
                await story(world)

    asyncio.run(whole())
