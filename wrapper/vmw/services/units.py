"""The user's systemd units that serve the VMs' shares and publish their ports."""

from __future__ import annotations

from ansible_collections.vmw.worktree.plugins.module_utils.port_units import Published, all_published
from ansible_collections.vmw.worktree.plugins.module_utils.user_units import unit_directory


def units_of(name: str, kind: str) -> list[str]:
    """Return the names of the units of a VM's shares: `vmw-a-b-repo` is the VM `a-b`'s and none of the VM `a`'s.

    Args:
        name: The VM.
        kind: `service` or `socket`.
    """
    prefix, suffix = f"vmw-{name}-", f".{kind}"
    # A share's name is of letters alone, so what follows the VM's name tells where that ends.
    return sorted(
        unit.name
        for unit in unit_directory().glob("vmw-*")
        if unit.name.startswith(prefix)
        and unit.name.endswith(suffix)
        and unit.name.removeprefix(prefix).removesuffix(suffix).isalpha()
    )


def published() -> list[Published]:
    """Return the ports of all VMs that are published, by VM and host port."""
    return all_published(unit_directory())
