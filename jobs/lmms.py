"""Scores a server or a bundle with lmms-eval: `.venv-lmms/bin/python -m jobs.lmms --target http://… [--tasks mme,…]`.

`make lmms` builds that environment. A server is asked over its OpenAI-compatible API, a bundle in lmms-eval's process
(jobs.evaluation.lmms_model). `blip3o_scenes`, the task that comes with the project, asks about held-out scenes:
questions with three or more answers, judged as `blip3o evaluate` judges them. All other tasks are lmms-eval's.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o import log, settings
from blip3o.data.sets.scenes import sample
from blip3o.errors import ConfigError, ServiceError
from blip3o.evaluate.metrics.understanding import MIN_CHOICES
from jobs.common import guarded
from jobs.evaluation import lmms_scenes

SCENES_TASK = "blip3o_scenes"
_TASK = """\
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function utils.judged
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 1.0}}]
"""


def write_scenes_task(folder: Path, *, scenes: int) -> int:
    """Writes the task `blip3o_scenes` over the first held-out scenes into a folder; returns its number of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": drawn.image, "question": pair["question"], "answer": pair["answer"], "kind": pair["kind"]}
        for drawn in (sample(index, split="heldout") for index in range(scenes))
        for pair in drawn.record["qa"]
        if len(pair["choices"]) >= MIN_CHOICES
    ]
    data = (folder / "scenes.parquet").resolve()
    pq.write_table(pa.Table.from_pylist(rows), data)
    (folder / f"{SCENES_TASK}.yaml").write_text(_TASK.format(name=SCENES_TASK, data=data), encoding="utf-8")
    shutil.copy(lmms_scenes.__file__, folder / "utils.py")
    return len(rows)


def command(target: str, *, model: str, tasks: Sequence[str], folder: Path, out: Path, limit: int | None) -> list[str]:
    """The command line of lmms-eval: a URL is asked as an OpenAI-compatible server, all else is a bundle."""
    if target.startswith(("http://", "https://")):
        base = target.rstrip("/").removesuffix("/v1") + "/v1"
        asked = ["openai", "--model_args", f"model={model},base_url={base},api_key=none,num_concurrent=4"]
    else:
        asked = ["blip3o", "--model_args", f"bundle={target}"]
    line = [sys.executable, "-m", "lmms_eval", "--model", *asked, "--tasks", ",".join(tasks)]
    line += ["--include_path", str(folder), "--output_path", str(out), "--log_samples"]
    return line + (["--limit", str(limit)] if limit is not None else [])


def evaluate(target: str, *, model: str, tasks: Sequence[str], scenes: int, out: Path, limit: int | None) -> None:
    """Runs lmms-eval, whose table is printed and whose files come into `out`.

    Raises `ConfigError` where lmms-eval is not installed, `ServiceError` if it fails.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            f"{sys.executable} has no lmms_eval: run `make lmms`, then .venv-lmms/bin/python -m jobs.lmms"
        )
    folder = out / "tasks"
    if SCENES_TASK in tasks:
        print(f"{SCENES_TASK}: {write_scenes_task(folder, scenes=scenes)} questions about {scenes} held-out scenes")
    if tasks == [SCENES_TASK]:  # it needs no network, and must not wait for one
        settings.export({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    settings.export({"OPENAI_API_KEY": "none"})  # the client refuses to start without one, whoever is asked
    folder.mkdir(parents=True, exist_ok=True)
    line = command(target, model=model, tasks=tasks, folder=folder, out=out, limit=limit)
    before = _results(out)
    code = subprocess.run(line).returncode
    if code != 0 or _results(out) == before:  # it ends with 0 after errors, too
        raise ServiceError(f"lmms-eval ended with exit code {code} and left no results: {' '.join(line)}")


def _results(out: Path) -> set[Path]:
    return set(out.rglob("*_results.json"))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    log.configure()
    parser = argparse.ArgumentParser(
        prog="python -m jobs.lmms", description="Scores a server or a bundle with lmms-eval."
    )
    parser.add_argument("--target", required=True, metavar="URL|BUNDLE", help="a running server, or a bundle")
    parser.add_argument("--tasks", default=SCENES_TASK, metavar="NAMES", help=f"comma-separated ({SCENES_TASK})")
    parser.add_argument("--model", default="blip3o", metavar="NAME", help="the server's name of the model (blip3o)")
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help=f"held-out scenes of {SCENES_TASK} (100)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task")
    parser.add_argument("--out", type=Path, default=Path("runs/lmms"), metavar="FOLDER", help="results (runs/lmms)")

    def run() -> None:
        options = parser.parse_args(argv)
        evaluate(
            options.target,
            model=options.model,
            tasks=options.tasks.split(","),
            scenes=options.scenes,
            out=options.out,
            limit=options.limit,
        )

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
