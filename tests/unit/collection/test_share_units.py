"""The units that serve a share."""

from __future__ import annotations

import configparser
import shlex

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import (
    Daemon,
    ShareSpec,
    command_line,
    quote,
    service_unit,
    socket_path,
    socket_unit,
    unit_name,
)

REPO = ShareSpec("vmw:repo", "/home/dev/w", read_only=False)
SECRETS = ShareSpec("vmw:secrets", "/home/dev/.config/vmw/secrets", read_only=True)
NEW = Daemon("/usr/libexec/virtiofsd", frozenset({"readonly", "translate-uid", "translate-gid", "fd"}))
OLD = Daemon("/usr/lib/virtiofsd", frozenset({"fd"}))


def binds(argv: list[str]) -> dict[str, str]:
    """Return the kind of bind by its destination."""
    return {argv[i + 2]: word for i, word in enumerate(argv) if word in {"--bind", "--ro-bind"}}


@pytest.mark.parametrize("daemon", [NEW, OLD])
def test_a_read_only_share_is_bound_read_only_whatever_the_daemon_can_do(daemon: Daemon) -> None:
    assert binds(command_line(daemon, SECRETS, 1234, 1235))["/share"] == "--ro-bind"
    assert binds(command_line(daemon, REPO, 1234, 1235))["/share"] == "--bind"


def test_the_namespace_shows_nothing_but_the_share_and_the_system() -> None:
    assert binds(command_line(NEW, REPO, 1, 1)) == {"/usr": "--ro-bind", "/share": "--bind"}
    assert "--unshare-all" in command_line(NEW, REPO, 1, 1)


def test_options_are_used_where_the_daemon_has_them() -> None:
    assert "--readonly" in command_line(NEW, SECRETS, 1, 1)
    assert "--readonly" not in command_line(NEW, REPO, 1, 1)
    assert "--readonly" not in command_line(OLD, SECRETS, 1, 1)
    assert "--translate-uid=squash-guest:0:1234:4294967295" in command_line(NEW, REPO, 1234, 1235)
    assert "--translate-gid=squash-guest:0:1235:4294967295" in command_line(NEW, REPO, 1234, 1235)
    assert not [word for word in command_line(OLD, REPO, 1, 1) if word.startswith("--translate")]


def test_options_are_read_from_the_help_text() -> None:
    text = "      --readonly\n      --translate-uid <TRANSLATE_UID>\n  -o <COMPAT_OPTIONS>"
    assert Daemon.probed("/x", text).options == {"readonly", "translate-uid"}


@pytest.mark.parametrize("argument", ["", "a b", 'a"b', "a'b", "a\\b", "a;b", "{{ x }}", "日本", "#a"])
def test_quoting_keeps_an_argument_one_word(argument: str) -> None:
    assert shlex.split(quote(argument)) == [argument]


def test_specifiers_and_variables_are_not_expanded() -> None:
    assert quote("100%") == "100%%"
    assert quote("a$b") == '"a$$b"'
    assert quote("/plain/path-1_2.3:4") == "/plain/path-1_2.3:4"


def test_units_are_explicit() -> None:
    service = configparser.ConfigParser(interpolation=None, strict=True)
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read_string(service_unit("n", REPO, command_line(NEW, REPO, 1, 1)))
    assert service["Service"]["ExecStart"].startswith("/usr/bin/bwrap ")
    assert service["Service"]["LimitNOFILE"] == "524288"
    assert service["Service"]["Restart"] == "no"
    listener = configparser.ConfigParser(interpolation=None, strict=True)
    listener.optionxform = str  # type: ignore[assignment,method-assign]
    listener.read_string(socket_unit("n", REPO, "/run/vmw/dev"))
    assert listener["Socket"]["ListenStream"] == "/run/vmw/dev/n-repo.sock" == socket_path("/run/vmw/dev", "n", REPO)
    assert listener["Socket"]["SocketMode"] == "0660"
    assert unit_name("n", SECRETS) == "vmw-n-secrets"
