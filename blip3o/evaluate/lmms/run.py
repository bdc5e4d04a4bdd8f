"""Runs lmms-eval on a server or a bundle, as a process: the work of `blip3o lmms`."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from blip3o import settings
from blip3o.errors import ConfigError, ServiceError
from blip3o.evaluate.lmms.scenes_task import SCENES_TASK


def require_lmms_eval() -> None:
    """Raises `ConfigError` where lmms-eval is not installed."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            f"{sys.executable} has no lmms_eval: run `make lmms`, then .venv-lmms/bin/python -m jobs.lmms"
        )


def run_lmms_eval(target: str, *, model: str, tasks: Sequence[str], folder: Path, out: Path, limit: int | None) -> None:
    """Runs lmms-eval, which prints its table and writes its files below `out`. `folder` holds our own tasks.

    Raises `ServiceError` if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if list(tasks) == [SCENES_TASK]:  # this task needs no network, and must not wait for one
        settings.export({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    settings.export({"OPENAI_API_KEY": "none"})  # the client requires one, even for a local server
    line = lmms_eval_command(target, model=model, tasks=tasks, folder=folder, out=out, limit=limit)
    before = _results(out)
    code = subprocess.run(line).returncode
    if code != 0 or _results(out) == before:  # lmms-eval also exits with 0 after some errors
        raise ServiceError(f"lmms-eval ended with exit code {code} and wrote no results: {' '.join(line)}")


def lmms_eval_command(
    target: str, *, model: str, tasks: Sequence[str], folder: Path, out: Path, limit: int | None
) -> list[str]:
    """The command line of lmms-eval: a URL is an OpenAI-compatible server, anything else is a bundle."""
    if target.startswith(("http://", "https://")):
        base = target.rstrip("/").removesuffix("/v1") + "/v1"
        evaluated = ["openai", "--model_args", f"model={model},base_url={base},api_key=none,num_concurrent=4"]
    else:
        evaluated = ["blip3o", "--model_args", f"bundle={target}"]
    line = [sys.executable, "-m", "lmms_eval", "--model", *evaluated, "--tasks", ",".join(tasks)]
    line += ["--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    return line + (["--limit", str(limit)] if limit is not None else [])


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*_results.json"))
