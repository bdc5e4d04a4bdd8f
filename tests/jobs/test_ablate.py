"""The design study: its autoencoder learns, every run gets the stated operations, the table is right."""

import pytest

from blip3o import storage
from blip3o.config.load import load_recipe
from blip3o.config.pipeline import load_pipeline
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.evaluate.reports.ablation import AblationRow, table
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.train.autoencoder import train_autoencoder
from blip3o.train.metrics.step_flops import step_flops
from jobs.ablate import AUTOENCODER, LATENTS, measure_latents
from tests.evaluate.world import add_source, scenes

COMPARED = ("ablation-clip-flow", "ablation-clip-mse", "ablation-vae-flow")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """The compared recipes over a few scenes, by name."""
    root = str(tmp_path_factory.mktemp("ablation"))
    content = scenes("train", size=32)
    add_source(f"{root}/data", "scenes", content)
    texts = [caption for scene in content for caption in scene.record["captions"]]
    storage.write_bytes(f"{root}/data/tokenizer.json", ChatTokenizer.train(texts, 512).to_bytes())
    sources = "data.sources=[{name: scenes, shards: 'scenes/part-*.tar'}]"
    below = [f"run.storage={root}/runs", f"data.root={root}/data", sources, "optim.micro_batch_size=4"]
    return {name: load_recipe(name, below) for name in COMPARED}


def _trained(recipe, steps):
    return train_autoencoder(recipe, name=AUTOENCODER, steps=steps)


def test_the_autoencoder_learns_and_is_a_finished_run(recipes, monkeypatch):
    recipe = recipes["ablation-vae-flow"]
    assert _trained(recipe, 30) < 0.7 * _trained(recipe, 1)
    tensors, description = read_final(final_uri(recipe.run.storage, AUTOENCODER))
    assert {name.split(".")[1] for name in tensors} == {"vae"}
    assert description["stage"] == "autoencoder"
    monkeypatch.setattr("jobs.ablate.LATENT_IMAGES", 8)
    measure_latents(recipe)  # before there is a backbone
    assert set(read_final(final_uri(recipe.run.storage, LATENTS))[0]) == {"latent_scale.mean", "latent_scale.std"}


def test_the_operations_of_a_step_are_those_of_its_samples(recipes):
    counted = {name: step_flops(recipe) for name, recipe in recipes.items()}
    assert counted["ablation-clip-mse"] < counted["ablation-clip-flow"]  # no DiT
    recipe = recipes["ablation-clip-flow"]
    optim = recipe.optim.model_copy(update={"micro_batches": 2 * recipe.optim.micro_batches})
    assert step_flops(recipe.model_copy(update={"optim": optim})) == 2 * counted["ablation-clip-flow"]


def test_every_compared_run_differs_only_in_what_is_compared():
    trees = {
        recipe.run.name: recipe.model_dump(mode="json", exclude={"run": True, "stage": {"start_from"}})
        for recipe in load_pipeline("ablation").stages
        if recipe.run.name in COMPARED
    }
    assert set(trees) == set(COMPARED)
    first = trees.pop("ablation-clip-flow")
    for tree in trees.values():
        assert {section for section in first if first[section] != tree[section]} == {"model"}


def test_the_table_has_a_line_for_each_run():
    row = AblationRow(
        run="ablation-clip-flow", stage="generate", steps=200, loss=0.25, exact=0.5, shape=0.75,
        color=0.625, bound=0.9, luck=0.1, cosine=0.4, diversity=0.3, understanding=0.8,
    )  # fmt: skip
    lines = list(table([row]))
    shares = "0.500 | 0.750 | 0.625 | 0.900 | 0.100 | 0.400 | 0.300 | 0.800"
    assert lines[-1] == f"| ablation-clip-flow | 200 | 0.2500 | {shares} |"
    assert {line.count("|") for line in lines} == {12}
