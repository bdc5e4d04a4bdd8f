"""fp32 and bf16: every kind of bundle runs, and a row's bytes depend only on the row and the batch sizes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.bundle.reading import load_bundle
from blip3o.errors import ConfigError
from serve.engine.engine import Engine
from serve.protocol import GenerateRequest
from tests.bundles import write_nano_bundle
from tests.model.variants import VARIANTS, model_config

PRECISIONS = ("fp32", "bf16")
PROMPTS, SEEDS = ("a red circle", "It is green.", "a blue star"), (3, 5, 8)
REQUESTS = [
    GenerateRequest(prompt=prompt, seeds=(seed, seed + 1), num_inference_steps=steps, guidance_scale=guidance)
    for prompt, seed, steps, guidance in zip(PROMPTS, SEEDS, (2, 1, 2), (3.0, 1.0, 2.3), strict=True)
]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory):
    """A function from a variant's name and a precision to its pipeline; each is built once."""
    uris, built = {}, {}

    def pipeline(name, precision):
        if name not in uris:
            uris[name] = str(tmp_path_factory.mktemp("bundle"))
            write_nano_bundle(uris[name], model=model_config(name))
        if (name, precision) not in built:
            built[name, precision] = load_bundle(uris[name], precision=precision)
        return built[name, precision]

    return pipeline


def _picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def _images(pipeline, request, seeds):
    options = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale}
    return [image.tobytes() for image in pipeline.generate(request.prompt, seed=seeds, n=len(seeds), **options)]


def _served(pipeline, requests):
    engine = Engine(pipeline)
    futures = [engine.generate(request) for request in requests]
    engine.start()
    images = [[image.tobytes() for image in future.result(60).images] for future in futures]
    engine.close()
    return images


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 8, 16])
def test_at_every_batch_size_an_image_is_the_same_alone_in_company_and_served(pipeline_of, precision, batch_size):
    pipeline = replace(pipeline_of("clip_flow", precision), batch_size=batch_size)
    alone = [[_images(pipeline, request, [seed])[0] for seed in request.seeds] for request in REQUESTS]
    assert [_images(pipeline, request, list(request.seeds)) for request in REQUESTS] == alone
    assert _served(pipeline, REQUESTS) == alone
    assert _served(pipeline, REQUESTS[::-1]) == alone[::-1]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_at_this_size_features_are_the_same_across_batch_sizes_too(pipeline_of, precision, guidance):
    options = {"num_inference_steps": 3, "guidance_scale": guidance}
    pipelines = [replace(pipeline_of("clip_flow", precision), batch_size=size) for size in (1, 2, 3, 4, 8, 16)]
    first, *others = [pipeline.generate_features(PROMPTS, seeds=SEEDS, **options) for pipeline in pipelines]
    assert all(torch.equal(features, first) for features in others)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_bundle_is_served_as_it_generates(pipeline_of, name, precision):
    pipeline = replace(pipeline_of(name, precision), batch_size=3)
    requests = REQUESTS[:2]
    assert _served(pipeline, requests) == [_images(pipeline, request, list(request.seeds)) for request in requests]
    pictures = [_picture(seed) for seed in range(2)]
    assert torch.equal(pipeline.encode(pictures)[1:], pipeline.encode(pictures[1:]))
    assert isinstance(pipeline.chat("what is it?", image=pictures[0], max_tokens=2), str)


@pytest.mark.parametrize("decode_batch_size", [1, 2, 5])
def test_decoding_has_a_batch_size_of_its_own(pipeline_of, decode_batch_size):
    pipeline = replace(pipeline_of("clip_flow", "fp32"), decode_batch_size=decode_batch_size)
    rows = []
    assert pipeline.decode_widths[-1] == decode_batch_size
    hook = pipeline.model.decoder.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    features = pipeline.generate_features(PROMPTS, seeds=SEEDS, num_inference_steps=1)
    together = [image.tobytes() for image in pipeline.decode(features, seeds=SEEDS)]
    hook.remove()
    assert rows == {1: [1, 1, 1], 2: [2, 1], 5: [4]}[decode_batch_size]  # the smallest widths that fit
    for row, seed in enumerate(SEEDS):
        assert pipeline.decode(features[row : row + 1], seeds=[seed])[0].tobytes() == together[row]


@pytest.mark.parametrize(("name", "rows"), [("clip_flow", 4), ("sdxl", 1), ("sana", 1), ("vae_flow kl", 1)])
def test_by_default_only_the_pixel_decoder_takes_a_whole_batch(pipeline_of, name, rows):
    assert pipeline_of(name, "fp32").decode_rows == rows


def test_bf16_halves_the_weights_and_leaves_buffers_such_as_the_latents_scale_in_fp32(pipeline_of):
    pipeline = pipeline_of("clip_flow normalised", "bf16")
    assert {parameter.dtype for parameter in pipeline.model.parameters()} == {torch.bfloat16}
    buffers = dict(pipeline.model.named_buffers())
    # Eight bits would move every channel of the features.
    assert buffers.keys() >= {"latent_scale.mean", "latent_scale.std"}
    assert {buffer.dtype for buffer in buffers.values() if buffer.is_floating_point()} == {torch.float32}
    assert pipeline.precision == "bf16"
    features = pipeline.generate_features(PROMPTS[:1], seeds=[1])
    assert features.dtype == torch.float32


def test_bf16_is_near_fp32_and_differs(pipeline_of):
    states = [pipeline_of("clip_flow", precision).condition(PROMPTS).float() for precision in PRECISIONS]
    difference = (states[0] - states[1]).norm() / states[0].norm()
    # An operation rounds to 2^-9; the nano model has about 30 in a row, whose errors add up to a few of these.
    assert 1e-4 < difference < 2**-5


def test_auto_is_fp32_on_the_cpu_and_an_unknown_precision_is_refused(pipeline_of, tmp_path):
    write_nano_bundle(str(tmp_path))
    assert load_bundle(str(tmp_path)).precision == "fp32"
    with pytest.raises(ConfigError, match="precision 'fp16' is unknown: use auto, fp32, bf16"):
        load_bundle(str(tmp_path), precision="fp16")
