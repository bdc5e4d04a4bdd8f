"""What one H200 should give, written down before the first run: FLOPs by this project's formulas, over assumed rates.

The rates and the milliseconds of waiting are estimates; everything else follows from the sizes of the models. A result
far from its prediction means that one of the estimates is wrong, and the profile of the verb says which.
"""

import functools
from collections.abc import Sequence

import torch

from blip3o.config.load import preset_model
from blip3o.config.model import ModelConfig
from blip3o.device import PEAK_BF16
from blip3o.model.decoders.build import build_decoder
from blip3o.model.describe import META
from blip3o.model.flops import formulas
from blip3o.model.flops.counted import measure
from blip3o.model.flops.formulas import Grad

PEAK = PEAK_BF16["H200"]
MATMUL = 785e12  # FLOP/s of a large bf16 product at the clocks that the card holds
COPY = 0.9 * 4.8e12  # bytes/s, read and written; the data sheet has 4.8 TB/s
TRAINING = 480e12  # FLOP/s of layers in training: products at 550-650, 15 % of the time elementwise
SMALL_TRAINING = 400e12  # the same at the 4B's widths
ENCODING = 0.5 * PEAK  # a frozen tower without gradients
CONVOLVING = 0.38 * PEAK  # a U-Net's convolutions and short attentions
WAITING_EAGER_S = 0.045  # a micro-batch: launches, mostly the DiT's 6,000 with 12 % of the FLOPs
WAITING_S = 0.008  # the same with the layers of backbone and DiT compiled
OPTIMIZER_S = 0.010  # a step of fused AdamW over 16 GB of state
LAUNCH_S = 6e-6
LAUNCHES_PER_PASS = 1800  # of the DiT, eager
BANDWIDTH = 4.3e12  # bytes/s at which weights are read where a batch is too small to use them twice

# Goals, as the project has set them: share of the peak on real tokens, and ratios.
GOAL_8B, GOAL_4B = 0.45, 0.38
GOAL_UPSTREAM, GOAL_BATCHED = 8.0, 8.0
GOAL_ENCODING = 53.0  # images/s of the EVA tower: half of the peak
GOAL_HTTP_S = 0.015  # what HTTP and Serve may add to a request


def generate_flops(model: ModelConfig, lengths: Sequence[int], *, online: bool = False) -> int:
    """FLOPs of a micro-batch of stage generate with prompts of these lengths, which are not padded."""
    total = formulas.diffusion_transformer(model, rows=len(lengths), draws=1)
    total += sum(formulas.prompt_and_queries(model, lengths=list(lengths)).values())
    if online:
        total += formulas.encoder(model.encoder, images=len(lengths), grad=Grad.NONE)
    return total


def step_seconds(
    model: ModelConfig, lengths: Sequence[int], *, online: bool, compiled: bool, recomputed: bool
) -> float:
    """Seconds of one micro-batch in training."""
    rate = TRAINING if model.backbone.hidden_size > 3000 else SMALL_TRAINING
    flops = generate_flops(model, lengths)
    seconds = flops / rate * (1.25 if recomputed else 1.0)
    if online:
        seconds += formulas.encoder(model.encoder, images=len(lengths), grad=Grad.NONE) / ENCODING
    return seconds + (WAITING_S if compiled else WAITING_EAGER_S)


def features_seconds(model: ModelConfig, rows: int, *, eager: bool) -> float:
    """Seconds to sample the features of some rows: launches where they are many, else weights, else arithmetic."""
    # Both branches are one pass of twice the rows. The FLOPs of training have the backward pass's, twice the forward's.
    forward = formulas.diffusion_transformer(model, rows=2 * rows, draws=1) / 3
    weights = sum(p.numel() for p in _dit(model).parameters()) * 2 / BANDWIDTH
    launches = LAUNCHES_PER_PASS * LAUNCH_S if eager else 0.0
    return model.sampler.num_inference_steps * max(launches, weights, forward / ENCODING)


def decode_seconds(model: ModelConfig, rows: int) -> float:
    """Seconds to decode a batch: the operations of its decoder, counted on the meta device."""
    return rows * decode_flops(model) / CONVOLVING


@functools.lru_cache(maxsize=4)
def decode_flops(model: ModelConfig) -> int:
    """FLOPs of decoding one image."""
    with META, torch.no_grad():
        decoder = build_decoder(model.decoder, feature_dim=model.latent_channels)
        inputs = torch.empty(1, *model.latent_shape)
        noise = torch.empty(1, *model.decoder.noise_shape)
        return sum(measure(part.run) * part.calls for part in decoder.operations(inputs, noise))


@functools.lru_cache(maxsize=4)
def _dit(model: ModelConfig) -> torch.nn.Module:
    from blip3o.model.dit import DiT

    with META:
        return DiT(
            model.dit,
            in_channels=model.latent_channels,
            grid=model.latent_grid,
            condition_dim=model.backbone.hidden_size,
        )


def encoding_rate() -> float:
    """Images per second of the EVA tower alone."""
    return ENCODING / formulas.encoder(preset_model("8b").encoder, images=1, grad=Grad.NONE)
