"""Makes a bundle of finished runs: `python -m jobs.export RECIPE --from RUN [--from RUN …] --out URI`.

Later runs win where two trained the same parameter. The bundle is reloaded and compared before the job succeeds.
"""

import argparse
import sys
from typing import Any

from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.convert.bundle import BundleConfig, write_bundle
from blip3o.data import storage
from blip3o.data.locations import tokenizer_uri
from blip3o.data.tokenizer import ChatTokenizer
from blip3o.train.weights import final_uri, read_final
from jobs.common import run_job


def export(recipe: Recipe, runs: list[str], out: str) -> str:
    """Writes the bundle of these runs and returns its URI. Raises `CheckpointError` or `BundleError`."""
    tensors: dict[str, Tensor] = {}
    provenance: dict[str, Any] = {"runs": {}}
    for run in runs:
        trained, description = read_final(final_uri(recipe.run.storage, run))
        tensors |= trained
        provenance["runs"][run] = {key: description[key] for key in ("stage", "identity", "sha256", "recipe")}
    config = BundleConfig(model=recipe.model, template=recipe.data.template, max_length=recipe.data.max_length)
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(tokenizer_uri(recipe.data)))
    write_bundle(out, config=config, tensors=tensors, tokenizer=tokenizer, provenance=provenance)
    return out


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="runs", action="append", required=True, metavar="RUN", help="a finished run; repeat"
    )
    parser.add_argument("--out", required=True, metavar="URI", help="folder of the bundle")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_job(
        "export",
        "Make a bundle of finished runs.",
        lambda recipe, options: export(recipe, options.runs, options.out),
        argv,
        extend=_options,
    )


if __name__ == "__main__":
    sys.exit(main())
