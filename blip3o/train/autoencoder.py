"""Trains the small autoencoder whose latents `vae_flow` generates, where none is published: the design study's."""

import hashlib
import json
import logging
from typing import Any

import torch

from blip3o.config.objectives import Task
from blip3o.config.recipe import Recipe
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.model.decoders.pixel import to_unit
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.rng import torch_generator
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.schedule import learning_rate

logger = logging.getLogger(__name__)

KL_WEIGHT = 1e-6  # of the divergence, relative to the squared error


def train_autoencoder(recipe: Recipe, *, name: str, steps: int) -> float:
    """Trains the recipe's autoencoder on its images, and writes it as the finished run `name`.

    The loss is the squared error of the decoded sample plus `KL_WEIGHT` times the divergence from a standard normal
    (Kingma and Welling, arXiv 1312.6114). The learning rate is the recipe's schedule over `steps`. Returns the mean
    squared error of the last step.
    """
    torch.set_num_threads(recipe.parallel.threads)
    model = UnifiedModel(recipe.model, image_token_id=0, parts=("decoder",), max_length=1)
    initialize(model, recipe.run.seed)
    vae: Any = model.get_submodule("decoder.vae")  # a module of diffusers
    draws = torch_generator(recipe.run.seed, "autoencoder")
    optim = recipe.optim.model_copy(update={"steps": steps})
    optimizer = torch.optim.AdamW(vae.parameters())
    build = build_micro_batches(StageInputs(recipe), Task.PIXELS)
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, number)
        images = to_unit(torch.tensor(build(number)["decoder_pixels"]))
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draws)
        error = (vae.decode(latents).sample - images).square().mean()
        optimizer.zero_grad()
        (error + KL_WEIGHT * posterior.kl().mean()).backward()
        optimizer.step()
    tree = recipe.model_dump(mode="json")
    identity = hashlib.sha256(json.dumps([tree, steps], sort_keys=True).encode()).hexdigest()
    description = {"run": name, "stage": "autoencoder", "identity": identity, "recipe": tree, "summary": {}}
    write_final(final_uri(recipe.run.storage, name), dict(model.named_parameters()), description)
    logger.info("%s: mean squared error %.4f after %d steps", name, error.item(), steps)
    return error.item()
