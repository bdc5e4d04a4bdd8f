"""What the demo's jobs work on: scenes in a store, a nano model and its recipes."""

from pathlib import Path
from typing import Any

from blip3o.config.load import build_recipe, dump
from blip3o.config.pipeline import load_pipeline
from blip3o.config.recipe import SUBCLUSTER, Recipe
from cluster.render import SUBCLUSTERS

SCENES, HELD_OUT = 96, 8
PLACED: dict[str, Any] = {
    "worker_labels": {SUBCLUSTER: SUBCLUSTERS["trainer"]},
    "data_labels": {SUBCLUSTER: SUBCLUSTERS["preprocess"]},
    "encoder_labels": {SUBCLUSTER: SUBCLUSTERS["encoder"]},
    "cpus_per_worker": 2,  # all of a node
}


def recipe(base: str, stage: str, name: str, /, **sections: dict[str, Any]) -> Recipe:
    """A stage of the shipped recipe `tiny` on a nano model: two workers, 300 steps, a checkpoint at every 20th."""
    [shipped] = load_pipeline(
        f"tiny:{stage}", ["model.preset=nano", f"run.storage={base}/runs", f"data.root={base}/data"]
    ).stages
    tree = shipped.model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"name": name},
        "optim": {"steps": 300, "warmup_steps": 2, "micro_batch_size": 8, "micro_batches": 2},
        "parallel": {"workers": 2, "cpus_per_data_actor": 0.5},
        "checkpoint": {"every": 20, "max_failures": 5},
    }
    for section in {*changes, *sections}:
        tree[section] |= changes.get(section, {}) | sections.get(section, {})
    return build_recipe(tree)


def write(made: Recipe, folder: Path) -> Path:
    """The recipe as a file, for a command line."""
    file = folder / f"{made.run.name}.yaml"
    file.write_text(dump(made), encoding="utf-8")
    return file


def prepare(base: str, made: Recipe) -> None:
    """Scenes below `base`, their index, and a tokenizer. Needs Ray."""
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from jobs.index import index

    build_scenes(f"{base}/data/scenes", train=SCENES, heldout=HELD_OUT, samples_per_shard=40)
    index(made)
    train_tokenizer(made)
