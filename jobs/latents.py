"""`blip3o latents RECIPE --name RUN [--images N]`: measures channel statistics of generation targets, as a run.

For recipes with `model.normalize_latents`. The work is `blip3o.train.features.latents`.
"""

import sys
from typing import Annotated

import typer

from blip3o.runs.paths import final_uri
from blip3o.runs.results import require_description
from jobs.common import DryRun, Overrides, RecipeName, entry_point, open_recipe


def command(
    recipe: RecipeName,
    *,
    name: Annotated[str, typer.Option(metavar="RUN", help="Name of the run to write.")],
    images: Annotated[int, typer.Option(metavar="N", help="Samples to measure.")] = 4096,
    overrides: Overrides,
    dry_run: DryRun = False,
) -> None:
    """Measure the channel statistics of generation targets, for a recipe with model.normalize_latents."""
    chosen = open_recipe(recipe, overrides, dry_run=dry_run)
    if not dry_run:
        from blip3o.train.features.latents import measure_latents  # 2 s: torch

        mean, _ = measure_latents(chosen, name=name, images=images)
        uri = final_uri(chosen.run.storage, name)
        measured = require_description(uri)["summary"]["images"]
        print(f"wrote run {name}: statistics of {len(mean)} channels over {measured} images, {uri}")


main = entry_point("latents", command)

if __name__ == "__main__":
    sys.exit(main())
