"""The peak memory of one worker's device by component, at any ZeRO stage, with and without recomputation.

What lasts from step to step is `blip3o.train.preflight.memory`. What comes and goes is added here, for the two moments
at which a step needs most: in the backward pass, and in the optimizer step. Bucket sizes and what is gathered are
DeepSpeed's defaults (`runtime/zero/config.py`, 0.19.8), unless the recipe sets them. docs/budget.md has the formulas.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blip3o.budget.activations import Activations
from blip3o.config.recipe import Recipe
from blip3o.train.deepspeed.config import deepspeed_config
from blip3o.train.preflight.memory import ELEMENT, Parameters, state_memory

BUCKET = 500_000_000  # gradient elements that are reduced at once
LIVE = 1_000_000_000  # elements that ZeRO 3 keeps gathered at most (stage3_max_live_parameters)
PREFETCH = 50_000_000  # elements that ZeRO 3 gathers ahead at once (stage3_prefetch_bucket_size)
FP32 = 4


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on one worker's device: what lasts, what the backward pass adds, and what the optimizer step adds.

    `activations` has the gradients that the pass makes, where they are not sums of earlier micro-batches. `buffers` are
    the buckets in which gradients are reduced and, at ZeRO 3, the gathered parameters. `gradients` are no part of the
    backward pass's moment if they only exist after it.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    buffers: float
    step: float
    summed_before: bool

    @property
    def backward(self) -> float:
        """Bytes at the fullest moment of the backward pass."""
        held = self.weights + self.optimizer + self.average
        return held + (self.gradients if self.summed_before else 0.0) + self.activations + self.buffers

    @property
    def peak(self) -> float:
        """The most at any time."""
        held = self.weights + self.optimizer + self.average
        return max(self.backward, held + self.gradients + self.step)


def device_memory(recipe: Recipe, parameters: Parameters, activations: Activations, *, workers: int) -> DeviceMemory:
    """Peak memory with these activations of one micro-batch. What is offloaded is left out."""
    parallel = recipe.parallel
    held = state_memory(recipe, parameters, workers=workers)
    on_device = parallel.offload == "none"
    share = parameters.trained / (workers if parallel.zero_stage else 1)
    accumulates = recipe.optim.micro_batches > workers
    # Partitioned gradients have a place of their own. Otherwise those of the first micro-batch take the place of
    # activations that are used up, and later ones are added to them.
    summed = parallel.zero_stage >= 2 or accumulates
    # At stage 2 the partition of this micro-batch's gradients stands next to the sum of the earlier ones.
    again = ELEMENT[parallel.precision] * share if parallel.zero_stage == 2 and accumulates else 0.0
    in_use = activations.peak if summed else activations.with_gradients
    working, buffers = max(_moments(recipe, parameters, stored=activations.stored, in_use=in_use), key=sum)
    return DeviceMemory(
        weights=0.0 if parallel.offload == "parameters" else held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer if on_device else 0.0,
        average=held.average if on_device else 0.0,
        activations=working,
        buffers=again + buffers,
        step=again + _step(recipe, share, held.gradients) if on_device else again,
        summed_before=summed,
    )


def _moments(recipe: Recipe, parameters: Parameters, *, stored: int, in_use: int) -> Iterator[tuple[float, float]]:
    """Activations and buffers at the moments of the backward pass that may be the fullest.

    Buffers are the bucket of gradients that fills, a second one where reduction overlaps, and the copy that is reduced.
    At ZeRO 3 they are also the parameters that are gathered; before the backward pass those come with the buffer from
    which they are copied.
    """
    parallel = recipe.parallel
    zero: dict[str, Any] = deepspeed_config(recipe)["zero_optimization"]
    bucket = zero.get("reduce_bucket_size", BUCKET) * ELEMENT[parallel.reduction_dtype]
    if parallel.zero_stage < 3:
        # At stage 1 gradients are reduced after the backward pass, when activations are gone.
        copies = {0: 0, 1: 1, 2: 3 if parallel.overlaps else 2}[parallel.zero_stage]
        yield float(in_use), float(copies * bucket)
        return
    element, everything = ELEMENT[parallel.precision], parameters.trained + parameters.frozen
    whole = element * min(LIVE, everything)
    once = element * min(max(PREFETCH, parameters.largest, parameters.largest_frozen), everything)
    yield float(in_use), float(whole + 2 * bucket)
    yield float(stored), float(whole + once + bucket)


def _step(recipe: Recipe, share: float, gradients: float) -> float:
    """What the optimizer step adds to what lasts: gradients in fp32, and on a CPU the temporaries of AdamW."""
    parallel = recipe.parallel
    exact = parallel.accumulation_dtype == "fp32"
    if parallel.zero_stage == 0:
        return 0.0 if exact else FP32 * share
    flat = 0.0 if parallel.zero_stage == 3 else ELEMENT[parallel.accumulation_dtype] * share
    copied = flat + (0.0 if exact else FP32 * share)
    if parallel.device == "gpu":  # the fused kernel has no temporaries
        return copied
    # The sums are released before AdamW runs, which takes two tensors of the partition's size.
    released = gradients if parallel.zero_stage < 3 else 0.0
    return max(copied, 3 * FP32 * share - released)
