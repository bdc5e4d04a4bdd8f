"""`blip3o lmms --target URL|BUNDLE [--tasks mme,…]`: scores a server or a bundle with lmms-eval.

`make lmms` builds the environment: `.venv-lmms/bin/python -m jobs.lmms …`. lmms-eval queries a server over its
OpenAI-compatible API, and loads a bundle into its own process (`blip3o.evaluate.lmms.model`). The task `blip3o_scenes`
belongs to this project: questions with three or more choices about held-out scenes, judged as `blip3o evaluate` does.
All other tasks are lmms-eval's. The work is `blip3o.evaluate.lmms.run`.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from blip3o.evaluate.lmms.run import require_lmms_eval, run_lmms_eval
from blip3o.evaluate.lmms.scenes_task import SCENES_TASK, write_scenes_task
from jobs.common import entry_point


def command(
    target: Annotated[str, typer.Option(metavar="URL|BUNDLE", help="A running server, or a bundle.")],
    *,
    tasks: Annotated[str, typer.Option(metavar="NAMES", help="Tasks of lmms-eval, comma-separated.")] = SCENES_TASK,
    model: Annotated[str, typer.Option(metavar="NAME", help="The server's name for the model.")] = "blip3o",
    scenes: Annotated[int, typer.Option(metavar="N", help=f"Held-out scenes of {SCENES_TASK}.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N questions of each task.")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the results.")] = Path("runs/lmms"),
) -> None:
    """Score a server or a bundle with lmms-eval, in the environment that `make lmms` builds."""
    require_lmms_eval()
    names, folder = tasks.split(","), out / "tasks"
    if SCENES_TASK in names:
        print(f"{SCENES_TASK}: {write_scenes_task(folder, scenes=scenes)} questions about {scenes} held-out scenes")
    run_lmms_eval(target, model=model, tasks=names, folder=folder, out=out, limit=limit)
    print(f"results are in {out}")


main = entry_point("lmms", command)

if __name__ == "__main__":
    sys.exit(main())
