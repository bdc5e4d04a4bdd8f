"""`blip3o recipes`: lists the shipped recipes, prints one of them, or one of your own, resolved, and explains the keys.

`blip3o recipe` is the same command.
"""

from pathlib import Path
from typing import Annotated

import typer

from blip3o.config.keys.reference import find_keys, recipe_keys
from blip3o.config.keys.rendering import as_markdown, as_text, overview
from blip3o.config.pipeline import dump_resolved
from blip3o.config.recipe_files import shipped
from jobs.common import RecipeName, StageOverrides

app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="List the shipped recipes, print one with all of its values, or explain keys.",
)


@app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes, print one with all of its values, or explain keys."""
    if context.invoked_subcommand is None:
        width = max(map(len, shipped()))
        for name, file in shipped().items():
            print(f"{name:<{width}}  {summary(file)}")


@app.command("show")
def show(recipe: RecipeName, *, overrides: StageOverrides) -> None:
    """Print a recipe with all of its values: what it extends, presets and defaults. The output is a recipe file."""
    print(dump_resolved(recipe, overrides), end="")


@app.command("explain")
def explain(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key or a section, e.g. optim.lr, lr or data.sources.")
    ] = None,
    *,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all keys as the page docs/recipe-keys.md.")
    ] = False,
) -> None:
    """Explain a key of a recipe: what it may be, its default, which stages read it. Without KEY: the sections."""
    if markdown:
        print(as_markdown(recipe_keys()), end="")
    elif key is None:
        print(overview(recipe_keys()))
        print("\nblip3o recipes explain SECTION lists its keys, e.g. blip3o recipes explain optim")
    else:
        print(as_text(find_keys(key)))


def summary(file: Path) -> str:
    """The summary of a recipe file: its first line, a comment."""
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
