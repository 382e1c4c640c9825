"""The key proxy on loopback, with the bench's own neighbours and way to the internet. Ends with its standard input."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "roles/proxy/files"))

from vmw_proxy.__main__ import serve
from vmw_proxy.dial import Dialer
from vmw_proxy.server import Proxy

PUBLIC = "93.184.216.34"
"""What any name's address is; connections to it go to the server of bulk."""

IDLE_SECONDS = 3600


def end_with_input() -> None:
    """Be told to end when nobody holds the standard input any more."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


async def run(state: Path, certificate: str, bulk: int) -> None:
    """Serve on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    trust = ssl.create_default_context(cafile=certificate)
    dialer = Dialer(lambda _name, _port: [PUBLIC], lambda _address, _port: ("127.0.0.1", bulk))
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    threading.Thread(target=end_with_input, daemon=True).start()
    await serve(Proxy(state, state / "arp", dialer, trust), [listener], IDLE_SECONDS)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
