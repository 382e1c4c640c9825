"""The commands: options and help in, a service's work, a line or two out. Whatever is slow is imported where it is needed."""

from __future__ import annotations

# Each module adds its commands to the program, and the help shows them in this order.
# isort: off
from vmw.commands import making, using, life, examining, network, keys, git, image  # noqa: F401
# isort: on

from vmw.commands.program import Invocation, app

__all__ = ["Invocation", "app"]
