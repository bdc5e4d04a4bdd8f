"""Wrapper prefixes are removed if all names have them and the wanted names remain; otherwise the error names them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.convert.keys import TOWER, tower_names
from blip3o.weights.prefixes import explain_missing, unwrap
from tests.data.shard_files import UNHURRIED

NAMES = ("a.weight", "a.bias", "b.0.weight", "queries")


@pytest.mark.parametrize(
    "wrapper",
    [
        "module.",
        "_orig_mod.",
        "base_model.model.",
        "model.",
        "model.model.",
        "module._orig_mod.",
        "ema.shadow.",
        "net.",
    ],
)
def test_a_prefix_of_all_names_is_removed(wrapper):
    found = unwrap([f"{wrapper}{name}" for name in (*NAMES, "more")], NAMES)
    assert set(found.names.values()) == {*NAMES, "more"}
    assert all(key == f"{wrapper}{name}" for key, name in found.names.items())
    assert "".join(found.dropped.split(", ")) in (wrapper, "module._orig_mod.")
    assert not found.blocked


def test_wrappers_inside_a_name_are_known_by_their_own():
    found = unwrap(
        ["a._orig_mod.weight", "_fsdp_wrapped_module.a.bias", "b._checkpoint_wrapped_module.0.weight"], NAMES
    )
    assert set(found.names.values()) == {"a.weight", "a.bias", "b.0.weight"}
    assert found.dropped


def test_names_that_are_right_stay_even_if_all_begin_alike():
    found = unwrap(["model.a.weight", "model.a.bias"], ["model.a.weight"])
    assert found.names == {"model.a.weight": "model.a.weight", "model.a.bias": "model.a.bias"}
    assert not found.dropped


def test_a_wrapper_of_some_names_is_named():
    found = unwrap([*[f"module.{name}" for name in NAMES], "text.weight"], NAMES)
    assert found.blocked == "module."
    assert found.names["module.queries"] == "module.queries"
    assert "there as module.a.bias" in explain_missing(NAMES, found.names, found.blocked)


def test_names_that_would_fall_together_are_left_as_they_are():
    assert unwrap(["a.weight", "_orig_mod.a.weight"], ["a.weight"]).names["_orig_mod.a.weight"] == "_orig_mod.a.weight"


def test_missing_names_are_listed_with_similar_ones():
    assert explain_missing(["d", "c", "b", "a"], ["x.a"]) == "a, b, c, …; it has x.a"
    assert explain_missing(["dit.layers.0.weight"], ["b", "dit.layer.0.weight"]).endswith("it has dit.layer.0.weight")
    assert "LoRA adapters: merge them" in explain_missing(["a"], ["base_model.model.a.lora_A.weight"])
    assert explain_missing(["a"], []) == "a"


def test_a_name_with_a_line_break_is_reported_in_one_line():
    assert explain_missing({"norm.bias"}, {"a\nbias"}) == "norm.bias; it has a bias"


def test_a_tower_behind_any_wrapper_has_its_published_names():
    for wrapper in ("", "visual.", "module.visual.", "trunk.", TOWER):
        names = tower_names([f"{wrapper}cls_token", f"{wrapper}blocks.0.norm1.bias"])
        assert set(names.values()) == {f"{TOWER}cls_token", f"{TOWER}blocks.0.norm1.bias"}


words = st.lists(st.sampled_from(["a", "b", "module", "model", "_orig_mod", "weight"]), min_size=1, max_size=4)


@UNHURRIED
@given(st.sets(words.map(".".join), min_size=1, max_size=8), st.sets(words.map(".".join), min_size=1, max_size=3))
def test_no_two_names_become_one(found, wanted):
    result = unwrap(found, wanted)
    assert result.names.keys() == found
    assert len(set(result.names.values())) == len(found)
