"""Scores a server or a bundle with lmms-eval: `.venv-lmms/bin/python -m jobs.lmms --target http://… [--tasks mme,…]`.

`make lmms` builds that environment. A server is asked over its OpenAI-compatible API; a bundle is loaded into the
process of lmms-eval (`blip3o.evaluate.lmms.model`). The task `blip3o_scenes` comes with the project: questions with
three or more choices about held-out scenes, judged as `blip3o evaluate` does. All other tasks are lmms-eval's.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from blip3o import settings
from blip3o.errors import ConfigError, ServiceError
from blip3o.evaluate.lmms.scenes_task import SCENES_TASK, write_scenes_task
from jobs.common import entry_point


def lmms_eval_command(
    target: str, *, model: str, tasks: Sequence[str], folder: Path, out: Path, limit: int | None
) -> list[str]:
    """The command line of lmms-eval: a URL is an OpenAI-compatible server, anything else is a bundle."""
    if target.startswith(("http://", "https://")):
        base = target.rstrip("/").removesuffix("/v1") + "/v1"
        asked = ["openai", "--model_args", f"model={model},base_url={base},api_key=none,num_concurrent=4"]
    else:
        asked = ["blip3o", "--model_args", f"bundle={target}"]
    line = [sys.executable, "-m", "lmms_eval", "--model", *asked, "--tasks", ",".join(tasks)]
    line += ["--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    return line + (["--limit", str(limit)] if limit is not None else [])


def evaluate(target: str, *, model: str, tasks: Sequence[str], scenes: int, out: Path, limit: int | None) -> None:
    """Runs lmms-eval, which prints its table and writes its files below `out`.

    Raises `ConfigError` where lmms-eval is not installed, `ServiceError` if it fails.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            f"{sys.executable} has no lmms_eval: run `make lmms`, then .venv-lmms/bin/python -m jobs.lmms"
        )
    folder = out / "tasks"
    if SCENES_TASK in tasks:
        print(f"{SCENES_TASK}: {write_scenes_task(folder, scenes=scenes)} questions about {scenes} held-out scenes")
    if tasks == [SCENES_TASK]:  # this task needs no network, and must not wait for one
        settings.export({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    settings.export({"OPENAI_API_KEY": "none"})  # the client requires one, even for a local server
    folder.mkdir(parents=True, exist_ok=True)
    line = lmms_eval_command(target, model=model, tasks=tasks, folder=folder, out=out, limit=limit)
    before = _results(out)
    code = subprocess.run(line).returncode
    if code != 0 or _results(out) == before:  # lmms-eval also exits with 0 after some errors
        raise ServiceError(f"lmms-eval ended with exit code {code} and left no results: {' '.join(line)}")


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*_results.json"))


def command(
    target: Annotated[str, typer.Option(metavar="URL|BUNDLE", help="A running server, or a bundle.")],
    *,
    tasks: Annotated[str, typer.Option(metavar="NAMES", help="Tasks of lmms-eval, comma-separated.")] = SCENES_TASK,
    model: Annotated[str, typer.Option(metavar="NAME", help="The server's name of the model.")] = "blip3o",
    scenes: Annotated[int, typer.Option(metavar="N", help=f"Held-out scenes of {SCENES_TASK}.")] = 100,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N questions of each task.")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the results.")] = Path("runs/lmms"),
) -> None:
    """Score a server or a bundle with lmms-eval, in the environment that `make lmms` builds."""
    evaluate(target, model=model, tasks=tasks.split(","), scenes=scenes, out=out, limit=limit)


main = entry_point("lmms", command)

if __name__ == "__main__":
    sys.exit(main())
