"""`blip3o train RECIPE [--set key=value …] [--prepare] [--dry-run]`: trains a stage, or a pipeline of stages.

Submitting the same run again resumes it where it stopped, and does nothing if it has finished. `--set STAGE:key=value`
overrides one stage of a pipeline. If something is missing that a stage reads, the error lists all of it with the
commands that make it; `--prepare` runs those that need only the recipe: index, tokenizer, encode. `--dry-run` runs the
checks that need neither data nor Ray; with `--cluster 4x8xH100`, against a cluster that need not exist.
"""

import logging
import sys
from typing import Annotated

import typer

from blip3o.config.cluster import parse_cluster
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.data.order.shuffle_quality import measure_shuffle
from blip3o.errors import DataError, StorageError
from blip3o.runs.paths import recipe_uri
from jobs.commands.prepare import require_prepared
from jobs.common import Cluster, RecipeName, StageOverrides, entry_point, open_pipeline
from jobs.preflight import print_checks

logger = logging.getLogger(__name__)


def _preview_order(recipe: Recipe) -> None:
    """Prints how well the recipe's order shuffles, or which source is not indexed yet, as comments below the recipe."""
    try:
        qualities = measure_shuffle(StageInputs(recipe).order, batch=recipe.optim.global_batch_size)
        lines = [str(quality) for quality in qualities]
    except (DataError, StorageError) as error:
        lines = [f"order not known yet: {error}"]
    for line in lines:
        print(f"# {recipe.run.name}: {line}")


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    cluster: Cluster = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the resolved recipe, check it without data or Ray, and stop."),
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="First index, train the tokenizer and encode, as far as it is missing.")
    ] = False,
) -> None:
    """Train a stage or a pipeline of stages; run it again to resume."""
    from blip3o.train.preflight.checks import require  # 2 s: torch
    from jobs.training.preflight import dry_run_checks
    from jobs.training.run import train_pipeline

    pipeline = open_pipeline(recipe, overrides, dry_run=dry_run)
    if not dry_run:
        require_prepared(pipeline, recipe, overrides, prepare=prepare)
        runs = ", ".join(stage.run.name for stage in pipeline.stages)
        logger.info("training %s; recipe: %s", runs, recipe_uri(pipeline.stages[0].run.storage, "RUN"))
        train_pipeline(pipeline)
        return
    require(print_checks(dry_run_checks(pipeline, parse_cluster(cluster) if cluster else None), prefix="# "))
    # Without access to the named cluster there may be none to its store, and a query takes minutes of retries.
    for stage in () if cluster else pipeline.stages:
        _preview_order(stage)


main = entry_point("train", command)

if __name__ == "__main__":
    sys.exit(main())
