"""What rank 0 reports of each step: rows are stored before a checkpoint counts, and a tracker's failure is raised."""

import json

import pytest
import torch

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.runs.paths import metrics_folder, recipe_uri
from blip3o.runs.rows import read_rows
from blip3o.train.callbacks import StepRecord
from blip3o.train.metrics.recorder import MetricsRecorder, peak_flops
from jobs.training.progress import ProgressReporter, progress_board
from tests.recipes import recipe


def record(step):
    work = {"flops/dit": 4 * 10**9, "tokens": 50}
    return StepRecord(
        step=step,
        loss=0.5,
        terms={"flow": 0.5},
        grad_norm=1.0,
        lr=0.1,
        samples=8,
        seconds=0.5,
        data_wait=0.0,
        work=work,
    )


def made(storage_uri, **log):
    return recipe(run={"storage": storage_uri, "name": "recorded"}, optim={"steps": 6}, log={"every": 2, **log})


def steps_stored(tmp_path):
    return [row["step"] for row in read_rows(str(tmp_path), "recorded")]


@pytest.mark.parametrize(("flush", "before"), [(None, []), (2, [0, 1])])
def test_rows_are_stored_after_the_wait(ray_cluster, tmp_path, flush, before):
    settings = made(str(tmp_path), flush=flush)
    handle = progress_board()
    ray_cluster.get(handle.clear.remote())
    now = [0.0]
    recorder = MetricsRecorder(settings, peak_flops=16e9)
    progress = ProgressReporter(settings, clock=lambda: now[0])
    progress.on_start(0)
    for step in range(3):
        now[0] += 0.4  # so that the third step is the first after a second, and not due by its number
        recorder.after_step(step + 1, record(step))
        progress.after_step(step + 1, record(step))
    recorder.wait_written()
    assert steps_stored(tmp_path) == before
    recorder.on_checkpoint(3, record(2))
    assert steps_stored(tmp_path) == [0, 1, 2]
    recorder.on_end()
    assert json.loads(storage.read_bytes(recipe_uri(str(tmp_path), "recorded"))) == settings.model_dump(mode="json")
    first = {"run": "recorded", "step": 1, "loss": 0.5, "speed": 16.0, "due": True}  # and then every second
    assert ray_cluster.get(handle.take.remote()) == [
        {"run": "recorded", "phase": "waiting for the first batch"}, first, first | {"step": 2}
    ]  # fmt: skip
    now[0] += 0.9
    progress.after_step(5, record(4))
    assert ray_cluster.get(handle.take.remote()) == [first | {"step": 5, "due": False}]  # a second later
    assert ray_cluster.get(handle.take.remote()) == []
    [row, *_] = read_rows(str(tmp_path), "recorded")
    assert (row["mfu"], row["samples_per_second"]) == (0.5, 16)


def test_a_failing_tracker_ends_the_run(ray_cluster, tmp_path):
    recorder = MetricsRecorder(made(str(tmp_path)), peak_flops=None)
    (tmp_path / "recorded" / "metrics").write_text("a file where the folder of rows should be")
    assert metrics_folder(str(tmp_path), "recorded") == str(tmp_path / "recorded" / "metrics")
    recorder.after_step(1, record(0))
    recorder.flush()
    with pytest.raises(StorageError, match="metrics"):
        recorder.wait_written()


def test_the_recipes_peak_applies_to_every_worker():
    cpu = torch.device("cpu")
    assert peak_flops(recipe(parallel={"peak_tflops": 0.5}), cpu, workers=4) == 2e12
    assert peak_flops(recipe(), cpu, workers=4) is None


def test_the_wish_to_stop_is_read_one_step_later_and_outlives_the_board(ray_cluster, tmp_path):
    board = progress_board()
    ray_cluster.get(board.clear.remote())
    progress = ProgressReporter(made(str(tmp_path)))

    def next_step():
        if progress._answer is not None:
            ray_cluster.wait([progress._answer])
        return progress.wants_stop()

    assert not next_step()
    ray_cluster.get(board.stop.remote())
    assert [next_step(), next_step()] == [False, True]  # the first answer is from before
    ray_cluster.get(board.clear.remote())  # another fit begins
    assert [next_step(), next_step()] == [True, False]
    ray_cluster.kill(board, no_restart=False)  # as with the node that it is on
    assert not progress.wants_stop()
    progress.report_phase("loading weights")
    while not next_step():  # the driver repeats the wish, since the board may yet be the one that is dying
        ray_cluster.get(board.stop.remote())
    ray_cluster.get(board.clear.remote())
