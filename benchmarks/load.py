"""The start of a rank: its module with initial weights from a file, frozen ones in bf16, against the way through fp32.

    python -m benchmarks.load [--scale 4] [--rounds 3]

The model has the 8b preset's tensors with every width divided by `scale`, and the backbone's come from a run. Ours is
`blip3o.train.initial_weights.prepare_module`. The other builds the module in fp32, initialises all of it, reads the
file as bytes, takes it apart, copies what the model has, and casts what is frozen. Each load is a process of its own.
`peak_ratio` is its peak of resident memory above that before loading, over the bytes of the weights that it keeps. Both
give the same bits.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from benchmarks._measure import options, report
from benchmarks._runs import recipe_tree
from blip3o import storage
from blip3o.config.load import build_recipe
from blip3o.config.recipe import Recipe
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.model.describe import META
from blip3o.model.empty_weights import init_empty_weights
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.rng import torch_generator
from blip3o.runs.paths import final_uri
from blip3o.runs.results import WEIGHTS, write_final
from blip3o.train.initial_weights import prepare_module
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of

ROUNDS, SCALE = 3, 4
BACKBONE = "backbone"  # the run that holds it


def scaled_recipe(root: str, scale: int) -> Recipe:
    """The `generate` stage of the 8b preset in bf16, with every width divided by `scale`; rows of embeddings stay."""
    vision = {"width": 1280 // scale, "heads": 4, "mlp_width": 3420 // scale}
    backbone = {"hidden_size": 3584 // scale, "mlp_width": 18944 // scale, "vision": vision}
    dit = {"dim": 1792 // scale, "heads": 7, "kv_heads": 7, "mlp_width": 4864 // scale, "time_width": 1024 // scale}
    return build_recipe(
        recipe_tree(
            root,
            data={"features": "cache", "max_length": 512},
            model={"preset": "8b", "backbone": backbone, "dit": dit},
            stage={"name": "generate", "start_from": [BACKBONE]},
            optim={"steps": 1, "micro_batch_size": 1},
            parallel={"device": "cpu", "precision": "bf16"},
            checkpoint={"every": 1},
        )
    )


def write_backbone(recipe: Recipe) -> None:
    """Writes the run that the stage starts from: random bf16 weights."""
    with init_empty_weights():
        model = UnifiedModel(recipe.model, image_token_id=0, parts=(BACKBONE,), max_length=recipe.data.max_length)
    tensors = {
        name: torch.empty(parameter.shape, dtype=torch.bfloat16).uniform_(-0.1, 0.1, generator=torch_generator(name))
        for name, parameter in model.named_parameters()
    }
    write_final(final_uri(recipe.run.storage, BACKBONE), tensors, {"run": BACKBONE})


def through_fp32(recipe: Recipe, tokenizer: ChatTokenizer) -> nn.Module:
    """The other way."""
    module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    initialize(module.model, recipe.run.seed)
    data = storage.read_bytes(storage.join(final_uri(recipe.run.storage, BACKBONE), WEIGHTS))
    hashlib.sha256(data)
    module.model.load_state_dict(load(data), strict=False)
    freeze(module.model, stage_of(recipe))
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return module


WAYS: dict[str, Callable[[Recipe, ChatTokenizer], nn.Module]] = {"ours": prepare_module, "other": through_fp32}


def load_here(way: str, root: str, scale: int) -> dict[str, Any]:
    """Loads in this process: seconds, bytes kept, bytes read from files, peak above the memory before, and a digest."""
    recipe, tokenizer = scaled_recipe(root, scale), ChatTokenizer.from_bytes(Path(root, "tokenizer.json").read_bytes())
    with META:
        build_stage_module(recipe, image_token_id=0, pad_id=0)  # imports what building imports
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins here
    before, read, start = _status("VmRSS"), _bytes_read(), time.perf_counter()
    module = WAYS[way](recipe, tokenizer)
    seconds, read, peak = time.perf_counter() - start, _bytes_read() - read, _status("VmHWM") - before
    kept, digest = 0, hashlib.sha256()
    for name, parameter in module.named_parameters():
        kept += parameter.nbytes
        digest.update(name.encode() + parameter.detach().view(-1).view(torch.uint8).numpy().data)
    return {"seconds": seconds, "kept": kept, "read": read, "peak": peak, "sha256": digest.hexdigest()}


def _status(field: str) -> int:
    """A figure of this process's memory in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def load_apart(way: str, root: str, scale: int) -> dict[str, Any]:
    """The same in a fresh process."""
    call = (
        f"import json; from benchmarks.load import load_here; print(json.dumps(load_here({way!r}, {root!r}, {scale})))"
    )
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, encoding="utf-8", check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(arguments: argparse.Namespace, root: str, folder: Path) -> None:
    """Loads both ways in turns, and reports."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, loads in found.items():
            loads.append(load_apart(way, root, arguments.scale))
    if len({one["sha256"] for loads in found.values() for one in loads}) != 1:
        raise SystemExit("the two ways give different weights: nothing to compare")
    seconds = {way: [one["seconds"] for one in loads] for way, loads in found.items()}
    last = {way: loads[-1] for way, loads in found.items()}
    report(
        "load",
        seconds["ours"],
        seconds["other"],
        folder,
        peak_ratio={way: round(max(it["peak"] for it in loads) / last[way]["kept"], 3) for way, loads in found.items()},
        kept_bytes=last["ours"]["kept"],
        bytes_read={way: one["read"] for way, one in last.items()},
        scale=arguments.scale,
    )


def main(argv: list[str] | None = None) -> None:
    """Compares the two ways."""
    arguments, folder = options("the start of a rank", {"scale": SCALE, "rounds": ROUNDS}, argv)
    with tempfile.TemporaryDirectory() as root:
        write_world(root, arguments.scale)
        compare(arguments, root, folder)


def write_world(root: str, scale: int) -> None:
    """Writes a small tokenizer and the run with the backbone below `root`."""
    Path(root, "tokenizer.json").write_bytes(ChatTokenizer.train(["a red circle"], 300).to_bytes())
    write_backbone(scaled_recipe(root, scale))


if __name__ == "__main__":
    main()
