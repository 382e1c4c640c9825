"""Requests and stored policies: what is taken, and that nothing else is."""

from __future__ import annotations

import json

import pytest
from filter_support import WANTED, line, policy
from vmw_filter import FilterError
from vmw_filter.policy import MAX_REQUEST, Mode, Policy, Request, parse_policy, parse_request, refuse_conflict


def test_request_is_read() -> None:
    expected = Policy("feature-x", "vmw-1a2b3c4d", "52:54:00:aa:bb:cc", "br0", Mode.INTERNET, 47100)
    assert parse_request(line()) == Request("set", "feature-x", expected)
    assert expected.key == "1a2b3c4d"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a"),
        ("name", "a" * 63),
        ("name", "1-2"),
        ("tap", "vmw-00000000"),
        ("mac", "02:00:00:00:00:00"),
        ("bridge", "br0.5"),
        ("bridge", "A" * 15),
        ("mode", "offline"),
        ("proxy_port", 0),
        ("proxy_port", 1024),
        ("proxy_port", 65535),
        ("schema", 1),
        ("schema", None),
    ],
)
def test_value_at_the_edge_is_taken(field: str, value: object) -> None:
    assert parse_request(line(**{field: value})).policy is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a" * 64),
        ("name", "Feature"),
        ("name", "-a"),
        ("name", "a-"),
        ("name", "a.b"),
        ("name", ".."),
        ("name", "../0/other"),
        ("name", "a/b"),
        ("name", "a\n"),
        ("name", "a\x00b"),
        ("name", "\u00e4"),
        ("name", "\u0661"),
        ("name", 7),
        ("name", ["a"]),
        ("name", {"a": 1}),
        ("name", None),
        ("tap", ""),
        ("tap", "vnet0"),
        ("tap", "eth0"),
        ("tap", "vmw-1A2B3C4D"),
        ("tap", "vmw-1a2b3c4"),
        ("tap", "vmw-1a2b3c4d5"),
        ("tap", "vmw-1a2b3c4d\n"),
        ("tap", "vmw-*"),
        ("tap", "vmw-1a2b3c4d : accept"),
        ("tap", 1),
        ("tap", None),
        ("mac", ""),
        ("mac", "52:54:00:AA:BB:CC"),
        ("mac", "52-54-00-aa-bb-cc"),
        ("mac", "525400aabbcc"),
        ("mac", "52:54:00:aa:bb"),
        ("mac", "52:54:00:aa:bb:cc:dd"),
        ("mac", "ff:ff:ff:ff:ff:ff"),
        ("mac", "01:00:5e:00:00:01"),
        ("mac", "00:00:00:00:00:00"),
        ("mac", "52:54:00:aa:bb:cc\n"),
        ("mac", "52:54:00:aa:bb:cc drop\nadd rule inet vmw input accept"),
        ("mac", None),
        ("bridge", ""),
        ("bridge", "."),
        ("bridge", "-a"),
        ("bridge", "a" * 16),
        ("bridge", "br0\n"),
        ("bridge", 'br0" }\nflush ruleset\n'),
        ("bridge", "br0;"),
        ("bridge", "br/0"),
        ("bridge", "*"),
        ("bridge", None),
        ("mode", "OPEN"),
        ("mode", ""),
        ("mode", "open\n"),
        ("mode", True),
        ("mode", ["open"]),
        ("mode", {}),
        ("mode", None),
        ("proxy_port", -1),
        ("proxy_port", 1),
        ("proxy_port", 22),
        ("proxy_port", 1023),
        ("proxy_port", 65536),
        ("proxy_port", 10**30),
        ("proxy_port", "47100"),
        ("proxy_port", 47100.0),
        ("proxy_port", True),
        ("proxy_port", False),
        ("proxy_port", [47100]),
        ("proxy_port", None),
        ("schema", 2),
        ("schema", "1"),
        ("schema", True),
        ("schema", 1.0),
        ("verb", "load"),
        ("verb", ""),
        ("verb", ["set"]),
        ("verb", None),
        ("uid", 0),
        ("owner", "root"),
    ],
)
def test_hostile_value_is_refused(field: str, value: object) -> None:
    parse_request(line())
    with pytest.raises(FilterError):
        parse_request(line(**{field: value}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"set"',
        b"{",
        b"\xff\xfe",
        '{"verb": "\u00e4"}'.encode(),
        b"[" * 4000,
        b'{"verb": NaN}',
        line(name="a" * MAX_REQUEST),
        b" " * MAX_REQUEST + line(),
        line() + line(),
    ],
)
def test_what_is_no_request_is_refused(text: bytes) -> None:
    with pytest.raises(FilterError):
        parse_request(text)


@pytest.mark.parametrize("verb", ["remove", "refused"])
def test_request_about_a_vm_has_its_name_and_no_more(verb: str) -> None:
    assert parse_request(json.dumps({"verb": verb, "name": "a"}).encode()) == Request(verb, "a")
    for fields in ({}, {"name": "../a"}, {"name": "a", "mode": "open"}, {"name": 1}):
        with pytest.raises(FilterError):
            parse_request(json.dumps({"verb": verb, **fields}).encode())


def test_status_is_asked_without_a_name() -> None:
    assert parse_request(b'{"verb": "status"}') == Request("status")
    with pytest.raises(FilterError):
        parse_request(b'{"verb": "status", "name": "a"}')


def test_stored_policy_is_read_as_strictly() -> None:
    one = policy(port=47100)
    assert parse_policy(json.dumps(one.as_dict()).encode()) == one
    for changed in ({"tap": "eth0"}, {"mode": "all"}, {"more": 1}):
        with pytest.raises(FilterError):
            parse_policy(json.dumps({**one.as_dict(), **changed}).encode())
    with pytest.raises(FilterError):
        parse_policy(json.dumps(WANTED).encode())


def test_own_policy_may_be_changed_and_a_free_card_taken() -> None:
    one, two = policy(1), policy(2)
    refuse_conflict(one, 1000, {})
    refuse_conflict(one, 1000, {(1000, one.name): one, (1000, two.name): two, (1001, two.name): two})


@pytest.mark.parametrize("owner", [1000, 1001])
@pytest.mark.parametrize("field", ["tap", "mac"])
def test_card_of_another_vm_is_refused(owner: int, field: str) -> None:
    one, two = policy(1), policy(2)
    taken = Policy(**{**two.as_dict(), field: getattr(one, field)})
    with pytest.raises(FilterError, match="the VM vm1" if owner == 1000 else "a VM of another user") as error:
        refuse_conflict(taken, owner, {(1000, one.name): one})
    assert ("vm1" in error.value.hint) == (owner == 1000)


def test_vm_of_the_same_name_of_another_user_is_another() -> None:
    one = policy(1)
    with pytest.raises(FilterError, match="another user"):
        refuse_conflict(one, 1001, {(1000, one.name): one})
