"""Callbacks of the loop: hooks are called in order, and a new metric or profiler is one class and no edit."""

import itertools
import json

import pytest
import torch.distributed as dist

from blip3o import storage
from blip3o.runs.rows import rows_of
from blip3o.train.callbacks import Callback
from blip3o.train.metrics.recorder import MetricsRecorder
from tests.distributed import run_ranks
from tests.recipes import recipe
from tests.train.test_loop import ROWS, arrays, loop, one_process  # noqa: F401 - a fixture

STEPS = 4


class Diary(Callback):
    """Records every hook call, and requests a checkpoint after the second step."""

    def __init__(self, name, diary):
        self.name, self.diary = name, diary

    def on_start(self, step):
        self.diary.append((self.name, "start", step))

    def measure(self, batch):
        self.diary.append((self.name, "measure", len(batch["x"])))
        return {}

    def after_step(self, done, record):
        self.diary.append((self.name, "step", done))

    def wants_checkpoint(self, done):
        return done == 2

    def on_checkpoint(self, done, record):
        self.diary.append((self.name, "checkpoint", done))

    def on_end(self):
        self.diary.append((self.name, "end", None))


def test_hooks_are_called_in_order_and_callbacks_in_the_order_of_their_list():
    made, _ = loop(map(arrays, itertools.count(2)), steps=3)
    diary = []
    made.callbacks = [Diary("a", diary), Diary("b", diary)]
    made.run(1)
    both = [("start", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("end", None)]
    assert [it for it in diary if it[1] != "measure"] == [(name, *moment) for moment in both for name in "ab"]
    measured = [(name, "measure", ROWS) for name in "ab" for _ in range(2)]
    assert diary[2:6] == measured  # before the step that it belongs to
    assert diary.index(("a", "step", 2)) == 6


class Wish(Callback):
    """Wants to stop in one step: by its rank's own number of steps, since ranks are asked at different moments."""

    def __init__(self, step):
        self.left = step

    def wants_stop(self):
        self.left -= 1
        return self.left == 0


def test_a_wish_to_stop_saves_after_that_step_and_ends_the_loop():
    made, _ = loop(map(arrays, itertools.count()), steps=9)
    diary = []
    made.callbacks = [Diary("a", diary), Wish(3)]
    assert made.run(0) == 3
    assert [it[1:] for it in diary if it[1] not in ("measure", "start")] == [
        ("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("checkpoint", 3), ("end", None)
    ]  # fmt: skip


def test_a_wish_in_the_last_step_is_an_end_like_any_other():
    made, _ = loop(map(arrays, itertools.count()), steps=2)
    made.callbacks = [Wish(2)]
    assert made.run(0) == 2


def test_the_wish_of_one_rank_ends_all_of_them_at_the_same_step(tmp_path):
    assert run_ranks(_stopped_by_rank_1, tmp_path) == [3, 3]


def _stopped_by_rank_1():
    rank = dist.get_rank()
    numbers = (step * 4 + turn * 2 + rank for step in itertools.count() for turn in range(2))
    made, diary = loop(map(arrays, numbers), steps=9, world=2, rank=rank, accumulation=2)[0], []
    made.callbacks = [Diary("a", diary), Wish(3 if rank == 1 else 99)]
    done = made.run(0)
    assert ("a", "checkpoint", 3) in diary
    return done


def test_an_error_in_the_loop_skips_on_end():
    made, _ = loop(map(arrays, range(3)))
    diary = []
    made.callbacks = [Diary("a", diary)]
    with pytest.raises(Exception, match="ended before micro-batch 3"):
        made.run(0)
    assert ("a", "step", 1) in diary
    assert ("a", "end", None) not in diary


class Profiler(Callback):
    """Records the phases of the loop."""

    def __init__(self):
        self.seen = []

    def on_phase(self, phase):
        self.seen.append(phase)


class Positive(Callback):
    """A custom metric: how many numbers of a micro-batch are positive."""

    def measure(self, batch):
        return {"positive": int((batch["x"] > 0).sum())}


class Saver(Callback):
    """Takes the place of the checkpoint saver: records which rows are in the store when it saves."""

    def __init__(self, made):
        self.made, self.stored = made, []

    def wants_checkpoint(self, done):
        return done % 2 == 0

    def on_checkpoint(self, done, record):
        self.stored.append([row["step"] for row in rows_of(self.made)])


def test_a_new_metric_and_a_profiler_are_one_class_each_and_a_checkpoint_has_its_rows(tmp_path):
    """The existing recorder stores the metric's column, and no other line changes."""
    made, _ = loop(map(arrays, itertools.count()), steps=STEPS)
    kept = recipe(run={"storage": str(tmp_path), "name": "toy"}, optim={"steps": STEPS})
    profiler, saver = Profiler(), Saver(kept)
    made.callbacks = [profiler, Positive(), MetricsRecorder(kept, peak_flops=None), saver]
    made.run(0)
    batches = [[arrays(2 * step + turn)["x"] for turn in range(2)] for step in range(STEPS)]
    expected = [sum(int((x > 0).sum()) for x in group) for group in batches]
    assert [row["positive"] for row in rows_of(kept)] == expected
    assert saver.stored == [[0, 1], [0, 1, 2, 3]]
    assert profiler.seen[0] == "waiting for the data of step 0"
    assert profiler.seen[-1] == "callbacks after the last step"
    assert json.loads(storage.read_bytes(f"{tmp_path}/toy/recipe.json"))["run"]["name"] == "toy"
