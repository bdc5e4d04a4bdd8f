"""Every field of every config: a value of another type is rejected with its key, and never converted."""

import math
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import blip3o.bundle.layout
import serve.config.options
from blip3o.config import cluster, pipeline
from blip3o.config.base import Frozen
from blip3o.config.load import build_recipe, explain
from blip3o.errors import ConfigError
from tests.recipes import recipe, tree

WRONG: dict[type, list[Any]] = {
    int: ["200", "0x10", "1:30", True, False, 1.5, math.inf, -math.inf, math.nan, [1], {"a": 1}],
    float: ["1.5", "1_000", True, False, math.inf, -math.inf, math.nan, 10**400, [1.0]],
    bool: ["yes", "on", "true", 1, 0, 1.0, math.nan],
    str: [5, 1.5, True, ["a"]],
}
MODULES = (blip3o.bundle.layout, serve.config.options, cluster, pipeline)


def _classes(base):
    for cls in base.__subclasses__():
        yield cls
        yield from _classes(cls)


def _fields():
    """Every field that takes one plain type, whether or not it may be left out."""
    for cls in sorted(_classes(Frozen), key=lambda cls: cls.__name__):
        for name, field in cls.model_fields.items():
            kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
            if len(kinds) == 1 and kinds[0] in WRONG:
                yield cls, name, kinds[0]


FIELDS = [(cls, name, kind) for cls, name, kind in _fields() if cls.__name__ not in ("ReplicaConfig", "ServeConfig")]


def _faults(cls, name, value):
    with pytest.raises(ValidationError) as caught:
        cls.model_validate({name: value})
    return [error for error in caught.value.errors() if error["loc"][0] == name]


def test_no_field_takes_a_value_of_another_type():
    assert len(FIELDS) > 150
    for cls, name, kind in FIELDS:
        for value in WRONG[kind]:
            faults = _faults(cls, name, value)
            assert faults, f"{cls.__name__}.{name} takes {value!r}"
            assert f"'{name}" in explain(faults[0])
            assert "\n" not in explain(faults[0])


def test_numbers_inside_lists_and_choices_are_as_strict():
    for section, values in [
        ("optim", {"betas": [0.9, True]}),
        ("optim", {"betas": ["0.9", 0.99]}),
        ("optim", {"betas": [0.9, math.inf]}),
        ("parallel", {"workers": True}),
        ("parallel", {"workers": {"min": 1, "max": "2"}}),
        ("parallel", {"zero_stage": True}),
        ("parallel", {"data_labels": {"a": 1}}),
        ("stage", {"weights": {"flow": "1"}}),
        ("stage", {"weights": {"flow": math.nan}}),
    ]:
        with pytest.raises(ConfigError, match=f"'{section}.{next(iter(values))}"):
            recipe(**{section: values})


@pytest.mark.parametrize(("given", "steps"), [(200, 200), (200.0, 200), (1e5, 100000)])
def test_a_number_without_a_fraction_is_whole(given, steps):
    found = recipe(optim={"steps": given}).optim.steps
    assert (found, type(found)) == (steps, int)


def test_a_float_field_accepts_an_integer():
    assert recipe(optim={"lr": 1}).optim.lr == 1.0
    assert type(recipe(optim={"lr": 1}).optim.lr) is float


def test_accepted_values_of_a_selection_keep_their_types():
    where = {"kind": {"in": [True, 1, 1.5, "1", 2.0]}, "score": {"min": 5}}
    values = tree()
    values["data"]["sources"][0]["select"] = {"where": where}
    rules = build_recipe(values).data.sources[0].select.where
    assert [type(value) for value in rules["kind"]["in"]] == [bool, int, float, str, float]
    assert rules["score"] == {"min": 5.0}


def test_the_server_takes_its_numbers_as_texts_too():
    given = serve.config.options.ServeConfig(bundle="5", batch_size="8", num_cpus="0.5")
    assert (given.bundle, given.batch_size, given.num_cpus) == ("5", 8, 0.5)
    for value in ("yes", "1:30", ".inf", True):
        assert _faults(serve.config.options.ServeConfig, "batch_size", value)
