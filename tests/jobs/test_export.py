"""Exporting: weights go out with the settings that they were trained with, or not at all."""

import re

import pytest
import torch
from typer.testing import CliRunner

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.bundle.reading import load_bundle
from blip3o.config.load import dump
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.errors import BundleError
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_description, read_final, write_final
from blip3o.train.export import export
from jobs.cli import app
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
    for run, stage in (("first", "understand"), ("second", "generate")):
        own = {name: value for name, value in tensors.items() if name.startswith("backbone.") == (run == "first")}
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
        export(made, ["first", "second", "wide"], out, overwrite=True)
    assert {uri: storage.read_bytes(uri) for uri in before} == before
    load_bundle(out)


def contents(out):
    return {file.uri: (storage.read_bytes(file.uri), storage.modified(file.uri)) for file in storage.list_files(out)}


def test_an_export_says_what_it_wrote_and_the_same_one_again_writes_nothing(made, tmp_path):
    file, out = write_recipe(made, tmp_path), str(tmp_path / "bundle")
    argv = ["export", file, "--from", "first", "--from", "second", "--out", out]
    size = r"\d+(\.\d+)? [kM]B"
    parts = "backbone from first, .*dit .* from second"
    assert re.search(rf"^wrote bundle {out} \({size}; {parts}\)$", run_cli(*argv), re.MULTILINE)
    before = contents(out)
    assert re.search(rf"^the same bundle is already there: {out} \({size}; {parts}\)$", run_cli(*argv), re.MULTILINE)
    assert contents(out) == before


def test_another_bundle_is_replaced_only_on_request(made, tmp_path):
    out = str(tmp_path / "bundle")
    export(made, ["first", "second"], out)
    before = contents(out)
    other = changed(made, "model", "sampler", "num_inference_steps", value=3)
    with pytest.raises(BundleError, match=r"holds another bundle \(model.sampler.num_inference_steps: \d+ → 3\): give"):
        export(other, ["first", "second"], out)
    tensors, about = read_final(final_uri(made.run.storage, "second"))
    changed_weights = {name: value + 1 for name, value in tensors.items()}
    write_final(final_uri(made.run.storage, "second"), changed_weights, about)
    with pytest.raises(
        BundleError, match=r"holds another bundle \(weights.second: \w{12} → \w{12}\): give another --out"
    ):
        export(made, ["first", "second"], out)
    assert contents(out) == before
    assert export(made, ["first", "second"], out, overwrite=True).written
    assert torch.equal(load_bundle(out).model.queries, changed_weights["queries"])


@pytest.mark.parametrize(("name", "refused"), [("model.safetensors", False), ("config.json", True), (SEAL, True)])
def test_a_damaged_bundle_is_repaired_if_it_is_known_to_be_the_same(made, tmp_path, name, refused):
    out = str(tmp_path / "bundle")
    export(made, ["first", "second"], out)
    storage.write_bytes(f"{out}/{name}", storage.read_bytes(f"{out}/{name}")[:-1])
    if refused:
        with pytest.raises(BundleError, match="holds a bundle that cannot be read .*--overwrite to replace it"):
            export(made, ["first", "second"], out)
    assert export(made, ["first", "second"], out, overwrite=refused).written
    load_bundle(out)


def test_an_interrupted_export_is_no_bundle(made, tmp_path, monkeypatch):
    out = str(tmp_path / "bundle")
    export(made, ["first", "second"], out)
    monkeypatch.setattr("blip3o.bundle.writing.write_seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(
            changed(made, "model", "sampler", "num_inference_steps", value=3), ["first", "second"], out, overwrite=True
        )
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(out)
    monkeypatch.undo()
    assert export(made, ["first", "second"], out).written


def interrupt(*_):
    raise KeyboardInterrupt


def started(made, start_from, *, parts=("encoder", "backbone", "dit")):
    """Makes `second` a run of a stage that uses these parts, trained on top of others as they are now."""
    tensors, about = read_final(final_uri(made.run.storage, "second"))
    found = {run: read_description(final_uri(made.run.storage, run)) for run in start_from}
    starts = {run: description["sha256"] if description else "of old" for run, description in found.items()}
    write_final(final_uri(made.run.storage, "second"), tensors, about | {"parts": parts, "starts": starts})


def copied(made, name, *, bump):
    """Writes a run with the weights of `first`, or with others."""
    tensors, about = read_final(final_uri(made.run.storage, "first"))
    write_final(final_uri(made.run.storage, name), {key: value + bump for key, value in tensors.items()}, about)


def test_a_run_that_was_trained_on_other_weights_than_the_bundles_is_named(made, tmp_path, caplog):
    copied(made, "other", bump=1)
    started(made, ["other"])
    said = "run 'second' was trained on top of the backbone of 'other', and the bundle has that of 'first'"
    export(made, ["first", "second"], str(tmp_path / "loose"))
    assert f"{said}: export --from other, or train 'second' again" in caplog.text
    with pytest.raises(BundleError, match=said):
        export(made, ["first", "second"], str(tmp_path / "strict"), strict=True)
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("start_from", "parts", "said"),
    [
        (["first"], ["backbone"], None),
        (["copy"], ["backbone"], None),  # the same weights under another name
        (["other", "first"], ["backbone"], None),  # of two that have a part, the later one counted
        (["first", "other"], ["backbone"], "on top of the backbone of 'other', and the bundle has that of 'first'"),
        (["other"], ["encoder", "dit"], None),  # the stage did not use what that has
        (["gone"], ["backbone"], "trained on top of 'gone', which is no longer under"),
    ],
)
def test_the_weights_that_count_are_compared(made, tmp_path, caplog, start_from, parts, said):
    copied(made, "copy", bump=0)
    copied(made, "other", bump=1)
    started(made, start_from, parts=parts)
    export(made, ["first", "second"], str(tmp_path / "bundle"))
    assert (said in caplog.text) if said else not caplog.text


def test_a_run_whose_start_was_trained_again_is_named(made, tmp_path, caplog):
    started(made, ["first"])
    copied(made, "first", bump=1)
    with pytest.raises(BundleError, match="on top of 'first' before that was trained again: train 'second' again"):
        export(made, ["first", "second"], str(tmp_path / "bundle"), strict=True)


def write_recipe(made, folder):
    file = folder / "recipe.yaml"
    file.write_text(dump(made))
    return str(file)


def run_cli(*argv):
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 0, result.output
    return result.stdout
