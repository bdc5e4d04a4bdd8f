"""Adopting weights: those of a diffusers folder become a run that a stage starts from, or are refused with a reason."""

import re

import pytest
import torch
from safetensors.torch import save_file

from blip3o.bundle.reading import load_bundle
from blip3o.config.recipe import TemplateConfig
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import BundleError, CheckpointError, ConfigError
from blip3o.model.decoders.autoencoder import build_autoencoder
from blip3o.model.empty_weights import stored_tensors
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.train.adopt import adopt, adopt_bundle
from blip3o.train.export import export
from blip3o.train.initial_weights import Placement, load_run, require_frozen_weights
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from jobs.adopt import main
from tests.bundles import MAX_LENGTH, tokenizer, write_nano_bundle
from tests.jobs import world
from tests.model.variants import variant


@pytest.fixture
def recipe(tmp_path):
    return world.recipe(str(tmp_path), model=variant("sdxl"), stage={"name": "decoder", "start_from": ["vae"]})


@pytest.fixture
def folder(recipe, tmp_path):
    """A folder as `save_pretrained` of diffusers writes it."""
    torch.manual_seed(0)
    build_autoencoder(recipe.model.decoder.autoencoder).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_an_autoencoder_of_diffusers_becomes_a_run(recipe, folder):
    adopt(recipe, {"decoder.vae.": str(folder)}, name="vae")
    tensors, description = read_final(final_uri(recipe.run.storage, "vae"))
    module = build_stage_module(recipe, image_token_id=5, pad_id=0)
    loaded = load_run(module.model, final_uri(recipe.run.storage, "vae"), to=Placement())
    trainable = freeze(module.model, stage_of(recipe))
    missing = [name for name, _ in module.model.encoder.named_parameters(prefix="encoder")]
    require_frozen_weights(module.model, loaded | set(missing), trainable)
    torch.manual_seed(0)
    original = build_autoencoder(recipe.model.decoder.autoencoder).state_dict()
    assert all(torch.equal(value, original[name]) for name, value in module.model.decoder.vae.state_dict().items())
    assert description["summary"] == {"decoder.vae.": str(folder)}


def test_tensors_of_other_parts_are_ignored_and_files_are_joined(recipe, folder):
    save_file({"unused": torch.zeros(2)}, folder / "more.safetensors")
    tensors = adopt(recipe, {"decoder.vae.": str(folder)}, name="vae")
    assert "decoder.vae.unused" not in tensors


def test_parts_of_a_bundle_become_a_run(tmp_path):
    write_nano_bundle(str(tmp_path / "bundle"))
    whole = dict(load_bundle(str(tmp_path / "bundle")).model.named_parameters())
    recipe = world.recipe(str(tmp_path), data={"max_length": MAX_LENGTH})
    tensors = adopt(recipe, {part: str(tmp_path / "bundle") for part in ("backbone.", "encoder.")}, name="published")
    assert {name.split(".")[0] for name in tensors} == {"backbone", "encoder"}
    assert tensors.keys() == {name for name in whole if name.startswith(("backbone.", "encoder."))}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())


def test_a_bundle_becomes_a_run_that_gives_the_same_bundle_again(tmp_path):
    """With its tokenizer, once; every tensor is the bundle's, buffers included."""
    bundle, again = str(tmp_path / "bundle"), str(tmp_path / "again")
    recipe = of_the_bundle(tmp_path, model={"preset": "nano", "normalize_latents": True})
    write_nano_bundle(bundle, model=recipe.model)
    adopt_bundle(recipe, bundle, name="published")
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == tokenizer().to_bytes()
    export(recipe, ["published"], again)
    old, new = (stored_tensors(load_bundle(uri).model) for uri in (bundle, again))
    assert "latent_scale.mean" in old and old.keys() == new.keys()
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    adopt_bundle(recipe, bundle, name="second")  # the tokenizer is there


def of_the_bundle(tmp_path, **sections):
    template = TemplateConfig().model_dump()
    data = {"root": str(tmp_path / "data"), "max_length": MAX_LENGTH, "template": template}
    return world.recipe(str(tmp_path), **{"data": data, **sections})


def test_a_recipe_that_differs_from_the_bundle_is_refused_and_nothing_written(tmp_path):
    bundle = str(tmp_path / "bundle")
    write_nano_bundle(bundle)
    rotated = {"preset": "nano", "backbone": {"rope_theta": 5.0}}
    with pytest.raises(ConfigError, match=r"has model\.backbone\.rope_theta=\S+ \(here 5\.0\): give"):
        adopt_bundle(of_the_bundle(tmp_path, model=rotated), bundle, name="published")
    with pytest.raises(ConfigError, match=r"has data\.template\.system=.* \(here \)"):
        adopt_bundle(world.recipe(str(tmp_path), data={"max_length": MAX_LENGTH}), bundle, name="published")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.json").write_bytes(ChatTokenizer.train(["other words"], 300).to_bytes())
    with pytest.raises(ConfigError, match="is another tokenizer than that of"):
        adopt_bundle(of_the_bundle(tmp_path), bundle, name="published")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "data" / "tokenizer.json").unlink()
    weights = tmp_path / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="the weights are not what was exported"):
        adopt_bundle(of_the_bundle(tmp_path), bundle, name="published")


def test_what_does_not_fit_is_refused(recipe, folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no parameter 'decoder\.vea\.\*'"):
        adopt(recipe, {"decoder.vea.": str(folder)}, name="vae")
    with pytest.raises(CheckpointError, match=r"is missing \d+ of \d+ tensors of decoder\.unet\.\*"):
        adopt(recipe, {"decoder.unet.": str(folder)}, name="vae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no .*safetensors"):
        adopt(recipe, {"decoder.vae.": str(tmp_path / "empty")}, name="vae")
    weights = folder / "diffusion_pytorch_model.safetensors"
    (folder / "model.fp16.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ConfigError, match="in two files: give the file that is meant"):
        adopt(recipe, {"decoder.vae.": str(folder)}, name="vae")
    assert adopt(recipe, {"decoder.vae.": str(weights)}, name="vae")
    save_file(
        {name: torch.zeros(1) for name in build_autoencoder(recipe.model.decoder.autoencoder).state_dict()}, weights
    )
    with pytest.raises(CheckpointError, match="has shape"):
        adopt(recipe, {"decoder.vae.": str(weights)}, name="vae")


def test_the_command_line(tmp_path, folder, capsys):
    sections = {"model": variant("sdxl"), "stage": {"name": "decoder", "start_from": []}}
    file = world.write_recipe(tmp_path / "recipe.yaml", str(tmp_path), **sections)
    assert main([file, "--name", "vae", "--part", f"decoder.vae.={folder}"]) == 0
    said = r"wrote run vae: \d+ tensors of decoder\.vae\. \([\d.]+ [kM]B\), .*/vae/final"
    assert re.search(f"^{said}$", capsys.readouterr().out, re.MULTILINE)
    assert main([file, "--name", "vae", "--part", f"decoder.unet.={folder}"]) == 1
    assert "is missing" in capsys.readouterr().err
    assert main([file, "--name", "vae", "--part", "decoder.vae."]) == 2
    assert "'decoder.vae.' is not PREFIX=URI" in capsys.readouterr().err
    for both_or_none in ([], ["--part", f"decoder.vae.={folder}", "--bundle", "x"]):
        assert main([file, "--name", "vae", *both_or_none]) == 2
        assert "either --bundle, or one --part or several" in capsys.readouterr().err
