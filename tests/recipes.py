"""A nano recipe as nested values, for tests that need one."""

import copy
from typing import Any

from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe

NANO: dict[str, Any] = {
    "run": {"name": "test", "storage": "/nonexistent"},
    "data": {
        "root": "/nonexistent",
        "sources": [{"name": "scenes", "shards": "scenes/train-*.tar"}],
        "tokenizer": "tokenizer.json",
        "template": {"system": ""},
        "max_length": 64,
    },
    "model": {"preset": "nano"},
    "stage": {"name": "generate"},
    "optim": {"steps": 4, "lr": 1e-3, "micro_batch_size": 4, "micro_batches": 2},
    "parallel": {"workers": 1, "device": "cpu", "precision": "fp32"},
    "checkpoint": {"every": 2},
}


def tree(**sections: dict[str, Any]) -> dict[str, Any]:
    """The nano recipe with keys of its sections replaced."""
    values = copy.deepcopy(NANO)
    for name, changes in sections.items():
        values.setdefault(name, {}).update(changes)
    return values


def recipe(**sections: dict[str, Any]) -> Recipe:
    """The same, validated."""
    return build_recipe(tree(**sections))
