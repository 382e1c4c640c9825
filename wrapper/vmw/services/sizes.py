"""Sizes as people write them."""

from __future__ import annotations

import re

from vmw.errors import ExitCode, VmwError

_MIB = {"": 1, "m": 1, "g": 1024, "t": 1024 * 1024}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*([mgt]?)(?:i?b)?", re.IGNORECASE)


def mebibytes(text: str, bare: str = "m") -> int:
    """Return a size in MiB.

    Args:
        text: A number with or without a suffix: `4096`, `512M`, `4G`, `4GiB`, `1.5g`.
        bare: The suffix that a bare number stands for.

    Raises:
        VmwError: It is no size, not a whole number of MiB, or not above zero.
    """
    match = _SIZE.fullmatch(text.strip())
    value = float(match[1]) * _MIB[(match[2] or bare).lower()] if match else 0
    if not value or value != int(value):
        message = f"{text!r} is not a size"
        raise VmwError(message, "write it like 4G or 512M", ExitCode.USAGE)
    return int(value)


def gibibytes(text: str) -> int:
    """Return a size in GiB; a bare number counts GiB.

    Raises:
        VmwError: It is no whole number of GiB above zero.
    """
    value = mebibytes(text, bare="g")
    if value % 1024:
        message = f"{text!r} is not a whole number of GiB"
        raise VmwError(message, "write it like 20 or 20G", ExitCode.USAGE)
    return value // 1024
