"""`blip3o budget RECIPE --gpu h100 --count 32`: what a recipe needs and costs. Nothing is downloaded or rented."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from blip3o.config.pipeline import load_pipeline
from jobs.common import RecipeName, StageOverrides, entry_point

PRICES = Path(__file__).parent / "prices.yaml"


def command(  # noqa: PLR0913 - one parameter an option
    recipe: RecipeName,
    *,
    overrides: StageOverrides,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, as in the prices file.")] = "h100",
    count: Annotated[int, typer.Option(min=1, help="Number of GPUs.")] = 8,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also print every number of GPUs and every ZeRO stage.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a text, template included.")] = None,
    samples: Annotated[
        float | None, typer.Option(min=1, help="Images of the set; if omitted, each is seen once.")
    ] = None,
    load: Annotated[float | None, typer.Option(min=1e-6, help="Images a second to serve: print replicas.")] = None,
    slo: Annotated[float, typer.Option(min=1e-3, help="Seconds within which 95 % of them must be done.")] = 10.0,
    took: Annotated[
        float | None, typer.Option(min=1e-6, help="Days that a known run took: print the MFU that they imply.")
    ] = None,
    prices: Annotated[Path, typer.Option(help="Prices and assumptions; the shipped file is the form.")] = PRICES,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plots there (needs matplotlib).")] = None,
) -> None:
    """Print what a recipe needs and costs: memory, FLOPs, time, money, storage, serving."""
    pipeline = load_pipeline(recipe, overrides)
    from blip3o.budget.plan import Request, make_budget  # 2 s: torch
    from blip3o.budget.prices import read_prices
    from jobs.commands.budget.report import report

    read = read_prices(prices)
    request = Request(gpu=gpu, count=count, tokens=tokens, samples=samples, load=load, slo_s=slo)
    budget = make_budget(pipeline.stages, request, read)
    if as_json:
        print(json.dumps({**budget.as_json(), "prices": read.model_dump()}))
    else:
        print("\n".join(report(budget, read, sweep=sweep, took=took)))
    if plots is not None:
        from jobs.commands.budget.plots import draw

        for file in draw(budget, read, plots):
            print(f"wrote {file}", file=sys.stderr)


main = entry_point("budget", command)
