"""How a worker saves: training goes on while a checkpoint is on its way to the store.

What stops a step is the copy to this machine's disk, and, where the store is slower than the steps between two
checkpoints, the wait for the upload before. An upload that is cut leaves nothing that counts: files first, then the
rank's list of them, then Ray Train's snapshot, which names the checkpoint when every rank has reported it.
"""

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train import CheckpointUploadMode as Mode

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import lists_uri, name_of, shards_uri
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.files import list_rank, push, rank_uri
from blip3o.train.checkpoint.store import forgive, prune
from blip3o.train.ema import Ema
from blip3o.train.loss_guard import Guard


class CheckpointSaver(Callback):
    """Saves a stage's engine and its average for a rank: every `checkpoint.every` steps, after the last step, and when
    another callback asks for it.

    Stands in the list behind whatever must be stored before a checkpoint counts. `fit_name` is the name under which Ray
    Train knows the run; the losses by which `guard` judges are saved too.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
        identity: str,
        *,
        fit_name: str,
        average: Ema | None,
        guard: Guard,
    ) -> None:
        context = ray.train.get_context()
        self._recipe, self._engine, self._identity, self._fit_name = recipe, engine, identity, fit_name
        self._average, self._guard = average, guard
        self._rank, self._world = context.get_world_rank(), context.get_world_size()
        self._storage = context.get_storage()
        self._idle = threading.Event()
        self._idle.set()

    def wants_checkpoint(self, done: int) -> bool:
        """At the steps of the recipe, and at the end."""
        return done == self._recipe.optim.steps or done % self._recipe.checkpoint.every == 0

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """Saves; Ray Train keeps step and loss with the checkpoint."""
        self.save(done, {"step": done, "loss": record.loss}, {"recent": self._guard.recent})

    def save(self, step: int, metrics: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Writes this rank's shards to disk and has them uploaded and committed in time; every rank must call it.

        Waits for the upload before: of a checkpoint on its way there is one, so that no disk fills. An upload that
        fails ends the worker.
        """
        self._idle.wait()
        directory = tempfile.mkdtemp(prefix="blip3o-checkpoint-")
        checkpoint.save(self._engine, directory, step=step, identity=self._identity, state=state, average=self._average)
        self._idle.clear()
        ray.train.report(
            dict(metrics),
            checkpoint=Checkpoint.from_directory(directory),
            checkpoint_dir_name=name_of(self._recipe.run.name, step),
            checkpoint_upload_mode=Mode.ASYNC,
            checkpoint_upload_fn=lambda local, name: self._upload(Path(local.path), name, step),
            delete_local_checkpoint_after_upload=True,
            validation=self._recipe.evaluate.due(step),
        )

    def _upload(self, local: Path, name: str, step: int) -> Checkpoint:
        try:
            files = list_rank(local, rank=self._rank, world=self._world)
            push(local, files, shards_uri(self._recipe, step))
            lists = lists_uri(self._recipe, self._fit_name, step)
            storage.write_bytes(rank_uri(lists, self._rank), files.to_bytes())
            if self._rank == 0:
                forgive(self._recipe, step)
                prune(self._recipe, self._fit_name)
        finally:
            self._idle.set()
        path = self._storage.build_checkpoint_path_from_name(name)
        return Checkpoint(path=path, filesystem=self._storage.storage_filesystem)
