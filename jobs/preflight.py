"""`blip3o preflight RECIPE [--cluster 4x8xH100] [--ranks]`: what can be known to be wrong before the first step.

The recipe, memory and disk, storage and clocks, data, weights and features, and what the cluster offers. `--ranks`
starts the recipe's workers, adds a number over all of them, and compares what each reads of the weights to start from.
`blip3o train` makes the cheap ones of these checks by itself. The work is `jobs.training.preflight`.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o.config.cluster import parse_cluster
from blip3o.config.pipeline import load_pipeline
from blip3o.errors import ConfigError
from jobs.common import Cluster, DryRun, RecipeName, StageOverrides, dump_pipeline, entry_point

if TYPE_CHECKING:
    from blip3o.train.preflight.checks import Check


def tell(found: Iterator[tuple[str, "Check"]], *, mark: str = "") -> "list[Check]":
    """Prints checks as they come, a line each; returns them."""
    checks = []
    for name, check in found:
        print(f"{mark}{name}: {check}")
        checks.append(check)
    return checks


def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    cluster: Cluster = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="Start the workers, and see that they agree.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Check everything that can be known of a run before its first step, and say what is wrong."""
    pretended = parse_cluster(cluster) if cluster else None
    if ranks and pretended:
        raise ConfigError(f"--ranks starts workers, and --cluster {cluster} is pretended: leave one of them out")
    pipeline = load_pipeline(recipe, overrides)
    if dry_run:
        print(dump_pipeline(pipeline))
        return
    from blip3o.train.preflight.checks import require  # 2 s: torch
    from jobs.training.preflight import preflight

    require(tell(preflight(pipeline, pretended, ranks=ranks)))


main = entry_point("preflight", command)

if __name__ == "__main__":
    sys.exit(main())
