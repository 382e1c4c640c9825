"""Golden-image generations: checksums, names, manifests and what may be removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.image import (
    BaseImage,
    CallerWatch,
    Manifest,
    Progress,
    acting_as,
    current_generation,
    digest_in_sums,
    file_sha512,
    generation_name,
    generations,
    inputs_hash,
    load_manifest,
    parse_checksum,
    removable,
    used_generations,
)
from ansible_collections.vmw.worktree.plugins.module_utils.state import State

DIGEST = "0123456789abcdef" * 8
OTHER = "f" * 128
OLD = "20261101-120000-0000000a"
NEW = "20261102-120000-0000000b"


def manifest(generation: str) -> Manifest:
    """Return a manifest like a real one."""
    return Manifest(
        schema=1,
        generation=generation,
        created="2026-11-01T12:00:00+00:00",
        base_image=BaseImage("https://images.example.org/a.qcow2", DIGEST),
        debian="12.12",
        kernel="6.1.0-41-cloud-amd64",
        cmdline="root=UUID=x ro",
        node="24.11.1",
        claude_code="2.1.330",
        virtual_size=20 << 30,
        guest_user="claude",
        inputs="abc",
    )


def publish(state: State, generation: str, *, current: bool = False) -> Path:
    """Make a generation's directory."""
    directory = state.images / generation
    directory.mkdir(parents=True)
    (directory / "disk.qcow2").write_text("disk")
    (directory / "manifest.json").write_text(json.dumps(manifest(generation).as_dict()))
    if current:
        state.golden_image.symlink_to(Path("images", generation, "disk.qcow2"))
    return directory


@pytest.mark.parametrize("value", [DIGEST, DIGEST.upper()])
def test_a_literal_digest_is_taken_in_lower_case(value: str) -> None:
    assert parse_checksum(f"sha512:{value}").digest == DIGEST


def test_a_checksum_may_be_the_url_of_a_sums_file() -> None:
    checksum = parse_checksum("sha512:https://images.example.org/SHA512SUMS")
    assert checksum.sums_url == "https://images.example.org/SHA512SUMS"
    assert not checksum.digest


@pytest.mark.parametrize(
    "setting", ["", DIGEST, "sha512:", "sha512:abc", f"sha256:{DIGEST}", "sha512:/etc/SHA512SUMS", f"sha512:{DIGEST}0"]
)
def test_another_checksum_is_a_usage_error(setting: str) -> None:
    with pytest.raises(VmwError) as caught:
        parse_checksum(setting)
    assert caught.value.code == "usage"


def test_a_digest_is_found_by_the_exact_name() -> None:
    sums = f"{OTHER}  a.qcow2.old\n{OTHER}  xa.qcow2\n{DIGEST} *a.qcow2\n{OTHER}  a.raw\n"
    assert digest_in_sums(sums, "a.qcow2") == DIGEST


@pytest.mark.parametrize("sums", ["", "<html>not found</html>", f"{DIGEST}  b.qcow2\n", "abc  a.qcow2\n"])
def test_an_unlisted_image_is_an_error_in_words(sums: str) -> None:
    with pytest.raises(VmwError, match=r"does not list a\.qcow2"):
        digest_in_sums(sums, "a.qcow2")


def test_a_file_digest_is_that_of_sha512sum(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 << 20))
    expected = subprocess.run(["sha512sum", path], check=True, capture_output=True, text=True).stdout.split()[0]
    assert file_sha512(path) == expected


def test_the_inputs_hash_does_not_depend_on_order() -> None:
    assert inputs_hash({"a": 1, "b": {"c": 2, "d": 3}}) == inputs_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert inputs_hash({"a": 1}) != inputs_hash({"a": 2})


def test_generation_names_sort_by_age_and_differ_by_input() -> None:
    early = datetime(2026, 11, 24, 9, 30, 12, tzinfo=UTC)
    late = early.replace(year=2027)
    name = generation_name(early, "inputs", DIGEST)
    assert name.startswith("20261124-093012-")
    assert len(name) == len("20261124-093012-5f0c1a9e")
    assert name < generation_name(late, "inputs", DIGEST)
    assert name != generation_name(early, "inputs", OTHER)


def test_a_manifest_survives_being_written_and_read(tmp_path: Path) -> None:
    directory = publish(State(tmp_path), OLD)
    assert load_manifest(directory) == manifest(OLD)


def test_a_later_manifest_with_more_fields_is_read(tmp_path: Path) -> None:
    directory = publish(State(tmp_path), OLD)
    data = {**manifest(OLD).as_dict(), "schema": 2, "colour": "blue"}
    (directory / "manifest.json").write_text(json.dumps(data))
    found = load_manifest(directory)
    assert found is not None
    assert found.schema == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"base_image": 1}', json.dumps(manifest(NEW).as_dict())])
def test_a_directory_without_its_own_manifest_is_no_generation(tmp_path: Path, content: str) -> None:
    directory = publish(State(tmp_path), OLD)
    (directory / "manifest.json").write_text(content)
    assert load_manifest(directory) is None


def test_the_link_names_the_current_generation(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert current_generation(state) is None
    publish(state, NEW)
    assert current_generation(state) is None
    publish(state, OLD, current=True)
    assert current_generation(state) == manifest(OLD)


def test_a_dangling_link_is_no_golden_image(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.golden_image.symlink_to("images/gone/disk.qcow2")
    assert current_generation(state) is None


def test_only_generations_are_listed(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert generations(state) == []
    publish(state, NEW)
    publish(state, OLD)
    for name in (".download", ".failed", f".build-{OLD}", "mine"):
        (state.images / name).mkdir()
    assert generations(state) == [OLD, NEW]


def test_what_is_current_or_used_stays() -> None:
    assert removable(["a", "b", "c", "d"], "c", {"a"}) == ["b", "d"]
    assert removable(["a"], "", set()) == ["a"]
    assert removable([], "a", {"b"}) == []


def test_used_generations_come_from_the_records(tmp_path: Path) -> None:
    state = State(tmp_path)
    for name, generation in (("one", OLD), ("two", OLD), ("three", NEW)):
        (state.instances / name).mkdir(parents=True)
        (state.instances / name / "instance.json").write_text(json.dumps({"generation": generation}))
    (state.instances / "empty").mkdir()
    assert used_generations(state) == {OLD, NEW}


@pytest.mark.parametrize("record", ["", "{", "{}", "[]"])
def test_nothing_is_unused_while_a_record_is_unreadable(tmp_path: Path, record: str) -> None:
    state = State(tmp_path)
    (state.instances / "one").mkdir(parents=True)
    (state.instances / "one" / "instance.json").write_text(record)
    with pytest.raises(VmwError, match="cannot be read") as caught:
        used_generations(state)
    assert "vmw destroy one" in caught.value.hint


def test_nothing_is_unused_while_a_disk_has_no_record(tmp_path: Path) -> None:
    state = State(tmp_path)
    (state.instances / "one").mkdir(parents=True)
    (state.instances / "one" / "disk.qcow2").touch()
    with pytest.raises(VmwError, match="no instance record"):
        used_generations(state)


def test_progress_is_a_file_that_goes_away(tmp_path: Path) -> None:
    state = State(tmp_path)
    progress = Progress(state, "Download the base image", "bytes")
    progress.update(5, 10, "half")
    assert json.loads(state.progress.read_text()) == {
        "schema": 1,
        "task": "Download the base image",
        "done": 5,
        "total": 10,
        "unit": "bytes",
        "detail": "half",
    }
    progress.close()
    progress.close()
    assert not state.progress.exists()


WATCHER = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[3] / "collections")!r})
from {CallerWatch.__module__} import CallerWatch
watch = CallerWatch()
try:
    print("ready", flush=True)
    while True:
        watch.check()
        time.sleep(0.05)
except Exception as error:
    print(error, file=sys.stderr)
"""


def test_a_module_notices_that_nobody_reads_its_result() -> None:
    with subprocess.Popen([sys.executable, "-c", WATCHER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as module:
        assert module.stdout is not None
        assert module.stderr is not None
        assert module.stdout.readline() == "ready\n"
        module.stdout.close()
        assert module.stderr.read() == "interrupted\n"
        assert module.wait(timeout=5) == 0


def test_a_module_that_is_terminated_ends_in_good_order() -> None:
    with subprocess.Popen([sys.executable, "-c", WATCHER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as module:
        assert module.stdout is not None
        assert module.stderr is not None
        assert module.stdout.readline() == "ready\n"
        module.terminate()
        assert module.stderr.read() == "interrupted\n"
        assert module.wait(timeout=5) == 0


def test_acting_as_oneself_changes_nothing() -> None:
    before = os.getresuid()
    with acting_as(os.getuid()):
        assert os.getresuid() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as others")
def test_root_makes_files_as_the_user_and_comes_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for directory in tmp_path.parents[:2]:
        directory.chmod(0o755)
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    with acting_as(1):
        (tmp_path / "file").touch()
        subprocess.run(["touch", tmp_path / "child"], check=True)
    assert {(tmp_path / name).stat().st_uid for name in ("file", "child")} == {1}
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
