"""Build the package the way a release is built, and look at what came out."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "ansible_collections/vmw/worktree"
COLLECTION_PARTS = ("meta", "playbooks", "plugins", "roles")
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
CACHES = ("__pycache__", ".pyc", ".venv", "_cache")


@dataclass(frozen=True)
class Package:
    """What a build made: the files, and the wheel unpacked as pip installs it."""

    sdist: Path
    wheel: Path
    installed: Path

    def run(self, *argv: str, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a program that sees the installed copy, and nothing of the checkout."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        environment = {
            **kept,
            "PYTHONPATH": str(self.installed),
            "ANSIBLE_COLLECTIONS_PATH": str(self.installed),
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }
        return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Build the source archive, the wheel from that, and install the wheel."""
    directory = tmp_path_factory.mktemp("package")
    dist, installed = directory / "dist", directory / "installed"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed), str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Package(sdist, wheel, installed)


def wheel_files(package: Package) -> set[str]:
    with zipfile.ZipFile(package.wheel) as archive:
        return set(archive.namelist())


def checkout_files(*parts: str) -> set[str]:
    """Return the files of the collection as a checkout has them, links to directories left out."""
    return {
        str(path.relative_to(ROOT))
        for part in parts
        for path in (ROOT / part).rglob("*")
        if path.is_file() and not any(cache in str(path) for cache in CACHES)
    }


@pytest.mark.parametrize("part", COLLECTION_PARTS)
def test_the_wheel_holds_the_whole_collection(package: Package, part: str) -> None:
    assert {f"{COLLECTION}/{name}" for name in checkout_files(part)} <= wheel_files(package)


@pytest.mark.parametrize(
    "name", ["ansible.cfg", "galaxy.yml", "inventory/hosts.yml", "inventory/group_vars/all.yml", "playbooks/group_vars/all.yml"]
)
def test_the_wheel_holds_the_settings(package: Package, name: str) -> None:
    assert f"{COLLECTION}/{name}" in wheel_files(package)


def test_the_wheel_holds_the_command(package: Package) -> None:
    assert {path.replace("wrapper/", "") for path in checkout_files("wrapper/vmw")} <= wheel_files(package)


def test_the_wheel_holds_nothing_else(package: Package) -> None:
    strangers = [
        name
        for name in wheel_files(package)
        if not name.startswith((f"{COLLECTION}/", "vmw/", "vmw-")) or any(cache in name for cache in CACHES)
    ]
    assert not strangers


def test_the_source_archive_can_be_tested_and_built(package: Package) -> None:
    with tarfile.open(package.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"vmw", "LICENSE", "README.md", "requirements.lock", "requirements-dev.lock", "tests/run", "host.yml"} <= files
    assert not [name for name in files if any(cache in name for cache in CACHES)]


def test_package_and_collection_have_one_version(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert metadata["Version"] == galaxy["version"]
    assert metadata["License-Expression"] == galaxy["license"][0]


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_of_the_wheel_is_found_by_name_from_anywhere(package: Package, playbook: str) -> None:
    done = package.run("ansible-playbook", "--syntax-check", "-i", "localhost,", f"vmw.worktree.{playbook}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{COLLECTION}/playbooks/{playbook}.yml" in done.stdout


def test_settings_reach_a_playbook_of_the_wheel(package: Package) -> None:
    inventory = package.installed / COLLECTION / "inventory" / "hosts.yml"
    done = package.run("ansible-inventory", "-i", str(inventory), "--host", "localhost")
    assert done.returncode == 0, done.stderr
    assert "vmw_base_image_url" in done.stdout


def test_the_command_of_the_wheel_uses_the_collection_of_the_wheel(package: Package) -> None:
    code = "from vmw.layout import find_layout as find; print(find().root, find().playbook('spawn').is_file())"
    done = package.run("python", "-c", code)
    assert done.stdout.split() == [str(package.installed / COLLECTION), "True"], done.stderr
