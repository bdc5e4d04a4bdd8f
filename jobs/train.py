"""Trains a stage, or a pipeline of them: `python -m jobs.train RECIPE [--set key=value …] [--dry-run]`.

Submitting the same run again resumes it where it stopped, and does nothing if it has finished. `--set STAGE:key=value`
overrides one stage of a pipeline. `--dry-run` checks what needs neither data nor Ray; with `--cluster 4x8xH100`,
against a cluster that need not be there.
"""

import argparse
import sys

from blip3o import log, settings
from blip3o.config.cluster import parse_cluster
from blip3o.config.pipeline import load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.data.order.shuffle_quality import measure_shuffle
from blip3o.errors import DataError, StorageError
from blip3o.train.preflight.checks import require
from jobs.common import dump_pipeline, guarded, recipe_parser
from jobs.preflight import cluster_option, tell
from jobs.training.preflight import planned
from jobs.training.run import train_pipeline


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    log.configure()
    settings.configure_ray()
    parser = recipe_parser("train", "Train a stage or a pipeline of stages; run again to resume.")
    cluster_option(parser)
    return guarded(lambda: _run(parser.parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    pipeline = load_pipeline(options.recipe, options.set)
    print(dump_pipeline(pipeline))
    if options.dry_run:
        require(tell(planned(pipeline, parse_cluster(options.cluster) if options.cluster else None), mark="# "))
        # Who pretends a cluster may have no way to the store either: there, asking it takes minutes of retries.
        for recipe in () if options.cluster else pipeline.stages:
            _preview_order(recipe)
    else:
        train_pipeline(pipeline)


def _preview_order(recipe: Recipe) -> None:
    """Prints, as comments below the recipe, how well its order shuffles; a source that is not indexed yet is named."""
    try:
        qualities = measure_shuffle(StageInputs(recipe).order, batch=recipe.optim.global_batch_size)
        found = [str(quality) for quality in qualities]
    except (DataError, StorageError) as error:
        found = [f"order not known yet: {error}"]
    for line in found:
        print(f"# {recipe.run.name}: {line}")


if __name__ == "__main__":
    sys.exit(main())
