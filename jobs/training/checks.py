"""Checks of a run's data and weights before workers start."""

import logging
from collections.abc import Sequence

import torch

from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.data.order.shuffle_quality import measure_shuffle
from blip3o.data.shards.manifest import check_unchanged
from blip3o.errors import ConfigError
from blip3o.model.empty_weights import init_empty_weights
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_shapes, require_finished
from blip3o.train.features.encoder import FeatureCache, require_encoder
from blip3o.train.initial_weights import matching_names, require_frozen_weights
from blip3o.train.lora import adapted_layers
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from jobs.index import select_samples

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]


def check_data(inputs: StageInputs) -> None:
    """Raises `DataError` or `ConfigError` for every problem with the data that can be found before training.

    Computes missing selections, and logs how well the order shuffles.
    """
    recipe = inputs.recipe
    for manifest in inputs.manifests:
        check_unchanged(manifest)
    inputs.template.generation_request(inputs.tokenizer, "")  # raises without the template's control tokens
    count, rows = len(inputs.tokenizer), recipe.model.backbone.vocab_size
    if count > rows:
        raise ConfigError(f"the tokenizer has {count} tokens, model.backbone.vocab_size is {rows}: raise it")
    select_samples(recipe.data.sources, inputs.manifests)
    for quality in measure_shuffle(inputs.order, batch=recipe.optim.global_batch_size):
        logger.info("%s reads %s", recipe.run.name, quality)


def stored_features(recipe: Recipe) -> FeatureCache | None:
    """The stored features that a stage trains on; None if it does not use a cache.

    Raises `ConfigError` if features are cached or streamed and the encoder has no weights yet.
    """
    if recipe.data.features == "stream":
        require_encoder(recipe)
    return FeatureCache.of(recipe) if recipe.data.features == "cache" else None


def check_weights(stages: Sequence[StageInputs]) -> None:
    """Builds the stages on the meta device, to check that shapes match and that every frozen part has been trained.

    Raises `ConfigError` or `CheckpointError`.
    """
    # A stage may start from an earlier one of the same pipeline, which has no file yet: its shapes are collected here.
    earlier: dict[str, Shapes] = {}
    for inputs in stages:
        recipe = inputs.recipe
        with init_empty_weights(), torch.device("meta"):
            module = build_stage_module(recipe, image_token_id=inputs.image_token_id, pad_id=inputs.pad_id)
        trainable = freeze(module.model, stage_of(recipe))
        loaded: set[str] = set()
        for run in recipe.stage.start_from:
            loaded |= matching_names(module.model, _shapes(recipe, run, earlier), source=run)
        require_frozen_weights(module.model, loaded, trainable)
        lora = recipe.stage.lora
        # A stage with LoRA leaves merged weights under the plain layers' names.
        merged = [f"{layer}.weight" for layer in adapted_layers(module.model, lora)] if lora else []
        parameters = dict(module.model.named_parameters())
        earlier[recipe.run.name] = {name: tuple(parameters[name].shape) for name in [*trainable, *merged]}


def _shapes(recipe: Recipe, run: str, earlier: dict[str, Shapes]) -> Shapes:
    """Shapes of the weights of a run that a stage starts from: an earlier stage of the pipeline, or a finished run.

    Raises `ConfigError` if it is neither.
    """
    if run in earlier:
        return earlier[run]
    require_finished(recipe.run.storage, run)
    return read_shapes(final_uri(recipe.run.storage, run))
