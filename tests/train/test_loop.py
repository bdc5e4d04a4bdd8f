"""The loop on a small engine: the right micro-batches, the same gradient at any accumulation, no bad step applied."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from blip3o.config.resilience import GuardConfig
from blip3o.errors import DataError
from blip3o.train.ahead import THREAD_NAME
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.loop import Loop, to_batch
from blip3o.train.loss_guard import BadStepError, LossGuard
from blip3o.train.schedule import learning_rate
from tests.recipes import recipe
from tests.train.test_ahead import PATIENCE_S, all_end

CPU = torch.device("cpu")
ROWS = 3
PAD = 0


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """A process group with this process only."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Terms(nn.Module):
    """Two terms over numbers x: (w − x)² and |x|·w. The second one counts twice as many elements."""

    weights = {"dense": 0.25}

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def prepare(self, batch):
        return batch

    def counts(self, batch):
        rows = len(batch["x"])
        return {"fit": rows, "dense": 2 * rows}

    def forward(self, batch):
        return {"fit": (self.w - batch["x"]).square().sum(), "dense": (batch["x"].abs() * self.w).sum()}


class Engine:
    """The part of DeepSpeed's engine that the loop uses: gradients are averaged, and the last micro-batch steps."""

    def __init__(self, module, accumulation):
        self._module, self._accumulation, self._turn = module, accumulation, 0
        self.optimizer = torch.optim.SGD(module.parameters(), lr=123.0)
        self.rates = []
        self.norm = torch.tensor(0.0)

    def __call__(self, batch):
        return self._module(batch)

    def backward(self, loss):
        (loss / self._accumulation).backward()

    def step(self):
        self._turn += 1
        if self._turn % self._accumulation == 0:
            self.norm = self._module.w.grad.abs()
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.step()
            self.optimizer.zero_grad()

    def get_global_grad_norm(self):
        return self.norm


def arrays(number, x=None):
    values = np.sin(np.arange(ROWS) + 10.0 * number) if x is None else x
    return {"micro_batch": np.full(ROWS, number), "x": values}


class Records(Callback):
    """Records each step's report, and counts the same work for every micro-batch."""

    def __init__(self):
        self.found: list[tuple[int, StepRecord]] = []

    def after_step(self, done, record):
        self.found.append((done, record))

    def measure(self, batch):
        return {"tokens": 2, "flops/w": 1}


def loop(batches, *, steps=3, accumulation=2, rank=0, world=1):
    optim = {"steps": steps, "lr": 0.1, "micro_batch_size": ROWS, "micro_batches": accumulation * world}
    module = Terms()
    records = Records()
    made = Loop(
        recipe=recipe(optim=optim, parallel={"workers": world}),
        engine=Engine(module, accumulation),
        module=module,
        batches=iter(batches),
        device=CPU,
        rank=rank,
        world=world,
        pad_id=PAD,
        callbacks=[records],
    )
    return made, records.found


def test_loss_is_the_weighted_sum_of_global_means():
    made, records = loop(map(arrays, itertools.count()), steps=1)
    made.run(0)
    x = np.concatenate([arrays(0)["x"], arrays(1)["x"]])
    fit, dense = np.square(1 - x).mean(), np.abs(x).sum() / (2 * len(x))
    [(done, record)] = records
    assert done == 1
    assert record.terms == {"fit": pytest.approx(fit, rel=1e-12), "dense": pytest.approx(dense, rel=1e-12)}
    assert record.loss == pytest.approx(fit + 0.25 * dense, rel=1e-12)
    assert record.samples == 2 * ROWS
    # d/dw, with w = 1
    assert record.grad_norm == pytest.approx(abs((2 * (1 - x)).mean() + 0.25 * dense), rel=1e-12)


def test_accumulation_changes_neither_gradient_nor_loss():
    def joined(number):
        return arrays(number, np.concatenate([arrays(2 * number)["x"], arrays(2 * number + 1)["x"]]))

    split, split_records = loop(map(arrays, itertools.count()), accumulation=2)
    whole, whole_records = loop(map(joined, itertools.count()), accumulation=1)
    split.run(0)
    whole.run(0)
    assert split.module.w.item() == pytest.approx(whole.module.w.item(), rel=1e-12)
    for (_, one), (_, other) in zip(split_records, whole_records, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-12)
    assert split.module.w.item() != 1.0


def test_every_step_has_its_learning_rate_number_and_row():
    made, records = loop(map(arrays, itertools.count(2)), steps=4)
    made.run(1)
    rates = [learning_rate(made.recipe.optim, step) for step in (1, 2, 3)]
    assert made.engine.rates == rates == [record.lr for _, record in records]
    assert [done for done, _ in records] == [2, 3, 4]
    row = records[0][1].row()
    assert (row["step"], row["lr"]) == (1, rates[0])
    figures = {"step", "loss", "loss/fit", "loss/dense", "grad_norm", "lr", "samples", "tokens", "flops/w"}
    assert set(row) == figures | {"seconds", "data_wait", "checkpoint_stall", "memory_bytes"}
    # Of the whole step: two micro-batches, whose numbers the meter is given.
    assert [(record.work["tokens"], record.work["flops/w"]) for _, record in records] == [(4, 2)] * 3
    assert row["memory_bytes"] > 2**20
    assert 0 < row["data_wait"] < row["seconds"]
    assert records[0][1].checkpoint_stall == 0 < records[1][1].checkpoint_stall


def test_a_rank_takes_every_world_th_micro_batch():
    made, records = loop(map(arrays, itertools.count(1, 2)), steps=2, world=2, rank=1)
    made.run(0)
    assert len(records) == 2


@pytest.mark.parametrize(("rank", "first", "needed"), [(0, 1, 0), (1, 0, 1), (0, 4, 0)])
def test_another_micro_batch_than_the_step_needs_is_an_error(rank, first, needed):
    made, records = loop(map(arrays, itertools.count(first, 2)), world=2, rank=rank)
    with pytest.raises(DataError, match=rf"gave micro-batch {first} of 3 .*step 0 of rank {rank} needs {needed} of 3"):
        made.run(0)
    assert not records


def test_a_micro_batch_of_another_size_is_an_error():
    made, records = loop(iter([{**arrays(0), "micro_batch": np.zeros(ROWS + 1, np.int64)}]))
    with pytest.raises(DataError, match="gave micro-batch 0 of 4 samples where step 0 of rank 0 needs 0 of 3"):
        made.run(0)
    assert not records


def test_a_start_step_other_than_the_streams_is_an_error():
    made, _ = loop(map(arrays, itertools.count()))
    with pytest.raises(DataError, match="gave micro-batch 0 of 3 samples where step 1 of rank 0 needs 2 of 3"):
        made.run(1)


def test_a_stream_that_ends_early_is_an_error():
    made, records = loop(map(arrays, range(3)))
    with pytest.raises(DataError, match="ended before micro-batch 3 of step 1"):
        made.run(0)
    assert [done for done, _ in records] == [1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_reaches_neither_weights_nor_records(bad):
    good = [arrays(number) for number in range(3)]
    made, records = loop([*good, arrays(3, np.array([0.0, bad, 0.0]))])
    with pytest.raises(BadStepError, match=r"the loss is (nan|inf) at step 1 .*'fit': (nan|inf)") as caught:
        made.run(0)
    assert (caught.value.step, caught.value.micro_batches) == (1, (3,))
    after_one_step, _ = loop(good[:2], steps=1)
    after_one_step.run(0)
    assert made.module.w.item() == after_one_step.module.w.item()
    assert [done for done, _ in records] == [1]


def test_a_gradient_that_is_not_finite_is_not_recorded():
    made, records = loop(map(arrays, itertools.count()))
    made.engine.get_global_grad_norm = lambda: torch.tensor(torch.inf)
    with pytest.raises(BadStepError, match="the gradient's norm is inf at step 0") as caught:
        made.run(0)
    assert caught.value.micro_batches == (0, 1)  # their losses are good: none stands out
    assert not records


def test_the_micro_batch_that_caused_a_spike_is_named():
    batches = [arrays(number) for number in range(6)]
    batches[5]["x"] = batches[5]["x"] + 100
    made, records = loop(batches)
    made.guard = LossGuard(GuardConfig(spike=20, window=2))
    with pytest.raises(BadStepError, match="is a spike .* at step 2") as caught:
        made.run(0)
    assert caught.value.micro_batches == (5,)
    assert made.guard.recent == [record.loss for _, record in records]


def test_text_is_truncated_to_the_longest_row_in_multiples_of_eight():
    ids = np.full((2, 40), PAD, np.int32)
    ids[0, :3], ids[1, :9] = 7, 8
    labels = np.where(ids == PAD, -100, ids).astype(np.int32)
    columns = {"input_ids": ids, "labels": labels, "micro_batch": np.zeros(2, np.int64), "draw_key": np.arange(2)}
    batch = to_batch(columns, pad_id=PAD, device=CPU)
    assert set(batch) == {"input_ids", "labels", "draw_key"}
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 16)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert batch["input_ids"].tolist() == ids[:, :16].tolist()
    assert batch["labels"].tolist() == labels[:, :16].tolist()
    branched = to_batch({**columns, "branches": ids}, pad_id=PAD, device=CPU)["branches"]
    assert branched.dtype == torch.int64 and branched.tolist() == ids[:, :16].tolist()
    ids[0, :] = 7
    assert to_batch(columns, pad_id=PAD, device=CPU)["input_ids"].shape == (2, 40)
    narrow = {**columns, "input_ids": ids[:, :12], "labels": labels[:, :12]}
    assert to_batch(narrow, pad_id=PAD, device=CPU)["input_ids"].shape == (2, 12)


def test_arrays_of_the_stream_are_copied():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels.flags.writeable = False
    batch = to_batch({"encoder_pixels": pixels}, pad_id=PAD, device=CPU)
    batch["encoder_pixels"][0] = 1
    assert not pixels.any()
    assert batch["encoder_pixels"].dtype == torch.uint8


class Stream:
    """The micro-batches of a rank; records the thread that reads, and when each step's first one is delivered."""

    def __init__(self, numbers=None):
        self.numbers, self.read, self.threads = numbers or itertools.count(), [], set()
        self.at = [threading.Event() for _ in range(64)]

    def __iter__(self):
        return self

    def __next__(self):
        number = next(self.numbers)
        self.threads.add(threading.current_thread().name.split("_")[0])
        self.read.append(number)
        self.at[number].set()
        return arrays(number)


def test_the_next_step_is_read_and_prepared_while_this_one_runs():
    stream = Stream()
    made, records = loop(stream, steps=3)
    forward, prepare = made.module.forward, made.module.prepare
    prepared, trained = [], []

    def recorded(batch):
        prepared.append((batch["x"][0].item(), threading.current_thread() is threading.main_thread()))
        return prepare(batch)

    def during(batch):
        trained.append(batch["x"][0].item())
        following = 2 * (len(trained) // 2) + 2 if len(trained) % 2 else 0
        assert following > 4 or stream.at[following + 1].wait(PATIENCE_S)  # both of the next step's, during this one
        return forward(batch)

    made.module.prepare, made.module.forward = recorded, during
    made.run(0)
    assert len(records) == 3
    assert prepared == [(x, False) for x in trained]
    assert stream.threads == {THREAD_NAME}
    assert stream.read == list(range(6))  # what follows is the next stage's
    assert next(stream)["micro_batch"][0] == 6


class StreamBrokeError(Exception):
    """Ends a stream."""


def test_an_error_of_the_stream_is_raised_at_its_step_by_its_own_type():
    def broken():
        yield from map(arrays, range(3))
        raise StreamBrokeError("at micro-batch 3")

    made, records = loop(broken(), steps=3)
    with pytest.raises(StreamBrokeError, match="at micro-batch 3"):
        made.run(0)
    assert [done for done, _ in records] == [1]  # the step before it is complete
    assert made.engine.rates
    assert all_end()


class Killed(Callback):
    """Ends a run after a step, once the micro-batches of the next step have been read."""

    def __init__(self, done, stream):
        self.done, self.stream = done, stream

    def after_step(self, done, record):
        if done == self.done:
            assert self.stream.at[2 * done + 1].wait(PATIENCE_S)
            raise SystemExit("killed")


def test_what_was_read_ahead_of_a_killed_run_is_trained_after_its_resume():
    whole, records = loop(map(arrays, itertools.count()), steps=5)
    whole.run(0)
    stream = Stream()
    killed, first = loop(stream, steps=5)
    killed.callbacks = [*killed.callbacks, Killed(2, stream)]
    with pytest.raises(SystemExit, match="killed"):
        killed.run(0)
    assert stream.read == list(range(6))  # two steps were trained, and three read
    resumed, rest = loop(map(arrays, itertools.count(2 * 2)), steps=5)
    resumed.module.load_state_dict(killed.module.state_dict())
    resumed.run(2)
    assert [record.loss for _, record in first + rest] == [record.loss for _, record in records]
    assert resumed.module.w.item() == whole.module.w.item()


def test_data_wait_is_the_time_for_which_a_step_waits_for_its_data():
    """The stream delivers a step's data after the loop has begun to wait for it, and measures how much later."""
    waiting = threading.Event()
    late = []

    class Waits(Callback):
        def on_phase(self, phase):
            if phase == "waiting for the data of step 1":
                late.append(time.perf_counter())
                waiting.set()

    def slow():
        for number in range(4):
            if number == 2:
                assert waiting.wait(PATIENCE_S)
                sum(range(10**6))  # some milliseconds
                late.append(time.perf_counter())
            yield arrays(number)

    made, records = loop(slow(), steps=2)
    made.callbacks = [*made.callbacks, Waits()]
    made.run(0)
    began, delivered = late
    assert records[1][1].data_wait >= delivered - began
