# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Failures that a person can act on, and the one way in which a module reports them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


class VmwError(Exception):
    """An expected failure.

    Args:
        message: What happened, one sentence without a full stop.
        hint: The next command to run, or the likely cause.
        code: ``failed``, ``usage``, ``host_not_ready``, ``not_found`` or ``conflict``; the CLI maps it to an exit code.
        log: Path of the log that tells more.
    """

    def __init__(self, message: str, hint: str = "", code: str = "failed", log: str = "") -> None:
        """Keep the parts apart, so that each front end words them in its own way."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.log = log


def outcome(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a module's main function and return what Ansible is told: its results, or why it failed.

    Args:
        function: Does the work and returns the results.
    """
    try:
        return function()
    except VmwError as error:
        details = {key: value for key, value in (("hint", error.hint), ("log", error.log)) if value}
        return {"failed": True, "msg": error.message, "code": error.code, **details}
    except OSError as error:
        hint = {"hint": "make room and run it again"} if error.errno in {errno.ENOSPC, errno.EDQUOT} else {}
        return {"failed": True, "msg": f"{error.filename or 'the host'}: {error.strerror or error}", "code": "failed", **hint}
    except Exception as error:
        # libvirt's binding may be missing, and so its class; any of its calls can fail when the daemon or the domain goes.
        if type(error).__name__ != "libvirtError":
            raise
        advice = "run the same command again; `vmw doctor` tells whether libvirt is well"
        return {"failed": True, "msg": f"libvirt: {error}", "code": "failed", "hint": advice}


def run(module: AnsibleModule, function: Callable[[AnsibleModule], dict[str, Any]]) -> None:
    """Run a module's main function and leave the process with its results or its failure.

    Args:
        module: The Ansible module.
        function: Does the work and returns the results for ``exit_json``.
    """
    result = outcome(lambda: function(module))
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)
