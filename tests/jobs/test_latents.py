"""Measuring latents: what is written is what the flow needs, and the stage that asks for it finds it."""

import re

import pytest
import torch

from blip3o import storage
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import CheckpointError, ConfigError
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.train.features.encoder import FrozenEncoder
from blip3o.train.features.latents import measure_latents
from blip3o.train.features.statistics import channel_statistics
from blip3o.train.initial_weights import prepare_module
from blip3o.train.stages import stage_of
from jobs import tokenizer
from jobs.latents import main
from tests.evaluate.world import add_source, scenes
from tests.jobs import world

IMAGES = 20


def normalised(base, **sections):
    stage = {"start_from": ["world-encoder", "world-understand", "latents"]}
    sources = [{"name": "scenes", "shards": "scenes/part-*.tar"}]
    data = {"root": f"{base}/data", "max_length": 96, "sources": sources}
    model = {"preset": "nano", "normalize_latents": True}
    return {"data": data, "stage": {"name": "generate"} | stage, "model": model} | sections


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("latents"))
    content = scenes("train", size=24)
    add_source(f"{folder}/data", "scenes", content)
    texts = [caption for scene in content for caption in scene.record["captions"]]
    storage.write_bytes(f"{folder}/data/tokenizer.json", ChatTokenizer.train(texts, 512).to_bytes())
    world.write_finals(world.recipe(folder, **normalised(folder)))
    return folder


def test_a_stage_finds_what_was_measured_and_its_latents_are_standard(base):
    recipe = world.recipe(base, **normalised(base))
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(f"{base}/data/tokenizer.json"))
    with pytest.raises(CheckpointError, match="latents/final holds no finished run"):
        prepare_module(recipe, tokenizer)
    mean, std = measure_latents(recipe, name="latents", images=IMAGES)
    tensors, description = read_final(final_uri(recipe.run.storage, "latents"))
    assert description["summary"] == {"images": 24}  # whole micro-batches of 8
    assert torch.equal(tensors["latent_scale.mean"], mean)
    assert torch.equal(tensors["latent_scale.std"], std)
    model = prepare_module(recipe, tokenizer).model
    builder = build_micro_batches(StageInputs(recipe), stage_of(recipe).task)
    pixels = torch.cat([torch.from_numpy(builder(number)["encoder_pixels"]) for number in range(3)])
    with torch.no_grad():
        latents = model.to_latents(model.features(pixels)).flatten(0, 1)
    # Statistics are rounded to the 8 bits of bf16; nano's means are not far above its deviations.
    assert torch.allclose(latents.mean(0), torch.zeros(16), atol=0.02)
    assert torch.allclose(latents.std(0, correction=0), torch.ones(16), rtol=2**-8)


def test_features_are_measured_in_the_recipes_precision(base):
    """Those of an encoder in bf16, to the bit: what a trainer in bf16 is to normalise."""
    recipe = world.recipe(base, **normalised(base, parallel={"precision": "bf16"}))
    measured = measure_latents(recipe, name="latents-bf16", images=IMAGES)
    encode = FrozenEncoder(recipe, torch.device("cpu"))
    builder = build_micro_batches(StageInputs(recipe), stage_of(recipe).task)
    halves = [torch.from_numpy(encode(builder(number)["encoder_pixels"])) for number in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(measured, channel_statistics(halves), strict=True))
    exact = measure_latents(world.recipe(base, **normalised(base)), name="latents-fp32", images=IMAGES)
    assert not torch.equal(measured[0], exact[0])


def test_the_last_line_of_a_verb_is_what_it_wrote(base, tmp_path, capsys):
    file = world.write_recipe(tmp_path / "recipe.yaml", base, **normalised(base))
    assert main([file, "--name", "said", "--images", "8"]) == 0
    run = final_uri(f"{base}/runs", "said")
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"wrote run said: statistics of 16 channels over 8 images, {run}"
    assert "held other weights" not in said.err
    assert main([file, "--name", "said", "--images", "16"]) == 0
    assert f"{run} held other weights: train again what was trained on top of them" in capsys.readouterr().err
    size = ["--set", "data.tokenizer=said.json", "--set", "model.backbone.vocab_size={}"]
    lines, warnings = [], ""
    for tokens in (400, 400, 420):
        assert tokenizer.main([file, *size[:3], size[3].format(tokens)]) == 0
        printed = capsys.readouterr()
        lines.append(printed.out.splitlines()[-1])
        warnings += printed.err
    uri = f"{base}/data/said.json"
    assert re.fullmatch(rf"wrote tokenizer {uri} \(400 tokens, [\d.]+ kB\)", lines[0])
    assert re.fullmatch(rf"the same tokenizer is already there: {uri} \(400 tokens, [\d.]+ kB\)", lines[1])
    assert lines[2].startswith(f"wrote tokenizer {uri} (420 tokens, ")
    assert warnings.count("it replaces another tokenizer: runs that were trained with that one cannot be resumed") == 1


def test_a_recipe_that_would_not_use_them_is_refused(base, tmp_path, capsys):
    file = world.write_recipe(tmp_path / "recipe.yaml", base, **normalised(base, model={"preset": "nano"}))
    assert main([file, "--name", "x"]) == 1
    assert capsys.readouterr().err == (
        "error: statistics are for a generating stage that uses them: set model.normalize_latents=true\n"
    )
    decoder = normalised(base, stage={"name": "decoder"})
    with pytest.raises(ConfigError, match="for a generating stage"):
        measure_latents(world.recipe(base, **decoder), name="x", images=8)


def test_an_encoder_without_weights_is_refused(base):
    recipe = world.recipe(base, **normalised(base, stage={"name": "generate", "start_from": ["world-understand"]}))
    with pytest.raises(CheckpointError, match="frozen parts encoder have no weights"):
        measure_latents(recipe, name="x", images=8)
