"""Shared by the two objectives that train the coarse head: noise on its features, and its operations."""

from torch import Tensor

from blip3o.config.decoder import DecoderConfig
from blip3o.config.recipe import Recipe
from blip3o.model.flops import formulas
from blip3o.model.flops.formulas import Grad
from blip3o.train.objectives.base import Batch
from blip3o.train.objectives.draws import Draw, drawn

_KIND = "features"


def feature_noise(recipe: Recipe) -> tuple[Draw, ...]:
    """The draws of `add_feature_noise`."""
    if not recipe.stage.feature_noise:
        return ()
    return (Draw(kind=_KIND, seed=recipe.run.seed, shape=recipe.model.latent_shape),)


def add_feature_noise(recipe: Recipe, features_BLF: Tensor, batch: Batch) -> Tensor:
    """Adds noise to features [B, L, F], with a standard deviation uniform in 0 … `stage.feature_noise` per sample."""
    largest = recipe.stage.feature_noise
    if not largest:
        return features_BLF
    draws = drawn(batch, _KIND)
    return features_BLF + largest * draws.uniform[:, None, None] * draws.noise


def coarse_flops(recipe: Recipe, *, rows: int, features: Grad) -> int:
    """Operations of the trained head. `features` is ONE if no gradient reaches its features, else BOTH."""
    model = recipe.model
    assert isinstance(model.decoder, DecoderConfig)  # the recipe's validator requires it where the head trains
    return formulas.coarse_head(
        model.decoder, channels=model.latent_channels, grid=model.latent_grid, images=rows, features=features
    )
