"""What a VM left in its worktree that would run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.vmw.worktree.plugins.module_utils import audit
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError as CollectionError
from ansible_collections.vmw.worktree.plugins.module_utils.tree_kinds import KINDS

from vmw.errors import ExitCode, VmwError
from vmw.services import records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.vmw.worktree.plugins.module_utils.audit import Finding

    from vmw.settings import Settings

SCHEMA = 1


@dataclass(frozen=True)
class Audit:
    """What was found in the worktree of one VM."""

    name: str
    worktree: str
    findings: list[Finding]

    @property
    def clean(self) -> bool:
        """Tell whether there is nothing to look at."""
        return not self.findings

    @property
    def counts(self) -> dict[str, int]:
        """Return how many things of each kind there are."""
        return audit.counts(self.findings)

    @property
    def summary(self) -> str:
        """Return one line, or nothing for a clean worktree."""
        return audit.summary(self.name, self.findings)

    def groups(self) -> Iterator[tuple[str, int, str, list[Finding]]]:
        """Yield each kind with the number of its findings, what it means, and the findings that are listed."""
        for kind, number in self.counts.items():
            yield kind, number, KINDS[kind], [finding for finding in self.findings if finding.kind == kind]


def examine(settings: Settings, name: str) -> Audit:
    """Compare a VM's worktree with what it was like when the VM was made. Nothing of it is run, nor libvirt asked.

    Raises:
        VmwError: There is no such VM, or its worktree cannot be read.
    """
    instance, files = records.find(settings.state_dir, name)
    try:
        return Audit(name, instance.worktree, audit.findings(files, instance))
    except CollectionError as error:
        raise VmwError(error.message, error.hint, ExitCode.of(error.code)) from error
