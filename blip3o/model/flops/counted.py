"""The FLOPs of one image, counted by running the modules on the meta device.

torch's counter counts every matrix product, convolution and attention, forward and backward; a multiply-add is two.
Norms, activations and embeddings are not counted. No formulas are involved, so new kinds of parts need no change here.
The model must be on the meta device (`describe.build_on_meta`).

Legend: P prompt tokens, N queries, H the backbone's channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from blip3o.config.backbone import VisionConfig
from blip3o.model.describe import META
from blip3o.model.flow import evaluations
from blip3o.model.language.decoder import Cache
from blip3o.model.unified import UnifiedModel


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one operation: FLOPs per call, and calls per image."""

    name: str
    flops: int
    calls: int = 1

    @property
    def total(self) -> int:
        """FLOPs for one image."""
        return self.flops * self.calls


def measure(call: Callable[[], object]) -> int:
    """FLOPs of a call, including those of a backward pass inside it."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@torch.no_grad()
def generation(model: UnifiedModel, prompt_tokens: int) -> Iterator[Cost]:
    """The cost of generating one image for a prompt of P tokens, template included."""
    config = model.config
    branches = 1 if config.sampler.guidance_scale == 1 else 2
    states = _empty(1, config.num_queries, config.backbone.hidden_size)
    condition = model.denoiser.condition(states)
    latents, time = _empty(1, *model.latent_shape), _empty(1)
    yield from _prompt_and_queries(model, prompt_tokens)
    yield Cost(name="condition", flops=measure(lambda: model.denoiser.condition(states)), calls=branches)
    yield Cost(
        name="velocity",
        flops=measure(lambda: model.denoiser(latents, time, condition)),
        calls=branches * evaluations(config.sampler.solver, config.sampler.num_inference_steps),
    )
    yield from _decoding(model)


def training(model: UnifiedModel, prompt_tokens: int) -> Iterator[Cost]:
    """The cost of one image in stage generate: backbone and encoder are frozen, the prompt is prefilled."""
    config = model.config
    model.backbone.requires_grad_(requires_grad=False)
    pixels = torch.empty(1, config.target_size, config.target_size, 3, dtype=torch.uint8, device=META)
    with torch.no_grad():
        yield Cost(name="target features", flops=measure(lambda: model.features(pixels)))
        yield Cost(name=f"prompt of {prompt_tokens} tokens", flops=measure(lambda: _prompt(model, prompt_tokens)))
        cache = _prompt(model, prompt_tokens)
    queries = config.num_queries
    yield Cost(
        name=f"{queries} queries, with gradient", flops=measure(lambda: _pass(model, queries, cache).sum().backward())
    )
    states = _empty(1, queries, config.backbone.hidden_size).requires_grad_()
    latents, time = _empty(1, *model.latent_shape), _empty(1)

    def denoise() -> None:
        model.denoiser(latents, time, model.denoiser.condition(states)).sum().backward()

    yield Cost(name="condition and velocity, with gradient", flops=measure(denoise))


def full_pass(model: UnifiedModel, prompt_tokens: int) -> Cost:
    """The cost that replaces prompt and queries when training without the frozen prefix.

    Gradients flow through P + N tokens, whose activations are recomputed since they would take too much memory.
    """
    tokens = prompt_tokens + model.config.num_queries
    model.backbone.requires_grad_(requires_grad=False)
    once = measure(lambda: _pass(model, tokens, None).sum().backward())
    with torch.no_grad():
        again = measure(lambda: _pass(model, tokens, None))
    return Cost(name=f"{tokens} tokens with gradient, recomputed", flops=once + again)


@torch.no_grad()
def image_prefill(model: UnifiedModel) -> Iterator[Cost]:
    """The cost of one image in a prompt; nothing for a text-only backbone."""
    vision = model.config.backbone.vision
    if vision is None:
        return
    yield Cost(name="vision tower", flops=measure(lambda: _vision_tokens(model, vision)))
    yield Cost(name=f"its {vision.num_tokens} tokens", flops=measure(lambda: _pass(model, vision.num_tokens, None)))


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device=META)


def _prompt_and_queries(model: UnifiedModel, prompt_tokens: int) -> Iterator[Cost]:
    yield Cost(name=f"prompt of {prompt_tokens} tokens", flops=measure(lambda: _prompt(model, prompt_tokens)))
    cache = _prompt(model, prompt_tokens)
    queries = model.config.num_queries
    yield Cost(name=f"{queries} queries", flops=measure(lambda: _pass(model, queries, cache)))


def _prompt(model: UnifiedModel, tokens: int) -> Cache:
    """The cache of a prompt without padding; its states are not needed."""
    embeddings = _empty(1, tokens, model.config.backbone.hidden_size)
    return model.backbone.text.fill(embeddings, _positions(tokens))


def _pass(model: UnifiedModel, tokens: int, cache: Cache | None) -> Tensor:
    """Hidden states [1, tokens, H] of embeddings that require gradients, with or without a cache."""
    embeddings = _empty(1, tokens, model.config.backbone.hidden_size).requires_grad_()
    return model.backbone.text(embeddings, _positions(tokens), past=cache)[0]


def _positions(tokens: int) -> Tensor:
    """Position ids [1, tokens]: no value of theirs is read on the meta device."""
    return torch.empty(1, tokens, dtype=torch.long, device=META)


def _decoding(model: UnifiedModel) -> Iterator[Cost]:
    features, noise = _empty(1, *model.latent_shape), _empty(1, *model.config.decoder.noise_shape)
    if "coarse" in model.config.parts:
        yield Cost(name="coarse image", flops=measure(lambda: model.coarse(features)))
    for part in model.decoder.operations(model.decoder_input(features), noise):
        yield Cost(name=part.name, flops=measure(part.run), calls=part.calls)


def _vision_tokens(model: UnifiedModel, vision: VisionConfig) -> Tensor:
    pixels = torch.empty(1, vision.image_size, vision.image_size, 3, dtype=torch.uint8, device=META)
    return model.backbone.embed_images(pixels, dtype=torch.float32)
