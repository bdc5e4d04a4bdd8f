"""What runs inside each Ray Train worker: for each stage build, restore, loop, report, and leave the result."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import ray.train
import torch
import torch.distributed as dist

from blip3o import log
from blip3o.config.recipe import Recipe
from blip3o.data.stream import iterate_micro_batches
from blip3o.device import select
from blip3o.runs.attempts import Attempt
from blip3o.train.callbacks import AttemptMarker, Callback, Measure
from blip3o.train.checkpoint.files import DamagedCheckpointError
from blip3o.train.checkpoint.resume import ResumePoint
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.deepspeed.gather import trained
from blip3o.train.ema import Ema
from blip3o.train.initial_weights import prepare_module, require_agreement
from blip3o.train.loop import Loop
from blip3o.train.loss_guard import BadStepError, Guard
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.metrics.recorder import MetricsRecorder, peak_flops
from blip3o.train.recovery import Interruption
from blip3o.train.result import whole_result, write_result
from blip3o.train.watchdog import Watchdog, end_hung_rank
from jobs.training.callbacks import GaugeExporter, PreemptionNotice
from jobs.training.checkpoint_saver import CheckpointSaver
from jobs.training.plan import FitPlan, PlannedStage
from jobs.training.progress import ProgressReporter
from jobs.training.restore import find_start, restore

Batches = Iterator[dict[str, np.ndarray]]


def train_worker(task: dict[str, Any]) -> dict[str, Any] | None:
    """The `train_loop_per_worker`: `task` is a `FitPlan` as a dictionary. Trains the stages that have not finished.

    Returns an `Interruption` as a dictionary where all ranks stopped at something that the driver can recover from.
    """
    log.configure()
    batches = iterate_micro_batches(ray.train.get_dataset_shard("train"))
    for stage in FitPlan(**task).stages():
        point = stage.resume_point()
        if not point.finished:
            interruption = _attempt(stage, point, batches)
            if interruption is not None:
                return asdict(interruption)
            # The next stage reads this one's result: no rank may look before it is there.
            dist.barrier()
    return None


def _attempt(stage: PlannedStage, point: ResumePoint, batches: Batches) -> Interruption | None:
    """Trains a stage; what stopped it, if all ranks found the same."""
    recipe, workers = stage.recipe, ray.train.get_context().get_world_size()
    name = recipe.run.name
    if recipe.optim.micro_batches % workers:
        message = f"{workers} workers cannot share {recipe.optim.micro_batches} micro-batches (optim.micro_batches)"
        return Interruption(run=name, kind="workers", step=0, message=message, workers=workers)
    try:
        _train_stage(stage, point, batches)
    except BadStepError as bad:
        return Interruption(run=name, kind="step", step=bad.step, message=str(bad), micro_batches=bad.micro_batches)
    except DamagedCheckpointError as damage:
        return Interruption(run=name, kind="checkpoint", step=point.step, message=str(damage))
    return None


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This worker among those of the fit, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def here(cls, recipe: Recipe) -> Self:
        """As Ray Train has placed it."""
        context = ray.train.get_context()
        device = select(recipe.parallel.device, local_rank=context.get_local_rank())
        return cls(rank=context.get_world_rank(), world=context.get_world_size(), device=device)


def _train_stage(stage: PlannedStage, point: ResumePoint, batches: Batches) -> None:
    """From nothing to the result. Every rank runs it in step; each phase is named to the watchdog before it begins."""
    recipe, identity = stage.recipe, stage.identity()
    torch.set_num_threads(recipe.parallel.threads)
    here = Rank.here(recipe)
    attempt = Attempt(recipe, workers=here.world)
    with Watchdog(recipe.guard.hang_seconds, lambda hang: end_hung_rank(recipe, hang, rank=here.rank)) as watchdog:
        module = prepare_module(recipe, stage.inputs.tokenizer)
        watchdog.begin("comparing the ranks' weights")
        require_agreement(module, here.device)
        watchdog.begin("building the engine")
        start = find_start(recipe, point, fit_name=stage.fit_name)
        engine = build_engine(recipe.with_workers(here.world), module, universal=start.universal)
        ema = Ema(engine, trained(module.model), decay=recipe.optim.ema_decay) if recipe.optim.ema_decay else None
        attempt.mark("built")
        watchdog.begin("restoring")
        state = restore(engine, recipe, identity, start, ema)
        attempt.mark("restored")
        guard = Guard(recipe.guard, state.get("recent", ()))
        saver = CheckpointSaver(recipe, engine, identity, fit_name=stage.fit_name, average=ema, guard=guard)
        averaging = [ema] if ema else []
        Loop(
            recipe=recipe.with_workers(here.world),
            engine=engine,
            module=module,
            batches=batches,
            device=here.device,
            rank=here.rank,
            world=here.world,
            pad_id=stage.inputs.pad_id,
            callbacks=[watchdog, *averaging, *_metrics(stage, here, attempt), saver, PreemptionNotice(recipe)],
            first_micro_batch=stage.first_micro_batch,
            guard=guard,
        ).run(start.step)
        watchdog.begin("leaving the result")
        weights, averaged = whole_result(recipe, module.model, ema, keep=here.rank == 0)
        if here.rank == 0:
            write_result(recipe, weights, averaged, identity, workers=here.world)
        engine.destroy()


def _metrics(stage: PlannedStage, here: Rank, attempt: Attempt) -> list[Callback]:
    """What measures on every rank, and what rank 0 records and reports. Before the saver: a checkpoint has its rows."""
    recipe, inputs = stage.recipe, stage.inputs
    meter = Measure(FlopsMeter(recipe, image_token_id=inputs.image_token_id, pad_id=inputs.pad_id))
    if here.rank != 0:
        return [meter]
    peak = peak_flops(recipe, here.device, workers=here.world)
    gauges = [GaugeExporter(recipe, peak_flops=peak)] if "ray" in recipe.log.trackers else []
    recorder = MetricsRecorder(recipe, peak_flops=peak)
    return [meter, AttemptMarker(attempt), recorder, ProgressReporter(recipe), *gauges]
