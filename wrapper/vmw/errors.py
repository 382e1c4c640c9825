"""Exit codes, and the one exception that a person gets to read."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process tells its caller; part of the public interface."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    HOST_NOT_READY = 3
    NOT_FOUND = 4
    CONFLICT = 5
    INTERRUPTED = 130

    @classmethod
    def of(cls, code: str) -> ExitCode:
        """Return the exit code for the ``code`` of a module's failure; an unknown word is a plain failure."""
        return {
            "usage": cls.USAGE,
            "host_not_ready": cls.HOST_NOT_READY,
            "not_found": cls.NOT_FOUND,
            "conflict": cls.CONFLICT,
        }.get(code, cls.FAILED)


class VmwError(Exception):
    """An expected failure, told in two lines and without a traceback.

    Args:
        message: What happened, one sentence without a full stop.
        hint: The next command to run, or the likely cause.
        exit_code: What the process exits with.
        log: Path of the log that tells more.
        detail: What the failing program itself said, possibly several lines.
    """

    def __init__(
        self,
        message: str,
        hint: str = "",
        exit_code: ExitCode = ExitCode.FAILED,
        log: str = "",
        detail: str = "",
    ) -> None:
        """Keep the parts apart; the display words them."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.log = log
        self.detail = detail


class InterruptedByUserError(VmwError):
    """The user pressed Ctrl-C, or the process was asked to end."""

    def __init__(self, message: str = "interrupted", hint: str = "", log: str = "") -> None:
        """Word an interruption like any other failure."""
        super().__init__(message, hint, ExitCode.INTERRUPTED, log)
