"""The `blip3o` command: one table of verbs, in the order in which a user needs them.

`python -m jobs.VERB` is the same command for every verb that is a module of `jobs`, so that it can be submitted to a
cluster. Modules named here import no torch and no Ray: `--help` answers in half a second instead of three.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blip3o import version
from jobs import (
    ablate,
    adopt,
    demo,
    encode,
    evaluate,
    export,
    index,
    latents,
    lmms,
    preflight,
    serve,
    store,
    tokenizer,
    train,
)
from jobs.all import command as whole
from jobs.autoscaling.command import command as demo_cluster
from jobs.commands import convert, data, deploy, inference, model, recipes, runs
from jobs.commands.budget import command as budget
from jobs.common import new_app, run_app
from jobs.loadtest import command as loadtest
from jobs.submit import command as submit
from jobs.submit import listing

# Panel of `--help` → name → a command, or an application with commands of its own.
VERBS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Start": {
        "demo": demo.command,
        "store": store.command,
        "recipes": recipes.app,
        "model": model.app,
        "demo-cluster": demo_cluster,
    },
    "Data": {
        "data": data.app,
        "index": index.command,
        "tokenizer": tokenizer.command,
        "latents": latents.command,
        "encode": encode.command,
    },
    "Train": {
        "budget": budget.command,
        "preflight": preflight.command,
        "train": train.command,
        "submit": submit.command,
        "jobs": listing.app,
        "runs": runs.runs,
        "report": runs.report,
        "all": whole.command,
        "ablate": ablate.command,
    },
    "Result": {
        "export": export.command,
        "evaluate": evaluate.command,
        "lmms": lmms.command,
        "generate": inference.generate,
        "chat": inference.chat,
        "convert": convert.app,
        "adopt": adopt.command,
    },
    "Serve": {"serve": serve.command, "deploy": deploy.deploy, "bench-serve": loadtest.bench_serve},
}
ALIASES = {"recipe": "recipes"}
HELP = "Train and serve a unified image understanding and generation model, from image-text shards to HTTP."


class _InOrder(TyperGroup):
    """Lists the verbs in the order of the table; typer would list commands before groups."""

    def list_commands(self, _: Any) -> list[str]:  # noqa: ANN401 - a private class of typer
        """Names of the verbs."""
        return [name for verbs in VERBS.values() for name in verbs]

    def get_command(self, context: Any, name: str) -> Any:  # noqa: ANN401 - private classes of typer
        """The verb of this name; `recipe` is `recipes`."""
        return super().get_command(context, ALIASES.get(name, name))


def _app() -> typer.Typer:
    blip3o = new_app(cls=_InOrder, help=HELP)
    blip3o.callback()(_options)
    for panel, verbs in VERBS.items():
        for name, verb in verbs.items():
            if isinstance(verb, typer.Typer):
                blip3o.add_typer(verb, name=name, rich_help_panel=panel)
            else:
                blip3o.command(name, rich_help_panel=panel)(verb)
    return blip3o


def _show_version(*, requested: bool) -> None:
    if requested:
        print(version.describe())
        raise typer.Exit


def _options(
    *,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print versions and the commit.")
    ] = False,
) -> None:
    """The options of `blip3o` itself."""


app = _app()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `blip3o` from its command line; returns the exit code. User errors become one line on stderr."""
    return run_app(app, argv, program="blip3o")


if __name__ == "__main__":
    sys.exit(main())
