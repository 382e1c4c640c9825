"""The command: `load`, `refresh` and `serve`, as systemd's units run it."""

from __future__ import annotations

import os
import socket
import sys

from vmw_filter import FilterError
from vmw_filter.control import load, refresh
from vmw_filter.service import serve
from vmw_filter.store import Store


def main(arguments: list[str]) -> int:
    """Do one of the verbs; return the exit code."""
    store = Store.of_host()
    try:
        match arguments:
            case ["load"]:
                load(store)
            case ["refresh"]:
                refresh(store)
            case ["serve"]:
                with socket.socket(fileno=os.dup(0)) as connection:
                    serve(connection, store)
            case _:
                sys.stderr.write("usage: vmw-filter load | refresh | serve\n")
                return 2
    except FilterError as error:
        sys.stderr.write(f"{error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
