"""Verb `draw`: sampling and serving at the full 8b sizes in bf16, with random weights.

Features are sampled by the product's own loop at some batch sizes, eager and compiled, and by the loop that a pipeline
of diffusers has over the same modules. Then come the decoders, the engine without HTTP, and the engine behind HTTP.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import predictions
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import build, model_config, pipeline
from benchmarks.gpu.parity import difference
from benchmarks.gpu.serving import engine, serve
from blip3o.device import Execution
from blip3o.inference.execution import set_execution
from blip3o.model.decoders.autoencoder import to_images
from blip3o.model.unified import UnifiedModel
from blip3o.rng import torch_generator

GENERATING = ("backbone", "queries", "dit")
SIZES = (1, 4, 16)
GUIDANCE = 3.0
TOLERANCE = 3e-2  # bf16: the two loops stack their rows in other ways, so products round differently


# How the denoiser runs. The eager way comes first, since others are compared with it. Graphs need a GPU.
WAYS: tuple[Execution, ...] = ("eager", "compile", "graph")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Query states [B, N, H] and noise [B, L, F] of a batch."""

    states: Tensor
    noise: Tensor


def inputs(bench: Bench, model: UnifiedModel, rows: int) -> Inputs:
    """The same rows first, whatever their number."""
    generator, config = torch_generator(0, "draw"), model.config
    states = torch.randn(SIZES[-1], config.num_queries, config.backbone.hidden_size, generator=generator)
    noise = torch.randn(SIZES[-1], *model.latent_shape, generator=generator)
    dtype = next(model.dit.parameters()).dtype
    return Inputs(states=states[:rows].to(bench.device, dtype), noise=noise[:rows].to(bench.device))


def condition(bench: Bench) -> None:
    """Query states of prompts: backbone and queries, at the pipeline's batch sizes."""
    model = build(model_config(bench, "8b"), GENERATING, bench.device, torch.bfloat16)
    for size in SIZES:
        pipe = pipeline(model, bench.device, batch_size=size, max_length=bench.pick(224, 96))
        prompts = [f"{number} red circles" for number in range(size)]
        seconds = bench.seconds(partial(pipe.condition, prompts))
        bench.row(f"condition of {size}", 1000 * seconds, "ms")


@torch.inference_mode()
def features(bench: Bench) -> None:
    """30 steps under two branches, by every way at every batch size, against diffusers' loop."""
    config = model_config(bench, "8b")
    steps = config.sampler.num_inference_steps
    rates: dict[tuple[str, int], float] = {}
    for way in WAYS[: None if bench.options.device == "gpu" else -1]:
        if bench.late(way):
            return
        model = build(config, ("dit",), bench.device, torch.bfloat16)
        set_execution(model, way, batch_size=SIZES[0], device=bench.device)
        for size in bench.pick(SIZES, (SIZES[0], SIZES[-1])):
            given = inputs(bench, model, size)
            seconds = bench.seconds(partial(_ours, model, given, steps), rounds=3, warm=2)
            rates[way, size] = size / seconds
            expected = predictions.features_seconds(config, size, eager=way == "eager") if bench.judged else None
            bench.row(f"{way}: features of {size}, {steps} steps", 1000 * seconds, "ms", predicted=_ms(expected))
        _throughput(bench, way, rates)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _throughput(bench: Bench, way: str, rates: Mapping[tuple[str, int], float]) -> None:
    """Images/s of a batch of 16 over one at a time: by the same way, and by the eager one, which has the goal."""
    most = rates[way, SIZES[-1]]
    bench.row(f"{way}: batch of {SIZES[-1]} over one at a time", most / rates[way, 1], "x")
    over_eager = most / rates["eager", 1]
    bench.row(f"{way}: the same over eager", over_eager, "x", at_least=predictions.GOAL_BATCHED)


def _ours(model: UnifiedModel, given: Inputs, steps: int) -> Tensor:
    return model.sample_features(given.states, given.noise, num_inference_steps=steps, guidance_scale=GUIDANCE)


@torch.inference_mode()
def diffusers(bench: Bench) -> None:
    """The loop of a pipeline of diffusers over the same DiT: its scheduler, both branches stacked in every step."""
    model = build(model_config(bench, "8b"), ("dit",), bench.device, torch.bfloat16)
    steps = model.config.sampler.num_inference_steps
    for size in SIZES:
        given = inputs(bench, model, size)
        error = difference(_ours(model, given, steps), _by_diffusers(model, given, steps))
        bench.check(f"features of {size}: ours against diffusers'", error, at_most=TOLERANCE)
        ours, other = (bench.seconds(partial(way, model, given, steps)) for way in (_ours, _by_diffusers))
        bench.row(f"diffusers' loop, batch of {size}", 1000 * other, "ms")
        bench.row(f"diffusers' seconds over ours, batch of {size}", other / ours, "x")


def _by_diffusers(model: UnifiedModel, given: Inputs, steps: int) -> Tensor:
    """As upstream's pipeline samples: the condition is projected in every step."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=given.noise.device)
    both = torch.cat([torch.zeros_like(given.states), given.states])
    latents = given.noise
    for time in scheduler.timesteps:
        stacked = torch.cat([latents] * 2)
        velocity = model.dit(stacked, time.expand(stacked.shape[0]), model.dit.condition(both))
        null, conditional = velocity.chunk(2)
        guided = null + GUIDANCE * (conditional - null)
        latents = scheduler.step(guided, time, latents, return_dict=False)[0]
    return latents


def sdxl(bench: Bench) -> None:
    """Features to 1024 pixels: 50 steps of the U-Net under two branches, and the autoencoder."""
    _decoder(bench, "8b", SIZES_DECODED)


def sana(bench: Bench) -> None:
    """Features to 512 pixels: 30 steps of SANA's transformer under two branches, and its autoencoder."""
    _decoder(bench, "4b-sana", SIZES_DECODED)


SIZES_DECODED = (1, 2, 4)


@torch.inference_mode()
def _decoder(bench: Bench, preset: str, sizes: tuple[int, ...]) -> None:
    model = build(model_config(bench, preset), ("decoder",), bench.device, torch.bfloat16)
    null = _features(bench, model, 1)[0]
    for size in sizes:
        noise = torch.randn(size, *model.config.decoder.noise_shape, device=bench.device)
        given = _features(bench, model, size)
        seconds = bench.seconds(partial(model.decode, given, noise, null), rounds=2)
        expected = predictions.decode_seconds(model.config, size) / size if bench.judged else None
        bench.row(f"seconds an image, batch of {size}", seconds / size, "s", predicted=expected)
        vae = bench.seconds(partial(to_images, model.decoder.vae, noise), rounds=2)
        bench.row(f"of them in the autoencoder, batch of {size}", vae / size, "s")


def _features(bench: Bench, model: UnifiedModel, rows: int) -> Tensor:
    return torch.randn(rows, *model.latent_shape, generator=torch_generator(0, "decoded")).to(bench.device)


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "condition": condition,
    "features": features,
    "diffusers": diffusers,
    "sdxl": sdxl,
    "engine": engine,
    "serve": serve,
    "sana": sana,
}
