"""How `secrets.env` is read, and what a guest sees of it whose keys stay on the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import key_proxy

PLACE = "192.168.150.1:47000"
SECRETS = """# mine
ANTHROPIC_API_KEY=sk-ant-real
export OPENAI_API_KEY="sk-proj-real"
PERPLEXITY_API_KEY=pplx-real
GH_TOKEN=
ANTHROPIC_BASE_URL=https://gateway.example
"""


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("K=v", "v"),
        ("  K=v  ", "v"),
        ("export K=v", "v"),
        ("\t export K=v", "v"),
        ("export K=\u00a0v\u3000", "\u00a0v\u3000"),
        ("K=a=b", "a=b"),
        ("K=v # mine", "v"),
        ("K=v#mine", "v"),
        ('K="v"', "v"),
        ("K='v'", "v"),
        ("K='a b'", "a b"),
        ("K=a b", "a b"),
        (r"K=a\b$c%d", r"a\b$c%d"),
        ("K=", ""),
        ("K=1\r\nL=2", "1"),
        ("K=1\nK=2", "2"),
        ("K=1\nK\nK=3", "3"),
        ("K=1\nK # mine", "1"),
        ("K=1\nexport  K=2", "1"),
        ("K=a\\\nb==", "ab=="),
        ("K=a\\ \t\n  b", "a  b"),
        ("K\\\n=\\\nv", "v"),
        ("\\\nK=v", "v"),
        ("exp\\\nort K=v", "v"),
        ("K=a\\\n\n# mine \\\n  # mine\nb", "ab"),
        ("K=a\\\nb # mine \\\nL=w", "ab"),
        ("K=a\\\\\nb", r"a\b"),
        ("K=a\\ # mine\nL=w", "a\\"),
        ("K=a\\\r\nL=w", "a\\"),
        ("# mine \\\nK=v", "v"),
        ("K=v\nL=\\", "v"),
        ("K=v\nK=w\\\n", "v"),
    ],
)
def test_lines_are_read_as_in_a_guest(line: str, value: str) -> None:
    assert key_proxy.parse(line)["K"] == value


@pytest.mark.parametrize(
    "line", ["", "#K=v", "K", "K v", "K =v", "=v", "export", "expor K=v", "K-L=v", "\u00a0K=v", "\x0cK=v", "\u00c4=v"]
)
def test_other_lines_are_passed_over(line: str) -> None:
    assert key_proxy.parse(f"{line}\nL=w\n") == {"L": "w"}


@pytest.mark.parametrize("text", ["K=v\nK", "K=v\n  export K", "K=v\nK#mine", "K=v\nK=w\nK"])
def test_a_name_alone_takes_a_variable_away(text: str) -> None:
    assert key_proxy.parse(f"{text}\n1L=w\n") == {"1L": "w"}


def test_only_a_line_feed_ends_a_line() -> None:
    assert key_proxy.parse("K=a\x0bb\x85c\u2028d\r\nL=e") == {"K": "a\x0bb\x85c\u2028d", "L": "e"}


def test_a_guest_sees_placeholders_for_the_keys_that_there_are() -> None:
    shown = key_proxy.guest_secrets(SECRETS, "feature-x", PLACE)
    assert key_proxy.parse(shown.text) == {
        "ANTHROPIC_API_KEY": "vmw-feature-x",
        "ANTHROPIC_BASE_URL": f"http://{PLACE}/anthropic",
        "OPENAI_API_KEY": "vmw-feature-x",
        "OPENAI_BASE_URL": f"http://{PLACE}/openai/v1",
        "PERPLEXITY_API_KEY": "pplx-real",
        "GH_TOKEN": "",
    }
    assert (shown.readable, shown.unusable, shown.no_address) == (("PERPLEXITY_API_KEY",), (), ())
    for hidden in ("sk-ant-real", "sk-proj-real", "gateway.example", "mine"):
        assert hidden not in shown.text


def test_other_variables_are_shown_as_they_stand_there() -> None:
    rows = [
        "EQUALS=a=b==",
        "BLANKS=two  words  ",
        "  export INDENTED=x",
        "PERCENT=50%d",
        r"BACKSLASH=a\b",
        "DOLLAR=$HOME ${HOME} @{HOME}",
        "DOUBLE=\"in 'quotes'\"",
        "SINGLE='open",
        "TWICE=1",
        "TWICE=2",
        "RETURN=x\r",
        "EMPTY=",
        "BYTES=\udcff\udc80",
    ]
    text = "\n".join(["ANTHROPIC_API_KEY=sk-old", *rows, "ANTHROPIC_API_KEY=sk-new", "HASH=before# sk-older", "# sk-oldest"])
    shown = key_proxy.guest_secrets(text, "vm", PLACE)
    lines = shown.text.split("\n")
    assert [line for line in lines if not line.startswith(("#", "ANTHROPIC_"))] == [*rows, "HASH=before", ""]
    assert "sk-" not in shown.text
    names = [row.strip().removeprefix("export ").partition("=")[0] for row in rows]
    assert shown.readable == tuple(dict.fromkeys(name for name in [*names, "HASH"] if name != "EMPTY"))


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("ANTHROPIC_API_KEY=\\\nX=sk-REAL\n", {}),
        ("ANTHROPIC_\\\nAPI_KEY=sk-REAL\n", {}),
        ("ANTHROPIC_API_KEY=sk-aaa\\\nREAL==\n", {}),
        ("ANTHROPIC_API_KEY=sk-aaa\\\n# mine\n\nREAL=\nFOO=1", {"FOO": "1"}),
        ("\\\n  export ANTHROPIC_API_KEY=sk-REAL\nFOO=1", {"FOO": "1"}),
        ("FOO=1\\ # mine\nANTHROPIC_API_KEY=sk-REAL\n", {"FOO": "1\\"}),
        ("FOO=1\\\nANTHROPIC_API_KEY=2\nANTHROPIC_API_KEY=sk-REAL", {"FOO": "1ANTHROPIC_API_KEY=2"}),
        ("ANTHROPIC_API_KEY=k\nANTHROPIC_API_KEY=sk-REAL\\\n", {}),
    ],
)
def test_no_part_of_a_key_that_is_joined_is_shown(text: str, others: dict[str, str]) -> None:
    shown = key_proxy.guest_secrets(text, "vm", PLACE)
    keys = {"ANTHROPIC_API_KEY": "vmw-vm", "ANTHROPIC_BASE_URL": f"http://{PLACE}/anthropic"}
    assert key_proxy.parse(shown.text) == {**keys, **others}
    assert "REAL" not in shown.text
    assert shown.readable == tuple(others)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FOO=a\\\n  b", "FOO=a  b"),
        ("FOO=a\\ \n# mine\nb # mine", "FOO=ab "),
        ("FOO=1\\ # mine", "FOO=1\\ #"),
        ("FOO=1\\# mine \\", "FOO=1\\#"),
        ("FOO=a\\\\\nb", r"FOO=a\b"),
    ],
)
def test_a_line_for_a_guest_is_whole_and_joins_no_other(text: str, line: str) -> None:
    shown = key_proxy.guest_secrets(f"{text}\nBAR=2\n", "vm", PLACE)
    assert shown.text.splitlines()[-2:] == [line, "BAR=2"]
    assert key_proxy.parse(shown.text) == key_proxy.parse(f"{text}\nBAR=2\n")
    assert shown.readable == ("FOO", "BAR")


def test_a_variable_that_is_taken_away_is_so_in_a_guest() -> None:
    shown = key_proxy.guest_secrets("FOO=1\nOPENAI_API_KEY=sk-real\nOPENAI_API_KEY\nexport FOO\nLANG\n", "vm", PLACE)
    assert shown.text.splitlines()[2:] == ["FOO=1", "export FOO", "LANG"]
    assert key_proxy.parse(shown.text) == {}
    assert (shown.readable, shown.unusable, shown.withheld) == ((), (), ())


def test_the_value_of_a_key_is_withheld_under_any_name() -> None:
    rows = [
        "COPY=12345678",
        "export URL='https://12345678@gateway.example'",
        "JOINED=1234\\\n5678",
        "OLD=older-key-x",
        "BLANK=with blank",
        "TWICE=fine",
        "TWICE=12345678",
        "PART=1234567",
        "SHORT=a1234b",
    ]
    keys = "ANTHROPIC_API_KEY=older-key\nANTHROPIC_API_KEY=12345678\nANTHROPIC_AUTH_TOKEN=1234\nOPENAI_API_KEY=with blank\n"
    shown = key_proxy.guest_secrets(keys + "\n".join(rows), "vm", PLACE)
    assert shown.text.splitlines()[-2:] == ["PART=1234567", "SHORT=a1234b"]
    assert shown.withheld == ("COPY", "URL", "JOINED", "OLD", "BLANK", "TWICE")
    assert (shown.readable, shown.unusable) == (("PART", "SHORT"), ("OPENAI_API_KEY",))
    assert not [word for word in ("12345678", "older-key", "with blank", "TWICE") if word in shown.text]


def test_nothing_leads_to_the_proxy_without_a_key() -> None:
    shown = key_proxy.guest_secrets("ANTHROPIC_AUTH_TOKEN=t\nOPENAI_API_KEY=with blank\n", "vm", "[fd00::1]:1")
    assert key_proxy.parse(shown.text) == {"ANTHROPIC_AUTH_TOKEN": "vmw-vm", "ANTHROPIC_BASE_URL": "http://[fd00::1]:1/anthropic"}
    assert shown.unusable == ("OPENAI_API_KEY",)
    assert "blank" not in shown.text
    assert key_proxy.parse(key_proxy.guest_secrets("", "vm", PLACE).text) == {}


def test_a_login_by_token_goes_its_own_way() -> None:
    shown = key_proxy.guest_secrets("ANTHROPIC_API_KEY=\nCLAUDE_CODE_OAUTH_TOKEN=t\nANTHROPIC_BASE_URL=http://h\n", "vm", PLACE)
    assert key_proxy.parse(shown.text) == {"CLAUDE_CODE_OAUTH_TOKEN": "t", "ANTHROPIC_BASE_URL": "http://h"}
    assert shown.readable == ("CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_BASE_URL")


@pytest.mark.parametrize(
    "address",
    ["https://gateway.example", "http://localhost:4000/", "https://gw.example/a/b", "http://[::1]:8080/x", "http://10.0.0.1:1"],
)
def test_addresses_that_can_be_used(address: str) -> None:
    assert key_proxy.is_address(address)
    secrets = f"OPENAI_API_KEY=k\nOPENAI_BASE_URL={address}\n"
    assert key_proxy.guest_secrets(secrets, "vm", PLACE).no_address == ()
    assert key_proxy.own_address(key_proxy.parse(secrets), "openai") == address


@pytest.mark.parametrize(
    "address",
    [
        "gateway.example", "ftp://h", "file:///etc/passwd", "https://", "https:///v1", "https://user:word@h", "http://h:0",
        "http://h:port", "http://h:99999", "http://h/?a=b", "http://h?", "http://h/a b", "http://h\u00e4.example", "http://[::1",
        "https://h\\@other",
    ],
)  # fmt: skip
def test_addresses_that_cannot(address: str) -> None:
    assert not key_proxy.is_address(address)
    shown = key_proxy.guest_secrets(f"ANTHROPIC_API_KEY=k\nANTHROPIC_BASE_URL={address}\n", "vm", PLACE)
    assert shown.no_address == ("ANTHROPIC_BASE_URL",)
    assert key_proxy.parse(shown.text)["ANTHROPIC_BASE_URL"] == f"http://{PLACE}/anthropic"


def test_an_address_without_a_value_is_none() -> None:
    secrets = key_proxy.parse("ANTHROPIC_API_KEY=k\nANTHROPIC_BASE_URL=\n")
    assert key_proxy.own_address(secrets, "anthropic") == ""
    assert key_proxy.guest_secrets("ANTHROPIC_API_KEY=k\nANTHROPIC_BASE_URL=\n", "vm", PLACE).no_address == ()


@pytest.mark.parametrize(
    ("api", "path", "below"),
    [
        ("anthropic", "/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("openai", "/v1/responses", "/responses"),
        ("openai", "/v1/", "/"),
        ("openai", "/v1", None),
        ("openai", "/v10/x", None),
        ("openai", "/other", None),
    ],
)
def test_an_address_of_ones_own_is_one_for_clients(api: str, path: str, below: str | None) -> None:
    assert key_proxy.below_own_address(api, path) == below


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a state directory with a proxy, a profile and a VM."""
    for part in ("proxy", "secrets/default", "instances/vm"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "proxy/settings.json").write_text('{"schema": 1, "address": "192.168.150.1", "port": 47000, "bridge": "br0"}')
    return tmp_path


def test_the_file_is_written_when_it_changes_and_for_the_user_alone(root: Path) -> None:
    profile, copy = root / "secrets/default/secrets.env", root / "instances/vm/guest-secrets/secrets.env"
    profile.write_bytes(b"OPENAI_API_KEY=k\nTOKEN=\xff\xfe\r\n")
    assert key_proxy.refresh(root, "vm", profile).readable == ("TOKEN",)
    assert copy.read_bytes().endswith(b"OPENAI_BASE_URL=http://192.168.150.1:47000/openai/v1\nTOKEN=\xff\xfe\r\n")
    assert [oct(path.stat().st_mode & 0o777) for path in (copy, copy.parent)] == ["0o600", "0o700"]
    before = copy.stat()
    key_proxy.refresh(root, "vm", profile)
    assert copy.stat() == before
    profile.write_text("TOKEN=other\n")
    key_proxy.refresh(root, "vm", profile)
    assert copy.stat().st_ino != before.st_ino
    assert key_proxy.parse(copy.read_text()) == {"TOKEN": "other"}
    copy.chmod(0o644)
    key_proxy.refresh(root, "vm", profile)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in copy.parent.iterdir()] == ["secrets.env"]


def test_without_a_profile_there_are_no_variables(root: Path) -> None:
    key_proxy.refresh(root, "vm", root / "secrets/default/secrets.env")
    assert key_proxy.parse((root / "instances/vm/guest-secrets/secrets.env").read_text()) == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (None, "not set up"),
        ("{", "not set up"),
        ("[]", "not set up"),
        ('{"schema": 1, "port": 47000}', "not set up"),
        ('{"schema": 1, "address": "", "port": 47000}', "no address"),
    ],
)
def test_without_a_proxy_nothing_is_written(root: Path, settings: str | None, words: str) -> None:
    (root / "proxy/settings.json").unlink()
    if settings is not None:
        (root / "proxy/settings.json").write_text(settings)
    with pytest.raises(key_proxy.NoProxyError, match=words):
        key_proxy.refresh(root, "vm", root / "secrets/default/secrets.env")
    assert not (root / "instances/vm/guest-secrets").exists()


def test_the_template_of_a_profile_has_no_key() -> None:
    template = Path(__file__).resolve().parents[3] / "roles/secrets/files/secrets.env"
    assert key_proxy.parse(template.read_text()) == {"ANTHROPIC_API_KEY": ""}
    filled = (
        template.read_text().replace("ANTHROPIC_API_KEY=", "ANTHROPIC_API_KEY=k").replace("#OPENAI_API_KEY=", "OPENAI_API_KEY=k")
    )
    assert key_proxy.guest_secrets(filled, "vm", PLACE).readable == ()
