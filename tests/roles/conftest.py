"""Fresh machines for the roles."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from testbed import container, hostimage, machine
from testbed.roles import RoleHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from testbed.hostimage import NicManager


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="the test hosts take root"))


@pytest.fixture(scope="module")
def new_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[NicManager], RoleHost]]:
    """Return what makes fresh machines with an ssh server; they end with the test module."""
    machine.install_packages()
    names: list[str] = []

    def make(manager: NicManager) -> RoleHost:
        name = f"roles-{os.getpid()}-{len(names)}"
        names.append(name)
        host = RoleHost(container.up(name, manager), tmp_path_factory.mktemp(name))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host.key)], check=True)
        public = host.key.with_suffix(".pub").read_text()
        host.run(f"install -d -m 700 ~/.ssh && echo '{public}' > ~/.ssh/authorized_keys", user=hostimage.USER)
        host.run("apt-get -qq update && apt-get -qq install --no-install-recommends openssh-server")
        return host

    try:
        yield make
    finally:
        for name in names:
            container.down(name)
