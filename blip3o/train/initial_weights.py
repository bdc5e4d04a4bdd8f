"""The initial weights of a stage: random ones from the run's seed, overridden by the runs in `stage.start_from`.

The ranks compare the weights that they have read before anything costly is built on them.
"""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.errors import CheckpointError
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.train.lora import add_adapters
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.stages import freeze, stage_of


def prepare_module(recipe: Recipe, tokenizer: ChatTokenizer) -> StageModule:
    """Builds the stage's model with its initial weights, and its adapters if it has any.

    Raises `CheckpointError` if a frozen part has no trained weights.
    """
    module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    initialize(module.model, recipe.run.seed)
    trainable = freeze(module.model, stage_of(recipe))
    loaded = load_start_weights(module.model, recipe)
    require_frozen_weights(module.model, loaded, trainable)
    if recipe.stage.query_questions and "queries" not in loaded:
        _queries_from_questions(recipe, module.model, tokenizer)
    if recipe.stage.lora is not None:
        add_adapters(module.model, recipe.stage.lora, recipe.run.seed)
    return module


def load_start_weights(model: UnifiedModel, recipe: Recipe, *, without: str | None = None) -> set[str]:
    """Loads the results of the runs in `stage.start_from`, except run `without`; returns the names of the parameters.

    Later runs override earlier ones. Raises `CheckpointError` if one has not finished, or a shape differs.
    """
    loaded: set[str] = set()
    for run in recipe.stage.start_from:
        if run != without:
            tensors, _ = read_final(final_uri(recipe.run.storage, run))
            loaded |= load_into(model, tensors, source=run)
    return loaded


def _queries_from_questions(recipe: Recipe, model: UnifiedModel, tokenizer: ChatTokenizer) -> None:
    """Sets the queries to token embeddings of questions, repeated or truncated to the number of queries.

    With a small language model, prompt tuning works best from embeddings of related text (Lester et al. 2021,
    arXiv 2104.08691, section 3.2).
    """
    ids = [token for question in recipe.stage.query_questions for token in tokenizer.encode(question)]
    count = model.queries.shape[0]
    rows = torch.tensor((ids * -(-count // len(ids)))[:count])
    with torch.no_grad():
        model.queries.copy_(model.backbone.text.embed_tokens.weight[rows])


def matching_names(model: UnifiedModel, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> set[str]:
    """The names that the model has too. Raises `CheckpointError` if one of them has another shape in the model."""
    own = model.state_dict()
    names = shapes.keys() & own.keys()
    for name in sorted(names):
        if shapes[name] != tuple(own[name].shape):
            raise CheckpointError(
                f"{source}: {name} has shape {shapes[name]}, the model needs {tuple(own[name].shape)}: use the same "
                "model preset"
            )
    return set(names)


def load_into(model: UnifiedModel, tensors: Mapping[str, Tensor], *, source: str) -> set[str]:
    """Loads the tensors that the model has too and returns their names.

    Raises `CheckpointError` if a shape differs.
    """
    names = matching_names(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, source=source)
    model.load_state_dict({name: tensors[name] for name in names}, strict=False)
    return names


def require_frozen_weights(model: UnifiedModel, loaded: set[str], trainable: list[str]) -> None:
    """Raises `CheckpointError` if a frozen parameter was not loaded: no stage may train on top of random weights."""
    missing = [name for name, _ in model.named_parameters() if name not in loaded and name not in set(trainable)]
    if missing:
        parts = sorted({name.split(".")[0] for name in missing})
        raise CheckpointError(
            f"frozen parts {', '.join(parts)} have no weights ({len(missing)} tensors, e.g. {missing[0]}): "
            "name the runs that trained them in stage.start_from"
        )


@torch.no_grad()
def require_agreement(module: nn.Module, device: torch.device) -> None:
    """Raises `CheckpointError` if the sum of a parameter is not the same, finite number on all ranks.

    Every rank must call it, on the same module, before parameters are partitioned. It is also the workers' first
    collective, before anything costly is built. Equal weights have bit-equal sums. `device` must suit collectives.
    """
    named = dict(module.named_parameters())
    sums = torch.stack([parameter.sum(dtype=torch.float64) for parameter in named.values()]).to(device)
    sums = sums.nan_to_num(nan=math.inf)  # MIN and MAX of NaN depend on the order of ranks
    lowest, highest = sums.clone(), sums.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    for name, low, high in zip(named, lowest.tolist(), highest.tolist(), strict=True):
        if low != high or not math.isfinite(low):
            raise CheckpointError(
                f"{name} sums to {low} on one rank and to {high} on another: the ranks read different weights; "
                "compare their storage and environments"
            )
