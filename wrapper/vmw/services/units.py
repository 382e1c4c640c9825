"""The user's systemd units that serve the VMs' shares."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path("~/.config/systemd/user")


def units_of(name: str, kind: str) -> list[str]:
    """Return the names of a VM's units: `vmw-a-b-repo` is the VM `a-b`'s and none of the VM `a`'s.

    Args:
        name: The VM.
        kind: `service` or `socket`.
    """
    prefix, suffix = f"vmw-{name}-", f".{kind}"
    # A share's name has no hyphen, so what follows the VM's name tells where that ends.
    return sorted(
        unit.name
        for unit in DIRECTORY.expanduser().glob("vmw-*")
        if unit.name.startswith(prefix) and unit.name.endswith(suffix) and "-" not in unit.name.removeprefix(prefix)
    )
