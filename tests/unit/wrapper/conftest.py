"""Fixtures of the wrapper's tests: a home of one's own, and fake programs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a home directory of its own, and nothing of the caller's settings."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    for name in list(os.environ):
        if name.startswith(("ANSIBLE_", "VMW_", "XDG_", "LC_")) or name in {"NO_COLOR", "LANG", "SSH_AUTH_SOCK"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "C.UTF-8")
    return directory


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return a function that puts a shell script on PATH and returns the file in which it notes its arguments."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, body: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        script = directory / name
        script.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{calls}'\n{body}\n")
        script.chmod(0o755)
        return calls

    return make


@pytest.fixture
def make_vm(home: Path) -> Callable[..., Path]:
    """Return a function that records a VM and returns its directory."""

    def make(name: str, **changes: object) -> Path:
        directory = home / ".config" / "vmw" / "instances" / name
        directory.mkdir(parents=True)
        record: dict[str, Any] = {
            "schema": 1,
            "name": name,
            "uuid": "0c3a1f3e-4e0b-4c53-8a0e-3f6f7f0f7d11",
            "mac": "52:54:00:aa:bb:cc",
            "worktree": f"/home/dev/{name}",
            "created": "2026-11-20T10:00:00+00:00",
            "memory_mib": 4096,
            "vcpus": 4,
            "disk_gib": 20,
            "bridge": "br0",
            "guest_user": "claude",
            "uid": 1000,
            "authorized_keys": [],
            "generation": "20261120-1",
            "virt_type": "kvm",
            "libvirt_uri": "test:///default",
            **changes,
        }
        (directory / "instance.json").write_text(json.dumps(record))
        return directory

    return make
