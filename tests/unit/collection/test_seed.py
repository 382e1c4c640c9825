"""The seed's parts that come from the record."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.git_layout import read_settings
from ansible_collections.vmw.worktree.plugins.module_utils.instance import GitShare
from ansible_collections.vmw.worktree.plugins.module_utils.instance_shares import GuestShare
from ansible_collections.vmw.worktree.plugins.module_utils.layers import cloud_init as seed
from ansible_collections.vmw.worktree.plugins.module_utils.share_units import ShareSpec
from records import record

ROOT = Path(__file__).parents[3]

HOSTILE = (
    "Jörg 日本",
    'a "b" c',
    "back\\slash\\",
    "# no comment",
    "; no comment",
    "tab\there",
    "two\nlines",
    "x\n[core]\n\tfsmonitor = touch /tmp/x",
    '"]\n[alias]\n\tst = !x',
    " blanks ",
    "$HOME `id` %n",
    "carriage\rreturn",
    "\\n",
)


def settings(git: GitShare, directory: Path) -> list[tuple[str, str]]:
    """Return the guest's settings as git reads them."""
    file = directory / "gitconfig"
    file.write_text(seed.git_config(git), newline="")
    return read_settings(file)


@pytest.mark.parametrize("value", HOSTILE)
def test_any_name_comes_back_as_it_was(tmp_path: Path, value: str) -> None:
    assert settings(GitShare(user_name=value, user_email=value), tmp_path) == [
        ("safe.directory", "*"),
        ("user.name", value),
        ("user.email", value),
    ]


def test_without_a_name_git_asks_for_one(tmp_path: Path) -> None:
    assert settings(GitShare(), tmp_path) == [("safe.directory", "*")]


def test_half_a_name_is_taken_too(tmp_path: Path) -> None:
    assert ("user.email", "a@b") in settings(GitShare(user_email="a@b"), tmp_path)
    assert "user.name" not in dict(settings(GitShare(user_email="a@b"), tmp_path))


@pytest.mark.parametrize(("mode", "expected"), [("protected", True), ("isolated", False), ("none", False)])
def test_git_is_kept_from_cleaning_up_where_the_host_owns_the_repository(tmp_path: Path, mode: str, *, expected: bool) -> None:
    found = dict(settings(GitShare(mode=mode), tmp_path))
    assert ("gc.auto" in found) == ("maintenance.auto" in found) == ("gc.worktreepruneexpire" in found) == expected


def unescaped(field: str) -> str:
    """Read a field as fstab(5) says: three octal digits after a backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


@pytest.mark.parametrize("path", ["/a b", "/a  b ", "/a#b", "/#a", "/a\\b", "/a\\040b", "/a\\", "/日本/a:b,c"])
def test_a_mountpoint_is_one_field_and_means_the_same(path: str) -> None:
    field = seed.fstab_path(path)
    assert unescaped(field) == path
    assert not re.search(r"[\s#]", field)


def mount(mountpoint: str) -> list[str]:
    (line,) = seed.mounts([GuestShare(ShareSpec("vmw:git", "/x", read_only=False), mountpoint)])
    return line


def test_a_mount_has_every_field() -> None:
    assert mount("/srv/repo") == ["vmw:git", "/srv/repo", "virtiofs", "rw,nosuid,nodev,nofail,x-mount.mkdir", "0", "0"]


META = {"instance-id": "0bd16cbf-4c3a-4a46-9aee-0f6aa3e1f2a7", "local-hostname": "n"}
VARIABLES = ("id", "machine", "host", "fqdn", "private", "public", "account", "uid", "authorized", "mounts")


def user_data(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the user data of a VM."""
    return {
        "hostname": "n",
        "fqdn": "n.local",
        "users": [{"name": "claude", "uid": 1234, "ssh_authorized_keys": ["ssh-ed25519 AAAA one", "ssh-rsa BBBB two"]}],
        "ssh_keys": {"ed25519_private": "-----BEGIN\nxyz\n-----END\n", "ed25519_public": "ssh-ed25519 CCCC n\n"},
        "write_files": [{"path": "/etc/gitconfig", "content": "[user]\n\tname = x\n"}],
        "mounts": [mount("/srv/a b"), mount("/srv/repo")],
        **changed,
    }


def as_sh_reads(directory: Path, text: str) -> tuple[dict[str, str], list[str]]:
    """Return the variables and the positional parameters that a shell has after it has read a rendered identity."""
    file = directory / "words"
    file.write_text(text, newline="")
    quoted = " ".join(f'"${name}"' for name in VARIABLES)
    # The dot command leaves the parameters that the file sets.
    script = f'. "$1"; for value in {quoted} "$@"; do printf "%s\\0" "$value"; done'
    done = subprocess.run(["sh", "-euc", script, "sh", str(file)], check=True, capture_output=True)
    values = done.stdout.decode().split("\0")[:-1]
    return dict(zip(VARIABLES, values, strict=False)), values[len(VARIABLES) :]


def test_the_rendered_identity_says_what_the_user_data_says(tmp_path: Path) -> None:
    values, files = as_sh_reads(tmp_path, seed.rendered(user_data(), META))
    assert values == {
        "id": META["instance-id"],
        "machine": "0bd16cbf4c3a4a469aee0f6aa3e1f2a7",
        "host": "n",
        "fqdn": "n.local",
        "private": "-----BEGIN\nxyz\n-----END\n",
        "public": "ssh-ed25519 CCCC n",
        "account": "claude",
        "uid": "1234",
        "authorized": "ssh-ed25519 AAAA one\nssh-rsa BBBB two",
        "mounts": "\n".join("\t".join(mount(path)) for path in ("/srv/a b", "/srv/repo")),
    }
    assert files == ["/etc/gitconfig", "[user]\n\tname = x\n"]


@pytest.mark.parametrize("value", [*HOSTILE, "'; touch /tmp/x; '", "$(id)", "'\\''", "a\\\nb"])
def test_nothing_in_it_is_more_than_a_word_to_the_shell(tmp_path: Path, value: str) -> None:
    data = user_data(
        users=[{"name": "claude", "uid": 1, "ssh_authorized_keys": [value]}], write_files=[{"path": "/x", "content": value}]
    )
    values, files = as_sh_reads(tmp_path, seed.rendered(data, META))
    assert values["authorized"] == value
    assert files == ["/x", value]


def test_the_guests_program_uses_what_the_host_assigns() -> None:
    program = (ROOT / "roles/golden_image/files/identity.sh").read_text()
    used = set(re.findall(r"\$(\w+)", re.sub(r"(?m)^\s*#.*", "", program))) - {"1", "2"}
    own = set(re.findall(r"(?m)^\s*(?:local )?(\w+)=|read -r ([\w ]+)|for (\w+) in", program))
    assigned = {name for words in own for word in words for name in word.split()}
    from_host = {*VARIABLES, "now", "entropy", "grown"}
    assert used - assigned <= from_host
    assert from_host - used == set()


def test_the_identity_is_the_records() -> None:
    instance = record()
    data, network = seed.identity(instance)
    assert (data["hostname"], data["fqdn"]) == (instance.name, f"{instance.name}.local")
    (user,) = data["users"]
    assert (user["name"], user["uid"], user["ssh_authorized_keys"]) == (
        instance.guest_user,
        instance.uid,
        instance.authorized_keys,
    )
    assert network["ethernets"]["lan"] == {"match": {"macaddress": instance.mac}, "dhcp4": True, "dhcp-identifier": "mac"}
