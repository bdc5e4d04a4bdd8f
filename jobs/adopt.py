"""`blip3o adopt RECIPE --name RUN --bundle URI`, or `--part PREFIX=URI [--part …]`: makes weights a finished run.

The work is `blip3o.train.adopt`, which documents what a part may be.
"""

import sys
from typing import Annotated

import typer

from blip3o.runs.paths import final_uri
from blip3o.storage.sizes import folder_bytes, readable
from jobs.common import DryRun, Overrides, RecipeName, UsageError, entry_point, open_recipe


def _pair(text: str) -> tuple[str, str]:
    prefix, equals, uri = text.partition("=")
    if not (prefix and equals and uri):
        raise typer.BadParameter(f"'{text}' is not PREFIX=URI")
    return prefix, uri


def command(
    recipe: RecipeName,
    *,
    name: Annotated[str, typer.Option(metavar="RUN", help="Name of the run to write.")],
    bundle: Annotated[
        str | None, typer.Option(metavar="URI", help="All weights of a bundle, and its tokenizer if there is none yet.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX=URI", help="Weights of a part, e.g. decoder.vae.=s3://models/sdxl-vae. Repeatable."
        ),
    ] = None,
    overrides: Overrides,
    dry_run: DryRun = False,
) -> None:
    """Turn published weights or a bundle into a finished run, which stages start from and bundles are exported from."""
    if bool(bundle) == bool(part):
        raise UsageError("give the weights: either --bundle, or one --part or several")
    parts = dict(map(_pair, part or ()))
    chosen = open_recipe(recipe, overrides, dry_run=dry_run)
    if not dry_run:
        from blip3o.train.adopt import adopt, adopt_bundle  # 2 s: torch

        tensors = adopt_bundle(chosen, bundle, name=name) if bundle else adopt(chosen, parts, name=name)
        uri = final_uri(chosen.run.storage, name)
        read = bundle or ", ".join(parts)
        print(f"wrote run {name}: {len(tensors)} tensors of {read} ({readable(folder_bytes(uri))}), {uri}")


main = entry_point("adopt", command)

if __name__ == "__main__":
    sys.exit(main())
