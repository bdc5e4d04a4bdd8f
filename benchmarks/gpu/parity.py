"""Verb `parity`: the device computes what the CPU computes, and a seed gives the same features in any batch.

Modules have the released widths and four layers, the decoders half the side and few layers, so that the CPU's fp32
reference takes seconds. Errors are relative: the root of the mean square of the difference, over that of the reference.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import predictions
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import build, model_config, pipeline, randomize, stage_recipe
from benchmarks.gpu.prompts import micro_batches
from blip3o.config.model import ModelConfig
from blip3o.config.recipe_files import Tree
from blip3o.device import exact_fp32
from blip3o.model.backbone import Prompt
from blip3o.model.decoders.autoencoder import to_images
from blip3o.rng import torch_generator
from blip3o.train.loop import to_batch
from blip3o.train.objectives import build_stage_module, flow_draws
from blip3o.train.stages import freeze, stage_of

CPU = torch.device("cpu")
# fp32 sums differ by their order only; a backward pass accumulates such differences twice. bf16 has 8 bits, one
# rounding is 2e-3 of a value, and errors of layers add up as the root of their number.
FP32, FP32_GRADIENT, BF16, BF16_GRADIENT = 1e-5, 1e-4, 3e-2, 6e-2
PROMPTS = ("a red circle", "two blue squares above a green star", "a yellow triangle", "nothing")
SHALLOW: Tree = {
    "encoder": {"layers": 4},
    "backbone": {"layers": 4, "vocab_size": 8192, "vision": {"layers": 1, "full_layers": [0]}},
    "dit": {"layers": 4},
}
SMALL_UNET: Tree = {"decoder": {"autoencoder": {"image_size": 512}, "attention_layers": [0, 1, 2]}}
SMALL_SANA: Tree = {"decoder": {"layers": 4}}

Call = Callable[[Any, torch.device, torch.dtype], Tensor]  # a module, where it is, and its dtype


def shallow(bench: Bench, preset: str = "8b", changes: Tree | None = None) -> ModelConfig:
    """Sizes of a preset with few layers; nano sizes are shallow already."""
    return model_config(bench, preset, bench.pick(SHALLOW | (changes or {}), {}))


def difference(found: Tensor, expected: Tensor) -> float:
    """The relative error of a tensor; infinite if it has values that are not finite."""
    found, expected = found.detach().to(CPU).double(), expected.detach().to(CPU).double()
    if not found.isfinite().all():
        return float("inf")
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()


def compare(bench: Bench, what: str, module: nn.Module, call: Call) -> None:
    """A module's result on the device in fp32 and in bf16, against the CPU's in fp32."""
    with torch.no_grad(), exact_fp32():
        expected = call(module, CPU, torch.float32)
        on_device = copy.deepcopy(module).to(bench.device)
        bench.check(f"{what}, fp32", difference(call(on_device, bench.device, torch.float32), expected), at_most=FP32)
        half = on_device.to(torch.bfloat16)
        bench.check(f"{what}, bf16", difference(call(half, bench.device, torch.bfloat16), expected), at_most=BF16)


def device_facts(bench: Bench) -> None:
    """What the device reaches at best: a large product in bf16, one in fp32, and a copy."""
    side, copied = bench.pick(8192, 256), bench.pick(2**32, 2**20)
    for name, dtype, predicted in (("bf16", torch.bfloat16, predictions.MATMUL / 1e12), ("fp32", torch.float32, None)):
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        with exact_fp32():
            seconds = bench.seconds(partial(torch.matmul, a, b), rounds=10, warm=3)
        bench.row(f"product {side} x {side}, {name}", 2 * side**3 / seconds / 1e12, "TFLOP/s", predicted=predicted)
    source = torch.zeros(copied, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source), rounds=10, warm=3)
    bench.row("copy, read and written", 2 * copied / seconds / 1e9, "GB/s", predicted=predictions.COPY / 1e9)


def encoder(bench: Bench) -> None:
    """The EVA tower: pixels to features."""
    config = shallow(bench)
    model = build(config, ("encoder",), CPU, torch.float32)
    side = config.encoder.image_size
    pixels = torch.randint(0, 256, (2, side, side, 3), generator=torch_generator(0, "pixels")).to(torch.uint8)
    compare(bench, "EVA tower", model.encoder, lambda module, device, _: module(pixels.to(device)))


def backbone(bench: Bench) -> None:
    """Query states behind a frozen prefix and by a full pass, of prompts padded on either side."""
    config = shallow(bench)
    model = build(config, ("backbone", "queries"), CPU, torch.float32)
    for side in ("right", "left"):
        prompt = ragged(bench, side)
        for way in ("query_states", "query_states_full"):
            compare(bench, f"{way}, {side} padding", model, _states(prompt, way))
    with torch.no_grad(), exact_fp32():
        on_device = model.to(bench.device)
        states = [
            _states(ragged(bench, side), "query_states")(on_device, bench.device, torch.float32) for side in SIDES
        ]
    bench.check("left against right padding, fp32", difference(*states), at_most=FP32)


SIDES = ("left", "right")


def ragged(bench: Bench, side: str) -> Prompt:
    """Four prompts of different lengths, padded on one side."""
    longest = bench.pick(192, 24)
    generator = torch_generator(0, "ragged")
    ids = torch.randint(1, 500, (4, longest), generator=generator)
    lengths = torch.tensor([longest, longest // 2, longest // 3, 3])
    rows = [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]
    gaps = [torch.zeros(longest - len(row), dtype=torch.long) for row in rows]
    pairs = zip(rows, gaps, strict=True)
    padded = torch.stack([torch.cat([row, gap] if side == "right" else [gap, row]) for row, gap in pairs])
    return Prompt(input_ids=padded, attention_mask=(padded != 0).long())


def _states(prompt: Prompt, way: str) -> Call:
    def call(module: Any, device: torch.device, _: torch.dtype) -> Tensor:  # noqa: ANN401 - a part of a model
        there = Prompt(input_ids=prompt.input_ids.to(device), attention_mask=prompt.attention_mask.to(device))
        return getattr(module.backbone, way)(there, module.queries)

    return call


def dit(bench: Bench) -> None:
    """The velocity at some noise levels."""
    config = shallow(bench)
    model = build(config, ("dit",), CPU, torch.float32)
    generator = torch_generator(0, "dit")
    states = torch.randn(2, config.num_queries, config.backbone.hidden_size, generator=generator)
    latents = torch.randn(2, *config.latent_shape, generator=generator)
    time = torch.tensor([990.0, 10.0])

    def call(module: Any, device: torch.device, dtype: torch.dtype) -> Tensor:  # noqa: ANN401 - a DiT
        condition = module.condition(states.to(device, dtype))
        return module(latents.to(device), time.to(device), condition)

    compare(bench, "DiT", model.dit, call)


def loss(bench: Bench) -> None:
    """The flow's loss, and its gradient over all trained parameters."""
    overrides = {"optim.micro_batch_size": 4, "parallel.precision": "fp32"}
    recipe = stage_recipe(bench, "8b", changes=bench.pick(SHALLOW, {}), overrides=overrides)
    module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    randomize(module)
    names = freeze(module.model, stage_of(recipe))
    arrays = next(micro_batches(recipe))

    def measure(model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor]:
        batch = to_batch(arrays, pad_id=0, device=device)
        value = model(batch)["flow"] / module.counts(batch)["flow"]
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(value, [parameters[f"model.{name}"] for name in names])
        return value.detach(), torch.cat([gradient.flatten().to(CPU, torch.float32) for gradient in gradients])

    with exact_fp32():
        expected, gradient = measure(module, CPU)
        on_device = copy.deepcopy(module).to(bench.device)
        for label, marks in (("fp32", (FP32, FP32_GRADIENT)), ("bf16", (BF16, BF16_GRADIENT))):
            if label == "bf16":
                on_device.to(torch.bfloat16)
            found = measure(on_device, bench.device)
            for what, value, wanted, mark in zip(("loss", "gradient"), found, (expected, gradient), marks, strict=True):
                bench.check(f"flow's {what}, {label}", difference(value, wanted), at_most=mark)


def unet(bench: Bench) -> None:
    """One prediction of the SDXL decoder's U-Net."""
    config = model_config(bench, "8b", bench.pick(SMALL_UNET, {}))
    decoder = build(config, ("decoder",), CPU, torch.float32).decoder
    compare(bench, "SDXL U-Net", decoder, _prediction(config))


def sana(bench: Bench) -> None:
    """One prediction of SANA's transformer, and its autoencoder."""
    config = model_config(bench, "4b-sana", bench.pick(SMALL_SANA, {}))
    decoder = build(config, ("decoder",), CPU, torch.float32).decoder
    compare(bench, "SANA", decoder, _prediction(config))
    compare(bench, "SANA's autoencoder", decoder, _pixels(config))


def vae(bench: Bench) -> None:
    """SDXL's autoencoder, latents to pixels."""
    config = model_config(bench, "8b", bench.pick(SMALL_UNET, {}))
    decoder = build(config, ("decoder",), CPU, torch.float32).decoder
    compare(bench, "SDXL's autoencoder", decoder, _pixels(config))


def _prediction(config: ModelConfig) -> Call:
    generator = torch_generator(0, "decoder")
    features = torch.randn(1, *config.latent_shape, generator=generator)
    noisy = torch.randn(1, *config.decoder.noise_shape, generator=generator)

    def call(module: Any, device: torch.device, _: torch.dtype) -> Tensor:  # noqa: ANN401 - a part of a model
        time = torch.tensor([500.0], device=device)
        return module.predict(noisy.to(device), time, module.condition(features.to(device)))

    return call


def _pixels(config: ModelConfig) -> Call:
    latents = torch.randn(1, *config.decoder.noise_shape, generator=torch_generator(0, "latents"))
    return lambda module, device, _: to_images(module.vae, latents.to(device))


def noise(bench: Bench) -> None:
    """Random draws are made on the CPU, so a seed gives the same numbers on every device."""
    keys = torch.arange(4) * 7
    here, there = (
        flow_draws(keys.to(device), seed=1, kind="flow-0", shape=(64, 1792), dropout=0.1)
        for device in (CPU, bench.device)
    )
    for name in ("noise", "uniform", "keep"):
        bench.equal(f"draws of a loss: {name}", torch.equal(getattr(here, name), getattr(there, name).to(CPU)))


def slots(bench: Bench) -> None:
    """A prompt and a seed give the same features alone and in every slot of a batch, to the bit."""
    config = shallow(bench)
    steps = bench.pick(8, 2)
    for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        model = build(config, ("backbone", "queries", "dit"), bench.device, dtype)
        found = {}
        for size in (4, 16):
            pipe = pipeline(model, bench.device, batch_size=size, max_length=bench.pick(224, 96))
            alone = found[size] = pipe.generate_features([PROMPTS[0]], seeds=[5], num_inference_steps=steps)[0]
            same = True
            for slot in range(size) if bench.full else (size - 1,):
                prompts = [PROMPTS[1 + n % 3] for n in range(size)]
                prompts[slot] = PROMPTS[0]
                seeds = [5 if n == slot else 100 + n for n in range(size)]
                features = pipe.generate_features(prompts, seeds=seeds, num_inference_steps=steps)
                same = same and torch.equal(features[slot], alone)
            bench.equal(f"features alone and in any slot of {size}, {label}", same and bool(alone.isfinite().all()))
        bench.row(f"features in a batch of 16 against 4, {label}", difference(found[16], found[4]), "relative")


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "device": device_facts,
    "noise": noise,
    "encoder": encoder,
    "backbone": backbone,
    "dit": dit,
    "loss": loss,
    "slots": slots,
    "unet": unet,
    "vae": vae,
    "sana": sana,
}
