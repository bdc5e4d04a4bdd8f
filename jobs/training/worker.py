"""The code of each Ray Train worker: for every stage, build the model, restore, train, and write the result."""

import logging
import weakref
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import ray.train
import torch
import torch.distributed as dist

from blip3o import log
from blip3o.config.recipe import Recipe
from blip3o.device import allow_determinism, release_memory, select
from blip3o.runs.attempts import Attempt
from blip3o.runs.events import write_event
from blip3o.runs.identities import write_identity
from blip3o.train.ahead import StartedEarly
from blip3o.train.callbacks import AttemptRecorder, Callback, MicroBatchCounter
from blip3o.train.checkpoint.files import DamagedCheckpointError
from blip3o.train.checkpoint.resume import ResumePoint
from blip3o.train.checkpoint.staging import own_folder, release, require_space
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.deepspeed.gather import trainable_parameters
from blip3o.train.deepspeed.release import release_engine
from blip3o.train.ema import Ema
from blip3o.train.initial_weights import prepare_module, require_agreement
from blip3o.train.loop import Loop
from blip3o.train.loss_guard import BadStepError, LossGuard
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.metrics.recorder import MetricsRecorder, peak_flops
from blip3o.train.objectives import StageModule
from blip3o.train.preflight.memory import Parameters, estimate_memory
from blip3o.train.recovery import Interruption
from blip3o.train.result import gather_result, write_result
from blip3o.train.watchdog import Watchdog, end_hung_rank
from jobs.training.callbacks import PreemptionNotice
from jobs.training.checkpoint_saver import CheckpointSaver
from jobs.training.monitoring.exporter import MetricsExporter
from jobs.training.plan import FitPlan, PlannedStage
from jobs.training.progress import ProgressReporter
from jobs.training.restore import locate_start, restore
from jobs.training.standby import StandbyKeeper
from jobs.training.stream import worker_micro_batches

logger = logging.getLogger(__name__)

HELD_BYTES = 2**30  # allocated on a device between stages, beyond which something of the ended stage is still held

Batches = StartedEarly[dict[str, np.ndarray]]


def train_worker(task: dict[str, Any]) -> dict[str, Any] | None:
    """The `train_loop_per_worker`: trains the stages that have not finished. `task` is a `FitPlan` as a dictionary.

    Returns an `Interruption` as a dictionary if all ranks stopped at something that the driver can recover from.
    """
    log.configure()
    own_folder()
    plan = FitPlan(**task)
    batches = StartedEarly(worker_micro_batches(plan))
    stages = plan.stages()
    if any(stage.recipe.parallel.deterministic for stage in stages):
        allow_determinism()
    for stage in stages:
        point = stage.resume_point()
        if not point.finished:
            interruption = _attempt(stage, point, batches)
            if interruption is not None:
                release()
                return asdict(interruption)
            # The next stage reads this one's result, so no rank may look for it before rank 0 has written it.
            dist.barrier()
    release()
    return None


def _attempt(stage: PlannedStage, point: ResumePoint, batches: Batches) -> Interruption | None:
    """Trains a stage. Returns the reason if all ranks stopped together; other errors end the worker."""
    recipe, workers = stage.recipe, ray.train.get_context().get_world_size()
    name = recipe.run.name
    if recipe.optim.micro_batches % workers:
        message = f"{workers} workers cannot share {recipe.optim.micro_batches} micro-batches (optim.micro_batches)"
        return Interruption(run=name, kind="workers", step=0, message=message, workers=workers)
    batches.start()  # the stream's own start takes as long as building the model
    try:
        done = _train_stage(stage, point, batches)
    except BadStepError as bad:
        return Interruption(run=name, kind="step", step=bad.step, message=str(bad), micro_batches=bad.micro_batches)
    except DamagedCheckpointError as damage:
        return Interruption(run=name, kind="checkpoint", step=point.step, message=str(damage))
    if done == recipe.optim.steps:
        return None
    return Interruption(run=name, kind="stop", step=done, message=f"run '{name}' is saved after step {done}")


def _train_stage(stage: PlannedStage, point: ResumePoint, batches: Batches) -> int:
    """Trains one stage from its resume point, writes its result, and frees what it used; returns the steps done.

    Every rank runs this in lockstep.
    """
    context = RankContext.current(stage.recipe)
    done, module = _run_stage(stage, point, batches, context)
    allocated = release_memory(context.device)
    if module() is not None or allocated > HELD_BYTES:
        message = (
            f"the stage has ended, and {allocated / 2**30:.1f} GiB are still allocated on {context.device} (its model "
            f"is {'gone' if module() is None else 'alive'}): the next stage may run out of memory"
        )
        logger.error("%s: %s", stage.recipe.run.name, message)
        write_event(stage.recipe, f"memory-rank-{context.rank}", stage.recipe.optim.steps, message)
    return done


def _run_stage(
    stage: PlannedStage, point: ResumePoint, batches: Batches, context: "RankContext"
) -> "tuple[int, weakref.ref[StageModule]]":
    """Trains one stage and, after its last step, writes its result.

    Returns the steps done and a weak reference to the module. Each phase that may hang is reported to the watchdog
    before it starts.
    """
    recipe, identity = stage.recipe, stage.identity()
    torch.set_num_threads(recipe.parallel.threads)
    attempt = Attempt(recipe, workers=context.world)
    progress = ProgressReporter(recipe, peak_flops=_peak(stage, context)) if context.rank == 0 else None
    with Watchdog(recipe.guard.hang_seconds, lambda hang: end_hung_rank(recipe, hang, rank=context.rank)) as watchdog:

        def enter(phase: str) -> None:
            watchdog.on_phase(phase)
            if progress:
                progress.report_phase(phase)

        resuming = point.source == "checkpoint"
        enter("loading weights")
        module = _load_module(stage, context, resuming=resuming)
        watchdog.on_phase("comparing the ranks' weights")
        require_agreement(module, context.device, resuming=resuming)
        enter("building the engine")
        start = locate_start(recipe, point, fit_name=stage.fit_name)
        engine = build_engine(recipe.with_workers(context.world), module, universal=start.universal)
        ema = _build_ema(recipe, engine, module)
        attempt.mark("built")
        enter(f"restoring step {start.step}" if start.step else "starting at step 0")
        state = restore(engine, recipe, identity, start, ema)
        if context.rank == 0:
            write_identity(recipe, identity, stage.deciding())
        attempt.mark("restored")
        # The guard's window is part of the state: a resumed run must reject exactly the same steps.
        guard = LossGuard(recipe.guard, state.get("recent", ()))
        saver = CheckpointSaver(recipe, engine, identity, fit_name=stage.fit_name, ema=ema, guard=guard)
        measuring = _metric_callbacks(stage, context, attempt)
        averaging, reporting = [ema] if ema else [], [progress] if progress else []
        done = Loop(
            recipe=recipe.with_workers(context.world),
            engine=engine,
            module=module,
            batches=batches,
            device=context.device,
            rank=context.rank,
            world=context.world,
            pad_id=stage.inputs.pad_id,
            # The order matters: a checkpoint needs the updated average and the rows of all steps before it.
            callbacks=[watchdog, *averaging, *measuring, *reporting, saver, PreemptionNotice(recipe), StandbyKeeper()],
            first_micro_batch=stage.first_micro_batch,
            guard=guard,
        ).run(start.step)
        if done == recipe.optim.steps:
            enter("writing the result")
            weights, averaged = gather_result(recipe, engine, module.model, ema, keep=context.rank == 0)
            if context.rank == 0:
                write_result(recipe, weights, averaged, identity, workers=context.world)
        release_engine(engine)
    return done, weakref.ref(module)


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """This worker's rank, the number of workers and of those on its node, and the device it computes on."""

    rank: int
    world: int
    local_world: int
    device: torch.device

    @classmethod
    def current(cls, recipe: Recipe) -> Self:
        """As Ray Train has placed this worker."""
        context = ray.train.get_context()
        device = select(recipe.parallel.device, local_rank=context.get_local_rank())
        return cls(
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            local_world=context.get_local_world_size(),
            device=device,
        )


def _load_module(stage: PlannedStage, context: RankContext, *, resuming: bool) -> StageModule:
    """The stage's module. Raises as `prepare_module`, and `ConfigError` if the local disk holds no checkpoint of it."""
    recipe = stage.recipe
    module = prepare_module(recipe, stage.inputs.tokenizer, device=context.device, resuming=resuming)
    trained = sum(parameter.numel() for parameter in trainable_parameters(module.model).values())
    whole = estimate_memory(recipe, Parameters(trained=trained, frozen=0), workers=context.world).checkpoint
    # What the ranks of this node stage at a time. Without ZeRO, rank 0 saves everything.
    require_space(whole * (context.local_world / context.world if recipe.parallel.zero_stage else 1))
    return module


def _build_ema(recipe: Recipe, engine: Any, module: StageModule) -> Ema | None:  # noqa: ANN401 - a DeepSpeedEngine
    """The moving average of the trained parameters; None if the recipe has none."""
    if not recipe.optim.ema_decay:
        return None
    return Ema(engine, trainable_parameters(module.model), decay=recipe.optim.ema_decay)


def _metric_callbacks(stage: PlannedStage, context: RankContext, attempt: Attempt) -> list[Callback]:
    """The callbacks that count work on every rank, and those that record it on rank 0."""
    recipe, inputs = stage.recipe, stage.inputs
    counter = MicroBatchCounter(FlopsMeter(recipe, image_token_id=inputs.image_token_id, pad_id=inputs.pad_id))
    if context.rank != 0:
        return [counter]
    peak = _peak(stage, context)
    callbacks: list[Callback] = [counter, AttemptRecorder(attempt), MetricsRecorder(recipe, peak_flops=peak)]
    if "ray" in recipe.log.trackers:
        samples = sum(manifest.rows for manifest in inputs.manifests)
        callbacks.append(MetricsExporter(recipe, peak_flops=peak, workers=context.world, samples=samples))
    return callbacks


def _peak(stage: PlannedStage, context: RankContext) -> float | None:
    """Peak operations per second of all workers; None if it is not known."""
    return peak_flops(stage.recipe, context.device, workers=context.world)
