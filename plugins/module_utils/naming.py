# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The naming rule: how a worktree's path becomes the name of its VM."""

from __future__ import annotations

import re
import unicodedata

from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

MAX_LENGTH = 63
"""Longest DNS label (RFC 1035, section 2.3.4); the name is also the guest's host name."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_RESERVED = frozenset({"localhost"})


def is_name(name: str) -> bool:
    """Tell whether ``name`` is a DNS label of lower-case letters, digits and hyphens."""
    return len(name) <= MAX_LENGTH and _LABEL.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` when it can name a VM.

    Args:
        name: A name the user chose.

    Raises:
        VmwError: It is no DNS label of lower-case letters, digits and hyphens.
    """
    if not is_name(name) or name in _RESERVED:
        raise _no_label(name, "a VM")
    return name


def check_profile(name: str) -> str:
    """Return ``name`` when it can name a secrets profile: a plain label, which leads out of no directory.

    Args:
        name: A name the user chose.

    Raises:
        VmwError: It is no label of lower-case letters, digits and hyphens.
    """
    if not is_name(name):
        raise _no_label(name, "a secrets profile")
    return name


def _no_label(name: str, what: str) -> VmwError:
    hint = f"use 1 to {MAX_LENGTH} lower-case letters, digits and hyphens, with no hyphen at either end"
    return VmwError(f"{name!r} cannot name {what}", hint, "usage")


def name_for(component: str) -> str:
    """Make a VM's name from the last component of a worktree's path.

    Letters lose their accents and their case; every run of other characters becomes one hyphen.

    Args:
        component: The directory's name.

    Raises:
        VmwError: Nothing usable is left.
    """
    plain = unicodedata.normalize("NFKD", component.casefold()).encode("ascii", "ignore").decode()
    label = re.sub(r"[^a-z0-9]+", "-", plain)[:MAX_LENGTH].strip("-")
    if not label or label in _RESERVED:
        message = f"no name for a VM can be made from {component!r}"
        raise VmwError(message, "choose one with `--name` (the playbook's `vmw_name`)", "usage")
    return label
