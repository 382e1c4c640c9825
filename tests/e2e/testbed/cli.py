"""The command line: make a test host, work in it, remove it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from testbed import container, hostimage, machine, standins

REPOSITORY = Path(__file__).parents[3]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("prepare", help="install what the build machine needs and fill the cache")
    verbs.add_parser("list", help="name the test hosts")
    up = verbs.add_parser("up", help="start a fresh test host")
    up.add_argument("name")
    up.add_argument("--nic", choices=hostimage.NIC_MANAGERS, default="networkd", help="what runs the wired NIC")
    up.add_argument("--bare", action="store_true", help="without the checkout and config.yml of the user dev")
    for verb, text in (("run", "run a shell command"), ("shell", "open a login shell")):
        enter = verbs.add_parser(verb, help=text)
        enter.add_argument("name")
        enter.add_argument("--user", default=hostimage.USER)
        if verb == "run":
            enter.add_argument("command", nargs="+", help="after --")
    copy = verbs.add_parser("checkout", help="put this work tree at ~/vmw again")
    copy.add_argument("name")
    down = verbs.add_parser("down", help="remove a test host")
    down.add_argument("name")
    return parser


def _up(arguments: argparse.Namespace) -> int:
    host = container.up(arguments.name, arguments.nic)
    if not arguments.bare:
        host.checkout(REPOSITORY)
        host.configure()
    sys.stdout.write(f"{host.name} runs; enter it with: python3 -m testbed shell {host.name}\n")
    return 0


def _enter(arguments: argparse.Namespace) -> int:
    host = container.find(arguments.name)
    words = getattr(arguments, "command", ["exec bash -l"])
    argv = host.command(" ".join(words), user=arguments.user, tty=os.isatty(0))
    return subprocess.run(argv, check=False).returncode


def main() -> int:
    """Run one verb; return the exit code."""
    arguments = _parser().parse_args()
    try:
        match arguments.verb:
            case "prepare":
                machine.install_packages()
                for manager in hostimage.NIC_MANAGERS:
                    hostimage.tree(manager)
                standins.site()
            case "list":
                sys.stdout.writelines(f"{name}\n" for name in container.names())
            case "up":
                return _up(arguments)
            case "checkout":
                container.find(arguments.name).checkout(REPOSITORY)
            case "down":
                container.down(arguments.name)
            case _:
                return _enter(arguments)
    except machine.TestbedError as error:
        sys.stderr.write(f"testbed: {error}\n")
        return 1
    return 0
