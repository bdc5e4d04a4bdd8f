"""Estimates the memory and disk that a stage needs, from its numbers of parameters and before anything is built.

Weights, gradients and optimizer state by ZeRO stage (arXiv 1910.02054, section 5): with T trained and F frozen
parameters, b bytes per element, W workers and Adam's 12 bytes (fp32 copy, two moments), a worker holds

| stage | weights | gradients | optimizer |
|---|---|---|---|
| 0 | b (T + F) | b T | 12 T |
| 1 | b (T + F) | b T | 12 T / W |
| 2 | b (T + F) | b T / W | 12 T / W |
| 3 | b (T + F) / W | b T / W | 12 T / W |

Gradients that are summed in another dtype than that of the weights (`parallel.gradient_accumulation_dtype`) have the
size of that dtype instead of b. At stage 0 in fp32 there is no copy of the weights: 8 T.

Activations, input batches and the libraries' own memory come on top: only `SHARE` of the memory is for the table's
items.

While the engine is built there are no gradients, but a worker has the complete model, at stage 3 too: its parameters
are partitioned then. In bf16 it also keeps the fp32 weights of what trains (4 T), from which the optimizer starts.
"""

from dataclasses import dataclass

from blip3o.config.recipe import Recipe
from blip3o.model.describe import META
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of

ELEMENT = {"bf16": 2, "fp32": 4}
ADAM = 12  # bytes per parameter: fp32 copy and two moments
MOMENTS = 8  # without the copy, where nothing is partitioned and the weights themselves are fp32
EXACT = 4  # bytes per trained parameter in bf16 until the engine is built: fp32 weights
EMA = 4  # bytes per parameter of the moving average
SHARE = 0.8  # of a device's memory that weights, gradients and optimizer may take
START_SHARE = 0.95  # the same while the engine is built, without activations
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """A stage's numbers of trained and of frozen parameters, and those of the largest trained and frozen tensors."""

    trained: int
    frozen: int
    largest: int = 0
    largest_frozen: int = 0


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device of one worker, those of its gradients among them, and in one checkpoint of all workers.

    `start` is the peak on the device while the engine is built.
    """

    device: float
    start: float
    gradients: float
    checkpoint: float


@dataclass(frozen=True, kw_only=True)
class StateMemory:
    """Bytes of one worker that last from step to step: weights, sums of gradients, optimizer, moving average."""

    weights: float
    gradients: float
    optimizer: float
    average: float


def count_parameters(recipe: Recipe) -> Parameters:
    """Counts a stage's parameters on the meta device. Raises `ConfigError` as `freeze`."""
    with META:
        module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    freeze(module.model, stage_of(recipe))
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for parameter in module.parameters():
        sizes[parameter.requires_grad].append(parameter.numel())
    largest, largest_frozen = (max(sizes[trained], default=0) for trained in (True, False))
    return Parameters(
        trained=sum(sizes[True]), frozen=sum(sizes[False]), largest=largest, largest_frozen=largest_frozen
    )


def state_memory(recipe: Recipe, parameters: Parameters, *, workers: int) -> StateMemory:
    """Bytes of one worker by the table above, wherever they are: offloaded ones too."""
    parallel = recipe.parallel
    element, stage = ELEMENT[parallel.precision], parallel.zero_stage
    share = parameters.trained / (workers if stage >= 1 else 1)
    return StateMemory(
        weights=element * (parameters.trained + parameters.frozen) / (workers if stage == 3 else 1),
        gradients=ELEMENT[parallel.accumulation_dtype] * parameters.trained / (workers if stage >= 2 else 1),
        optimizer=(MOMENTS if stage == 0 and parallel.precision == "fp32" else ADAM) * share,
        average=EMA * share if recipe.optim.ema_decay else 0.0,
    )


def estimate_memory(recipe: Recipe, parameters: Parameters, *, workers: int) -> MemoryEstimate:
    """Bytes by the table above, without what is offloaded to the CPU. A checkpoint holds trained weights and optimizer.

    A moving average (`optim.ema_decay`) adds four bytes per trained parameter to both, next to the optimizer's state.
    """
    parallel = recipe.parallel
    element, trained = ELEMENT[parallel.precision], parameters.trained
    held = state_memory(recipe, parameters, workers=workers)
    built = {"none": held.weights + held.optimizer, "optimizer": held.weights, "parameters": 0.0}[parallel.offload]
    averaged = held.average if parallel.offload == "none" else 0.0
    exact = EXACT * trained if parallel.precision == "bf16" else 0
    return MemoryEstimate(
        device=built + averaged + held.gradients,
        start=exact + max(element * (trained + parameters.frozen), built),
        gradients=held.gradients,
        checkpoint=(element + ADAM + (EMA if recipe.optim.ema_decay else 0)) * trained,
    )
