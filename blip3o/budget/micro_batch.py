"""A micro-batch of typical size for any stage, with columns of the right shapes and no data.

Host columns (`HOST_COLUMNS`) hold values, since these decide shapes; all others may be moved to the meta device.

Legend: B rows, L tokens, S pixels a side.
"""

import torch

from blip3o.config.recipe import Recipe
from blip3o.train.objectives import Batch

IMAGE_TOKEN, TOKEN, PAD = 2, 1, 0  # ids of this batch, which no tokenizer knows
PROMPT_TOKENS = 136  # a caption of the released set with its template, on average


def text_tokens(recipe: Recipe, tokens: int | None = None) -> int:
    """Tokens of a row: as given, or `PROMPT_TOKENS` and those of the image that it shows, at most `data.max_length`."""
    shown = recipe.model.backbone.image_tokens if recipe.objective.task.shows_images else 0
    return min(recipe.data.max_length, tokens or shown + PROMPT_TOKENS)


def make_micro_batch(recipe: Recipe, *, tokens: int | None = None) -> Batch:
    """One micro-batch on the CPU, with rows of equal length; features are those of a cache, if the recipe has one."""
    rows, width, model = recipe.optim.micro_batch_size, text_tokens(recipe, tokens), recipe.model
    ids = torch.full((rows, width), TOKEN)
    if recipe.objective.task.shows_images:
        ids[:, : model.backbone.image_tokens] = IMAGE_TOKEN
    batch = {"input_ids": ids, "labels": ids.clone(), "draw_key": torch.arange(rows)}
    if recipe.objective.task.mixes:
        batch |= {"draw_ids": torch.full((rows, min(width, PROMPT_TOKENS)), TOKEN), "draws": torch.ones(rows).bool()}
    vision = model.backbone.vision
    sides = {"encoder": model.target_size, "decoder": model.decoder.image_size}
    if vision is not None:
        sides["prompt"] = vision.image_size
    for name, side in sides.items():
        batch[f"{name}_pixels"] = torch.empty(rows, side, side, 3, dtype=torch.uint8)
    if recipe.data.features != "online":
        batch["features"] = torch.empty(rows, model.encoder.num_tokens, model.encoder.channels)
    return batch
