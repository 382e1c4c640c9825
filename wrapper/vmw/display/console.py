"""Plain output: data on stdout, everything else on stderr. Imports nothing slow."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmw.errors import VmwError

RED, GREEN, YELLOW, CYAN, BOLD, DIM = "31", "32", "33", "36", "1", "2"


def is_terminal(stream: TextIO) -> bool:
    """Tell whether a stream is a terminal that understands cursor movement."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Colour ``text`` when the stream is a terminal and NO_COLOR (https://no-color.org) is not set."""
    if os.environ.get("NO_COLOR") or not is_terminal(stream):
        return text
    return f"\033[{colour}m{text}\033[0m"


def program() -> str:
    """Return the words by which the user called this program, so that a hint can be copied.

    The launcher names itself; one that is found on PATH is simply `vmw`.
    """
    called = os.environ.get("VMW_PROGRAM", "")
    return called if called and shutil.which("vmw") != called else "vmw"


def _write(stream: TextIO, text: str) -> None:
    # A path may hold bytes that are no UTF-8; showing it must not fail.
    encoded = text.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8")
    stream.write(encoded + "\n")
    stream.flush()


def data(text: str) -> None:
    """Print a result."""
    _write(sys.stdout, text)


def data_json(schema: int, **values: object) -> None:
    """Print a result for programs, with the number of its schema, which only ever gains fields."""
    data(json.dumps({"schema": schema, **values}, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Tell the user what happens."""
    _write(sys.stderr, copyable(text))


def warn(text: str, hint: str = "") -> None:
    """Tell the user of something that does not stop the command."""
    _write(sys.stderr, f"{paint('warning:', YELLOW, sys.stderr)} {copyable(text)}")
    if hint:
        _write(sys.stderr, _hint(hint))


def hint(text: str) -> None:
    """Tell the user what to do next."""
    _write(sys.stderr, _hint(text))


def command(text: str) -> str:
    """Name this program in a command line as the user called it; other commands stay as they are."""
    return f"{shlex.quote(program())} {text.removeprefix('vmw ')}" if text.startswith("vmw ") else text


def copyable(text: str) -> str:
    """Name this program as the user called it in the commands that a text quotes."""
    return text.replace("`vmw ", f"`{shlex.quote(program())} ")


def _hint(text: str) -> str:
    return f"{paint('hint:', CYAN, sys.stderr)} {copyable(text)}"


def error(failure: VmwError) -> None:
    """Tell the user of an expected failure: what happened, what to do, and last where the log is."""
    _write(sys.stderr, f"{paint('error:', RED, sys.stderr)} {failure.message}")
    for line in failure.detail.splitlines():
        _write(sys.stderr, paint(f"  | {line}", DIM, sys.stderr))
    if failure.hint:
        _write(sys.stderr, _hint(failure.hint))
    for path in failure.log.splitlines():
        _write(sys.stderr, f"{paint('log:', CYAN, sys.stderr)} {path}")


def heading(text: str) -> str:
    """Return a line that stands above a part of the output."""
    return paint(f"==> {text}", BOLD, sys.stderr)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO | None = None) -> None:
    """Print rows in aligned columns.

    Args:
        header: The columns' names.
        rows: The cells.
        stream: Where to, by default stdout.
    """
    out = stream or sys.stdout
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    _write(out, paint(line(header), BOLD, out))
    for row in rows:
        _write(out, line(row))


def age(seconds: float) -> str:
    """Return a length of time in one unit, as a person would say it."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def size(count: float) -> str:
    """Return a number of bytes in binary units with one decimal."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - the base of binary units
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def ask_password(prompt: str) -> str:
    """Read a password from the terminal without showing it; one that is no UTF-8 is as good as a wrong one."""
    import getpass  # noqa: PLC0415 - needed on few paths

    try:
        return getpass.getpass(prompt)
    except UnicodeDecodeError:
        return ""


def confirm(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; the default is no."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
