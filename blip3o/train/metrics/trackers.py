"""Trackers, which store rows of metrics: JSON lines, TensorBoard, Weights & Biases, MLflow.

Rows arrive in groups, one for each interval of a run, in the order of steps. A resumed run sends the groups since its
checkpoint again, with the same values. Files are therefore named by the last step of a group and overwritten, and the
other trackers store values by step.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from blip3o import settings, storage
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from blip3o.runs.paths import metrics_folder, tensorboard_folder
from blip3o.runs.rows import Row, write_rows


class Tracker(Protocol):
    """Receives the rows of one interval after another."""

    def write(self, rows: Sequence[Row]) -> None:
        """Stores a non-empty group of rows. The same group may come again."""

    def close(self) -> None:
        """Called once, when the stage has finished."""


class JsonLines:
    """Writes one file of JSON lines for each interval, below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def write(self, rows: Sequence[Row]) -> None:
        """Raises `StorageError`."""
        write_rows(self._folder, rows)

    def close(self) -> None:
        """Nothing is open."""


class TensorBoard:
    """Writes one event file for each interval, below a folder of any storage. `tensorboard --logdir FOLDER` joins them.

    A single growing file would not do: objects in a store cannot grow, and after a crash it would hold steps twice.
    """

    def __init__(self, folder: str, *, name: str = "train") -> None:
        """`name` distinguishes the files of several writers."""
        self._folder, self._name = folder, name

    def write(self, rows: Sequence[Row]) -> None:
        """Writes a scalar for each number of each row. Raises `StorageError`."""
        from tensorboardX import summary

        self._put(
            rows[-1]["step"] + 1,
            (
                (row["step"], summary.scalar(name, value))
                for row in rows
                for name, value in row.items()
                if name != "step" and isinstance(value, int | float)
            ),
        )

    def write_image(self, step: int, tag: str, png: bytes, *, size: tuple[int, int]) -> None:
        """Writes a PNG image of width and height `size`. Raises `StorageError`."""
        from tensorboardX.proto.summary_pb2 import Summary

        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=png)
        self._put(step, [(step, Summary(value=[Summary.Value(tag=tag, image=image)]))], kind="image")

    def close(self) -> None:
        """Nothing is open."""

    def _put(self, done: int, events: Iterable[tuple[int, Any]], *, kind: str = "scalars") -> None:
        # TensorBoard reads the files of a folder in the order of names, and only those with "tfevents" in the name.
        name = f"events.out.tfevents.{done:010d}.{self._name}.{kind}"
        storage.write_bytes(storage.join(self._folder, name), event_file(events))


def event_file(summaries: Iterable[tuple[int, Any]]) -> bytes:
    """Steps and their summaries (protocol buffers) as the bytes of a TensorBoard file."""
    from tensorboardX.proto.event_pb2 import Event

    now = time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events += [Event(wall_time=now, step=step, summary=it) for step, it in summaries]
    return b"".join(framed(event.SerializeToString()) for event in events)


def framed(data: bytes) -> bytes:
    """Frames a record as in TensorFlow's record files: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    length = len(data).to_bytes(8, "little")
    return b"".join(
        (length, masked_crc32c(length).to_bytes(4, "little"), data, masked_crc32c(data).to_bytes(4, "little"))
    )


class WandbTracker:
    """A run of Weights & Biases, resumed under the same id. `WANDB_…` variables configure the connection."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises `ConfigError` as `require_trackers`."""
        require_trackers(recipe)
        import wandb

        self._run = wandb.init(
            project=recipe.log.project,
            name=recipe.run.name,
            id=recipe.run.name,
            resume="allow",
            config=recipe.model_dump(mode="json"),
            dir=settings.get("WANDB_DIR") or tempfile.mkdtemp(prefix="blip3o-wandb-"),
        )
        # wandb's own step counter cannot go back. With our step as the axis, rows sent again land at the same place.
        self._run.define_metric("*", step_metric="step")

    def write(self, rows: Sequence[Row]) -> None:
        """Queues the rows; wandb's own process sends them in the background."""
        for row in rows:
            self._run.log(dict(row))

    def close(self) -> None:
        """Waits until all rows are sent."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow on the server of `MLFLOW_TRACKING_URI`, resumed by its name."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises `ConfigError` as `require_trackers`."""
        require_trackers(recipe)
        from mlflow import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(recipe.log.project)
        experiment = found.experiment_id if found else self._client.create_experiment(recipe.log.project)
        runs = self._client.search_runs([experiment], f"attributes.run_name = '{recipe.run.name}'")
        run = runs[0] if runs else self._client.create_run(experiment, run_name=recipe.run.name)
        self._id = run.info.run_id
        self._client.log_dict(self._id, recipe.model_dump(mode="json"), "recipe.json")

    def write(self, rows: Sequence[Row]) -> None:
        """Sends the rows, one request for each."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for row in rows:
            values = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
            metrics = [Metric(name, float(value), now, row["step"]) for name, value in values.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._id)


_TRACKERS: Mapping[str, Callable[[Recipe], Tracker]] = {
    "tensorboard": lambda recipe: TensorBoard(tensorboard_folder(recipe.run.storage, recipe.run.name)),
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


def require_trackers(recipe: Recipe) -> None:
    """Raises `ConfigError` if a tracker's package is not installed, or the address of MLflow's server is not set."""
    for package in ("wandb", "mlflow"):
        if package in recipe.log.trackers and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"log.trackers names {package}, which is not installed: pip install 'blip3o[{package}]', or leave it "
                "out"
            )
    if "mlflow" in recipe.log.trackers and settings.get("MLFLOW_TRACKING_URI") is None:
        raise ConfigError("log.trackers names mlflow, and MLFLOW_TRACKING_URI is not set: give the server's address")


def open_trackers(recipe: Recipe) -> Iterator[Tracker]:
    """The trackers of a recipe: always JSON lines, and those of `log.trackers` that are implemented here (not `ray`).

    Raises `ConfigError` for one that cannot be used on this machine.
    """
    yield JsonLines(metrics_folder(recipe.run.storage, recipe.run.name))
    for name in recipe.log.trackers:
        if name in _TRACKERS:
            yield _TRACKERS[name](recipe)
