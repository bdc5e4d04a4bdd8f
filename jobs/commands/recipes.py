"""`blip3o recipes`: the shipped recipes, and what one of them, or one of your own, resolves to."""

from pathlib import Path
from typing import Annotated

import typer

from blip3o.config.pipeline import dump_resolved
from blip3o.config.recipe_files import shipped

app = typer.Typer(invoke_without_command=True, help="List the shipped recipes, or print one with all of its values.")


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes, or print one with all of its values."""
    if context.invoked_subcommand is None:
        width = max(map(len, shipped()))
        for name, file in shipped().items():
            print(f"{name:<{width}}  {summary(file)}")


@app.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="a recipe file or the name of a shipped one; one stage: tiny:generate")],
    *,
    override: Annotated[list[str], typer.Option("--set", help="override, e.g. optim.steps=100; repeat")] = [],  # noqa: B006 - typer copies it
) -> None:
    """Print a recipe resolved: with what it extends, presets and defaults filled in. The output is a recipe file."""
    print(dump_resolved(recipe, override), end="")


def summary(file: Path) -> str:
    """What a recipe file says of itself: its first line, a comment."""
    return file.read_text().partition("\n")[0].removeprefix("#").strip()
