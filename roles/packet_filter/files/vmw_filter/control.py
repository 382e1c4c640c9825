"""What is done: load the tables, follow the network, and what the users ask for."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmw_filter import INTERFACE, FilterError, kernel, ruleset, ufw
from vmw_filter.network import make_facts
from vmw_filter.policy import refuse_conflict
from vmw_filter.store import MAX_POLICIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmw_filter.network import Facts
    from vmw_filter.policy import Policy, Request
    from vmw_filter.ruleset import Lease
    from vmw_filter.store import Store


def load(store: Store) -> None:
    """Have the tables as the policies and the network want them.

    Tables of this version keep what their sets hold. Others are replaced, and the leases go over.

    Raises:
        FilterError: That failed; a host without tables then has one that lets no VM reach anything.
    """
    with store.locked():
        _load(store)


def refresh(store: Store) -> None:
    """Follow the network, store the leases, and load what somebody flushed.

    Raises:
        FilterError: That failed.
    """
    with store.locked():
        if not kernel.tables().loaded:
            _load(store)
            return
        leases = kernel.leases() or []
        policies = list(store.policies().values())
        stale = ruleset.stale(leases, policies)
        kernel.apply(ruleset.follow(_facts(policies), stale))
        store.save_leases([lease for lease in leases if lease not in stale], time.time())


def answer(store: Store, request: Request, owner: int) -> dict[str, Any]:
    """Do what a user asks for, and return the reply.

    Args:
        store: The policies.
        request: What is asked for.
        owner: User id of who asks.

    Raises:
        FilterError: It cannot be done.
    """
    with store.locked():
        if request.policy is not None:
            return {"ok": True, "changed": _set(store, request.policy, owner)}
        if request.verb == "remove":
            return {"ok": True, "changed": _remove(store, request.name, owner)}
        if request.verb == "refused":
            return {"ok": True, "refused": _refused(store, request.name, owner)}
        own = [policy.as_dict() for (uid, _), policy in sorted(store.policies().items()) if uid == owner]
        loaded = kernel.tables().loaded
        return {"ok": True, "version": INTERFACE, "loaded": loaded, "policies": own, "ufw": ufw.openings()}


def _set(store: Store, policy: Policy, owner: int) -> bool:
    policies = store.policies()
    refuse_conflict(policy, owner, policies)
    network = kernel.network()
    if not network.is_bridge(policy.bridge):
        message = f"this host has no bridge {policy.bridge}"
        raise FilterError(message, "run `vmw host`")
    before = policies.get((owner, policy.name))
    if before is None and sum(uid == owner for uid, _ in policies) >= MAX_POLICIES:
        message = f"there are {MAX_POLICIES} policies already"
        raise FilterError(message, "destroy VMs that are no longer needed: `vmw list`")
    policies[owner, policy.name] = policy
    everybody = list(policies.values())
    facts = make_facts(network, (item.bridge for item in everybody))
    tables = kernel.tables()
    if not tables.loaded:
        _replace(store, everybody, facts)
        changed = True
    else:
        changed = before != policy or policy.key not in tables.keys
        gone = {before.key} - {policy.key} if before else set()
        kernel.apply(ruleset.update_one(everybody, policy if changed else None, facts, gone))
    # Whoever is interrupted here has had no reply, and asks again.
    if before != policy:
        try:
            store.save(owner, policy)
        except OSError:
            _undo(store, policy)
            raise
        if before and (before.tap, before.mac) != (policy.tap, policy.mac):
            _forget_leases(everybody, before.tap)
        # They are stored again at the next refresh.
        with contextlib.suppress(OSError):
            _save_leases(store)
    return changed


def _forget_leases(policies: Sequence[Policy], tap: str) -> None:
    """Forget the addresses of a card that is another now, and of those that no VM has."""
    leases = kernel.leases() or []
    gone = [lease for lease in leases if lease.tap == tap]
    gone += [lease for lease in ruleset.stale(leases, policies) if lease not in gone]
    if gone:
        kernel.apply(ruleset.forget(gone))


def _undo(store: Store, policy: Policy) -> None:
    """Have the kernel as the stored policies want it, when a new one could not be stored."""
    everybody = list(store.policies().values())
    gone = {policy.key} - {item.key for item in everybody}
    kernel.apply(ruleset.update_all(everybody, _facts(everybody), gone))


def _remove(store: Store, name: str, owner: int) -> bool:
    policies = store.policies()
    policy = policies.pop((owner, name), None)
    if policy is None:
        # One that could not be read.
        store.forget(owner, name)
        return False
    everybody = list(policies.values())
    if kernel.tables().loaded:
        stale = [lease for lease in kernel.leases() or () if lease.tap == policy.tap]
        facts = _facts(everybody)
        kernel.apply(ruleset.update_one(everybody, None, facts, [policy.key]) + ruleset.follow(facts, stale))
    store.forget(owner, name)
    return True


def _refused(store: Store, name: str, owner: int) -> list[dict[str, Any]]:
    policy = store.policies().get((owner, name))
    if policy is None:
        message = f"there is no policy for a VM {name}"
        raise FilterError(message, f"a VM has one from its next start on: `vmw start {name}`")
    now = time.time()
    return [
        {
            "time": datetime.fromtimestamp(now - item.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "address": item.address,
            "protocol": item.protocol,
            "port": item.port,
            "count": item.count,
        }
        for item in kernel.refusals(policy.key)
    ]


def _facts(policies: Sequence[Policy]) -> Facts:
    return make_facts(kernel.network(), (policy.bridge for policy in policies))


def _load(store: Store) -> None:
    tables = kernel.tables()
    policies = list(store.policies().values())
    try:
        facts = _facts(policies)
        if tables.loaded:
            gone = tables.keys - {policy.key for policy in policies}
            stale = ruleset.stale(kernel.leases() or [], policies)
            kernel.apply(ruleset.update_all(policies, facts, gone) + ruleset.forget(stale))
        else:
            _replace(store, policies, facts)
    except FilterError:
        if not tables.loaded:
            kernel.apply(ruleset.CLOSED)
        raise
    _save_leases(store)


def _save_leases(store: Store) -> None:
    store.save_leases(ruleset.newest(kernel.leases() or []), time.time())


def _replace(store: Store, policies: Sequence[Policy], facts: Facts) -> None:
    """Make the tables anew, with the leases of those that were there, or else of those that were last seen."""
    known: list[Lease] | None = kernel.leases()
    kernel.apply(ruleset.replace_all(policies, facts, store.leases(time.time()) if known is None else known))
