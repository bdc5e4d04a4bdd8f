"""The initial weights of a stage: random ones from the run's seed, overridden by the runs in `stage.start_from`.

The model is built without memory for its parameters. Rank 0 streams each tensor from its file, in the recipe's
precision if it is frozen and in fp32 if it trains, to its device, draws those that no run holds, and sends them to the
others. So a start reads every byte once, whatever the number of ranks, and a rank never holds more than its own weights
and a few ranges of a file.

The ranks compare their weights before anything costly is built on them.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.errors import Blip3oError, CheckpointError
from blip3o.model.empty_weights import init_empty_weights, set_parameter, stored_tensors, tied_names
from blip3o.model.unified import UnifiedModel, initial_value
from blip3o.runs.paths import final_uri
from blip3o.runs.results import load_final
from blip3o.train.lora import add_adapters
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.stages import freeze, stage_of
from blip3o.weights.safetensors_header import StoredTensor

T = TypeVar("T")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


def prepare_module(
    recipe: Recipe, tokenizer: ChatTokenizer, *, device: torch.device = CPU, resuming: bool = False
) -> StageModule:
    """Builds the stage's model with its initial weights on a device, and its adapters if it has any.

    With a process group every rank must call it. If `resuming`, a checkpoint will overwrite the trainable parameters:
    they are neither read nor drawn but filled with NaN, which no loss survives, should the checkpoint lack one.

    Raises `CheckpointError` if a frozen part has no trained weights, on every rank.
    """
    with init_empty_weights():
        module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    model = module.model
    trainable = freeze(model, stage_of(recipe))
    to = Placement(dtype=DTYPES[recipe.parallel.precision], device=device, exact=frozenset(trainable))
    left_out = set(trainable) if resuming else set()
    for name, names in tied_names(model).items():
        if name in left_out:
            to.empty(model, names).fill_(math.nan)

    def fill() -> set[str]:
        loaded = load_start_weights(model, recipe, to=to, left_out=left_out)
        require_frozen_weights(model, loaded, trainable)
        _draw_missing(model, recipe, to)
        return loaded

    loaded = call_on_first_rank(fill)
    for name, names in tied_names(model).items():
        if model.get_parameter(name).is_meta:  # on the other ranks
            to.empty(model, names)
    module.to(device)  # buffers
    _share(model, loaded, left_out)
    if recipe.stage.query_questions and "queries" not in loaded | left_out:
        _queries_from_questions(recipe, model, tokenizer)
    if recipe.stage.lora is not None:
        add_adapters(model, recipe.stage.lora, recipe.run.seed)
    return module


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The dtype and the device of a model's parameters.

    Those named in `exact` stay in fp32: the optimizer's weights start from them, before they are rounded.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    exact: frozenset[str] = frozenset()

    def dtype_of(self, names: list[str]) -> torch.dtype:
        """The dtype of the parameter under these names."""
        return self.dtype if self.exact.isdisjoint(names) else torch.float32

    def empty(self, model: nn.Module, names: list[str]) -> Tensor:
        """Gives the parameter under these names memory; returns it, without its gradient."""
        tensor = torch.empty(model.get_parameter(names[0]).shape, dtype=self.dtype_of(names), device=self.device)
        set_parameter(model, names, tensor)
        return tensor


def load_start_weights(
    model: UnifiedModel,
    recipe: Recipe,
    *,
    to: Placement,
    without: str | None = None,
    left_out: Collection[str] = (),
) -> set[str]:
    """Loads the results of the runs in `stage.start_from`, except run `without`; returns the names of the parameters.

    Later runs override earlier ones. Names in `left_out` are not loaded, and a run of which nothing is needed is not
    read. Raises `CheckpointError` if one has not finished, or a shape differs.
    """
    loaded: set[str] = set()
    for run in reversed(recipe.stage.start_from):  # so a tensor that a later run overrides is not read
        if run != without:
            uri = final_uri(recipe.run.storage, run)
            loaded |= load_run(model, uri, to=to, left_out=loaded.union(left_out), source=run)
    return loaded


def load_run(
    model: nn.Module, uri: str, *, to: Placement, left_out: Collection[str] = (), source: str | None = None
) -> set[str]:
    """Loads those tensors of a finished run that the model has too, except `left_out`; returns their names.

    A parameter on the meta device is placed by `to`; others, and buffers, are overwritten where they are. Raises
    `CheckpointError` if a shape differs, and as `blip3o.runs.results.load_final`. `source` names the run in errors.
    """
    own = model.state_dict()
    groups = {name: names for names in tied_names(model).values() for name in names}
    loaded: set[str] = set()

    def place(entry: StoredTensor) -> Tensor | None:
        names = groups.get(entry.name, [entry.name])
        if entry.name not in own or not loaded.union(left_out).isdisjoint(names):
            return None
        _require_shape(source or uri, entry.name, entry.shape, own[entry.name])
        loaded.update(names)
        return to.empty(model, names) if own[entry.name].is_meta else own[entry.name]

    load_final(uri, place)
    return loaded


@torch.no_grad()
def _draw_missing(model: UnifiedModel, recipe: Recipe, to: Placement) -> None:
    """Gives the parameters without memory their random values, each from the stream of its name."""
    parameters = dict(model.named_parameters())
    for name, names in tied_names(model).items():
        if parameters[name].is_meta:
            value = initial_value(name, parameters[name].shape, recipe.run.seed, recipe.model)
            set_parameter(model, names, value.to(to.device, to.dtype_of(names)))


def call_on_first_rank(call: Callable[[], T]) -> T:
    """What `call()` returns on rank 0, on every rank. Its error is raised on every rank: others would wait forever."""
    if not dist.is_initialized():
        return call()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = call()
        except Blip3oError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast("T", outcome[0])


@torch.no_grad()
def _share(model: nn.Module, loaded: set[str], left_out: set[str]) -> None:
    """Sends rank 0's parameters except `left_out`, and the buffers that were loaded, to the other ranks, one by one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    sent: list[Tensor] = [parameter for name, parameter in model.named_parameters() if name not in left_out]
    sent += [buffer for name, buffer in model.named_buffers() if name in loaded]
    for tensor in sent:
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)


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


def matching_names(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> set[str]:
    """The names that the model has too. Raises `CheckpointError` if one of them has another shape in the model."""
    own = model.state_dict()
    names = shapes.keys() & own.keys()
    for name in sorted(names):
        _require_shape(source, name, shapes[name], own[name])
    return set(names)


def _require_shape(source: str, name: str, shape: tuple[int, ...], own: Tensor) -> None:
    if shape != tuple(own.shape):
        raise CheckpointError(
            f"{source}: {name} has shape {shape}, the model needs {tuple(own.shape)}: use the same model preset"
        )


def require_frozen_weights(model: UnifiedModel, loaded: set[str], trainable: list[str]) -> None:
    """Raises `CheckpointError` if a frozen tensor was not loaded: no stage may train on top of random weights."""
    missing = [name for name in stored_tensors(model) if name not in loaded and name not in set(trainable)]
    if missing:
        parts = sorted({name.split(".")[0] for name in missing})
        raise CheckpointError(
            f"frozen parts {', '.join(parts)} have no weights ({len(missing)} tensors, e.g. {missing[0]}): "
            "name the runs that trained them in stage.start_from"
        )


@torch.no_grad()
def require_agreement(module: nn.Module, device: torch.device, *, resuming: bool = False) -> None:
    """Raises `CheckpointError` if the sum of a tensor of the weights is not the same, finite number on all ranks.

    Every rank must call it, on the same module, before parameters are partitioned and anything costly is built. Equal
    weights have bit-equal sums. If `resuming`, trainable parameters are left out: they have no values yet. `device`
    must suit collectives.
    """
    named = {name: it for name, it in stored_tensors(module).items() if not (resuming and it.requires_grad)}
    if not named:
        return
    sums = torch.stack([tensor.sum(dtype=torch.float64) for tensor in named.values()]).to(device)
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
