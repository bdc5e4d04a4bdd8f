"""The reference of recipe keys: complete, current, and readable at 80 columns."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip3o.config.decoder import AutoencoderDecoderConfig, DcConfig, SanaDecoderConfig
from blip3o.config.keys.reference import find_keys, recipe_keys
from blip3o.config.keys.rendering import as_markdown
from blip3o.config.load import flattened
from blip3o.config.recipe import Recipe
from blip3o.config.training import StageConfig
from blip3o.errors import ConfigError
from jobs.cli import app
from tests.recipes import recipe

PAGE = Path(__file__).parents[3] / "docs" / "recipe-keys.md"
NAMES = {key.plain for key in recipe_keys()}


def explain(*arguments, verb="recipes"):
    result = CliRunner().invoke(app, [verb, "explain", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_every_key_of_a_recipe_is_in_the_reference():
    given = recipe(
        data={"sources": [{"name": "s", "shards": "*", "key": "last_dot", "members": {"image": "jpg"}}]},
        stage={"name": "understand", "lora": {}},
        parallel={"workers": {"min": 1, "max": 2}},
        evaluate={"sources": [{"name": "h", "shards": "*"}]},
        optim={"groups": [{"match": "x"}]},
    ).model_dump(mode="json")
    for section, fields in (("data", "sources"), ("evaluate", "sources"), ("optim", "groups")):
        given[section][fields] = given[section][fields][0]
    open_ended = ("question_weights", "where", "weights", "_labels")  # whose own keys are the user's
    assert {key for key in flattened(given) if not any(it in key for it in open_ended)} <= NAMES
    for config, place in (
        (StageConfig, "stage"),
        (SanaDecoderConfig, "model.decoder"),
        (AutoencoderDecoderConfig, "model.decoder"),
        (DcConfig, "model.decoder.autoencoder"),
    ):
        assert {f"{place}.{name}" for name in config.model_fields} <= NAMES


def test_every_key_says_what_it_is_and_what_it_may_be():
    for key in recipe_keys():
        assert len(key.about) > 5, key
        assert not key.about.endswith("."), key
        assert key.form, key


@pytest.mark.parametrize("verb", ["recipe", "recipes"])
def test_a_key_is_explained(verb):
    assert explain("optim.betas", verb=verb).splitlines() == [
        "optim.betas",
        "  [number, number]; default [0.9, 0.999]",
        "  read by every stage",
        "  AdamW's decay rates of the means of the gradients and of their squares",
    ]
    assert "read by encoder, decoder (pixel)" in explain("feature_noise", verb=verb)
    assert "one of none, optimizer, parameters; default none" in explain("parallel.offload", verb=verb)
    assert "required" in explain("data.sources[0].name", verb=verb)


def test_keys_are_found_by_name_by_their_last_part_and_by_section():
    assert [key.name for key in find_keys("lr")] == ["optim.lr", "optim.groups[].lr"]
    assert [key.name for key in find_keys("stage.lora")][:2] == ["stage.lora", "stage.lora.rank"]
    assert {key.only for key in find_keys("model.decoder.heads")} == {"sdxl", "sana"}
    with pytest.raises(ConfigError, match=r"no key is named 'optim.lrr': did you mean 'optim.lr'\?$"):
        find_keys("optim.lrr")


def test_lines_are_of_80_columns():
    everything = explain(), *(explain(section) for section in Recipe.model_fields)
    assert max(len(line) for text in everything for line in text.splitlines()) <= 80
    assert [line.split()[0] for line in everything[0].splitlines() if line[:1].strip()][:-1] == list(
        Recipe.model_fields
    )


def test_the_page_is_current():
    """`blip3o recipes explain --markdown > docs/recipe-keys.md` writes it."""
    assert PAGE.read_text(encoding="utf-8") == explain("--markdown") == as_markdown(recipe_keys())
