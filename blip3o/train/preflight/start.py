"""The host memory that a worker needs while it gets its initial weights (`blip3o.train.initial_weights`).

Rank 0 holds the ranges of files that are on their way, and one tensor at a time that is drawn: in fp32, and once more
in the recipe's precision. The other ranks hold nothing but weights. On the CPU these are in the same memory, and are
counted. The libraries' own memory comes on top: about 1 GiB for PyTorch, Ray and DeepSpeed.
"""

from dataclasses import dataclass

from blip3o.config.recipe import Recipe
from blip3o.train.preflight.memory import ELEMENT, Parameters
from blip3o.weights.safetensors_stream import AHEAD, RANGE_BYTES


@dataclass(frozen=True, kw_only=True)
class StartMemory:
    """Bytes of host memory at the start: of rank 0, which reads, and of each of the others."""

    first: int
    others: int


def start_memory(recipe: Recipe, parameters: Parameters) -> StartMemory:
    """The estimate for a recipe's stage. Measured: `python -m benchmarks.load`."""
    element = ELEMENT[recipe.parallel.precision]
    weights = element * (parameters.trained + parameters.frozen) if recipe.parallel.device == "cpu" else 0
    drawn = (4 + element) * parameters.largest
    # One range more: the one that is being copied.
    return StartMemory(first=weights + (AHEAD + 1) * RANGE_BYTES + drawn, others=weights)
