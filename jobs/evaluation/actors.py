"""A bundle as an evaluation's target, with one pipeline in each actor of a Ray Data pool."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy

from blip3o.errors import Blip3oError
from blip3o.evaluate.benchmark.bundle_target import BundleTarget, BundleWorker
from blip3o.evaluate.benchmark.work import Done, Work, batches
from jobs.common import join_ray


@dataclass(frozen=True, kw_only=True)
class ActorPoolTarget(BundleTarget):
    """A bundle in `actors` actors, each of `cpus` logical CPUs and `gpus` GPUs."""

    actors: int = 1
    cpus: float = 1

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files; see `Target`. Raises the errors of the actors."""
        groups = batches(work, self.batch_size)
        if not groups:
            return
        join_ray()
        # One batch per block: no actor waits for a row that another one computes.
        rows = [{"batch": number} for number in range(len(groups))]
        numbers = ray.data.from_items(rows, override_num_blocks=len(groups))
        numbers.context.enable_progress_bars = False
        numbers.context.print_on_execution_start = False
        numbers.context.execution_no_progress_timeout_s = -1  # a batch may take longer than Ray's default patience
        done = numbers.map(
            _Actor,
            fn_constructor_args=(self, groups),
            compute=ActorPoolStrategy(size=min(self.actors, len(groups)), max_tasks_in_flight_per_actor=2),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise row["error"]
            yield from row["done"]


def on_actors(bundle: BundleTarget, *, actors: int, cpus: float) -> ActorPoolTarget:
    """The same target in a pool of actors."""
    same = {field.name: getattr(bundle, field.name) for field in fields(BundleTarget)}
    return ActorPoolTarget(actors=actors, cpus=cpus, **same)


class _Actor:
    def __init__(self, target: BundleTarget, groups: Sequence[tuple[Work, ...]]) -> None:
        self._worker = BundleWorker(target, groups)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The outcomes of a batch, or the user's error, which Ray would otherwise wrap beyond recognition."""
        try:
            return {"done": self._worker.make(int(row["batch"])), "error": None}
        except Blip3oError as error:
            return {"done": [], "error": error}
