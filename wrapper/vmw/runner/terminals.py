"""The pseudo-terminals on which ansible-runner runs Ansible."""

from __future__ import annotations

import ptyprocess


class _NoDelay:
    """Stand in the place of a delay that each process would set for itself."""

    def __get__(self, _process: object, _owner: type) -> float:
        """Return seconds."""
        return 0.0

    def __set__(self, _process: object, _seconds: float) -> None:
        """Leave it at that."""


def close_at_once() -> None:
    """Have a terminal closed without a pause of a tenth of a second, in which its process could end.

    ansible-runner closes it when the process has ended, and offers no setting for it: Runner.run in its runner.py, 2.4.
    """
    ptyprocess.PtyProcess.delayafterclose = _NoDelay()
