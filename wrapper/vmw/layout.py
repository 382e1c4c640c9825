"""Where the collection is: the checkout around this package, or the copy that the wheel carries."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The collection `vmw.worktree` on disk."""

    root: Path
    collections: Path

    @property
    def ansible_cfg(self) -> Path:
        """Ansible's configuration, the same for people who run ansible-playbook by hand."""
        return self.root / "ansible.cfg"

    @property
    def inventory(self) -> Path:
        """The machines that hold the VMs."""
        return self.root / "inventory" / "hosts.yml"

    def playbook(self, verb: str) -> Path:
        """Return the playbook of a verb.

        Args:
            verb: host, secrets, image, prune, spawn, start, stop, suspend, resume, audit, port, destroy, git_pull or git_push.
        """
        return self.root / "playbooks" / f"{verb}.yml"

    def make_importable(self) -> None:
        """Let `ansible_collections.vmw.worktree` be imported; a wheel's copy already can."""
        path = str(self.collections)
        if path not in sys.path:
            sys.path.append(path)


def find_layout(package: Path | None = None) -> Layout:
    """Return the layout around a package directory, by default this one.

    A checkout wins over an installed copy: an editable install would otherwise run stale roles.
    """
    package = package or Path(__file__).resolve().parent
    checkout = package.parent.parent
    if (checkout / "galaxy.yml").is_file():
        return Layout(checkout, checkout / "collections")
    site_packages = package.parent
    return Layout(site_packages / "ansible_collections" / "vmw" / "worktree", site_packages)
