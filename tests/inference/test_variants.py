"""Every objective and every kind of decoder samples through one interface, from a bundle to images, and is served."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.bundle.reading import load_bundle
from blip3o.config.model import ModelConfig
from blip3o.data.text.tokenizer import GENERATE
from blip3o.model.flow import evaluations
from serve.engine.denoise import DenoiseBatch, prepare
from serve.engine.engine import Engine
from serve.protocol import GenerateRequest
from tests.bundles import write_nano_bundle
from tests.model.variants import VARIANTS, model_config
from tests.serve.stages import split

PROMPTS, SEEDS = ["a red circle", "It is green.", "a blue star"], [3, 5, 8]
SAMPLERS = {
    "heun": {"solver": "heun"},
    "unipc": {"solver": "unipc"},
    "shifted": {"shift": 3.0},
    "truncated": {"truncate_time": True, "num_inference_steps": 7},
}


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """A function from a variant's name to the URI of its bundle, each written once."""

    @functools.cache
    def bundle(name):
        uri = str(tmp_path_factory.mktemp("bundle"))
        write_nano_bundle(uri, model=with_sampler(name) if name in SAMPLERS else model_config(name))
        return uri

    return bundle


@pytest.fixture(scope="module")
def pipeline_of(bundle_of):
    """A function from a variant's name to its pipeline, each built once."""
    return functools.cache(lambda name: load_bundle(bundle_of(name), batch_size=2))


def with_sampler(name):
    values = model_config("clip_flow").model_dump()
    return ModelConfig.model_validate({**values, "sampler": values["sampler"] | SAMPLERS[name]})


@pytest.mark.parametrize("name", [*VARIANTS, *SAMPLERS])
def test_a_prompt_and_seed_give_one_image_in_any_batch(pipeline_of, name):
    pipeline = pipeline_of(name)
    together = [np.asarray(image) for image in pipeline.generate(PROMPTS, seed=SEEDS)]
    backwards = [np.asarray(image) for image in pipeline.generate(PROMPTS[::-1], seed=SEEDS[::-1])][::-1]
    for prompt, seed, image, other in zip(PROMPTS, SEEDS, together, backwards, strict=True):
        assert image.shape == (32, 32, 3)
        assert np.array_equal(image, np.asarray(pipeline.generate([prompt], seed=[seed])[0]))
        assert np.array_equal(image, other)
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("name", ["clip_flow normalised", "clip_mse", "vae_flow kl", *SAMPLERS])
@torch.inference_mode()
def test_rows_at_different_steps_are_the_pipelines(pipeline_of, name):
    """A solver keeps its memory per row: the second row starts an evaluation later and takes fewer steps."""
    pipeline = pipeline_of(name)
    sampler = pipeline.model.config.sampler
    steps, batch = (sampler.num_inference_steps, 3), DenoiseBatch(pipeline)
    conditions = prepare(pipeline, pipeline.condition(PROMPTS[:2]))
    options = {"guidance_scale": sampler.guidance_scale}
    for slot in (0, 1):
        noise = pipeline.feature_noise(SEEDS[slot])
        batch.put(slot, noise, condition=conditions[slot], num_inference_steps=steps[slot], **options)
        if slot == 0:
            batch.step([0])
    left = {slot: evaluations(sampler.solver, steps[slot]) - (1 - slot) for slot in (0, 1)}
    while any(left.values()):
        batch.step([slot for slot in left if left[slot]])
        left = {slot: max(count - 1, 0) for slot, count in left.items()}
    for slot in (0, 1):
        expected = pipeline.generate_features(
            PROMPTS[slot], seeds=[SEEDS[slot]], num_inference_steps=steps[slot], **options
        )
        assert torch.equal(batch.features(slot), expected[0])


@pytest.mark.parametrize("name", ["heun", "unipc"])
def test_every_solver_is_served(pipeline_of, name):
    pipeline, engine = pipeline_of(name), Engine(pipeline_of(name))
    engine.start()
    requests = [
        GenerateRequest(prompt=prompt, seeds=(seed,), num_inference_steps=steps, guidance_scale=2.0)
        for prompt, seed, steps in zip(PROMPTS, SEEDS, (3, 1, 5), strict=True)
    ]
    futures = [engine.generate(request) for request in requests]
    for request, future in zip(requests, futures, strict=True):
        options = {"num_inference_steps": request.num_inference_steps, "guidance_scale": 2.0}
        [expected] = pipeline.generate(request.prompt, seed=request.seeds[0], **options)
        assert future.result(60).images[0].tobytes() == expected.tobytes()
    engine.close()


@pytest.mark.parametrize("name", ["clip_flow normalised", "clip_mse", "vae_flow kl", "sdxl", "sana"])
def test_stages_with_only_their_parts_serve_every_model(bundle_of, pipeline_of, name):
    requests = [
        GenerateRequest(prompt=prompt, seeds=(seed,), num_inference_steps=2, guidance_scale=2.0)
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    with split(bundle_of(name), batch_size=2) as stages:
        replies = [events[-1] for events in stages.answer(requests)]
    expected = pipeline_of(name).generate(PROMPTS, seed=SEEDS, num_inference_steps=2, guidance_scale=2.0)
    assert [reply.images[0].tobytes() for reply in replies] == [image.tobytes() for image in expected]
    parts = {stage: engine._pipeline.model for stage, engine in stages.engines.items()}
    assert [stage for stage, model in parts.items() if model.has("backbone")] == ["condition", "chat"]
    assert [stage for stage, model in parts.items() if model.generates] == ["denoise"]
    assert [stage for stage, model in parts.items() if model.has("decoder")] == ["decode"]


@pytest.mark.parametrize("name", ["shifted", "truncated", "heun", "unipc"])
def test_a_samplers_options_act(pipeline_of, name):
    plain, other = pipeline_of("clip_flow"), pipeline_of(name)
    steps = other.model.config.sampler.num_inference_steps
    features = [p.generate_features(PROMPTS[:1], seeds=[3], num_inference_steps=steps) for p in (plain, other)]
    assert not torch.equal(*features)


def test_a_regression_ignores_the_seed_and_a_flow_does_not(pipeline_of):
    def spread(name):
        first, second = (pipeline_of(name).generate_features(PROMPTS[:1], seeds=[seed]) for seed in (1, 2))
        return (first - second).abs().max().item()

    assert spread("clip_mse") < 1e-5 < spread("clip_flow")


def test_truncated_times_are_integers(pipeline_of):
    pipeline, times = pipeline_of("truncated"), []
    hook = pipeline.model.dit.register_forward_hook(lambda _, args, __: times.append(args[1][0].item()))
    pipeline.generate_features(PROMPTS[:1], seeds=[1], guidance_scale=1.0)
    hook.remove()
    assert times == [1000, 857, 714, 571, 428, 285, 142]  # 1000 k / 7 without its fraction, as upstream's inference


@pytest.mark.parametrize("name", ["sdxl", "sana"])
def test_the_null_branch_is_made_once(pipeline_of, name):
    pipeline = pipeline_of(name)
    pipeline.__dict__.pop("null_features", None)
    passes = []
    part = pipeline.model.dit if name == "sdxl" else pipeline.model.encoder
    features = pipeline.generate_features(PROMPTS, seeds=SEEDS)
    hook = part.register_forward_hook(lambda *_: passes.append(1))
    pipeline.decode(features, seeds=SEEDS)
    made = len(passes)
    pipeline.decode(features, seeds=SEEDS)
    hook.remove()
    # For an empty prompt: one sampling. For a black image: one encoding.
    assert made == len(passes) == (pipeline.model.config.sampler.num_inference_steps if name == "sdxl" else 1)


def test_the_null_features_are_those_of_a_black_image_or_of_an_empty_prompt(pipeline_of):
    sana, sdxl = pipeline_of("sana"), pipeline_of("sdxl")
    assert torch.equal(sana.null_features, sana.encode([Image.new("RGB", (50, 40))])[0])
    ids = [sdxl.tokenizer.ids[GENERATE]]  # upstream calls its text generator, which takes ready ChatML, with ""
    assert sdxl.null_features.shape == sdxl.model.latent_shape
    with torch.inference_mode():
        conditions = sdxl.model.query_states(sdxl._padded([ids, ids]))
        noise = sdxl.feature_noise(0).expand(2, -1, -1)
        expected = sdxl.model.sample_features(conditions, noise, num_inference_steps=4, guidance_scale=3.0)
    assert torch.equal(sdxl.null_features, expected[0])


@pytest.mark.parametrize("name", ["clip_flow normalised", "vae_flow dc"])
def test_encode_gives_the_training_target(pipeline_of, name):
    pipeline = pipeline_of(name)
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (32, 32, 3), np.uint8)) for n in (0, 1)]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    with torch.inference_mode():
        assert torch.equal(pipeline.encode(images), pipeline.model.features(pixels))
