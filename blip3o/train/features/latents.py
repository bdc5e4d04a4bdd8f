"""Measures the channel statistics of generation targets: the work of `blip3o latents`.

For recipes with `model.normalize_latents`: the result is a finished run, which the generating stage and the export name
in `stage.start_from` and `--from`, beside the run that the encoder comes from.
"""

import hashlib
import json
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.text.tokenizer import IMAGE_PAD, ChatTokenizer
from blip3o.data.text.tokenizer_files import read_tokenizer_json
from blip3o.device import select
from blip3o.errors import ConfigError
from blip3o.model.unified import UnifiedModel
from blip3o.train.features.statistics import channel_statistics
from blip3o.train.stages import stage_of
from blip3o.train.weights import final_uri, load_into, read_final, require_covered, write_final

logger = logging.getLogger(__name__)


def measure(recipe: Recipe, *, name: str, images: int) -> tuple[Tensor, Tensor]:
    """Measures over the first `images` samples of the recipe's order (whole micro-batches) and writes run `name`.

    Returns mean and deviation, [F]. Raises `ConfigError` if the recipe does not normalise latents or is for another
    stage, `CheckpointError` if the target's encoder has no weights.
    """
    if not recipe.model.normalize_latents or recipe.objective.generation is None:
        raise ConfigError("statistics are for a generating stage that uses them: set model.normalize_latents=true")
    recipe = recipe.online()
    torch.set_num_threads(recipe.parallel.threads)
    model = _target_model(recipe, name).to(select(recipe.parallel.device))
    count = -(-images // recipe.optim.micro_batch_size)
    mean, std = channel_statistics(_features(recipe, model, count))
    tensors = {"latent_scale.mean": mean, "latent_scale.std": std}
    tree = recipe.model_dump(mode="json")
    write_final(
        final_uri(recipe.run.storage, name),
        tensors,
        {
            "run": name,
            "stage": "latents",
            "identity": hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
            "recipe": tree,
            "summary": {"images": count * recipe.optim.micro_batch_size},
        },
    )
    logger.info("%s: means %.3g … %.3g, deviations %.3g … %.3g", name, mean.min(), mean.max(), std.min(), std.max())
    return mean, std


def _target_model(recipe: Recipe, name: str) -> UnifiedModel:
    """What makes the targets, with the weights of the runs that the stage starts from (but this one)."""
    tokenizer = ChatTokenizer.from_bytes(read_tokenizer_json(tokenizer_uri(recipe.data)))
    parts = {"encoder", "decoder"} & set(stage_of(recipe).parts)
    image_token = tokenizer.ids[IMAGE_PAD]
    model = UnifiedModel(recipe.model, image_token_id=image_token, parts=parts, max_length=recipe.data.max_length)
    loaded: set[str] = set()
    for run in recipe.stage.start_from:
        if run != name:
            tensors, _ = read_final(final_uri(recipe.run.storage, run))
            loaded |= load_into(model, tensors, source=run)
    require_covered(model, loaded, [])
    return model.eval()


@torch.inference_mode()
def _features(recipe: Recipe, model: UnifiedModel, micro_batches: int) -> Iterator[Tensor]:
    builder = build_micro_batches(recipe, stage_of(recipe).task)
    device = next(model.parameters()).device
    column = recipe.model.generation.pixels
    for number in range(micro_batches):
        yield model.features(torch.from_numpy(builder(number)[column]).to(device))
