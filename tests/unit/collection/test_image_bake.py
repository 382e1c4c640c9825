"""Following a build: what ends it, and in which words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image_builder import Console
from ansible_collections.vmw.worktree.plugins.module_utils.state import State
from ansible_collections.vmw.worktree.plugins.modules import image_bake

if TYPE_CHECKING:
    from pathlib import Path

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
STEPS = [{"name": "packages", "title": "Install the packages"}, {"name": "clean", "title": "Clean up"}]


class Waiting:
    """Somebody who waits for the module's result for ever."""

    def check(self) -> None:
        """Do nothing."""


class Guest:
    """A builder that says one thing each time it is looked at, and then is off."""

    def __init__(self, console: Path, *says: str) -> None:
        self.console = console
        self.says = list(says)
        self.paused = False

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        if not self.says:
            return 0
        with self.console.open("a") as handle:
            handle.write(self.says.pop(0))
        return 1

    def state(self) -> list[int]:
        """Tell libvirt's state and its reason."""
        return [3, 5] if self.paused else [1, 1]


@pytest.fixture
def baker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> image_bake.Baker:
    monkeypatch.setattr(image_bake, "CallerWatch", Waiting)
    monkeypatch.setattr(image_bake, "POLL_SECONDS", 0.001)
    params: dict[str, Any] = {
        "steps": STEPS,
        "inputs": {},
        "base_image_sha512": "0" * 128,
        "virt_type": "qemu",
        "silence": 60,
    }
    baker = image_bake.Baker(params, State(tmp_path))
    baker.build.directory.mkdir(parents=True)
    baker.build.console.touch()
    return baker


def test_a_build_that_says_done_and_powers_off_is_fine(baker: image_bake.Baker) -> None:
    baker.watch(Guest(baker.build.console, "vmw-bake: step 1/2 a\n", "vmw-bake: step 2/2 b\n", "vmw-bake: done\n"))


def test_a_failed_step_is_named_with_the_guests_words(baker: image_bake.Baker) -> None:
    guest = Guest(
        baker.build.console,
        "vmw-bake: step 1/2 Install\n",
        "vmw-bake| E: Unable to locate package git\nvmw-bake: failed: packages: exit status 100\n",
    )
    with pytest.raises(VmwError) as caught:
        baker.watch(guest)
    assert "'Install the packages': exit status 100" in caught.value.message
    assert "E: Unable to locate package git" in caught.value.message


def test_the_last_words_of_a_builder_that_is_off_are_heard(baker: image_bake.Baker) -> None:
    baker.build.console.write_text("vmw-bake: step 2/2 Clean\nvmw-bake: failed: clean: exit status 1\n")
    with pytest.raises(VmwError, match="'Clean up': exit status 1"):
        baker.watch(Guest(baker.build.console))


def test_a_builder_that_ends_too_early_has_failed(baker: image_bake.Baker) -> None:
    with pytest.raises(VmwError, match="'Install the packages': the builder stopped"):
        baker.watch(Guest(baker.build.console, "vmw-bake: step 1/2 a\n"))


def test_a_builder_that_never_speaks_has_failed_to_boot(baker: image_bake.Baker) -> None:
    with pytest.raises(VmwError, match="'Boot the builder': the builder stopped"):
        baker.watch(Guest(baker.build.console))


def test_a_silent_builder_is_given_up(baker: image_bake.Baker) -> None:
    baker.params["silence"] = 0
    with pytest.raises(VmwError, match="printed nothing for"):
        baker.watch(Guest(baker.build.console, *[""] * 1000))


def test_a_paused_builder_means_a_full_disk(baker: image_bake.Baker) -> None:
    guest = Guest(baker.build.console, "vmw-bake: step 1/2 a\n", *[""] * 1000)
    guest.paused = True
    with pytest.raises(VmwError, match="'Install the packages': the builder was paused") as caught:
        baker.watch(guest)
    assert "make room" in caught.value.hint


def test_a_builder_that_does_not_power_off_is_given_up(baker: image_bake.Baker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_bake, "POWER_OFF_SECONDS", 0.0)
    with pytest.raises(VmwError, match="does not power off"):
        baker.watch(Guest(baker.build.console, "vmw-bake: done\n", *[""] * 1000))


def test_progress_counts_the_hosts_steps_too(baker: image_bake.Baker) -> None:
    told: list[tuple[int, int, str]] = []
    baker.progress.update = lambda done, total, detail="": told.append((done, total, detail))  # type: ignore[method-assign]
    baker.watch(Guest(baker.build.console, "vmw-bake: step 1/2 a\n", "vmw-bake: step 2/2 b\n", "vmw-bake: done\n"))
    assert told == [(1, 5, "Install the packages"), (2, 5, "Clean up")]


def test_an_impossible_step_number_harms_nothing(baker: image_bake.Baker) -> None:
    console = Console()
    console.feed("vmw-bake: step 99/99 x\n")
    assert baker.title(console.step) == "Boot the builder"


def test_the_console_of_a_failed_build_is_kept(baker: image_bake.Baker) -> None:
    assert baker.keep_console() == ""
    baker.build.console.write_text("words")
    log = baker.keep_console()
    assert log.endswith("/images/.failed/console.log")
    assert not baker.build.console.exists()


def test_a_certificate_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_text(PEM)
    assert image_bake.read_certificate(str(path)) == PEM


@pytest.mark.parametrize("content", [b"", b"\x30\x82\xff\xfe", b"no certificate"])
def test_another_file_is_no_certificate(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ca.crt"
    path.write_bytes(content)
    with pytest.raises(VmwError) as caught:
        image_bake.read_certificate(str(path))
    assert "vmw_ca_certificates" in caught.value.hint


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(VmwError, match=r"missing\.crt cannot be read"):
        image_bake.read_certificate(str(tmp_path / "missing.crt"))


def test_a_full_disk_is_told_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_bake, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(VmwError, match="needs") as caught:
        image_bake.check_space(tmp_path)
    assert "vmw image prune" in caught.value.hint
