"""Scenes in the store, indexed and with a tokenizer by the jobs themselves, once for all tests of jobs."""

import pytest


@pytest.fixture(scope="session")
def base(s3, ray_cluster):
    """The URI below which the recipes of `tests.jobs.world` find their data and start weights.

    The last scene is truncated, so every training run here meets damage.
    """
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from jobs.index import index
    from tests.jobs import world

    uri = f"{s3}/jobs"
    made = world.recipe(uri, evaluate=world.VALIDATED)
    build_scenes(f"{uri}/data/scenes", train=world.SCENES, heldout=8, samples_per_shard=40)
    world.damage_last(f"{uri}/data/scenes")
    index(made)
    train_tokenizer(made)
    world.write_finals(made)
    return uri
