# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation that the modules of one VM share."""

from __future__ import annotations


class ModuleDocFragment:
    """The options that name a recorded VM."""

    DOCUMENTATION = r"""
options:
  state_dir:
    description: vmw's directory on the host.
    type: str
    required: true
  name:
    description: The VM's name.
    type: str
    required: true
"""
