"""Exporting: weights go out with the settings that they were trained with, or not at all."""

import pytest
import torch

from blip3o import storage
from blip3o.bundle.reading import load_bundle
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.errors import BundleError
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.export import export
from tests.bundles import MAX_LENGTH, tokenizer, weights
from tests.recipes import recipe


@pytest.fixture
def made(tmp_path):
    """A recipe, and two finished runs by it that hold all of a model."""
    root = str(tmp_path)
    made = recipe(run={"storage": root}, data={"root": root, "max_length": MAX_LENGTH})
    storage.write_bytes(tokenizer_uri(made.data), tokenizer().to_bytes())
    tree = made.model_dump(mode="json")
    tensors = weights()
    for run, stage, brings in (("first", "understand", {"backbone"}), ("second", "generate", set())):
        own = {name: value for name, value in tensors.items() if (name.split(".")[0] in brings) == (run == "first")}
        write_final(final_uri(root, run), own, {"run": run, "identity": run, "stage": stage, "recipe": tree})
    return made


def changed(made, *path, value):
    """The recipe with one value changed."""
    tree = made.model_dump()
    section = tree
    for key in path[:-1]:
        section = section[key]
    assert section[path[-1]] != value
    section[path[-1]] = value
    return recipe(**tree)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model", "backbone", "rope_theta"), 777.0, "'first' was trained with model.backbone.rope_theta="),
        (("model", "dit", "norm_eps"), 0.5, "'second' was trained with model.dit.norm_eps="),
        (
            ("data", "template", "system"),
            "Answer as a pirate.",
            r"'first' was trained with data.template.system= \(here A",
        ),
    ],
)
def test_other_settings_than_those_of_the_training_are_named(made, tmp_path, path, value, said):
    with pytest.raises(BundleError, match=said):
        export(changed(made, *path, value=value), ["first", "second"], str(tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_how_images_are_sampled_may_differ(made, tmp_path):
    out = str(tmp_path / "bundle")
    export(changed(made, "model", "sampler", "num_inference_steps", value=3), ["first", "second"], out)
    assert load_bundle(out).model.config.sampler.num_inference_steps == 3


def test_weights_of_another_size_leave_a_good_bundle_as_it_was(made, tmp_path):
    out = str(tmp_path / "bundle")
    export(made, ["first", "second"], out)
    before = {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(out)}
    wider = {name: torch.zeros(*value.shape, 2) for name, value in weights().items() if name.startswith("queries")}
    about = {"stage": "adopted", "identity": "wide", "recipe": made.model_dump(mode="json")}
    write_final(final_uri(made.run.storage, "wide"), wider, {"run": "wide", **about})
    with pytest.raises(BundleError, match=r"queries is \[\d+, \d+, 2\], and a model of these sizes has"):
        export(made, ["first", "second", "wide"], out)
    assert {uri: storage.read_bytes(uri) for uri in before} == before
    load_bundle(out)
