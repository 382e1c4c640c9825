from __future__ import annotations

import pytest

from vmw.errors import ExitCode, VmwError
from vmw.services.sizes import gibibytes, mebibytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("512M", 512),
        ("512m", 512),
        ("4G", 4096),
        ("4GiB", 4096),
        ("4 GB", 4096),
        ("1.5g", 1536),
        (" 2g ", 2048),
        ("1T", 1024 * 1024),
    ],
)
def test_memory(text: str, expected: int) -> None:
    assert mebibytes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "four", "4X", "4G4", "0.3", "1e3", "{{ 4 }}", "4\n4", "9" * 400])
def test_memory_that_is_no_size(text: str) -> None:
    with pytest.raises(VmwError) as caught:
        mebibytes(text)
    assert caught.value.exit_code is ExitCode.USAGE
    assert "4G" in caught.value.hint


@pytest.mark.parametrize(("text", "expected"), [("20", 20), ("20G", 20), ("1T", 1024), ("2048M", 2)])
def test_disk(text: str, expected: int) -> None:
    assert gibibytes(text) == expected


@pytest.mark.parametrize("text", ["0", "20M", "1.5", "x"])
def test_disk_that_is_no_size(text: str) -> None:
    with pytest.raises(VmwError):
        gibibytes(text)
