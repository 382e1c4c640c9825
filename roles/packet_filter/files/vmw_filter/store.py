"""What is on the disk: the policies of all users, and the leases that the kernel would forget."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmw_filter import FilterError
from vmw_filter.bridge_rules import LEASE_DAYS
from vmw_filter.policy import Policy, is_name, parse_policy
from vmw_filter.ruleset import Lease

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_POLICIES = 256
"""How many VMs one user may have."""

LEASES = "leases.json"
LEASE_DRIFT_S = 3600
"""How much later a lease may end than is stored: it holds a year."""


class Store:
    """The program's directories.

    Args:
        state: Holds the policies, as USER-ID/NAME.json, and the leases: a VM that is resumed after a reboot asks for none.
        runtime: Holds the lock.
    """

    def __init__(self, state: Path, runtime: Path) -> None:
        """Take the directories as they are; they are made when something is to be written."""
        self.state = state
        self.runtime = runtime

    @classmethod
    def of_host(cls) -> Store:
        """Return the host's; systemd says where its units have theirs."""
        places = (("STATE_DIRECTORY", "/var/lib/vmw-filter"), ("RUNTIME_DIRECTORY", "/run/vmw-filter"))
        return cls(*(Path(os.environ.get(variable, default)) for variable, default in places))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Have the tables and the files to oneself."""
        self.runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def policies(self) -> dict[tuple[int, str], Policy]:
        """Return all policies by user id and name.

        One that cannot be read is left out with a warning, so that the others hold; its VM reaches nothing.
        """
        found = {}
        for path in sorted(self.state.glob("*/*.json")):
            if not path.parent.name.isdecimal() or not is_name(path.stem):
                continue
            try:
                policy = parse_policy(path.read_bytes())
                if policy.name != path.stem:
                    message = "it names another VM"
                    raise FilterError(message)  # noqa: TRY301 - one way to say it
            except (OSError, FilterError) as error:
                sys.stderr.write(f"{path} is left out: {error}\n")
                continue
            found[int(path.parent.name), policy.name] = policy
        return found

    def save(self, owner: int, policy: Policy) -> None:
        """Store a policy."""
        _write(self._path(owner, policy.name), json.dumps(policy.as_dict()))

    def forget(self, owner: int, name: str) -> None:
        """Remove a policy; where there is none, that is well."""
        path = self._path(owner, name)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def save_leases(self, leases: Iterable[Lease], now: float) -> None:
        """Store the leases of VMs that have a policy, for when the kernel has lost its tables.

        Args:
            leases: What the kernel has.
            now: The time, in seconds since 1970.
        """
        cards = {policy.tap: policy.mac for policy in self.policies().values()}
        found = {
            (lease.tap, cards[lease.tap], str(lease.address)): int(now) + lease.seconds for lease in leases if lease.tap in cards
        }
        stored = self._stored_leases()
        # Nearly always there is nothing new, and the disk may sleep.
        if found.keys() != stored.keys() or any(abs(found[key] - stored[key]) > LEASE_DRIFT_S for key in found):
            _write(self.state / LEASES, json.dumps([[*key, end] for key, end in found.items()]))

    def leases(self, now: float) -> list[Lease]:
        """Return the leases that were last stored and still hold, of VMs that have the card of then.

        Args:
            now: The time, in seconds since 1970.
        """
        cards = {(policy.tap, policy.mac) for policy in self.policies().values()}
        # A clock that was wrong makes none hold longer than a new one.
        return [
            Lease(tap, ipaddress.IPv4Address(address), min(end - int(now), LEASE_DAYS * 86400))
            for (tap, mac, address), end in self._stored_leases().items()
            if (tap, mac) in cards and end > now
        ]

    def _stored_leases(self) -> dict[tuple[str, str, str], int]:
        """Return when which lease ends, by tap, MAC address and address."""
        try:
            found = json.loads((self.state / LEASES).read_text())
            return {(tap, mac, str(ipaddress.IPv4Address(address))): int(end) for tap, mac, address, end in found}
        except (OSError, ValueError, TypeError):
            return {}

    def _path(self, owner: int, name: str) -> Path:
        return self.state / str(owner) / f"{name}.json"


def _write(path: Path, text: str) -> None:
    """Write a file that is whole at any moment, for root alone."""
    for directory in (path.parent.parent, path.parent):
        directory.mkdir(mode=0o700, exist_ok=True)
    # Under the lock nobody else writes it.
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
