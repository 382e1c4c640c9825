# Copyright (c) 2026 The vmw authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""The file with the proxy's settings, which the role ``proxy`` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yarl import URL

from vmw_proxy.names import Names

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1


class SettingsError(Exception):
    """The settings cannot be used; the message says why."""


@dataclass(frozen=True)
class Settings:
    """The proxy's settings.

    Attributes:
        bridge: The bridge on which the VMs are.
        upstreams: The address of each API.
        allow: The names that all VMs with an allow-list may reach.
    """

    bridge: str
    upstreams: dict[str, URL] = field(default_factory=dict)
    allow: Names = field(default_factory=Names)


def parse(text: str) -> Settings:
    """Read the text of the file.

    Raises:
        SettingsError: It is none that this release knows.
    """
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            message = f"schema {data['schema']} is of another release"
            raise SettingsError(message)
        upstreams = {str(api): _upstream(str(address)) for api, address in data.get("upstreams", {}).items()}
        return Settings(str(data["bridge"]), upstreams, Names.of(map(str, data.get("allow", []))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"not in the form that the proxy knows: {error!r}"
        raise SettingsError(message) from error


def _upstream(address: str) -> URL:
    url = URL(address)
    if url.scheme not in {"http", "https"} or not url.host or url.query_string or url.fragment:
        message = f"{address!r} is no address of an API"
        raise SettingsError(message)
    return url


class SettingsFile:
    """The file, read anew when it has changed.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Keep where it is."""
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._settings: Settings | None = None

    def read(self) -> Settings:
        """Return the settings as they are now.

        Raises:
            SettingsError: There are none, or they cannot be used.
        """
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._settings is None or stamp != self._stamp:
                self._settings, self._stamp = parse(self.path.read_text()), stamp
        except OSError as error:
            message = f"{self.path} cannot be read: {error.strerror}"
            raise SettingsError(message) from error
        except SettingsError as error:
            message = f"{self.path}: {error}"
            raise SettingsError(message) from error
        return self._settings
