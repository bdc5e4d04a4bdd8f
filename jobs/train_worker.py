"""What runs inside each Ray Train worker: for each stage build, restore, loop, report, and leave the result."""

import json
import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint

from blip3o import log
from blip3o.config.recipe import Recipe
from blip3o.data import storage
from blip3o.data.locations import tokenizer_uri
from blip3o.data.stream import iterate_micro_batches
from blip3o.data.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.device import select
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.train import checkpoint
from blip3o.train.engine import build_engine
from blip3o.train.loop import Loop, StepRecord
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.stages import freeze, stage_of
from blip3o.train.weights import (
    final_uri,
    load_into,
    read_description,
    read_final,
    require_covered,
    start_sha256,
    write_final,
)
from jobs.fit import FitPlan
from jobs.progress import board


def train_worker(task: dict[str, Any]) -> None:
    """The `train_loop_per_worker`: `task` is a `FitPlan` as a dictionary. Trains the stages that have not finished."""
    log.configure()
    plan = FitPlan(**task)
    pipeline = plan.pipeline()
    batches = iterate_micro_batches(ray.train.get_dataset_shard("train"))
    for number, recipe in enumerate(pipeline.stages):
        if read_description(final_uri(recipe.run.storage, recipe.run.name)) is None:
            identity = checkpoint.identity(
                recipe, data_sha256=plan.data_sha256[number], start_sha256=start_sha256(recipe)
            )
            _train_stage(recipe, identity, batches, first_micro_batch=pipeline.start(number))
            # The next stage reads this one's result: no rank may look before it is there.
            dist.barrier()


def _train_stage(
    recipe: Recipe, identity: str, batches: Iterator[dict[str, np.ndarray]], *, first_micro_batch: int
) -> None:
    torch.set_num_threads(recipe.parallel.threads)
    context = ray.train.get_context()
    device = select(recipe.parallel.device, local_rank=context.get_local_rank())
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(tokenizer_uri(recipe.data)))
    module = prepare_module(recipe, tokenizer)
    engine = build_engine(recipe, module.to(device))
    start = _restore(engine, recipe.run.name, identity)
    reporter = Reporter(recipe, engine, identity, rank=context.get_world_rank())
    Loop(
        recipe=recipe,
        engine=engine,
        module=module,
        batches=batches,
        device=device,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        pad_id=tokenizer.ids[PAD],
        after_step=reporter.after_step,
        first_micro_batch=first_micro_batch,
    ).run(start)
    if context.get_world_rank() == 0:
        leave_result(recipe, module, identity, workers=context.get_world_size())
    engine.destroy()


def prepare_module(recipe: Recipe, tokenizer: ChatTokenizer) -> StageModule:
    """Builds the stage's model: initialised from the seed, then from the runs it starts from, in their order.

    Raises `CheckpointError` if a frozen part has no trained weights.
    """
    module = build_stage_module(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD])
    initialize(module.model, recipe.run.seed)
    trainable = freeze(module.model, stage_of(recipe))
    loaded: set[str] = set()
    for run in recipe.stage.start_from:
        tensors, _ = read_final(final_uri(recipe.run.storage, run))
        loaded |= load_into(module.model, tensors, source=run)
    require_covered(module.model, loaded, trainable)
    if recipe.stage.query_questions and "queries" not in loaded:
        _queries_from_questions(recipe, module.model, tokenizer)
    return module


def _queries_from_questions(recipe: Recipe, model: UnifiedModel, tokenizer: ChatTokenizer) -> None:
    """Sets the queries to token embeddings of questions, repeated or cut to their number.

    Prompt tuning begins best from embeddings of fitting text where the language model is small (Lester et al. 2021,
    arXiv 2104.08691, section 3.2).
    """
    ids = [token for question in recipe.stage.query_questions for token in tokenizer.encode(question)]
    count = model.queries.shape[0]
    rows = torch.tensor((ids * -(-count // len(ids)))[:count])
    with torch.no_grad():
        model.queries.copy_(model.backbone.text.embed_tokens.weight[rows])


def _restore(engine: Any, run: str, identity: str) -> int:  # noqa: ANN401 - a DeepSpeedEngine
    """Loads the newest checkpoint, unless there is none or it is of an earlier stage; returns the step."""
    saved = ray.train.get_checkpoint()
    if saved is None or checkpoint.parse_name(posixpath.basename(saved.path))[0] != run:
        return 0
    with saved.as_directory() as directory:
        return checkpoint.load(engine, directory, identity=identity)


class Reporter:
    """After each step: keeps its record, tells the board, and at checkpoints saves, commits and writes the metrics.

    Metrics are one file per checkpoint interval, so that a resumed run rewrites the same files with the same rows.
    """

    def __init__(self, recipe: Recipe, engine: Any, identity: str, *, rank: int) -> None:  # noqa: ANN401
        self._recipe, self._engine, self._identity, self._rank = recipe, engine, identity, rank
        self._rows: list[dict[str, Any]] = []
        self._board = board() if rank == 0 else None

    def after_step(self, done: int, record: StepRecord) -> None:
        """`done` steps are finished; `record` is the last one's."""
        self._rows.append(record.row())
        last = done == self._recipe.optim.steps
        if self._board is not None and (last or done % self._recipe.log.every == 0):
            self._board.tell.remote(self._recipe.run.name, {"step": done, "loss": record.loss})
        if last or done % self._recipe.checkpoint.every == 0:
            self._commit(done, record)

    def _commit(self, done: int, record: StepRecord) -> None:
        if self._rank == 0:
            lines = "".join(json.dumps(row) + "\n" for row in self._rows)
            storage.write_bytes(metrics_uri(self._recipe, done), lines.encode())
        self._rows.clear()
        # Every rank has a directory of its own: its shards' names carry the rank, and Ray merges the directories.
        with tempfile.TemporaryDirectory() as directory:
            checkpoint.save(self._engine, directory, step=done, identity=self._identity)
            ray.train.report(
                {"step": done, "loss": record.loss},
                checkpoint=Checkpoint.from_directory(directory),
                checkpoint_dir_name=checkpoint.name_of(self._recipe.run.name, done),
            )


def metrics_folder(recipe: Recipe) -> str:
    """Where a run's metrics are: one JSON-lines file per checkpoint interval."""
    return storage.join(recipe.run.storage, recipe.run.name, "metrics")


def metrics_uri(recipe: Recipe, done: int) -> str:
    """The metrics of the interval that ends after `done` steps."""
    return storage.join(metrics_folder(recipe), f"step-{done:08d}.jsonl")


def read_metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """All rows of a run so far, in the order of steps."""
    files = storage.list_files(metrics_folder(recipe), suffix=".jsonl")
    rows = [json.loads(line) for file in files for line in storage.read_bytes(file.uri).splitlines()]
    return sorted(rows, key=lambda row: row["step"])


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """A finished stage in figures. `seconds` are those of its steps, without start-up.

    `data_wait_p50` and `data_wait_p95` are the seconds that the first rank waited for data in a step, median and 95th
    percentile; `data_wait_fraction` is the waiting's share of all.
    """

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    samples_per_second: float
    data_wait_fraction: float
    data_wait_p50: float
    data_wait_p95: float
    workers: int
    zero_stage: int


def summarize(recipe: Recipe, rows: list[dict[str, Any]], *, workers: int) -> StageSummary:
    """First and last loss are means over the first and last tenth of the steps (at least one step)."""
    losses = [row["loss"] for row in rows]
    tenth = max(len(losses) // 10, 1)
    seconds = sum(row["seconds"] for row in rows)
    waits = [row["data_wait"] for row in rows]
    return StageSummary(
        steps=len(rows),
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
        seconds=seconds,
        samples_per_second=len(rows) * recipe.optim.global_batch / seconds,
        data_wait_fraction=sum(waits) / seconds,
        data_wait_p50=float(np.percentile(waits, 50)),
        data_wait_p95=float(np.percentile(waits, 95)),
        workers=workers,
        zero_stage=recipe.parallel.zero_stage,
    )


def leave_result(recipe: Recipe, module: StageModule, identity: str, *, workers: int) -> None:
    """Writes the trained weights and the run's description, which marks the run as finished."""
    tensors = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    description = {
        "run": recipe.run.name,
        "stage": recipe.stage.name,
        "identity": identity,
        "recipe": recipe.model_dump(mode="json"),
        "summary": asdict(summarize(recipe, read_metrics(recipe), workers=workers)),
    }
    write_final(final_uri(recipe.run.storage, recipe.run.name), tensors, description)
