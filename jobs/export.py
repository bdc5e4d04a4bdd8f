"""`blip3o export RECIPE --from RUN [--from RUN …] --out URI`: makes the bundle that serving loads.

The work is `blip3o.train.export`. The bundle is reloaded and compared before the command succeeds.
"""

import sys
from typing import Annotated

import typer

from jobs.common import DryRun, Overrides, RecipeName, entry_point, open_recipe


def command(
    recipe: RecipeName,
    *,
    runs: Annotated[
        list[str],
        typer.Option(
            "--from", metavar="RUN", help="A finished run; if two trained a parameter, the later one wins. Repeatable."
        ),
    ],
    last_weights: Annotated[
        bool, typer.Option("--last-weights", help="Take the weights of the last step, not their moving average (EMA).")
    ] = False,
    out: Annotated[str, typer.Option(metavar="URI", help="Folder of the bundle.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another bundle in that folder; otherwise an error.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse, not only warn, if a run was trained on other weights than the bundle's."
        ),
    ] = False,
    overrides: Overrides,
    dry_run: DryRun = False,
) -> None:
    """Make a bundle from finished runs."""
    chosen = open_recipe(recipe, overrides, dry_run=dry_run)
    if not dry_run:
        from blip3o.train.export import export  # 2 s: torch

        print(export(chosen, runs, out, averages=not last_weights, overwrite=overwrite, strict=strict))


main = entry_point("export", command)

if __name__ == "__main__":
    sys.exit(main())
