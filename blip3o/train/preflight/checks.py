"""Preflight checks that need no cluster. Each check is one line of output with its numbers.

A check is ok, wrong, or not known (such as memory, if no cluster is named). A wrong check stops `blip3o train` before
workers start; `blip3o preflight RECIPE` prints all checks. Checks that need Ray are in `jobs.training.preflight`.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from blip3o import storage
from blip3o.config.cluster import ClusterConfig
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.errors import Blip3oError, ConfigError, StorageError
from blip3o.train.deepspeed.config import deepspeed_config, describe_engine
from blip3o.train.features.encoder import FeatureCache, require_encoder
from blip3o.train.preflight.memory import GIB, SHARE, START_SHARE, Parameters, count_parameters, estimate_memory
from blip3o.train.preflight.start import start_memory
from blip3o.train.schedule import learning_rate

SKEW_SECONDS = 60.0  # stores report whole seconds, and S3 refuses requests with a clock 15 minutes off

State = Literal["ok", "wrong", "not known"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: its name, its state, and a detail with the numbers, and with the fix if it is wrong."""

    name: str
    state: State
    detail: str

    def __str__(self) -> str:
        """One line of output."""
        return f"{self.state:9} {self.name}: {self.detail}"


def require(checks: list[Check]) -> None:
    """Raises `ConfigError` if a check is wrong; the message names all of them."""
    wrong = [f"{check.name}: {check.detail}" for check in checks if check.state == "wrong"]
    if wrong:
        raise ConfigError("preflight: " + "; ".join(wrong))


def verdict(name: str, *, good: bool, detail: str, fix: str) -> Check:
    """A check with its numbers; the fix is added if it is not good."""
    return Check(name=name, state="ok" if good else "wrong", detail=detail if good else f"{detail}: {fix}")


def recipe_checks(recipe: Recipe) -> Iterator[Check]:
    """Checks of the recipe only: what the engine is, clipping, condition dropout, division into micro-batches, end of
    the schedule.
    """
    optim, sampler = recipe.optim, recipe.model.sampler
    yield Check(name="engine", state="ok", detail=describe_engine(recipe))
    clip = deepspeed_config(recipe)["gradient_clipping"]
    yield verdict(
        "clipping",
        good=clip > 0,
        detail=f"gradients above norm {clip:g} are scaled down",
        fix="set optim.max_grad_norm=1",
    )
    if recipe.objective.generation is not None and recipe.objective.generation.draws_noise:
        yield verdict(
            "condition dropout",
            good=sampler.condition_dropout > 0 or sampler.guidance_scale == 1,
            detail=f"{sampler.condition_dropout:g} of the conditions are dropped, sampling has guidance "
            f"{sampler.guidance_scale:g}",
            fix="guidance needs an untaught null branch: set model.sampler.condition_dropout=0.1, or guidance_scale=1",
        )
    fewest, most = recipe.parallel.min_workers, recipe.parallel.max_workers
    yield verdict(
        "micro-batches",
        good=not optim.micro_batches % fewest and not optim.micro_batches % most,
        detail=f"{optim.micro_batches} of {optim.micro_batch_size} samples a step over {fewest} to {most} workers",
        fix="set optim.micro_batches to a multiple of parallel.workers",
    )
    last = learning_rate(optim, optim.steps - 1)
    yield verdict(
        "schedule",
        good=abs(last - optim.min_lr) <= 1e-6 * optim.lr,
        detail=f"{optim.lr:g} at its peak, {last:g} at step {optim.steps}, the last",
        fix=f"it should end at optim.min_lr {optim.min_lr:g}",
    )


def memory_checks(recipe: Recipe, parameters: Parameters, cluster: ClusterConfig | None) -> Iterator[Check]:
    """Whether weights, gradients and optimizer fit a worker's device, and checkpoints the disk of a node."""
    need = estimate_memory(recipe, parameters, workers=recipe.parallel.min_workers)  # where a worker's share is largest
    needed = (
        f"{need.device / GIB:.1f} GiB a worker ({parameters.trained / 1e9:.3f} G parameters trained, "
        f"{parameters.frozen / 1e9:.3f} G frozen, {recipe.parallel.precision}, ZeRO {recipe.parallel.zero_stage}; "
        f"{need.gradients / GIB:.1f} GiB of it gradients in {recipe.parallel.accumulation_dtype})"
    )
    offered = None if cluster is None else _device_memory(recipe, cluster)
    if offered is None:
        yield Check(name="memory", state="not known", detail=f"{needed}; name the cluster to judge it (--cluster)")
    else:
        yield verdict(
            "memory",
            good=need.device <= SHARE * offered * GIB,
            detail=f"{needed} of {offered:.1f} GiB; {SHARE:.0%} may be used, the rest is for activations",
            fix="raise parallel.zero_stage or parallel.workers, or take a larger device",
        )
        yield verdict(
            "memory at the start",
            good=need.start <= START_SHARE * offered * GIB,
            detail=f"{need.start / GIB:.1f} GiB a worker while the engine is built, of {offered:.1f} GiB; "
            f"{START_SHARE:.0%} may be used",
            fix="the complete model is on the device until then: take a larger one, or train fewer parameters "
            "(stage.trainable, stage.lora)",
        )
    if cluster is not None and cluster.disk_gib is not None:
        # A node holds its workers' shares of two checkpoints: the newest, and the previous one during its upload.
        held = 2 * need.checkpoint / cluster.nodes / GIB
        yield verdict(
            "disk",
            good=held <= cluster.disk_gib,
            detail=f"{held:.1f} GiB of checkpoints in flight on a node of {cluster.disk_gib:g} GiB free",
            fix="give nodes more disk",
        )
    stored = recipe.checkpoint.keep * need.checkpoint / GIB
    yield Check(
        name="store", state="ok", detail=f"{stored:.1f} GiB for the newest {recipe.checkpoint.keep} checkpoints"
    )


def _device_memory(recipe: Recipe, cluster: ClusterConfig) -> float | None:
    """GiB of memory of the device that a worker computes on; None if not known."""
    if recipe.parallel.device == "gpu":
        return cluster.gpu_memory_gib
    workers_per_node = max(1, -(-recipe.parallel.max_workers // cluster.nodes))
    return cluster.memory_gib / workers_per_node


def store_checks(uri: str) -> Iterator[Check]:
    """Writes a small object below `uri`, reads it back, compares its time with this machine's clock, and removes it."""
    location = storage.join(uri, f".preflight-{uuid.uuid4().hex}")
    data = uuid.uuid4().bytes
    try:
        storage.write_bytes(location, data)
        now = time.time()
        written = storage.modified(location)
        back = storage.read_bytes(location)
        storage.delete(location)
    except StorageError as error:
        yield Check(name="storage", state="wrong", detail=str(error))
        return
    yield verdict(
        "storage", good=back == data, detail=f"{uri} is written and read", fix="what was read is not what was written"
    )
    skew = abs(now - written)
    yield verdict(
        "clock",
        good=skew <= SKEW_SECONDS,
        detail=f"{skew:.0f} s between this machine and the store",
        fix=f"more than {SKEW_SECONDS:g} s: synchronise this machine's clock",
    )


def feature_checks(inputs: StageInputs) -> Iterator[Check]:
    """Whether features can be streamed, or stored features match the encoder that the recipe names."""
    recipe = inputs.recipe
    if recipe.data.features == "online":
        return
    try:
        if recipe.data.features == "stream":
            require_encoder(recipe)
            yield Check(name="features", state="ok", detail="streamed by the encoder of stage.start_from")
        else:
            cache = FeatureCache.of(recipe)
            cache.require(inputs.manifests)
            yield Check(name="features", state="ok", detail=f"stored, provenance sha256 {cache.sha256[:12]}")
    except Blip3oError as error:
        yield Check(name="features", state="wrong", detail=str(error))


def check_call(name: str, call: Callable[[], Any]) -> Check:
    """A check that is ok if a call succeeds, and wrong if it raises a `Blip3oError`."""
    try:
        call()
    except Blip3oError as error:
        return Check(name=name, state="wrong", detail=str(error))
    return Check(name=name, state="ok", detail="complete")


def static_checks(recipe: Recipe, cluster: ClusterConfig | None) -> Iterator[Check]:
    """All checks of a recipe that need neither storage nor Ray."""
    parameters = count_parameters(recipe)
    yield from recipe_checks(recipe)
    yield from memory_checks(recipe, parameters, cluster)
    start = start_memory(recipe, parameters)
    detail = f"{start.first / GIB:.1f} GiB of host memory for weights on rank 0, {start.others / GIB:.1f} on others"
    yield Check(name="start", state="ok", detail=detail)
