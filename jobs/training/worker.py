"""What runs inside each Ray Train worker: for each stage build, restore, loop, report, and leave the result."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from blip3o import log
from blip3o.config.pipeline import TrainingPipeline
from blip3o.config.recipe import Recipe
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.stream import iterate_micro_batches
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.data.text.tokenizer_files import read_tokenizer_json
from blip3o.device import select
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.attempts import Attempt
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.files import DamagedCheckpointError
from blip3o.train.checkpoint.store import committed_step
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.deepspeed.gather import gather_parameters, trained
from blip3o.train.ema import Ema
from blip3o.train.loop import Loop, StepRecord
from blip3o.train.lora import add_adapters, base_weights, merged
from blip3o.train.loss_guard import BadStepError, Guard
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.recovery import Interruption
from blip3o.train.stages import freeze, stage_of
from blip3o.train.watchdog import Watchdog, end_hung_rank
from blip3o.train.weights import (
    final_uri,
    load_into,
    read_description,
    read_final,
    require_agreement,
    require_covered,
    start_sha256,
    write_final,
)
from jobs.commands.runs import read_rows
from jobs.training.fit import FitPlan
from jobs.training.recorder import Recorder, peak_flops
from jobs.training.restorer import find_start, restore
from jobs.training.saver import Saver


def train_worker(task: dict[str, Any]) -> dict[str, Any] | None:
    """The `train_loop_per_worker`: `task` is a `FitPlan` as a dictionary. Trains the stages that have not finished.

    Returns a `Interruption` as a dictionary where all ranks stopped at something that the driver can answer.
    """
    log.configure()
    plan = FitPlan(**task)
    pipeline = plan.pipeline()
    batches = iterate_micro_batches(ray.train.get_dataset_shard("train"))
    for number, recipe in enumerate(pipeline.stages):
        if read_description(final_uri(recipe.run.storage, recipe.run.name)) is None:
            identity = checkpoint.identity(
                recipe, data_sha256=plan.data_sha256[number], start_sha256=start_sha256(recipe)
            )
            interruption = _attempt(recipe, identity, batches, pipeline, number)
            if interruption is not None:
                return asdict(interruption)
            # The next stage reads this one's result: no rank may look before it is there.
            dist.barrier()
    return None


def _attempt(
    recipe: Recipe, identity: str, batches: Iterator[dict[str, np.ndarray]], pipeline: TrainingPipeline, number: int
) -> Interruption | None:
    """Trains a stage; what stopped it, if all ranks found the same."""
    name, workers = recipe.run.name, ray.train.get_context().get_world_size()
    if recipe.optim.micro_batches % workers:
        message = f"{workers} workers cannot share {recipe.optim.micro_batches} micro-batches (optim.micro_batches)"
        return Interruption(run=name, kind="workers", step=0, message=message, workers=workers)
    try:
        _train_stage(recipe, identity, batches, fit_name=pipeline.name, first_micro_batch=pipeline.start(number))
    except BadStepError as bad:
        return Interruption(run=name, kind="step", step=bad.step, message=str(bad), micro_batches=bad.micro_batches)
    except DamagedCheckpointError as damage:
        step = committed_step(recipe, pipeline.name)
        return Interruption(run=name, kind="checkpoint", step=step, message=str(damage))
    return None


def _train_stage(
    recipe: Recipe, identity: str, batches: Iterator[dict[str, np.ndarray]], *, fit_name: str, first_micro_batch: int
) -> None:
    torch.set_num_threads(recipe.parallel.threads)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    attempt = Attempt(recipe, workers=world)
    sized = recipe.on(world)
    device = select(recipe.parallel.device, local_rank=context.get_local_rank())
    tokenizer = ChatTokenizer.from_bytes(read_tokenizer_json(tokenizer_uri(recipe.data)))
    with Watchdog(recipe.guard.hang_seconds, lambda hang: end_hung_rank(recipe, hang, rank=rank)) as watch:
        module = prepare_module(recipe, tokenizer)
        watch.begin("comparing the ranks' weights")
        require_agreement(module, device)
        watch.begin("building the engine")
        start = find_start(recipe, fit_name=fit_name)
        engine = build_engine(sized, module, universal=start.universal)
        average = Ema(engine, trained(module.model), decay=recipe.optim.ema_decay) if recipe.optim.ema_decay else None
        attempt.mark("built")
        watch.begin("restoring")
        state = restore(engine, recipe, identity, start, average)
        attempt.mark("restored")
        guard = Guard(recipe.guard, state.get("recent", ()))
        saver = Saver(recipe, engine, identity, fit_name=fit_name, average=average)
        recorder = Recorder(recipe, peak_flops=peak_flops(recipe, device, workers=world)) if rank == 0 else None
        Loop(
            recipe=sized,
            engine=engine,
            module=module,
            batches=batches,
            device=device,
            rank=rank,
            world=world,
            pad_id=tokenizer.ids[PAD],
            after_step=Reporter(recipe, saver, guard, attempt, recorder=recorder, average=average).after_step,
            first_micro_batch=first_micro_batch,
            guard=guard,
            begin=watch.begin,
            meter=FlopsMeter(recipe, image_token_id=tokenizer.ids[IMAGE_PAD], pad_id=tokenizer.ids[PAD]),
        ).run(start.step)
        watch.begin("leaving the result")
        weights, averaged = whole_result(recipe, module.model, average, keep=rank == 0)
        if recorder is not None:
            recorder.close()
            leave_result(recipe, weights, averaged, identity, workers=world)
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
    if recipe.stage.lora is not None:
        add_adapters(module.model, recipe.stage.lora, recipe.run.seed)
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


class Reporter:
    """After each step, on every rank: averages the weights, hands its record to the recorder, and saves and commits at
    checkpoints.

    `recorder` is rank 0's alone. A committed checkpoint has the rows of all steps before it.
    """

    def __init__(
        self,
        recipe: Recipe,
        saver: Saver,
        guard: Guard,
        attempt: Attempt,
        *,
        recorder: Recorder | None,
        average: Ema | None,
    ) -> None:
        self._recipe, self._saver, self._guard, self._attempt = recipe, saver, guard, attempt
        self._recorder, self._average = recorder, average
        self._noticed = False

    def after_step(self, done: int, record: StepRecord) -> None:
        """`done` steps are finished; `record` is the last one's."""
        if self._average is not None:
            self._average.update(done)
        if self._recorder is not None:
            self._attempt.stepped(done, data_wait=record.data_wait, seconds=record.seconds)
            self._recorder.add(done, record)
        last = done == self._recipe.optim.steps
        if last or done % self._recipe.checkpoint.every == 0 or self._notice(done):
            self._commit(done, record)

    def _notice(self, done: int) -> bool:
        """Whether a node is newly known to be taken soon: all ranks get the same answer, at the same steps."""
        every = self._recipe.checkpoint.preemption_check_every
        if self._noticed or every == 0 or done % every:
            return False
        self._noticed = ray.train.get_preemption_info() is not None
        return self._noticed

    def _commit(self, done: int, record: StepRecord) -> None:
        if self._recorder is not None:
            self._recorder.flush()
            self._recorder.settle()
        self._saver.save(done, {"step": done, "loss": record.loss}, {"recent": self._guard.recent})


def read_metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """All rows of a run so far, in the order of steps."""
    return read_rows(recipe.run.storage, recipe.run.name)


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """A finished stage in figures. `seconds` are those of its steps, without start-up.

    `data_wait_p50` and `data_wait_p95` are the seconds that the first rank waited for data in a step, median and 95th
    percentile; `data_wait_fraction` is the waiting's share of all. `checkpoint_stall` are the seconds that saving took,
    which are not in `seconds`.
    """

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    samples_per_second: float
    data_wait_fraction: float
    data_wait_p50: float
    data_wait_p95: float
    checkpoint_stall: float
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
        samples_per_second=len(rows) * recipe.optim.global_batch_size / seconds,
        data_wait_fraction=sum(waits) / seconds,
        data_wait_p50=float(np.percentile(waits, 50)),
        data_wait_p95=float(np.percentile(waits, 95)),
        checkpoint_stall=sum(row["checkpoint_stall"] for row in rows),
        workers=workers,
        zero_stage=recipe.parallel.zero_stage,
    )


Tensors = dict[str, Tensor]


def whole_result(
    recipe: Recipe, model: UnifiedModel, average: Ema | None, *, keep: bool
) -> tuple[Tensors, Tensors | None]:
    """What the stage trained and its moving average, adapters merged; empty where not `keep`. For all ranks to call."""
    lora, base = recipe.stage.lora, gather_parameters(base_weights(model), keep=keep)
    weights = merged(gather_parameters(trained(model), keep=keep), base, lora)
    return weights, merged(average.gather(keep=keep), base, lora) if average else None


def leave_result(recipe: Recipe, weights: Tensors, averaged: Tensors | None, identity: str, *, workers: int) -> None:
    """Writes the trained weights, their average and the run's description, which marks the run as finished."""
    description = {
        "run": recipe.run.name,
        "stage": recipe.stage.name,
        "identity": identity,
        "recipe": recipe.model_dump(mode="json"),
        "summary": asdict(summarize(recipe, read_metrics(recipe), workers=workers)),
    }
    write_final(final_uri(recipe.run.storage, recipe.run.name), weights, description, averaged)
