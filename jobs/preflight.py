"""`blip3o preflight RECIPE [--cluster 4x8xH100] [--ranks]`: everything that can be checked before the first step.

The recipe, memory and disk, storage and clocks, data, weights and features, and what the cluster offers. `--ranks`
starts the recipe's workers, adds a number over all of them, compares what each reads of the weights to start from, and
measures an all-reduce; `--all-reduce N` only measures that, over N workers, and needs neither data nor weights.
`--on-cluster` only probes every node of the cluster: versions, store, clock, memory, disk, limits and GPUs.
`blip3o train` runs the cheap ones of these checks by itself. The work is `jobs.training.preflight`.
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
    from blip3o.config.pipeline import TrainingPipeline
    from blip3o.train.preflight.checks import Check


def print_checks(named: Iterator[tuple[str, "Check"]], *, prefix: str = "") -> "list[Check]":
    """Prints each check on its own line as soon as it is known; returns them all."""
    checks = []
    for name, check in named:
        print(f"{prefix}{name}: {check}")
        checks.append(check)
    return checks


def probe_nodes(pipeline: "TrainingPipeline", json_file: str | None, patience: float) -> None:
    """Probes all nodes and prints what they are. Raises `ConfigError` if a finding is a blocker."""
    from blip3o.train.preflight.memory import count_parameters
    from blip3o.train.preflight.start import start_memory
    from jobs.nodes.judge import judge
    from jobs.nodes.report import as_json, print_report, write_json
    from jobs.nodes.survey import survey

    memory = max(start_memory(recipe, count_parameters(recipe)).first for recipe in pipeline.stages)
    nodes = survey(pipeline.stages[0].run.storage, patience)
    findings = judge(nodes, memory=memory, patience=patience)
    if json_file:
        write_json(json_file, as_json(nodes, findings))
    if json_file != "-":
        print_report(nodes, findings)
    blockers = [finding for finding in findings if finding.level == "blocker"]
    if blockers:
        raise ConfigError(f"preflight: {len(blockers)} blockers on {len(nodes)} nodes; the first: {blockers[0].what}")


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
    on_cluster: Annotated[
        bool, typer.Option("--on-cluster", help="Only probe each node of the cluster that this job runs on.")
    ] = False,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write what --on-cluster finds; - for stdout.")
    ] = None,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long --on-cluster waits for a node.")
    ] = 60.0,
    dry_run: DryRun = False,
) -> None:
    """Check everything that can be checked before a run's first step, and report what is wrong."""
    assumed = parse_cluster(cluster) if cluster else None
    if json_file and not on_cluster:
        raise ConfigError("--json holds what --on-cluster finds: give both")
    if assumed and (ranks or all_reduce or on_cluster):
        option = "--ranks" if ranks else "--all-reduce" if all_reduce else "--on-cluster"
        raise ConfigError(f"{option} starts workers, and --cluster {cluster} need not exist: give only one of them")
    pipeline = load_pipeline(recipe, overrides)
    if dry_run:
        print(dump_pipeline(pipeline))
        return
    if on_cluster:
        probe_nodes(pipeline, json_file, patience)
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
