"""What tests of jobs share: a recipe over indexed scenes in the store, and weights to start from without a fit."""

import io
import tarfile
from pathlib import Path
from typing import Any

import yaml

from blip3o import storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from tests import recipes

SCENES = 96  # of which the last one is damaged
SEED = 3


def tree(base: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A nano recipe for `generate` below the URI `base`: two workers, 24 steps, a checkpoint at every third."""
    defaults: dict[str, dict[str, Any]] = {
        "run": {"name": "quiet", "storage": f"{base}/runs", "seed": SEED},
        "data": {"root": f"{base}/data", "max_length": 96, "max_bad_share": 0.02},
        "stage": {"name": "generate", "start_from": ["world-encoder", "world-understand"]},
        "optim": {"steps": 24, "warmup_steps": 2, "micro_batch_size": 8, "micro_batches": 2},
        "parallel": {"workers": 2, "zero_stage": 1, "cpus_per_worker": 1, "cpus_per_data_actor": 0.5},
        "checkpoint": {"every": 3, "max_failures": 1},
        "log": {"every": 1},
    }
    return recipes.tree(**{name: defaults.get(name, {}) | sections.get(name, {}) for name in {*defaults, *sections}})


# The held-out scenes, judged and drawn after every twelfth step.
VALIDATED: dict[str, Any] = {
    "every": 12, "samples": 8, "sigma_bins": 4, "grid": 2, "grid_seeds": 2, "cpus": 0.5,
    "sources": [{"name": "scenes-heldout", "shards": "scenes/heldout-*.tar"}],
}  # fmt: skip


def recipe(base: str, **sections: dict[str, Any]) -> Recipe:
    """The same, validated."""
    return build_recipe(tree(base, **sections))


def write_recipe(file: Path, base: str, **sections: dict[str, Any]) -> str:
    """The same as a file, for a command line; returns its path."""
    file.write_text(yaml.safe_dump(tree(base, **sections)))
    return str(file)


def damage_last(folder: str) -> None:
    """Truncates a folder's last training shard inside the picture of its last scene."""
    *_, shard = (file.uri for file in storage.list_files(folder, suffix=".tar") if "/train-" in file.uri)
    whole = storage.read_bytes(shard)
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        *_, picture = (member for member in archive.getmembers() if member.name.endswith(".png"))
    storage.write_bytes(shard, whole[: picture.offset_data + picture.size // 2])


def write_finals(made: Recipe) -> None:
    """Results of the two stages that `generate` starts from: a model as it is initialised."""
    trained = {"world-encoder": ("encoder", "coarse"), "world-understand": ("backbone",)}
    parts = [part for group in trained.values() for part in group]
    model = UnifiedModel(made.model, image_token_id=5, parts=parts, max_length=made.data.max_length)
    initialize(model, SEED)
    for run, group in trained.items():
        tensors = {name: value for name, value in model.named_parameters() if name.split(".")[0] in group}
        write_final(final_uri(made.run.storage, run), tensors, {"run": run, "identity": run})
