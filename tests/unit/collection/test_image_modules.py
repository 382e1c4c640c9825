"""The golden image's modules as Ansible runs them: processes that read arguments and print a result."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECTIONS = Path(__file__).parents[3] / "collections"
RUN = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module(f"ansible_collections.vmw.worktree.plugins.modules.{sys.argv[1]}")
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""
CONTENT = os.urandom(3 << 20)
DIGEST = hashlib.sha512(CONTENT).hexdigest()
OLD = "20261101-120000-0000000a"
UNUSED = "20261102-120000-0000000b"
NEW = "20261103-120000-0000000c"


class Module:
    """Start a module like Ansible does, with a state directory of its own."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def start(self, name: str, **arguments: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        values = json.dumps({"state_dir": str(self.state_dir), **arguments})
        return subprocess.Popen(
            [sys.executable, "-c", RUN, name, values],
            env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        output, words = self.start(name, **arguments).communicate(timeout=60)
        assert output, words
        result: dict[str, Any] = json.loads(output)
        return result

    def download(self, url: str, checksum: str = f"sha512:{DIGEST}", **arguments: Any) -> dict[str, Any]:  # noqa: ANN401
        return self.run("image_download", url=url, checksum=checksum, **arguments)

    @property
    def downloads(self) -> Path:
        return self.state_dir / "images" / ".download"


class SlowHandler(http.server.BaseHTTPRequestHandler):
    """Serve the content so slowly that a test can step in."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        for start in range(0, len(CONTENT), 1 << 15):
            try:
                self.wfile.write(CONTENT[start : start + (1 << 15)])
            except OSError:
                return
            time.sleep(0.2)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401
        """Keep the tests' output clean."""


@pytest.fixture
def module(tmp_path: Path) -> Module:
    return Module(tmp_path / "state")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def slow_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/base.qcow2"
        server.shutdown()


def test_an_image_is_downloaded_once(module: Module, image: Path) -> None:
    first = module.download(image.as_uri())
    assert (first["changed"], first["sha512"]) == (True, DIGEST)
    assert Path(first["path"]).read_bytes() == CONTENT
    image.unlink()
    second = module.download(image.as_uri())
    assert (second["changed"], second["path"]) == (False, first["path"])
    assert not (module.state_dir / "progress.json").exists()


def test_a_kept_image_that_was_damaged_is_downloaded_again(module: Module, image: Path) -> None:
    path = Path(module.download(image.as_uri())["path"])
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert module.download(image.as_uri())["changed"]
    assert path.read_bytes() == CONTENT


def test_the_digest_comes_from_a_sums_file(module: Module, image: Path) -> None:
    sums = image.with_name("SHA512SUMS")
    sums.write_text(f"{'0' * 128}  other.qcow2\n{DIGEST}  {image.name}\n")
    assert module.download(image.as_uri(), f"sha512:{sums.as_uri()}")["sha512"] == DIGEST


def test_an_interrupted_download_is_carried_on(module: Module, image: Path) -> None:
    module.downloads.mkdir(parents=True)
    part = module.downloads / f"{DIGEST[:32]}.part"
    part.write_bytes(CONTENT[:1_000_000])
    number = part.stat().st_ino
    result = module.download(image.as_uri())
    assert Path(result["path"]).read_bytes() == CONTENT
    assert Path(result["path"]).stat().st_ino == number


def test_a_wrong_image_is_thrown_away_and_both_digests_are_told(module: Module, image: Path) -> None:
    expected = "0" * 128
    result = module.download(image.as_uri(), f"sha512:{expected}")
    assert result["failed"]
    assert expected in result["msg"]
    assert DIGEST in result["msg"]
    assert "vmw_base_image_checksum" in result["hint"]
    assert not list(module.downloads.iterdir())


def test_a_wrong_beginning_is_thrown_away(module: Module, image: Path) -> None:
    module.downloads.mkdir(parents=True)
    (module.downloads / f"{DIGEST[:32]}.part").write_bytes(b"x" * 1_000_000)
    assert module.download(image.as_uri())["failed"]
    assert module.download(image.as_uri())["changed"]


def test_a_missing_image_is_told_in_words(module: Module, image: Path) -> None:
    image.unlink()
    sums = image.with_name("SHA512SUMS").as_uri()
    result = module.download(image.as_uri(), f"sha512:{sums}")
    assert result["failed"]
    assert sums in result["msg"]
    assert (result["code"], bool(result["hint"])) == ("failed", True)


def test_check_mode_downloads_nothing(module: Module, image: Path) -> None:
    result = module.download(image.as_uri(), _ansible_check_mode=True)
    assert result["changed"]
    assert not module.state_dir.exists()


def test_check_mode_sees_a_bad_checksum(module: Module, image: Path) -> None:
    assert module.download(image.as_uri(), "md5:1", _ansible_check_mode=True)["code"] == "usage"


def test_an_interruption_keeps_the_part_and_ends_curl(module: Module, slow_server: str) -> None:
    process = module.start("image_download", url=slow_server, checksum=f"sha512:{DIGEST}")
    part = module.downloads / f"{DIGEST[:32]}.part"
    progress = module.state_dir / "progress.json"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size and progress.exists()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert json.loads(progress.read_text())["total"] == len(CONTENT)
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert json.loads(output)["msg"] == "interrupted"
    assert not progress.exists()
    size = part.stat().st_size
    time.sleep(0.6)
    assert part.stat().st_size == size


def generation(state_dir: Path, name: str) -> None:
    """Make a generation's directory."""
    directory = state_dir / "images" / name
    directory.mkdir(parents=True)
    (directory / "disk.qcow2").write_bytes(bytes(8192))
    (directory / "manifest.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "generation": name,
                "created": "",
                "base_image": {"url": "", "sha512": ""},
                "debian": "",
                "kernel": "",
                "cmdline": "",
                "node": "",
                "claude_code": "",
                "virtual_size": 1,
                "guest_user": "claude",
                "inputs": "other",
            }
        )
    )


@pytest.fixture
def three_generations(module: Module) -> Module:
    for name in (OLD, UNUSED, NEW):
        generation(module.state_dir, name)
    (module.state_dir / "golden-image.qcow2").symlink_to(f"images/{NEW}/disk.qcow2")
    record = module.state_dir / "instances" / "one" / "instance.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"generation": OLD}))
    (module.state_dir / "images" / ".build-x").mkdir()
    return module


def test_pruning_removes_what_nothing_uses(three_generations: Module) -> None:
    images = three_generations.state_dir / "images"
    planned = three_generations.run("image_prune", _ansible_check_mode=True)
    assert (images / UNUSED).exists()
    done = three_generations.run("image_prune")
    assert planned["removed"] == done["removed"] == [UNUSED]
    assert done["freed_bytes"] >= 8192
    assert sorted(path.name for path in images.iterdir()) == [OLD, NEW]
    assert not three_generations.run("image_prune")["changed"]


def test_pruning_removes_templates_of_which_nothing_is_forked_any_more(three_generations: Module) -> None:
    images = three_generations.state_dir / "images"
    for name in (OLD, NEW):
        template = images / name / "templates" / "0123"
        template.mkdir(parents=True)
        (template / "memory").write_bytes(b"x" * 16384)
    planned = three_generations.run("image_prune", _ansible_check_mode=True)
    assert (images / OLD / "templates").exists()
    done = three_generations.run("image_prune")
    assert planned["removed"] == done["removed"] == [UNUSED, f"the template of {OLD}"]
    assert done["freed_bytes"] >= 16384 + 8192
    assert not (images / OLD / "templates").exists()
    assert (images / OLD / "disk.qcow2").exists()
    assert (images / NEW / "templates/0123/memory").exists()


def test_pruning_stops_before_a_record_it_cannot_read(three_generations: Module) -> None:
    (three_generations.state_dir / "instances" / "one" / "instance.json").write_text("{")
    result = three_generations.run("image_prune")
    assert result["failed"]
    assert (three_generations.state_dir / "images" / UNUSED).exists()


def test_pruning_a_fresh_host_is_nothing(module: Module) -> None:
    assert not module.run("image_prune")["changed"]
    assert not module.state_dir.exists()


def test_info_names_the_current_generation_and_warns_about_other_settings(three_generations: Module) -> None:
    result = three_generations.run("image_info", libvirt_uri="test:///nowhere", inputs={"a": 1})
    assert result["generation"] == NEW
    assert "vmw image build" in str(result["warnings"])


def test_info_of_a_fresh_host(module: Module) -> None:
    result = module.run("image_info", libvirt_uri="test:///nowhere", inputs={})
    assert (result["changed"], result["generation"], result["libvirt_access"]) == (False, "", False)
    assert not module.state_dir.exists()
