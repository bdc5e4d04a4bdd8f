"""`blip3o preflight RECIPE [--cluster 4x8xH100] [--ranks]`: everything that can be checked before the first step.

The recipe, memory and disk, storage and clocks, data, weights and features, and what the cluster offers. `--ranks`
starts the recipe's workers, adds a number over all of them, compares what each reads of the weights to start from, and
measures an all-reduce; `--all-reduce N` only measures that, over N workers, and needs neither data nor weights.
`--on-cluster` only probes every node of the cluster: versions, store, clock, memory, disk, limits and GPUs.
`blip3o train` runs the cheap ones of these checks by itself. The work is `jobs.training.preflight`.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.config.cluster import parse_cluster
from blip3o.config.pipeline import load_pipeline
from blip3o.errors import ConfigError
from jobs.common import (
    Cluster,
    DryRun,
    RecipeName,
    StageOverrides,
    dump_pipeline,
    entry_point,
    parameters_of,
    with_parameters,
)
from jobs.nodes.options import ProbeOptions

if TYPE_CHECKING:
    from blip3o.train.preflight.checks import Check


def print_checks(named: Iterator[tuple[str, "Check"]], *, prefix: str = "") -> "list[Check]":
    """Prints each check on its own line as soon as it is known; returns them all."""
    checks = []
    for name, check in named:
        print(f"{prefix}{name}: {check}")
        checks.append(check)
    return checks


@with_parameters(parameters_of(ProbeOptions))
def command(
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    cluster: Cluster = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="Start the workers, and check that they agree.")] = False,
    all_reduce: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Only measure the bandwidth of an all-reduce over N workers."),
    ] = None,
    dry_run: DryRun = False,
    **values: Any,  # noqa: ANN401 - fields of ProbeOptions
) -> None:
    """Check everything that can be checked before a run's first step, and report what is wrong."""
    assumed = parse_cluster(cluster) if cluster else None
    probing = ProbeOptions(**values)
    if assumed and (ranks or all_reduce or probing.on_cluster):
        option = "--ranks" if ranks else "--all-reduce" if all_reduce else "--on-cluster"
        raise ConfigError(f"{option} starts workers, and --cluster {cluster} need not exist: give only one of them")
    pipeline = load_pipeline(recipe, overrides)
    if dry_run:
        print(dump_pipeline(pipeline))
        return
    if probing.on_cluster:
        from jobs.nodes.command import probe_nodes

        probe_nodes(pipeline, probing)
        return
    from blip3o.train.preflight.checks import require  # 2 s: torch

    if all_reduce:
        from jobs.training.bandwidth import all_reduce_check

        require(print_checks(iter([(pipeline.name, all_reduce_check(pipeline, all_reduce))])))
        return
    from jobs.training.preflight import preflight

    require(print_checks(preflight(pipeline, assumed, ranks=ranks)))


main = entry_point("preflight", command)

if __name__ == "__main__":
    sys.exit(main())
