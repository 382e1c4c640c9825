"""What a VM may reach: names, policies, and what its guest is told."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import egress
from ansible_collections.vmw.worktree.plugins.module_utils.egress import Egress, check_host, guest_script
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError

if TYPE_CHECKING:
    from pathlib import Path

URL = "http://192.168.177.1:47123"


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("github.com", "github.com"),
        ("GitHub.COM.", "github.com"),
        ("*.github.com", "*.github.com"),
        ("a_b.example.org", "a_b.example.org"),
        ("XN--bcher-kva.example", "xn--bcher-kva.example"),
        ("*.Github.com.", "*.github.com"),
        ("foo.0xyz", "foo.0xyz"),
        ("3com.com", "3com.com"),
        ("1.2.3.com", "1.2.3.com"),
    ],
)
def test_a_name_is_compared_in_one_form(host: str, plain: str) -> None:
    assert check_host(host) == plain


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "*",
        "*.com",
        "*.*.org",
        "a*.org",
        "10.0.0.1",
        "1.2.3.4",
        "0x7f.1",
        "foo.0x7f",
        "foo.0X",
        "foo.0x7f.",
        "::1",
        "[::1]",
        "github.com:443",
        "https://github.com",
        "github.com/x",
        "-a.org",
        "a..org",
        "a.b..",
        "*..org",
        "a b.org",
        "a.org\n",
        "a.org\nb.org",
        f"{'a' * 64}.org",
        f"{'a.' * 130}org",
    ],
)
def test_what_is_no_name_is_refused(host: str) -> None:
    # `0x7f.1` is an address to inet_aton(3), and `*.com` would be half of the net.
    with pytest.raises(VmwError, match="is not the name of a host") as caught:
        check_host(host)
    assert caught.value.code == "usage"
    assert caught.value.hint


@pytest.mark.parametrize("host", ["bücher.example", "*.straße.example", "a。org", "１.org"])  # noqa: RUF001
def test_a_name_is_given_in_the_form_that_dns_has(host: str) -> None:
    # IDNA of 2003 and of 2008 make two names of `straße`: the list would have one, and the proxy would compare the other.
    with pytest.raises(VmwError, match="other letters") as caught:
        check_host(host)
    assert (caught.value.code, "xn--" in str(caught.value.hint)) == ("usage", True)


def test_a_change_keeps_what_it_does_not_name() -> None:
    before = Egress("allowlist", ["a.org"], told=URL)
    assert before.changed("") == before
    assert before.changed("offline") == Egress("offline", ["a.org"], told=URL)
    assert before.changed("", allow=["B.org", "a.org"]) == Egress("allowlist", ["a.org", "b.org"], told=URL)
    assert before.changed("", forbid=["a.org.", "never.org"]) == Egress("allowlist", [], told=URL)


def test_a_list_has_an_end() -> None:
    full = Egress("allowlist", [f"h{number}.org" for number in range(egress.MAX_HOSTS)])
    assert full.changed("offline").mode == "offline"
    with pytest.raises(VmwError, match="1001 hosts are more"):
        full.changed("", allow=["one.more.org"])


def test_a_policy_of_another_name_is_refused() -> None:
    with pytest.raises(VmwError, match="'shut' is no network policy"):
        Egress().changed("shut")


def test_a_tap_fits_the_kernel() -> None:
    name = egress.tap_name("1d4a46bb-4f6b-4e04-b6b9-6a6d2d0f0e5b")
    assert name == "vmw-1d4a46bb"
    # IFNAMSIZ of linux/if.h, with the zero at its end.
    assert len(name) < 16


def test_each_user_has_a_port() -> None:
    assert egress.proxy_port(0, 1000) != egress.proxy_port(0, 1001)
    assert egress.proxy_port(0, 4_000_000_000) < 65536
    assert egress.proxy_port(8123, 1000) == 8123


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the guest's files in a directory of the test's."""
    monkeypatch.setattr(egress, "ENVIRONMENT", str(tmp_path / "environment"))
    monkeypatch.setattr(egress, "APT", str(tmp_path / "apt"))
    return tmp_path


def run(script: str) -> None:
    subprocess.run(["sh"], input=script, text=True, check=True, capture_output=True)


def test_a_guest_is_told_its_proxy_and_forgets_it(guest: Path) -> None:
    environment = guest / "environment"
    environment.write_text("EDITOR=vi\nhttp_proxy=http://old:1\nPATH=/a:/b")
    run(guest_script(URL))
    lines = environment.read_text().splitlines()
    assert lines[:2] == ["EDITOR=vi", "PATH=/a:/b"]
    assert f"https_proxy={URL}" in lines
    assert f"HTTP_PROXY={URL}" in lines
    assert "NODE_USE_ENV_PROXY=1" in lines
    (beside,) = [line for line in lines if line.startswith("no_proxy=")]
    assert beside.split(",")[-1] == "192.168.177.1"
    assert "old" not in environment.read_text()
    assert f'Acquire::https::Proxy "{URL}";' in (guest / "apt").read_text()
    once = environment.read_text()
    run(guest_script(URL))
    assert environment.read_text() == once
    run(guest_script(""))
    assert environment.read_text() == "EDITOR=vi\nPATH=/a:/b\n"
    assert not (guest / "apt").exists()


def test_a_guest_without_such_files_needs_none(guest: Path) -> None:
    run(guest_script(""))
    assert (guest / "environment").read_text() == ""
    run(guest_script(URL))
    assert (guest / "environment").read_text().startswith(f"http_proxy={URL}\n")
