#!/usr/bin/python
# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Install the files of a program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: program_files
short_description: Install the files of a program
version_added: 0.1.0
author: The vmw authors (@vmw-dev)
description:
  - Writes many small text files in one go, where M(ansible.builtin.copy) runs two modules for each of them.
  - Each belongs to whoever runs the module, is readable by everybody, and is executable if it begins with C(#!).
  - Makes the directories that are missing. Other files are left alone.
attributes:
  check_mode:
    support: full
    description: Says what would change, and changes nothing.
  diff_mode:
    support: full
    description: Shows what changes in the files.
  idempotent:
    support: full
    description: What is as it should be is not touched.
options:
  directory:
    description: Where the files belong.
    type: path
    required: true
  files:
    description: The contents, by paths below the directory.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Install the program
  vmw.worktree.program_files:
    directory: /usr/local/lib/vmw
    files: "{{ dict(names | zip(query('ansible.builtin.file', *names, rstrip=false))) }}"
  vars:
    names: [vmw-filter, vmw_filter/policy.py]
  become: true
"""

RETURN = r"""
paths:
  description: The files that were written.
  returned: success
  type: list
  elements: str
"""

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmw.worktree.plugins.module_utils.errors import run
from ansible_collections.vmw.worktree.plugins.module_utils.state import read_exactly, replace_file

FILE_MODE, PROGRAM_MODE, DIRECTORY_MODE = 0o644, 0o755, 0o755


def mode_of(content: str) -> int:
    """Return the permission bits of a file."""
    return PROGRAM_MODE if content.startswith("#!") else FILE_MODE


def is_as_it_should_be(path: Path, content: str) -> bool:
    """Tell whether a file is there, with its content, its owner and its mode."""
    if path.is_symlink() or not path.is_file():
        return False
    status = path.stat()
    return status.st_uid == os.geteuid() and status.st_mode & 0o7777 == mode_of(content) and read_exactly(path) == content


def make_directory(path: Path) -> None:
    """Make a directory and those above it that are missing, for everybody to read, whatever the umask is."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir()
    path.chmod(DIRECTORY_MODE)


def install(module: AnsibleModule) -> dict[str, Any]:
    """Do the module's work and return its results."""
    directory = Path(module.params["directory"])
    diffs, paths = [], []
    for name, content in module.params["files"].items():
        path = directory / name
        if is_as_it_should_be(path, content):
            continue
        paths.append(str(path))
        before = read_exactly(path) if path.is_file() else ""
        diffs.append({"before_header": str(path), "after_header": str(path), "before": before, "after": content})
        if not module.check_mode:
            make_directory(path.parent)
            replace_file(path, content, mode_of(content))
    return {"changed": bool(paths), "paths": paths, "diff": diffs}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "required": True}, "files": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    run(module, install)


if __name__ == "__main__":
    main()
