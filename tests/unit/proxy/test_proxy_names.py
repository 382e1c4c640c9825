"""Which names a list allows, which addresses are public, and what else decides without a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from vmw_proxy import addresses, policy
from vmw_proxy.headers import ACCOUNTS_OWN, GUESTS_OWN, NEVER_SENT, passed_on
from vmw_proxy.keys import is_plain, split
from vmw_proxy.names import Names, NotANameError, canonical

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GitHub.com", "github.com"),
        ("github.com.", "github.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("github。com", "github.com"),
        ("_acme.a-b.example", "_acme.a-b.example"),
        ("1.example", "1.example"),
    ],
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert canonical(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "1.0x", "93.184.216.34"),
        *("::1", "[::1]", "[::ffff:127.0.0.1]", "fe80::1%eth0", "[fe80::1%25eth0]", "１２７.０.０.１", "①②⑦.0.0.1"),  # noqa: RUF001
    ],
)
def test_an_address_in_any_spelling_is_no_name(text: str) -> None:
    with pytest.raises(NotANameError, match="address"):
        canonical(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "localhost", "a..b", ".example", "a.example..", "-a.example", "a-.example", "a b.example", "a/b.example"),
        *(
            "user@a.example",
            "a%2eexample",
            "a.example\r\nx",
            "*.example",
            f"{'a' * 64}.example",
            f"{'a.' * 130}example",
            "a\0.example",
        ),
    ],
)
def test_nonsense_is_no_name(text: str) -> None:
    with pytest.raises(NotANameError, match="host name"):
        canonical(text)


def test_a_list_has_names_and_suffixes() -> None:
    names = Names.of(["GitHub.com", "*.githubusercontent.com", "bücher.example."])
    for name in ("github.com", "raw.githubusercontent.com", "a.b.githubusercontent.com", "xn--bcher-kva.example"):
        assert names.allow(name), name
    for name in (
        "githubusercontent.com",
        "evilgithub.com",
        "github.com.evil.example",
        "api.github.com",
        "xgithubusercontent.com",
        "com",
    ):
        assert not names.allow(name), name


def test_a_dead_entry_spoils_none_of_the_others() -> None:
    names = Names.of(["*", "*.", "127.0.0.1", "a.*.example", "", "github.com", "*.com.", "*.co.example"])
    assert names.unusable == ("*", "*.", "127.0.0.1", "a.*.example", "", "*.com.")
    assert names.allow("github.com")
    assert names.allow("x.co.example")
    assert not names.allow("example.com")


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255"),  # noqa: S104
        *("224.0.0.251", "239.1.1.1", "240.0.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.1", "192.0.0.9", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::fb", "fec0::1", "2001:db8::1", "3fff::1"),
        *("::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::808:808", "2002:0a00:0001::1", "2002:0808:0808::1"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "100::1", "5f00::1", "4000::1", "nonsense", ""),
    ],
)
def test_special_addresses_are_not_public(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:4860:4860::8888"],
)
def test_the_others_are(address: str) -> None:
    assert addresses.is_public(address)


ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
br0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
br0\t00710BCB\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br0\t00720BCB\t010200C0\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
wlan0\t00730BCB\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
wlan0\t00740BCB\t01730BCB\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
*\t00750BCB\t00000000\t0201\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
"""
ROUTES6 = """26064700000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 1 0 00000001      br0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 1 0 00000003      br0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 1 0 00200200       lo
2a000000000000000000000000000000 20 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 1 0 00000003      br0
2b000000000000000000000000000000 20 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 1 0 00000003      wg0
2b010000000000000000000000000000 20 00000000000000000000000000000000 00 fe800000000000000000000000000009 00000400 1 0 00000003    wlan0
2a020000000000000000000000000009 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 3 0 80200001     eth9
"""  # noqa: E501
ADDRESSES6 = "2a030000000000000000000000000009 04 40 00 82     eth9\n"
NEAR = ["203.11.113.0/24", "203.11.115.0/24", "203.11.116.0/24"]
NEAR6 = ["2606:4700::/64", "2b00::/32", "2b01::/32", "2a02::9/128", "2a03::/64"]


def test_what_is_near_is_known_from_the_routes_of_all_links() -> None:
    # As the packet filter has it: what is on any link, and what is reached by a router that is none of the way out.
    near = [str(each) for each in addresses.neighbourhood(ROUTES, ROUTES6, ADDRESSES6)]
    assert near == [*NEAR, *NEAR6]


def test_a_guest_reaches_nothing_near_with_a_public_address() -> None:
    near = addresses.neighbourhood(ROUTES, ROUTES6, ADDRESSES6)
    inside = ("203.11.113.9", "203.11.115.9", "203.11.116.9", "2606:4700::9", "2b00::1", "2b01::1", "2a02::9", "2a03::1")
    for address in (*inside, "::ffff:203.11.113.9", "64:ff9b::203.11.113.9"):
        assert addresses.may_be_reached(address, []), address
        assert not addresses.may_be_reached(address, near), address
    for address in ("203.11.114.9", "203.11.117.9", "2a00::9", "2a02::8", "2606:4700:0:1::9", "::ffff:203.11.114.9"):
        assert addresses.may_be_reached(address, near), address


def test_what_is_near_is_read_again_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    neighbourhood = addresses.Neighbourhood(tmp_path)
    assert neighbourhood.now() == []
    (tmp_path / "route").write_text(ROUTES)
    assert neighbourhood.now() == []
    clock[0] += addresses.KNOWN_SECONDS
    assert [str(each) for each in neighbourhood.now()] == NEAR
    clock[0] += addresses.KNOWN_SECONDS
    (tmp_path / "route").unlink()
    (tmp_path / "route").mkdir()
    with pytest.raises(OSError, match="directory"):
        neighbourhood.now()


def test_the_hosts_own_address_is_known() -> None:
    assert addresses.is_own("127.0.0.1")
    assert not addresses.is_own("93.184.216.34")


def test_ports_belong_to_schemes() -> None:
    assert policy.check_port("https", 443) is None
    assert policy.check_port("http", 80) is None
    assert all(policy.check_port(*each) for each in (("https", 22), ("https", 80), ("http", 443), ("https", 0)))


def test_the_server_name_is_that_of_the_tunnel() -> None:
    assert policy.check_server_name("GitHub.com", "github.com") is None
    assert policy.check_server_name(None, "github.com") == policy.NO_TLS
    assert policy.check_server_name("evil.example", "github.com")
    assert policy.check_server_name("93.184.216.34", "github.com")


def test_headers_of_one_connection_stay_there() -> None:
    sent = {
        "Connection": "close, X-Mine",
        "X-Mine": "1",
        "TE": "trailers",
        "Proxy-Authorization": "p",
        "Transfer-Encoding": "chunked",
        "Host": "h",
        "Cookie": "c",
        "x-api-key": "k",
        "X-Forwarded-For": "10.0.0.1",
        "anthropic-version": "2023-06-01",
    }
    assert dict(passed_on(sent, NEVER_SENT | GUESTS_OWN)) == {"anthropic-version": "2023-06-01"}
    assert set(passed_on(sent, NEVER_SENT)) == {"Cookie", "x-api-key", "anthropic-version"}
    assert dict(passed_on({"Set-Cookie": "a", "request-id": "r"}, ACCOUNTS_OWN)) == {"request-id": "r"}


def test_the_path_names_the_api() -> None:
    assert split("/anthropic/v1/messages?beta=true") == ("anthropic", "/v1/messages?beta=true")
    assert split("/openai/v1/responses") == ("openai", "/v1/responses")
    assert [split(each) for each in ("/", "/anthropic", "anthropic/v1", "/other/v1", "//anthropic/v1", "/Anthropic/v1")] == [
        None
    ] * 6


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages?beta=true&x=/../", "/v1/files/a.b", "/v1/models/", "/v1/a%20b", "/v1/..a"]
)
def test_a_path_that_leads_down_is_plain(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize(
    "path",
    [
        "/..",
        "/v1/../x",
        "/v1/%2e%2e/x",
        "/v1/%252e%252e/x",
        "/v1/..%2fx",
        "/./v1",
        "/v1//x",
        "//x",
        "/v1/..\\x",
        "/v1/%5c..",
        "/a%0d%0ab",
        "/v1#x",
    ],
)
def test_a_path_that_might_lead_elsewhere_is_not(path: str) -> None:
    assert not is_plain(path)
