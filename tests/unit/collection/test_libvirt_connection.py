"""What a person is told when libvirt refuses."""

from __future__ import annotations

import grp
import os
import pwd
from typing import NoReturn

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils import libvirt_connection
from ansible_collections.vmw.worktree.plugins.module_utils.libvirt_connection import (
    _refusal_hint,
    find_own_domain,
    has_saved_memory,
    is_running,
)
from libvirt_support import LibvirtError

DENIED = "Failed to connect socket to '/var/run/libvirt/libvirt-sock': Permission denied"


def members(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the group have these members."""
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", "109", list(names))))


def test_somebody_outside_the_group_is_sent_to_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    members(monkeypatch, "somebody-else")
    assert "vmw host" in _refusal_hint(DENIED)


def test_somebody_who_joined_since_the_login_is_told_to_log_in_again(monkeypatch: pytest.MonkeyPatch) -> None:
    members(monkeypatch, pwd.getpwuid(os.getuid()).pw_name)
    assert "log in again" in _refusal_hint(DENIED)


def test_a_libvirt_that_does_not_run_is_another_matter() -> None:
    assert "vmw doctor" in _refusal_hint("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file")


NO_DOMAIN, INTERNAL_ERROR = 42, 1


class Libvirt:
    """Stand for libvirt's binding."""

    libvirtError = LibvirtError  # noqa: N815 - libvirt's name
    VIR_ERR_NO_DOMAIN = NO_DOMAIN
    VIR_DOMAIN_XML_INACTIVE = 2


class Gone:
    """A domain about which libvirt answers no more, by the error of that number."""

    def __init__(self, code: int = NO_DOMAIN) -> None:
        self.code = code

    def _fail(self, *_arguments: int) -> NoReturn:
        raise LibvirtError(self.code)

    XMLDesc = _fail
    isActive = _fail  # noqa: N815 - libvirt's name
    hasManagedSaveImage = _fail  # noqa: N815 - libvirt's name


class Connection:
    """A libvirt that knows one domain, whatever its name."""

    def __init__(self, domain: Gone) -> None:
        self.domain = domain

    def lookupByName(self, _name: str) -> Gone:  # noqa: N802 - libvirt's name
        return self.domain


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_connection, "libvirt", Libvirt)


def test_a_domain_that_goes_between_two_questions_is_none(libvirt: None) -> None:
    assert find_own_domain(Connection(Gone()), "one", "/record") is None
    assert not is_running(Gone())
    assert not has_saved_memory(Gone())


def test_another_refusal_is_one(libvirt: None) -> None:
    refusing = Gone(INTERNAL_ERROR)
    with pytest.raises(LibvirtError):
        find_own_domain(Connection(refusing), "one", "/record")
    with pytest.raises(LibvirtError):
        is_running(refusing)
    with pytest.raises(LibvirtError):
        has_saved_memory(refusing)
