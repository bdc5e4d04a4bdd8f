"""What measurements of training share: a recipe over generated scenes, and untrained weights to start from."""

from collections.abc import Mapping
from typing import Any

from blip3o.config.recipe import Recipe
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final


def recipe_tree(root: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A recipe for `generate` in fp32 on CPUs, as nested values: runs below `<root>/runs`; `sections` override it."""
    defaults: dict[str, dict[str, Any]] = {
        "run": {"name": "bench", "storage": f"{root}/runs"},
        "data": {
            "root": root,
            "sources": [{"name": "scenes", "shards": "scenes/train-*.tar"}],
            "tokenizer": "tokenizer.json",
            "max_length": 96,
        },
        "model": {"preset": "tiny"},
        "stage": {"name": "generate"},
        "optim": {"lr": 1e-3, "micro_batches": 1},
        "parallel": {"device": "cpu", "precision": "fp32"},
        "checkpoint": {},
    }
    return {name: defaults.get(name, {}) | sections.get(name, {}) for name in {**defaults, **sections}}


def write_initialised(recipe: Recipe, parts: Mapping[str, str], *, seed: int = 0) -> None:
    """Writes finished runs, each with the part of the model named in `parts`, initialised by `seed`."""
    model = UnifiedModel(recipe.model, image_token_id=0, parts=tuple(parts.values()), max_length=recipe.data.max_length)
    initialize(model, seed)
    for run, part in parts.items():
        tensors = {name: value for name, value in model.named_parameters() if name.startswith(f"{part}.")}
        described = {"run": run, "identity": run, "stage": recipe.stage.name, "recipe": recipe.model_dump(mode="json")}
        write_final(final_uri(recipe.run.storage, run), tensors, described)
