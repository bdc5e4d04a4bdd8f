"""Loads the model of a checkpoint without a DeepSpeed engine, for validations that run in parallel with training."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.model.empty_weights import init_empty_weights, set_parameter, tied_names
from blip3o.model.unified import UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.train.checkpoint.state import TAG
from blip3o.train.ema import read_ema
from blip3o.train.initial_weights import DTYPES, Placement, load_run
from blip3o.train.lora import adapted_layers, merge_adapters
from blip3o.train.stages import stage_of

PIXEL_PARTS = ("coarse", "decoder")  # parts that turn features into pixels; generating stages do not train them
MODEL_FILE = f"{TAG}/mp_rank_00_model_states.pt"  # written by rank 0; not under ZeRO-3
_PREFIX = "model."  # of parameter names in a `StageModule`


def trained_weights(directory: Path) -> dict[str, Tensor]:
    """The trained parameters of a checkpoint in a directory, by name; their moving average if the run keeps one.

    The directory must hold `MODEL_FILE` and the files of the average, or, under ZeRO-3, all files.
    """
    states = directory / MODEL_FILE
    if states.exists():
        # DeepSpeed saves more than tensors, hence no weights_only. The file was written by this run.
        found = torch.load(states, map_location="cpu", weights_only=False)["module"]
    else:  # ZeRO-3 partitions parameters like the optimizer's state
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(directory), TAG, exclude_frozen_parameters=True)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}
    return weights | {name: flat.view(weights[name].shape) for name, flat in read_ema(directory).items()}


def validation_model(
    recipe: Recipe, trained: Mapping[str, Tensor], *, image_token_id: int, device: torch.device
) -> UnifiedModel:
    """The model of a recipe's stage with these trained weights, and frozen ones from the runs that it starts from.

    If the evaluation generates images, the model also has the decoder and the coarse head, as far as those runs or
    `evaluate.grid_from` trained them. Raises `CheckpointError` if weights are missing or have another shape.
    """
    pixel_parts = PIXEL_PARTS if recipe.evaluate.grid else ()
    parts = (*stage_of(recipe.with_online_features()).parts, *pixel_parts)
    with init_empty_weights():
        model = UnifiedModel(
            recipe.model, image_token_id=image_token_id, parts=parts, max_length=recipe.data.max_length
        )
    to, loaded = Placement(dtype=DTYPES[recipe.parallel.precision], device=device), set[str]()
    for run in reversed(dict.fromkeys((*recipe.stage.start_from, *recipe.evaluate.grid_from))):  # later ones override
        loaded |= load_run(model, final_uri(recipe.run.storage, run), to=to, left_out=loaded, source=run)
    if recipe.stage.lora is not None:
        weights = dict(model.named_parameters())
        base = {f"{layer}.weight": weights[f"{layer}.weight"] for layer in adapted_layers(model, recipe.stage.lora)}
        trained = merge_adapters(trained, base, recipe.stage.lora)
    # A checkpoint also holds buffers and the second name of a tied head, which the model has already.
    unused = trained.keys() - _fill(model, trained, to, source=recipe.run.name) - model.state_dict().keys()
    if unused:
        raise CheckpointError(f"the checkpoint of '{recipe.run.name}' has {min(unused)}, which the model has not")
    for part in pixel_parts:
        if part not in stage_of(recipe).parts and _is_incomplete(getattr(model, part, None)):
            delattr(model, part)
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise CheckpointError(f"{missing[0]} has no weights: name the run that trained it in stage.start_from")
    return model.eval().requires_grad_(requires_grad=False).to(device)


def _fill(model: UnifiedModel, tensors: Mapping[str, Tensor], to: Placement, *, source: str) -> set[str]:
    """Loads the tensors that the model has too, and returns their names."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = tied_names(model)
    taken = tensors.keys() & names.keys()
    for name in taken:
        if tensors[name].shape != shapes[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(shapes[name])}: use "
                "the same model preset"
            )
        set_parameter(model, names[name], tensors[name].to(to.device, to.dtype))
    return taken


def _is_incomplete(part: nn.Module | None) -> bool:
    """Whether a part has parameters without weights. None is a part that the config does not have."""
    return part is not None and any(parameter.is_meta for parameter in part.parameters())
