"""Batch widths: every pass runs at the smallest of a few widths that fits, padded.

A processor may round a row's products otherwise when there are more rows, or fewer, or at another place among them. So
each network is tried once at every width. A width counts only if a row has the same bits at every place, and those that
it has at the largest width that counts. In bf16 the rounding of results hides most of such differences, also from this
trial.
"""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from blip3o.config.decoder import AnyDecoderConfig
from blip3o.errors import ConfigError
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


def exact_widths(
    largest: int, run: Callable[[Tensor], Tensor], *, what: str, among: Sequence[int] = ()
) -> tuple[int, ...]:
    """The widths, of powers of two up to `largest` or of `among`, at which `run` gives a row one result.

    `run` takes the numbers of the rows to run, int64 [width]. Raises `ConfigError` if no width counts.
    """
    rows = torch.arange(largest)
    orders = {"in order": rows, "in reverse": rows.flip(0), "shifted": rows.roll(1)}
    exact: list[int] = []
    expected: Tensor | None = None
    for width in reversed(among or candidates(largest)):
        results = [_run_in_groups(run, order, width) for order in orders.values()]
        if not all(torch.equal(results[0], other) for other in results):
            logger.warning("%s: at width %d, a row's bits depend on its place: not used on this machine", what, width)
        elif expected is None or torch.equal(results[0], expected):
            expected = results[0]
            exact.append(width)
    if not exact:
        raise ConfigError(
            f"{what} gives a row other bits at another place of a batch, so no image would be the same twice: use "
            "another precision, or execution eager"
        )
    return tuple(reversed(exact))


def _run_in_groups(run: Callable[[Tensor], Tensor], order: Tensor, width: int) -> Tensor:
    """The results of all rows, by number, when they run in this order, `width` together."""
    padded = torch.cat([order, order[: -len(order) % width]])
    results = torch.cat([run(group) for group in padded.split(width)])[: len(order)]
    return results[order.argsort().to(results.device)]


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
    """Of passes over prompts, tried on `largest` prompts."""

    def run(rows: Tensor) -> Tensor:
        part = rows.to(prompt.input_ids.device)
        return model.query_states(Prompt(input_ids=prompt.input_ids[part], attention_mask=prompt.attention_mask[part]))

    return exact_widths(largest, run, what="the prompt's pass")


@torch.inference_mode()
def denoiser_widths(model: UnifiedModel, largest: int, among: Sequence[int] = ()) -> tuple[int, ...]:
    """Of the denoiser, and of preparing its conditions; one is above 1, so that rows with guidance fit into a pass."""
    weight = next(model.denoiser.parameters())
    states = _random(weight, largest, model.config.num_queries, model.config.backbone.hidden_size).to(weight.dtype)
    latents, sigma = _random(weight, largest, *model.latent_shape), torch.linspace(0.1, 1, largest).to(weight.device)

    def run(rows: Tensor) -> Tensor:
        part = rows.to(weight.device)
        return model.velocity(model.denoiser.condition(states[part]), latents[part], sigma[part])

    widths = exact_widths(largest, run, what="the denoiser", among=among)
    if widths[-1] == 1:
        raise ConfigError("the denoiser gives two rows other bits than one: use another precision")
    return widths


@torch.inference_mode()
def decoder_widths(model: UnifiedModel, null_LF: Tensor | None, largest: int) -> tuple[int, ...]:
    """Of the decoder to pixels, and of what it prepares."""
    weight = next(model.decoder.parameters())
    features = _random(weight, largest, *model.latent_shape)
    way = model.decoder.start(_random(weight, largest, *model.config.decoder.noise_shape))

    def run(rows: Tensor) -> Tensor:
        part = rows.to(weight.device)
        prepared = model.decoder.prepare(model.decoder_input(features[part]), null_LF)
        if way.done:
            return prepared[0]
        return model.decoder.evaluate(way.point[part], way.level.expand(len(part)), prepared)

    return exact_widths(largest, run, what="the decoder")


def _random(like: Tensor, *shape: int) -> Tensor:
    """Noise, fp32."""
    return torch.randn(*shape, generator=torch_generator(0, "widths")).to(like.device)
