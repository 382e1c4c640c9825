"""The transactions' text. What the rules do is tested in the kernel, by the tests of the role."""

from __future__ import annotations

import ipaddress
import re

import pytest
from filter_support import policy
from vmw_filter import bridge_rules, ruleset
from vmw_filter.network import Facts
from vmw_filter.policy import Mode
from vmw_filter.ruleset import Lease, follow, newest, replace_all, update_all, update_one

FACTS = Facts(
    (ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("2a05::/64")),
    (ipaddress.ip_address("192.168.1.1"),),
    (ipaddress.ip_address("192.168.1.10"), ipaddress.ip_address("fe80::1")),
)


def lease(number: int, address: str, seconds: int = 100) -> Lease:
    return Lease(f"vmw-0000000{number}", ipaddress.IPv4Address(address), seconds)


def test_tables_are_replaced_in_one_transaction_with_the_leases_of_vms_that_have_a_policy() -> None:
    leases = [lease(1, "192.168.1.7", 5), lease(1, "192.168.1.8", 9), lease(3, "192.168.1.9")]
    lines = replace_all([policy(1), policy(2)], FACTS, leases).splitlines()
    assert lines[:3] == ["add table bridge vmw", "delete table bridge vmw", "add table bridge vmw"]
    restored = [line for line in lines if line.startswith("add element bridge vmw leases")]
    assert restored == ["add element bridge vmw leases { vmw-00000001 . 0xc0a80108 timeout 365d expires 9s }"]
    assert sum(line.startswith("delete") for line in lines) == 2


def test_change_of_one_vm_has_rules_of_that_one_alone() -> None:
    one, two = policy(1), policy(2, Mode.OFFLINE)
    text = update_one([one, two], two, FACTS, [])
    assert "flush chain bridge vmw guard_00000002\n" in text
    assert "chain bridge vmw guard_00000001" not in text
    assert "set bridge vmw flows4_00000001" not in text
    assert bridge_rules.LEASES not in re.sub(r"add rule .*\n", "", text)
    # The maps are filled anew, as one.
    expected = "add element bridge vmw guards { vmw-00000001 : goto guard_00000001, vmw-00000002 : goto guard_00000002 }\n"
    assert f"flush map bridge vmw guards\n{expected}" in text


def test_vm_that_is_gone_is_taken_out_of_the_maps_before_its_chains_go() -> None:
    lines = update_one([policy(1)], None, FACTS, ["00000002"]).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("delete chain"))
    assert lines.index("flush map bridge vmw guards") < first
    assert lines.index("flush map inet vmw forwards") < first
    deleted = {line.split()[-1] for line in lines if line.startswith("delete")}
    declared = set(re.findall(r"\w+_00000002", "\n".join(lines)))
    assert deleted == declared


def test_update_of_all_makes_no_table_and_touches_no_lease() -> None:
    text = update_all([policy(1), policy(2)], FACTS, ["00000009"])
    assert "table" not in text
    assert "element bridge vmw leases" not in text
    assert "delete chain bridge vmw guard_00000009\n" in text


def test_sets_follow_the_network() -> None:
    text = follow(FACTS, [lease(1, "10.0.0.1")])
    assert "flush set bridge vmw near4\nadd element bridge vmw near4 { 192.168.1.0/24 }\n" in text
    assert "flush set inet vmw near6\nadd element inet vmw near6 { 2a05::/64 }\n" in text
    assert "flush set bridge vmw resolvers6\nflush set" in text
    assert text.endswith("delete element bridge vmw leases { vmw-00000001 . 0x0a000001 }\n")


def test_nothing_is_abroad_while_the_network_is_not_known() -> None:
    assert "add element bridge vmw not_abroad4 { 192.168.1.0/24 }\n" in follow(FACTS, [])
    text = follow(Facts(FACTS.near), [])
    for family in ("bridge", "inet"):
        assert f"add element {family} vmw not_abroad4 {{ 0.0.0.0/0 }}\n" in text
        assert f"add element {family} vmw not_abroad6 {{ ::/0 }}\n" in text
    assert "add element bridge vmw near4 { 192.168.1.0/24 }\n" in text


def test_newest_lease_of_each_vm_counts() -> None:
    old, new, other = lease(1, "10.0.0.1", 7), lease(1, "10.0.0.2", 8), lease(2, "10.0.0.3", 1)
    assert newest([old, new, other]) == [new, other]
    same = lease(1, "10.0.0.4", 8)
    assert newest([old, new, same]) == [new, same]


@pytest.mark.parametrize("mode", Mode)
def test_every_mode_has_the_rules_against_a_false_sender(mode: Mode) -> None:
    rules = bridge_rules.vm_rules(policy(1, mode))["guard"]
    assert rules == bridge_rules.vm_rules(policy(1))["guard"]
    assert rules[0] == "ether saddr != 52:54:00:00:00:01 drop"
    assert rules[-1] == "drop"


def test_version_changes_with_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ruleset.version()
    assert ruleset.version() == before
    monkeypatch.setitem(bridge_rules.BASE_RULES, "input", ["drop"])
    assert ruleset.version() != before
