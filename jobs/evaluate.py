"""`blip3o evaluate`: scores a bundle on a recipe's held-out data, or a bundle or a server on benchmarks.

`blip3o.evaluate.heldout.evaluation` does the work of `blip3o evaluate RECIPE --bundle URI`;
`jobs.evaluation.command` plans that of `blip3o evaluate --suite NAME --target URI`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from blip3o import storage
from blip3o.runs.paths import evaluation_uri
from jobs.common import (
    RECIPE,
    DryRun,
    Overrides,
    UsageError,
    entry_point,
    open_recipe,
    parameters_of,
    with_parameters,
)
from jobs.evaluation.options import BenchmarkOptions

HELD_OUT = "Held-out data"
USAGE = "give RECIPE --bundle URI for its held-out data, or --suite NAME --target URI for benchmarks"


@with_parameters(parameters_of(BenchmarkOptions))
def command(
    recipe: Annotated[str | None, RECIPE] = None,
    *,
    out: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Folder of the results (evaluation/ of the run; runs/evaluation/TARGET)."),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(metavar="URI", help="The bundle to score.", rich_help_panel=HELD_OUT)
    ] = None,
    overrides: Overrides,
    dry_run: DryRun = False,
    **values: Any,  # noqa: ANN401 - the fields of `BenchmarkOptions`
) -> None:
    """Score a model: RECIPE --bundle URI on held-out data, or --suite NAME --target URI on benchmarks."""
    options = BenchmarkOptions(**values)
    if options.suite is None:
        _require_defaults(options)
        if recipe is None:
            raise UsageError(USAGE)
        _held_out(recipe, overrides, bundle, out, dry_run=dry_run)
        return
    if recipe is not None or bundle is not None or overrides or dry_run:
        raise UsageError(f"--suite takes neither a recipe nor its options: {USAGE}")
    from blip3o.evaluate.benchmark.stages import run  # 2 s: torch
    from jobs.evaluation.command import plan_of

    run(plan_of(options, out), print)


def _require_defaults(options: BenchmarkOptions) -> None:
    """Raises `UsageError` for options of benchmarks where there is no `--suite`."""
    for name, value in asdict(BenchmarkOptions()).items():
        if getattr(options, name) != value:
            raise UsageError(f"--{name.replace('_', '-')} goes with --suite: {USAGE}")


def _held_out(recipe: str, overrides: list[str], bundle: str | None, out: str | None, *, dry_run: bool) -> None:
    if bundle is None:
        raise UsageError("a recipe needs --bundle: the folder that `blip3o export` wrote")
    chosen = open_recipe(recipe, overrides, dry_run=dry_run)
    if dry_run:
        return
    from blip3o.evaluate.heldout.evaluation import evaluate  # 2 s: torch

    folder = out or evaluation_uri(chosen.run.storage, chosen.run.name)
    scores = evaluate(chosen, bundle, folder).scores
    print(json.dumps(scores, indent=1, ensure_ascii=False))
    print(scores["held_out"]["note"])
    for line in _reasons(scores["reasons"]):
        print(line)
    print(f"written to {storage.normalize(folder)}: evaluation.json, answers.jsonl, grid.png, report.html")


def _reasons(reasons: Mapping[str, str]) -> list[str]:
    """A line for each reason why figures are missing, with the first of those figures."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f"no {first}{f' and {len(rest)} more' if rest else ''}: {reason}" for reason, (first, *rest) in names.items()
    ]


main = entry_point("evaluate", command)

if __name__ == "__main__":
    sys.exit(main())
