"""The naming rule."""

from __future__ import annotations

import pytest
from ansible_collections.vmw.worktree.plugins.module_utils.errors import VmwError
from ansible_collections.vmw.worktree.plugins.module_utils.naming import MAX_LENGTH, check_name, name_for


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("feature-x", "feature-x"),
        ("Feature_X", "feature-x"),
        ("my project (2)", "my-project-2"),
        ("--a--b--", "a-b"),
        ("Füße", "fusse"),
        ("v1.2.3", "v1-2-3"),
        ("日本 fix", "fix"),
        ("{{ 7*7 }}", "7-7"),
        ("a" * 80, "a" * MAX_LENGTH),
        ("a" * 62 + "-b", "a" * 62),
    ],
)
def test_name_is_made_a_dns_label(component: str, name: str) -> None:
    assert name_for(component) == name
    assert check_name(name) == name


@pytest.mark.parametrize("component", ["日本", "...", "", "localhost", "LOCALHOST"])
def test_nothing_usable_left_is_refused_with_the_way_out(component: str) -> None:
    with pytest.raises(VmwError) as caught:
        name_for(component)
    assert caught.value.code == "usage"
    assert "--name" in caught.value.hint


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a b", "../x", "a\n", "é", "localhost", "a" * 64])
def test_a_chosen_name_must_be_a_label(name: str) -> None:
    with pytest.raises(VmwError) as caught:
        check_name(name)
    assert caught.value.code == "usage"
