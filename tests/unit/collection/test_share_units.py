"""The units that serve a share."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import (
    COPY,
    FOLLOW,
    MIRROR,
    PLAIN_FILTER,
    Bind,
    Daemon,
    Mirror,
    ShareSpec,
    command_line,
    command_words,
    mirror_unit,
    quote,
    service_unit,
    socket_path,
    socket_unit,
    unit_name,
)

if TYPE_CHECKING:
    from pathlib import Path

REPO = ShareSpec("vmw:repo", "/home/dev/w", read_only=False)
SECRETS = ShareSpec("vmw:secrets", "/home/dev/.config/vmw/secrets", read_only=True)
NEW = Daemon("/usr/libexec/virtiofsd", frozenset({"readonly", "translate-uid", "translate-gid", "fd"}))
OLD = Daemon("/usr/lib/virtiofsd", frozenset({"fd"}))


def binds(argv: list[str]) -> dict[str, str]:
    """Return the kind of bind by its destination."""
    return {argv[i + 2]: word for i, word in enumerate(argv) if word in {"--bind", "--ro-bind", "--ro-bind-try"}}


@pytest.mark.parametrize("daemon", [NEW, OLD])
def test_a_read_only_share_is_bound_read_only_whatever_the_daemon_can_do(daemon: Daemon) -> None:
    assert binds(command_line(daemon, SECRETS, 1234, 1235))["/share"] == "--ro-bind"
    assert binds(command_line(daemon, REPO, 1234, 1235))["/share"] == "--bind"


def test_a_fresh_share_is_asked_each_time() -> None:
    assert "--cache=never" in command_line(NEW, replace(SECRETS, fresh=True), 1, 1)
    assert "--cache=auto" in command_line(NEW, SECRETS, 1, 1)


def test_the_namespace_shows_nothing_but_the_share_and_the_system() -> None:
    argv = command_line(NEW, REPO, 1, 1)
    system = dict.fromkeys(("/usr", "/bin", "/lib", "/lib64", "/sbin"), "--ro-bind-try")
    assert binds(argv) == {**system, "/share": "--bind"}
    assert "--unshare-all" in argv


def test_the_namespace_is_made_without_links_and_devices() -> None:
    # The filter of a plain share would keep bubblewrap itself from making them.
    assert not {"--symlink", "--dev"} & set(command_line(NEW, REPO, 1, 1))


def test_options_are_used_where_the_daemon_has_them() -> None:
    assert "--readonly" in command_line(NEW, SECRETS, 1, 1)
    assert "--readonly" not in command_line(NEW, REPO, 1, 1)
    assert "--readonly" not in command_line(OLD, SECRETS, 1, 1)
    assert "--translate-uid=squash-guest:0:1234:4294967295" in command_line(NEW, REPO, 1234, 1235)
    assert "--translate-gid=squash-guest:0:1235:4294967295" in command_line(NEW, REPO, 1234, 1235)
    assert not [word for word in command_line(OLD, REPO, 1, 1) if word.startswith(("--translate", "--migration"))]


def test_a_file_that_is_gone_does_not_keep_a_suspended_vm_from_going_on() -> None:
    daemon = Daemon("/x", frozenset({"migration-mode", "migration-on-error"}))
    assert "--migration-on-error=guest-error" in command_line(daemon, SECRETS, 1, 1)


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


# --- what stands in a share ----------------------------------------------------------------------------------------

BINDS = (Bind("/g/objects", "objects", read_only=False), Bind("/g/objects/info", "objects/info", read_only=True))
SCRATCH = ShareSpec("vmw:git", "/g", read_only=False, binds=BINDS, plain=True, scratch=True)


def shown(argv: list[str]) -> list[str]:
    """Return the part of bubblewrap's command line that makes the share."""
    return argv[argv.index("/proc") + 1 : argv.index("--")]


def test_binds_stand_over_the_share_in_their_order() -> None:
    share = ShareSpec("vmw:repo", "/w", read_only=False, binds=(Bind("/m/dot-git", ".git", read_only=True),))
    assert shown(command_line(NEW, share, 1, 1)) == ["--bind", "/w", "/share", "--ro-bind", "/m/dot-git", "/share/.git"]


def test_a_scratch_share_shows_its_binds_and_a_bounded_rest() -> None:
    assert shown(command_line(NEW, SCRATCH, 1, 1)) == [
        *("--size", "67108864", "--tmpfs", "/share"),
        *("--bind", "/g/objects", "/share/objects"),
        *("--ro-bind", "/g/objects/info", "/share/objects/info"),
    ]


@pytest.mark.parametrize(("share", "expected"), [(SCRATCH, True), (REPO, False), (SECRETS, False)])
def test_only_a_plain_share_is_kept_from_making_links_and_devices(share: ShareSpec, *, expected: bool) -> None:
    text = service_unit("n", share, command_line(NEW, share, 1, 1))
    assert (PLAIN_FILTER in text) == expected
    assert ("SystemCallFilter" in text) == expected


def test_every_path_of_a_share_is_checked_for_links_first() -> None:
    lines = service_unit("n", SCRATCH, ["/x"]).splitlines()
    (check,) = (line for line in lines if line.startswith("ExecStartPre="))
    assert shlex.split(check)[-4:] == ["sh", "/g", "/g/objects", "/g/objects/info"]
    assert lines.index(check) < lines.index("ExecStart=/x")


# --- copies that follow the host's files ---------------------------------------------------------------------------


def mirror(*pairs: tuple[Path, Path]) -> None:
    """Run the script as the unit does."""
    subprocess.run(["/bin/sh", "-c", MIRROR + COPY, "sh", *(path for pair in pairs for path in pair)], check=True)


def test_a_copy_is_brought_up_to_date_in_place(tmp_path: Path) -> None:
    source, copy = tmp_path / "config", tmp_path / "copy"
    copy.write_text("a longer old content\n")
    inode = copy.stat().st_ino
    source.write_text("new\n")
    mirror((source, copy))
    assert copy.read_text() == "new\n"
    assert copy.stat().st_ino == inode


def test_a_copy_follows_a_file_that_was_replaced(tmp_path: Path) -> None:
    source, copy = tmp_path / "config", tmp_path / "copy"
    for content in ("one", "two"):
        (tmp_path / "config.lock").write_text(content)
        (tmp_path / "config.lock").rename(source)
        mirror((source, copy))
        assert copy.read_text() == content


def test_a_copy_of_nothing_is_empty(tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("old")
    mirror((tmp_path / "gone", tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == ""


def test_a_link_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "copy").write_text("old")
    mirror((tmp_path / "link", tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == ""


def test_neither_a_directory_nor_a_fifo_is_copied(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    copies = (tmp_path / "one", tmp_path / "two")
    mirror((tmp_path / "directory", copies[0]), (tmp_path / "fifo", copies[1]))
    assert [copy.read_text() for copy in copies] == ["", ""]


def test_a_copy_that_is_right_is_not_written(tmp_path: Path) -> None:
    source, copy = tmp_path / "config", tmp_path / "copy"
    for path in (source, copy):
        path.write_text("same\n")
    os.utime(copy, ns=(1, 1))
    mirror((source, copy))
    assert copy.stat().st_mtime_ns == 1


def test_several_copies_with_any_names_are_made_at_once(tmp_path: Path) -> None:
    names = ("a b", "$HOME", "-n", "quo'te\"s", "100%", "日本", "*")
    pairs = [(tmp_path / name, tmp_path / f"copy of {name}") for name in names]
    for source, _ in pairs[:-1]:
        source.write_text(source.name)
    mirror(*pairs)
    assert [copy.read_text() for _, copy in pairs] == [*names[:-1], ""]


def test_the_script_is_what_the_unit_runs() -> None:
    text = mirror_unit("n", MIRRORED)
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    words = shlex.split(line.removeprefix("ExecStart=").replace("%%", "%").replace("$$", "$"))
    pairs = ["/a b/100% $x/config", "/m/config", "/a b/100% $x/HEAD", "/m/HEAD"]
    assert words == ["/bin/sh", "-c", FOLLOW, "sh", "/a b/100% $x", "/(config|HEAD)$", *pairs]


MIRRORED = ShareSpec(
    "vmw:git",
    "/a b/100% $x",
    read_only=False,
    mirrors=(Mirror("/a b/100% $x/config", "/m/config"), Mirror("/a b/100% $x/HEAD", "/m/HEAD")),
)


def test_the_copies_unit_ends_with_the_daemon() -> None:
    assert "BindsTo=vmw-n-git.service" in mirror_unit("n", MIRRORED).splitlines()


@pytest.mark.skipif(not shutil.which("inotifywait"), reason="asks inotifywait")
def test_copies_follow_every_change(tmp_path: Path) -> None:
    source, copy = tmp_path / "git/config", tmp_path / "copy"
    source.parent.mkdir()
    source.write_text("one")
    argv = ["/bin/sh", "-c", FOLLOW, "sh", str(source.parent), "/(config)$", str(source), str(copy)]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        for content in ("one", "two", "three"):
            (tmp_path / "git/config.lock").write_text(content)
            (tmp_path / "git/config.lock").rename(source)
            deadline = time.monotonic() + 10
            while not copy.exists() or copy.read_text() != content:
                assert time.monotonic() < deadline, f"{content} did not come"
                time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_daemon_starts_with_fresh_copies_and_has_them_followed() -> None:
    lines = service_unit("n", MIRRORED, ["/x"]).splitlines()
    before = [line for line in lines if line.startswith("ExecStartPre=")]
    assert len(before) == 2
    assert "cmp -s" in before[1]
    assert "Wants=vmw-n-mirror.service" in lines


def test_a_share_without_copies_wants_nothing() -> None:
    text = service_unit("n", REPO, ["/x"])
    assert "Wants=" not in text
    assert text.count("ExecStartPre=") == 1


def test_what_follows_a_share_is_wanted_while_it_is_served() -> None:
    lines = service_unit("n", replace(REPO, follower="vmw-keys.service"), ["/x"]).splitlines()
    assert lines.index("Wants=vmw-keys.service") < lines.index("[Service]")


@pytest.mark.parametrize("argument", ["a b", "$x ${x}", "%h %%", 'a"b', "a\\b"])
def test_words_of_a_command_stay_apart(argument: str) -> None:
    text = command_words("x", argument, "y").replace("%%", "%").replace("$$", "$")
    assert shlex.split(text) == ["x", argument, "y"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="asks systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("a b$c", "100%")}
    for path in paths.values():
        path.mkdir()
    share = ShareSpec(
        "vmw:git",
        str(paths["a b$c"]),
        read_only=False,
        binds=(Bind(str(paths["100%"]), "x", read_only=True),),
        plain=True,
        scratch=True,
        mirrors=(Mirror(str(paths["100%"] / "config"), str(tmp_path / "copy")),),
    )
    units = {
        "vmw-n-git.service": service_unit("n", share, ["/bin/true", "a b$c", "100%"]),
        "vmw-n-mirror.service": mirror_unit("n", share),
    }
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(str(tmp_path / name) for name in units)]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "vmw-n-" in line], done.stderr
