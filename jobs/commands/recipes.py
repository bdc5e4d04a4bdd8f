"""`blip3o recipes`: lists the shipped recipes, and prints one of them, or one of your own, resolved."""

from pathlib import Path

import typer

from blip3o.config.pipeline import dump_resolved
from blip3o.config.recipe_files import shipped
from jobs.common import RecipeName, StageOverrides

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="List the shipped recipes, or print one with all of its values.",
)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes, or print one with all of its values."""
    if context.invoked_subcommand is None:
        width = max(map(len, shipped()))
        for name, file in shipped().items():
            print(f"{name:<{width}}  {summary(file)}")


@app.command("show")
def show(recipe: RecipeName, *, overrides: StageOverrides) -> None:
    """Print a recipe with all of its values: what it extends, presets and defaults. The output is a recipe file."""
    print(dump_resolved(recipe, overrides), end="")


def summary(file: Path) -> str:
    """The summary of a recipe file: its first line, a comment."""
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
