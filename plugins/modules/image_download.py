#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Download the base image of a golden image, and verify it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_download
short_description: Download and verify a base image
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Downloads a disk image with curl and compares its SHA-512. An interrupted download is carried on where it stopped.
  - The verified image is kept for the next build, and used again as long as its digest is the expected one.
  - Tells how far it is through C(progress.json) in O(state_dir).
attributes:
  check_mode:
    support: full
    description: Says that it would download, without asking the server.
  diff_mode:
    support: none
    description: The result is one binary file.
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  url:
    description: The image.
    type: str
    required: true
  checksum:
    description: C(sha512:) and either the digest in hexadecimal or the URL of a C(SHA512SUMS) file.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Download the base image
  vmw.worktree.image_download:
    state_dir: ~/.config/vmw
    url: https://images.example.org/debian-12.qcow2
    checksum: sha512:https://images.example.org/SHA512SUMS
"""

RETURN = r"""
path:
  description: Path of the verified image.
  returned: success, outside check mode
  type: str
sha512:
  description: Its digest.
  returned: success, outside check mode
  type: str
"""

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError, run
from ansible_collections.vmw.worktree.plugins.module_utils.image import (
    DOWNLOADS,
    CallerWatch,
    Progress,
    digest_in_sums,
    file_sha512,
    parse_checksum,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

ATTEMPTS = 5
"""Connections in a row that may fail without a byte received."""

POLL_SECONDS = 0.5
RETRY_SECONDS = 3.0
SPARE_BYTES = 256 << 20
"""Space that must be left when the image is there, so that the host's user can still work."""

CURL = ("curl", "--fail", "--location", "--silent", "--show-error", "--connect-timeout", "20")
CURL_RANGE_ERROR = 33
"""curl's exit status for a server that cannot carry on a download."""

REFUSED = re.compile(r"returned error: 4(?!08|29)\d\d")
"""curl's words for an answer that stays the same; 408 and 429 ask for patience."""

NETWORK_HINT = "check the network, vmw_base_image_url and vmw_base_image_checksum, then run the same command again"


def curl(*arguments: str) -> str:
    """Run curl for something short and return what it printed.

    Raises:
        VmwError: It failed.
    """
    try:
        done = subprocess.run([*CURL, "--max-time", "60", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        message = "`curl` is not installed"
        raise VmwError(message, "run `vmw host` to set up this machine", "host_not_ready") from error
    if done.returncode:
        message = f"cannot read {arguments[-1]}: {done.stderr.strip() or f'curl ended with {done.returncode}'}"
        raise VmwError(message, NETWORK_HINT)
    return done.stdout


def expected_digest(setting: str, url: str) -> str:
    """Return the digest that the image at `url` must have."""
    checksum = parse_checksum(setting)
    if checksum.digest:
        return checksum.digest
    return digest_in_sums(curl(checksum.sums_url), PurePosixPath(unquote(urlsplit(url).path)).name)


def remote_size(url: str) -> int:
    """Return the image's size in bytes, or 0 when the server does not tell."""
    try:
        # Of the last response: a redirect has a length of its own.
        length = curl("--head", "--output", "/dev/null", "--write-out", "%header{content-length}", url)
    except VmwError:
        return 0
    return int(length) if length.isdecimal() else 0


def check_space(directory: Path, needed: int) -> None:
    """Refuse to start what a full disk would end.

    Raises:
        VmwError: Less than `needed` and some spare bytes are free.
    """
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < needed + SPARE_BYTES:
        message = (
            f"only {free >> 20} MiB are free on the file system of {directory},"
            f" and the base image needs {(needed + SPARE_BYTES) >> 20} MiB"
        )
        raise VmwError(message, "make room, then run the same command again")


def transfer(url: str, part: Path, total: int, progress: Progress, caller: CallerWatch) -> None:
    """Download into `part`, carrying on where an earlier run stopped.

    Raises:
        VmwError: The server stays silent, or refuses.
    """
    failures = 0
    while not total or size_of(part) < total:
        before = size_of(part)
        status, words = attempt(url, part, total, progress, caller)
        if not status or (before and "error: 416" in words):
            # 416: nothing behind the part's end. The checksum will tell whether that is the image's end.
            return
        if status == CURL_RANGE_ERROR and before:
            part.unlink()
            continue
        failures = 0 if size_of(part) > before else failures + 1
        if failures == ATTEMPTS or REFUSED.search(words):
            message = f"cannot download {url}: {words or f'curl ended with {status}'}"
            raise VmwError(message, NETWORK_HINT)
        time.sleep(RETRY_SECONDS)


def attempt(url: str, part: Path, total: int, progress: Progress, caller: CallerWatch) -> tuple[int, str]:
    """Run curl once, and return its exit status and its last words."""
    with tempfile.TemporaryFile("w+") as words:
        # A connection that brings nothing for a minute is dead; a slow one is not.
        limits = ("--speed-limit", "1", "--speed-time", "60")
        process = subprocess.Popen(
            [*CURL, *limits, "--continue-at", "-", "--output", str(part), url], stdin=subprocess.DEVNULL, stderr=words
        )
        try:
            while process.poll() is None:
                progress.update(size_of(part), total)
                caller.check()
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
        words.seek(0)
        lines = words.read().strip().splitlines()
    return process.returncode, lines[-1] if lines else ""


def size_of(path: Path) -> int:
    """Return a file's size in bytes; 0 for a missing file."""
    return path.stat().st_size if path.exists() else 0


def download(module: AnsibleModule) -> dict[str, Any]:
    """Provide the verified base image."""
    url: str = module.params["url"]
    if module.check_mode:
        parse_checksum(module.params["checksum"])
        return {"changed": True}
    state = State.at(module.params["state_dir"])
    directory = state.images / DOWNLOADS
    state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    progress = Progress(state, "Download the base image", "bytes")
    caller = CallerWatch()
    with state.lock("download"):
        expected = expected_digest(module.params["checksum"], url)
        image = directory / expected[:32]
        part = image.with_suffix(".part")
        result = {"path": str(image), "sha512": expected}
        if image.exists():
            if file_sha512(image) == expected:
                return {"changed": False, **result}
            image.unlink()
        try:
            total = remote_size(url)
            check_space(directory, max(0, total - size_of(part)))
            transfer(url, part, total, progress, caller)
            actual = file_sha512(part)
        finally:
            progress.close()
        if actual != expected:
            part.unlink()
            message = f"the base image's SHA-512 is wrong: expected {expected}, got {actual}; the download was thrown away"
            hint = "run the same command again; if it stays wrong, compare vmw_base_image_url and vmw_base_image_checksum"
            raise VmwError(message, hint)
        part.chmod(0o444)
        part.rename(image)
    return {"changed": True, **result}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state_dir": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "checksum": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    run(module, download)


if __name__ == "__main__":
    main()
