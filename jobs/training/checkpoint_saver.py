"""Asynchronous checkpoints: training continues while a checkpoint is uploaded.

A step only waits for the copy to the local disk and, if the store is slower than the steps between two checkpoints, for
the previous upload. An interrupted upload leaves nothing that counts, because of the order of writes: first the files,
then the rank's list of its files, then Ray Train's snapshot, which names the checkpoint once every rank has reported
it.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from ray.train import CheckpointUploadMode as Mode

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.checkpoints import checkpoint_name, lists_uri, shards_uri
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.checkpoint.files import list_rank_files, rank_list_uri, upload_files
from blip3o.train.checkpoint.staging import new_folder
from blip3o.train.checkpoint.store import clear_rejection
from blip3o.train.ema import Ema
from blip3o.train.loss_guard import LossGuard
from jobs.training.monitoring.exporter import Exported


class CheckpointSaver(Callback):
    """Saves this rank's part of the engine and of the moving average.

    It saves every `checkpoint.every` steps, after the last step, and when another callback requests it. In the list of
    callbacks it comes after everything that must be stored before a checkpoint counts. `fit_name` is Ray Train's name
    for the run. The recent losses of `guard` are saved too.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Any,  # noqa: ANN401 - a DeepSpeedEngine
        identity: str,
        *,
        fit_name: str,
        ema: Ema | None,
        guard: LossGuard,
    ) -> None:
        self._recipe, self._engine, self._identity = recipe, engine, identity
        self._ema, self._guard = ema, guard
        self._uploader = _Uploader(recipe, fit_name)

    def wants_checkpoint(self, done: int) -> bool:
        """At multiples of `checkpoint.every`, and after the last step."""
        return done == self._recipe.optim.steps or done % self._recipe.checkpoint.every == 0

    def on_checkpoint(self, done: int, record: StepRecord) -> None:
        """Saves. Ray Train stores step and loss with the checkpoint."""
        self.save(done, {"step": done, "loss": record.loss}, {"recent": self._guard.recent})

    def save(self, step: int, metrics: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Writes this rank's shards to disk; a background thread uploads and commits them. Every rank must call it.

        A failed upload ends the worker.
        """
        # At most one checkpoint is in flight: with a slow store, more of them would fill the local disk.
        self._uploader.idle.wait()
        began = time.monotonic()
        directory = str(new_folder("checkpoint"))
        checkpoint.save(self._engine, directory, step=step, identity=self._identity, state=state, ema=self._ema)
        # The upload may outlive the stage, so it must not refer to this saver and its engine.
        uploader = self._uploader
        uploader.idle.clear()
        ray.train.report(
            dict(metrics),
            checkpoint=Checkpoint.from_directory(directory),
            checkpoint_dir_name=checkpoint_name(self._recipe.run.name, step),
            checkpoint_upload_mode=Mode.ASYNC,
            checkpoint_upload_fn=lambda local, name: uploader.upload(Path(local.path), name, step, began=began),
            delete_local_checkpoint_after_upload=True,
            validation=self._recipe.evaluate.due(step),
        )


class _Uploader:
    """Uploads this rank's part of a checkpoint. `idle` is set while no upload is in flight."""

    def __init__(self, recipe: Recipe, fit_name: str) -> None:
        context = ray.train.get_context()
        self._recipe, self._fit_name = recipe, fit_name
        self._rank, self._world = context.get_world_rank(), context.get_world_size()
        self._storage = context.get_storage()
        exporting = self._rank == 0 and "ray" in recipe.log.trackers
        self._exported = Exported(recipe.run.name) if exporting else None
        self.idle = threading.Event()
        self.idle.set()

    def upload(self, local: Path, name: str, step: int, *, began: float) -> Checkpoint:
        """Uploads the files of a local directory, whose save began at `began`, then the rank's list of them."""
        try:
            files = list_rank_files(local, rank=self._rank, world=self._world)
            upload_files(local, files, shards_uri(self._recipe, step))
            lists = lists_uri(self._recipe, self._fit_name, step)
            storage.write_bytes(rank_list_uri(lists, self._rank), files.to_bytes())
            if self._rank == 0:
                clear_rejection(self._recipe, step)
            if self._exported:
                self._exported.stored(time.monotonic() - began)
        finally:
            self.idle.set()  # also after an error: the next save must not wait forever
        path = self._storage.build_checkpoint_path_from_name(name)
        return Checkpoint(path=path, filesystem=self._storage.storage_filesystem)
