"""Batch widths: every pass runs at the smallest of a few widths that fits, padded.

A processor may round a row's products otherwise when there are more rows, or fewer. So each network is tried once at
every width, on rows that are all the same: a width counts only if its rows have the bits of those of the largest.
"""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from blip3o.config.decoder import AnyDecoderConfig
from blip3o.model.backbone import Prompt
from blip3o.model.unified import UnifiedModel
from blip3o.rng import torch_generator

logger = logging.getLogger(__name__)


def default_decode_batch_size(decoder: AnyDecoderConfig, batch_size: int) -> int:
    """Images decoded together, unless configured: `batch_size` or 1, as suits the decoder."""
    return batch_size if decoder.decodes_batches else 1


def candidates(largest: int) -> tuple[int, ...]:
    """Powers of two up to `largest`, and `largest`."""
    return (*(2**n for n in range((largest - 1).bit_length())), largest)


def exact_widths(largest: int, run: Callable[[int], Tensor], *, what: str) -> tuple[int, ...]:
    """The widths at which `run`, given a number of equal rows, gives each row the bits it has at `largest`."""
    if largest == 1:
        return (1,)
    expected = run(largest)[0]
    exact = [width for width in candidates(largest) if all(torch.equal(row, expected) for row in run(width))]
    if largest not in exact:
        logger.warning(
            "%s: rows of a batch of %d differ in their last bits by their position on this machine", what, largest
        )
    return tuple(width for width in exact if width < largest) + (largest,)


def fitting(rows: int, widths: tuple[int, ...]) -> int:
    """The smallest width for this many rows."""
    return min(width for width in widths if width >= rows)


def pad_rows(rows: Tensor, width: int) -> Tensor:
    """Pads to `width` rows by repeating the last one, [n, …] → [width, …]."""
    return torch.cat([rows, rows[-1:].expand(width - rows.shape[0], *rows.shape[1:])])


def chunks(*tensors: Tensor, widths: tuple[int, ...]) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches of the widest width, the last one of a fitting one: the number of real rows, and the padded tensors."""
    largest = widths[-1]
    for start in range(0, tensors[0].shape[0], largest):
        parts = [tensor[start : start + largest] for tensor in tensors]
        count = parts[0].shape[0]
        yield count, [pad_rows(part, fitting(count, widths)) for part in parts]


@torch.inference_mode()
def prompt_widths(model: UnifiedModel, prompt: Prompt, largest: int) -> tuple[int, ...]:
    """Of passes over prompts, tried on a prompt of one row."""

    def run(rows: int) -> Tensor:
        ids, mask = prompt.input_ids.expand(rows, -1), prompt.attention_mask.expand(rows, -1)
        return model.query_states(Prompt(input_ids=ids, attention_mask=mask))

    return exact_widths(largest, run, what="the prompt's pass")


@torch.inference_mode()
def denoiser_widths(model: UnifiedModel, largest: int) -> tuple[int, ...]:
    """Of the denoiser, and of preparing its conditions."""
    weight = next(model.denoiser.parameters())
    states = _random(weight, model.config.num_queries, model.config.backbone.hidden_size).to(weight.dtype)
    latents, sigma = _random(weight, *model.latent_shape), torch.full((1,), 0.7, device=weight.device)

    def run(rows: int) -> Tensor:
        condition = model.denoiser.condition(states.expand(rows, -1, -1))
        return model.velocity(condition, latents.expand(rows, -1, -1), sigma.expand(rows))

    return exact_widths(largest, run, what="the denoiser")


@torch.inference_mode()
def decoder_widths(model: UnifiedModel, null_LF: Tensor | None, largest: int) -> tuple[int, ...]:
    """Of the decoder to pixels, and of what it prepares."""
    weight = next(model.decoder.parameters())
    features = _random(weight, *model.latent_shape)
    way = model.decoder.start(_random(weight, *model.config.decoder.noise_shape)[0])

    def run(rows: int) -> Tensor:
        prepared = model.decoder.prepare(model.decoder_input(features.expand(rows, -1, -1).contiguous()), null_LF)
        if way.done:
            return prepared[0]
        return model.decoder.evaluate(way.point.expand(rows, *way.point.shape), way.level.expand(rows), prepared)

    return exact_widths(largest, run, what="the decoder")


def _random(like: Tensor, *shape: int) -> Tensor:
    """One row of noise, fp32."""
    return torch.randn(1, *shape, generator=torch_generator(0, "widths")).to(like.device)
