"""A command at a terminal: what it shows is recorded, and answers are typed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS, COLUMNS = 50, 160
INTERRUPT = "\x03"
END_S = 10
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[\[(][0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_=>78]")


class Terminal:
    """A running command whose standard streams are a terminal of its own.

    Args:
        argv: the command.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._shown = bytearray()
        self._condition = threading.Condition()
        self._open = True
        self._begun = time.monotonic()
        self.seconds = 0.0
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            list(argv),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def text(self) -> str:
        """What was shown so far, without colours and cursor movements."""
        with self._condition:
            shown = bytes(self._shown)
        return _ESCAPES.sub("", shown.decode(errors="replace")).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """The lines that a person can read, each only in its last state."""
        return [line for raw in self.text.split("\n") if (line := raw.rpartition("\r")[2].rstrip())]

    def type(self, text: str) -> None:
        """Type keys; a line ends with a line feed."""
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str, timeout: float) -> None:
        """Wait until something is shown.

        Args:
            pattern: regular expression, searched in all that was shown.
            timeout: seconds.

        Raises:
            AssertionError: it was not shown, or the command ended before.
        """
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.text):
            with self._condition:
                if not self._open:
                    break
                self._condition.wait(0.2)
            if time.monotonic() > deadline:
                break
        if not re.search(pattern, self.text):
            message = f"{pattern!r} was not shown; what was:\n{self.text[-4000:]}"
            raise AssertionError(message)

    def exit_code(self, timeout: float) -> int:
        """Wait for the command's end and return its exit code.

        Raises:
            AssertionError: it did not end.
        """
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"the command did not end in {timeout} s; it showed:\n{self.text[-4000:]}"
            raise AssertionError(message) from None
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Take the terminal away, which ends a command that still runs, and the thread that reads it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(END_S)
        self._reader.join(END_S)
        if self._master >= 0 and not self._reader.is_alive():
            os.close(self._master)
            self._master = -1

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                data = b""
            with self._condition:
                self._shown += data
                self._open = bool(data)
                self._condition.notify_all()
            if not data:
                self.seconds = time.monotonic() - self._begun
                return
