"""What a test host downloads: the tree that the stand-ins' web server shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from testbed import cache, cloudimage, machine, nodesource

if TYPE_CHECKING:
    from pathlib import Path

IMAGE_PATH = "debian-12"
NODESOURCE_PATH = "nodesource"


def site() -> Path:
    """Return the directory to serve, building what it shows."""
    parts = {IMAGE_PATH: cloudimage.directory(), NODESOURCE_PATH: nodesource.directory()}

    def link(target: Path) -> None:
        for name, part in parts.items():
            (target / name).symlink_to(part)

    return cache.built("site", [str(part) for part in parts.values()], link)


def settings(url: str) -> dict[str, object]:
    """Return the settings that make vmw use the stand-ins served at `url`."""
    image = f"{url}/{IMAGE_PATH}/{cloudimage.FILE}"
    trusted = [f"{machine.CA_DIRECTORY}/{file.name}" for file in machine.ca_files()]
    return {
        "vmw_base_image_url": image,
        "vmw_nodesource_url": f"{url}/{NODESOURCE_PATH}",
        "vmw_ca_certificates": trusted,
    }
