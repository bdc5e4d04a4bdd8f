"""Makes a bundle of finished runs: `python -m jobs.export RECIPE --from RUN [--from RUN …] --out URI`.

Later runs win where two trained the same parameter. A run that kept a moving average gives that, unless another of the
runs started from its last weights, or `--last-weights` is given. The bundle is reloaded and compared before the job
succeeds.
"""

import argparse
import sys
from typing import Any

from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.convert.bundle import PARTS, BundleConfig, write_bundle
from blip3o.data import storage
from blip3o.data.locations import tokenizer_uri
from blip3o.data.tokenizer import ChatTokenizer
from blip3o.train.weights import final_uri, read_description, read_final
from jobs.common import run_job


def export(recipe: Recipe, runs: list[str], out: str, *, averages: bool = True, parts: tuple[str, ...] = PARTS) -> str:
    """Writes the bundle of these runs and returns its URI; with `averages`, of moving averages where runs kept them.

    With the `backbone` alone of the `parts` it chats and draws nothing. Raises `CheckpointError` or `BundleError`.
    """
    tensors: dict[str, Tensor] = {}
    provenance: dict[str, Any] = {"runs": {}}
    averaged = averaged_runs(recipe.run.storage, runs) if averages else set()
    for run in runs:
        trained, description = read_final(final_uri(recipe.run.storage, run), averaged=run in averaged)
        tensors |= trained
        provenance["runs"][run] = {key: description[key] for key in ("stage", "identity", "sha256", "recipe")}
        provenance["runs"][run]["averaged"] = run in averaged
    config = BundleConfig(
        model=recipe.model, template=recipe.data.template, max_length=recipe.data.max_length, parts=parts
    )
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(tokenizer_uri(recipe.data)))
    write_bundle(out, config=config, tensors=tensors, tokenizer=tokenizer, provenance=provenance)
    return out


def averaged_runs(storage_uri: str, runs: list[str]) -> set[str]:
    """The runs whose moving average is exported: those that kept one and that no other of the runs started from.

    What was trained on top of a run's last weights fits those, not their average.
    """
    found = {run: read_description(final_uri(storage_uri, run)) for run in runs}
    known = {run: description for run, description in found.items() if description is not None}
    built_on = {start for description in known.values() for start in description["recipe"]["stage"]["start_from"]}
    return {run for run, description in known.items() if "average_sha256" in description} - built_on


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="runs", action="append", required=True, metavar="RUN", help="a finished run; repeat"
    )
    parser.add_argument("--last-weights", action="store_true", help="no moving averages: the weights of the last step")
    parser.add_argument("--out", required=True, metavar="URI", help="folder of the bundle")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    return run_job(
        "export",
        "Make a bundle of finished runs.",
        lambda recipe, options: export(recipe, options.runs, options.out, averages=not options.last_weights),
        argv,
        extend=_options,
    )


if __name__ == "__main__":
    sys.exit(main())
