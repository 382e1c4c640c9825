from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vmw.runner import resources

if TYPE_CHECKING:
    from pathlib import Path


def test_what_ran_before_does_not_count() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    before = resources.children_cpu_seconds()
    assert before >= 0.2
    assert resources.measure(before).ansible_cpu_seconds == 0
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert 0.2 <= resources.measure(before).ansible_cpu_seconds < 5


def test_peak_is_that_of_this_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t   26624 kB\nVmRSS:\t 1 kB\n")
    monkeypatch.setattr(resources, "STATUS", status)
    assert resources.measure(0).wrapper_peak_mib == 26.0


@pytest.mark.parametrize("text", ["", "VmHWM:\n", "VmHWM: much kB\n", None])
def test_peak_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    status = tmp_path / "status"
    if text is not None:
        status.write_text(text)
    monkeypatch.setattr(resources, "STATUS", status)
    assert resources.measure(0).wrapper_peak_mib > 5
