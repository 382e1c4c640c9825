"""Generations of the golden image: what is listed, what is removed, what a build that ends early leaves."""

from __future__ import annotations

import json

import pytest
from testbed.person import STATE, Person, report
from testbed.story import COLD
from testbed.terminal import INTERRUPT

OLD = "20200101-000000-deadbeef"
USED = "20200202-000000-deadbeef"


def listed(person: Person) -> dict[str, dict[str, object]]:
    done = person.vmw("image", "list", "--json")
    assert done.returncode == 0, report(done)
    return {image["generation"]: image for image in json.loads(done.stdout)["images"]}


@pytest.fixture(scope="module")
def generation(ready: Person) -> str:
    return ready.root(f"readlink -f {STATE}/golden-image.qcow2").split("/")[-2]


def make_generation(person: Person, name: str, generation: str) -> None:
    """Make an older generation: the same files under another name."""
    images = f"{STATE}/images"
    person.sh(
        f"cp -al {images}/{generation} {images}/{name} && rm {images}/{name}/manifest.json"
        f" && sed 's/{generation}/{name}/' {images}/{generation}/manifest.json > {images}/{name}/manifest.json",
        check=True,
    )


def test_list_has_what_the_manifest_says(ready: Person, generation: str) -> None:
    manifest = ready.read_json(f"{STATE}/images/{generation}/manifest.json")
    image = listed(ready)[generation]
    assert image["current"] is True
    for key in ("created", "node", "claude_code", "kernel"):
        assert image[key] == manifest[key]
    blocks = ready.root(f"find {STATE}/images/{generation} -maxdepth 1 -type f -printf '%b '").split()
    assert image["size_bytes"] == sum(map(int, blocks)) * 512
    blocks = ready.root(f"find {STATE}/images/{generation} -path '*/templates/*' -type f -printf '%b '").split()
    assert image["template_bytes"] == sum(map(int, blocks)) * 512
    assert bool(blocks) != COLD


def test_list_for_people_marks_the_current_one(ready: Person, generation: str) -> None:
    assert f"{generation} (current)" in ready.vmw("image", "list").stdout


def test_prune_removes_what_nothing_uses(ready: Person, generation: str) -> None:
    make_generation(ready, OLD, generation)
    make_generation(ready, USED, generation)
    record = json.dumps({"schema": 1, "name": "keeper", "generation": USED})
    ready.sh(f"mkdir {STATE}/instances/keeper && echo '{record}' > {STATE}/instances/keeper/instance.json", check=True)
    try:
        done = ready.vmw("image", "prune")
        assert done.returncode == 0, report(done)
        assert set(listed(ready)) == {generation, USED}
        assert not ready.exists(f"{STATE}/images/{OLD}")
        # Nothing is forked of an older generation's template any more.
        assert not ready.exists(f"{STATE}/images/{USED}/templates")
        assert ready.exists(f"{STATE}/images/{generation}/templates") != COLD
        again = ready.vmw("image", "prune")
        assert again.returncode == 0, report(again)
    finally:
        ready.sh(f"rm -r {STATE}/instances/keeper", check=True)
    assert ready.vmw("image", "prune").returncode == 0
    assert set(listed(ready)) == {generation}
    assert ready.root(f"readlink -f {STATE}/golden-image.qcow2").split("/")[-2] == generation


def test_ctrl_c_leaves_the_current_generation(ready: Person, generation: str) -> None:
    before = ready.fingerprint(f"{STATE}/images/{generation}")
    with ready.terminal("~/vmw/vmw image build") as terminal:
        ready.root("until virsh -c qemu:///system list --name | grep vmw-bake; do sleep 0.5; done", timeout=120)
        terminal.type(INTERRUPT)
        assert terminal.exit_code(60) == 130, terminal.text[-3000:]
    assert ready.leftovers() == ""
    assert [name for name in ready.domains() if "bake" in name] == []
    assert [name for name in ready.root(f"ls -A {STATE}/images").split() if not name.startswith(".download")] == [generation]
    assert ready.fingerprint(f"{STATE}/images/{generation}") == before


def test_killed_build_leaves_nothing_that_looks_complete(ready: Person, generation: str) -> None:
    with ready.terminal("~/vmw/vmw image build") as terminal:
        ready.root("until virsh -c qemu:///system list --name | grep vmw-bake; do sleep 0.5; done", timeout=120)
        ready.root("pkill -KILL -u dev -f wrapper; pkill -KILL -u dev -f ansible-playbook", check=False)
        terminal.exit_code(60)
    assert set(listed(ready)) == {generation}
    assert ready.root(f"readlink -f {STATE}/golden-image.qcow2").split("/")[-2] == generation
    ready.root("until ! virsh -c qemu:///system list --name | grep vmw-bake; do sleep 0.5; done", timeout=60)
    assert ready.leftovers() == ""


def test_clone_of_a_lost_generation_is_named(ready: Person, generation: str) -> None:
    make_generation(ready, OLD, generation)
    link = f"{STATE}/golden-image.qcow2"
    ready.sh(f"mkdir -p ~/lost && ln -sfn images/{OLD}/disk.qcow2 {link}", check=True)
    try:
        assert ready.vmw("spawn", "~/lost", "--no-wait", "--memory", "1024").returncode == 0
        assert ready.record("lost")["generation"] == OLD
        ready.virsh("destroy", "lost")
        ready.sh(f"ln -sfn images/{generation}/disk.qcow2 {link} && rm -rf {STATE}/images/{OLD}", check=True)
        done = ready.vmw("start", "lost")
        assert done.returncode != 0, report(done)
        assert OLD in done.stderr, report(done)
        assert "hint: " in done.stderr, report(done)
    finally:
        ready.sh(f"ln -sfn images/{generation}/disk.qcow2 {link}; rm -rf {STATE}/images/{OLD}")
        destroyed = ready.vmw("destroy", "lost", "--yes")
    assert destroyed.returncode == 0, report(destroyed)
    assert ready.traces("lost") == []
