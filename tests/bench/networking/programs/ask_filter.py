"""Answer one request to the packet filter on the standard input, as vmw-filter@.service does, with the files of a test bed."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "roles/packet_filter/files"))

from vmw_filter import kernel
from vmw_filter.service import serve
from vmw_filter.store import Store

if __name__ == "__main__":
    state, runtime, resolvers = map(Path, sys.argv[1:])
    kernel.RESOLVER_FILES = (resolvers,)
    with socket.socket(fileno=os.dup(0)) as connection:
        serve(connection, Store(state, runtime))
