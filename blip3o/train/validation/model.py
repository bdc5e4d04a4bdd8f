"""The model of a checkpoint, outside of any engine: for validations, which run beside the training."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.errors import CheckpointError
from blip3o.model.empty_weights import init_empty_weights, set_parameter, tied_names
from blip3o.model.unified import UnifiedModel
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.train.checkpoint.state import TAG
from blip3o.train.ema import read_ema
from blip3o.train.lora import adapted_layers, merged
from blip3o.train.stages import stage_of

DRAWING = ("coarse", "decoder")  # parts that turn features into pixels, which no stage of drawing trains
MODEL_FILE = f"{TAG}/mp_rank_00_model_states.pt"  # rank 0's; under ZeRO-3 there is none
_PREFIX = "model."  # of the parameters' names in a stage's module
_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


def trained_weights(directory: Path) -> dict[str, Tensor]:
    """The trained parameters, by name, in what a run saved below a directory; of a run that keeps it, their average.

    There must be `MODEL_FILE` and the files of the average, or, under ZeRO-3, all files.
    """
    states = directory / MODEL_FILE
    if states.exists():
        # Our own file: of all that is in it, only tensors are taken.
        found = torch.load(states, map_location="cpu", weights_only=False)["module"]
    else:  # ZeRO-3: the parameters are in pieces, as the optimizer's state is
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(directory), TAG, exclude_frozen_parameters=True)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}
    return weights | {name: flat.view(weights[name].shape) for name, flat in read_ema(directory).items()}


def validation_model(
    recipe: Recipe, trained: Mapping[str, Tensor], *, image_token_id: int, device: torch.device
) -> UnifiedModel:
    """The parts of a recipe's stage with these trained weights, frozen ones from the runs that it starts from.

    Where the evaluation draws, also the decoder and the coarse head, if those runs or `evaluate.grid_from` trained
    them; the model lacks the one that has no weights. Raises `CheckpointError` if weights are missing or do not fit.
    """
    drawing = DRAWING if recipe.evaluate.grid else ()
    parts = (*stage_of(recipe.with_online_features()).parts, *drawing)
    with init_empty_weights():
        model = UnifiedModel(
            recipe.model, image_token_id=image_token_id, parts=parts, max_length=recipe.data.max_length
        )
    dtype = _DTYPE[recipe.parallel.precision]
    for run in dict.fromkeys((*recipe.stage.start_from, *recipe.evaluate.grid_from)):
        _fill(model, read_final(final_uri(recipe.run.storage, run))[0], dtype, source=run)
    if recipe.stage.lora is not None:
        weights = dict(model.named_parameters())
        base = {f"{layer}.weight": weights[f"{layer}.weight"] for layer in adapted_layers(model, recipe.stage.lora)}
        trained = merged(trained, base, recipe.stage.lora)
    # What is saved beside the trained parameters, a tied head's second name or a buffer, the model has already.
    left = trained.keys() - _fill(model, trained, dtype, source=recipe.run.name) - model.state_dict().keys()
    if left:
        raise CheckpointError(f"the checkpoint of '{recipe.run.name}' has {min(left)}, which the model has not")
    for part in drawing:
        if part not in stage_of(recipe).parts and _has_gaps(getattr(model, part, None)):
            delattr(model, part)
    gaps = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if gaps:
        raise CheckpointError(f"{gaps[0]} has no weights: name the run that trained it in stage.start_from")
    return model.eval().requires_grad_(requires_grad=False).to(device)


def _fill(model: UnifiedModel, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, source: str) -> set[str]:
    """Gives the model those tensors that it has a place for, and returns their names."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = tied_names(model)
    taken = tensors.keys() & names.keys()
    for name in taken:
        if tensors[name].shape != shapes[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(shapes[name])}: use "
                "the same model preset"
            )
        set_parameter(model, names[name], tensors[name].to(dtype))
    return taken


def _has_gaps(part: nn.Module | None) -> bool:
    """Whether a part, None where the config has none, lacks weights."""
    return part is not None and any(parameter.is_meta for parameter in part.parameters())
