"""Synthetic micro-batches of stage generate, with the spread of lengths that real prompts have."""

from collections.abc import Iterator

import numpy as np

from benchmarks.gpu.models import MAX_TOKENS, MEAN_TOKENS
from blip3o.config.recipe import Recipe
from blip3o.rng import numpy_generator

SHORTEST = 40
DISTINCT = 8  # micro-batches that are drawn; they are then repeated


def lengths(recipe: Recipe, number: int) -> np.ndarray:
    """Tokens of each prompt of a micro-batch: from a beta distribution between `SHORTEST` and `MAX_TOKENS`."""
    share = (MEAN_TOKENS - SHORTEST) / (MAX_TOKENS - SHORTEST)
    generator = numpy_generator("gpu", "lengths", number % DISTINCT)
    drawn = generator.beta(4 * share, 4 * (1 - share), recipe.optim.micro_batch_size)
    tokens = SHORTEST + drawn * (MAX_TOKENS - SHORTEST)
    return np.rint(tokens * min(recipe.data.max_length / MAX_TOKENS, 1.0)).astype(np.int64).clip(1)


def micro_batches(recipe: Recipe, first: int = 0, *, equal: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of micro-batches from number `first` on, as the stream gives them.

    With `equal`, every prompt has that many tokens.
    """
    drawn = [_arrays(recipe, number, equal) for number in range(DISTINCT)]
    number = first
    while True:
        rows = recipe.optim.micro_batch_size
        yield {**drawn[number % DISTINCT], "micro_batch": np.full(rows, number)}
        number += 1


def _arrays(recipe: Recipe, number: int, equal: int | None) -> dict[str, np.ndarray]:
    rows, model = recipe.optim.micro_batch_size, recipe.model
    generator = numpy_generator("gpu", "micro-batch", number)
    longest = recipe.data.max_length
    tokens = lengths(recipe, number) if equal is None else np.full(rows, equal)
    ids = generator.integers(1, min(model.backbone.vocab_size, 50_000), (rows, longest), dtype=np.int32)
    ids[np.arange(longest) >= tokens[:, None]] = 0
    arrays: dict[str, np.ndarray] = {"input_ids": ids, "draw_key": generator.integers(0, 2**62, rows)}
    if recipe.data.features == "online":
        side = model.encoder.image_size
        return arrays | {"encoder_pixels": generator.integers(0, 256, (rows, side, side, 3), dtype=np.uint8)}
    # Bits of bfloat16 are the upper half of those of fp32.
    features = generator.standard_normal((rows, *model.latent_shape), dtype=np.float32)
    return arrays | {"features": (features.view(np.uint32) >> 16).astype(np.uint16)}
