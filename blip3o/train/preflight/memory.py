"""What a stage needs of memory and disk, from counts of parameters: known before anything is built.

Weights, gradients and optimizer by ZeRO stage (arXiv 1910.02054, section 5): with T trained and F frozen parameters, b
bytes of an element, W workers and Adam's 12 bytes (fp32 copy, two moments), a worker holds

| stage | weights | gradients | optimizer |
|---|---|---|---|
| 0 | b (T + F) | b T | 12 T |
| 1 | b (T + F) | b T | 12 T / W |
| 2 | b (T + F) | b T / W | 12 T / W |
| 3 | b (T + F) / W | b T / W | 12 T / W |

Activations, the stream's batches and what the libraries take come on top: `SHARE` of the memory is for the above.
"""

from dataclasses import dataclass

from blip3o.config.recipe import Recipe
from blip3o.model.describe import META
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of

ELEMENT = {"bf16": 2, "fp32": 4}
ADAM = 12  # bytes of a parameter: fp32 copy and two moments
AVERAGE = 4  # of its moving average
SHARE = 0.8  # of a device's memory that weights, gradients and optimizer may take
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters that a stage trains, and that it holds frozen."""

    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one worker holds on its device, and of one checkpoint of all workers."""

    device: float
    checkpoint: float


def count(recipe: Recipe) -> Parameters:
    """Counts a stage's parameters on modules without storage. Raises `ConfigError` as `freeze` does."""
    with META:
        module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    freeze(module.model, stage_of(recipe))
    sizes: dict[bool, int] = {True: 0, False: 0}
    for parameter in module.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return Parameters(trained=sizes[True], frozen=sizes[False])


def footprint(recipe: Recipe, parameters: Parameters, *, workers: int) -> MemoryEstimate:
    """Bytes by the table above, less what waits in CPU memory; a checkpoint holds trained weights and optimizer.

    A moving average (`optim.ema_decay`) takes four bytes of a trained parameter more, where the optimizer is and in the
    checkpoint.
    """
    parallel = recipe.parallel
    element, stage = ELEMENT[parallel.precision], parallel.zero_stage
    trained, everything = parameters.trained, parameters.trained + parameters.frozen
    state = ADAM + (AVERAGE if recipe.optim.ema_decay else 0)
    weights = element * everything / (workers if stage == 3 else 1)
    gradients = element * trained / (workers if stage >= 2 else 1)
    optimizer = state * trained / (workers if stage >= 1 else 1)
    held = {"none": weights + optimizer, "optimizer": weights, "parameters": 0.0}[parallel.offload]
    return MemoryEstimate(device=held + gradients, checkpoint=(element + state) * trained)
