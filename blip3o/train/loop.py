"""The training loop: next batches, forward and backward, optimizer, callbacks. It knows no Ray, storage, or stage.

The loss of a step is Σ weight · (global sum / global count). The counts are known before any arithmetic, so every
micro-batch is scaled by the global count of its optimizer step, and gradients depend neither on the number of workers
nor on accumulation.

A thread prepares the micro-batches of the next step while this one runs: it waits for the stream, makes tensors and
random draws, and counts. So a GPU gets its work at once when a step starts. Everything that involves other ranks or the
GPU is on the loop's own thread. Within a step, the loop reads nothing back from the GPU until all work is launched. The
micro-batches of both steps are in the CPU's memory, page-locked for a GPU, and a GPU gets each of them just before its
forward pass: it holds one at a time.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.config.resilience import GuardConfig
from blip3o.device import peak_memory, pinned
from blip3o.errors import DataError
from blip3o.train.ahead import OneAhead
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.loss_guard import BadStepError, LossGuard
from blip3o.train.objectives import Batch, StageModule, to_device
from blip3o.train.schedule import learning_rate, set_learning_rates

# Columns of token ids, and the columns that are truncated together with them.
TEXT_COLUMNS = {"input_ids": ("input_ids", "labels", "branches"), "draw_ids": ("draw_ids",)}
LENGTH_MULTIPLE = 8
_STOP = "stop"  # the count, in the sum over ranks, of callbacks that want to stop


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """This rank's prepared micro-batches of a step, in the CPU's memory.

    `counts` are the counts of the terms in each, `totals` their sums, fp64 scalars.
    """

    micro_batches: Sequence[Batch]
    counts: Sequence[dict[str, int]]
    totals: dict[str, Tensor]


@dataclass
class Loop:
    """Trains `engine` from step `start` to the recipe's last step.

    `batches` yields this rank's micro-batches in order. `first_micro_batch` is the stream's number of the stage's first
    micro-batch: the stages of a pipeline share one numbering. `callbacks` save checkpoints and record metrics.
    """

    recipe: Recipe
    engine: Any
    module: StageModule
    batches: Iterator[dict[str, np.ndarray]]
    device: torch.device
    rank: int
    world: int
    pad_id: int
    callbacks: Sequence[Callback] = ()
    first_micro_batch: int = 0
    guard: LossGuard = field(default_factory=lambda: LossGuard(GuardConfig()))
    _losses: list[Tensor] = field(default_factory=list, init=False)
    _work: dict[str, int] = field(default_factory=dict, init=False)
    _stopping: bool = field(default=False, init=False)

    def run(self, start: int) -> int:
        """Runs steps `start` … `optim.steps` − 1, or fewer if a callback wants to stop; returns how many are done.

        Raises `DataError` if the stream is at another step or ends early. Raises `BadStepError`, on all ranks, if the
        guard rejects the loss or the gradient is not finite; nothing is saved after such a step.
        """
        done, stall = start, 0.0
        for callback in self.callbacks:
            callback.on_start(start)
        steps = range(start, self.recipe.optim.steps)
        # The thread never reads beyond the last step: those micro-batches are the next stage's.
        with OneAhead(self._prepare_step, steps) as prepared:
            for step in steps:
                record = self._run_step(step, prepared, stall=stall)
                ended, done = time.perf_counter(), step + 1
                self._enter_phase(f"callbacks after step {step}")
                self._after_step(done, record)
                stall = time.perf_counter() - ended
                if self._stopping:
                    break
        self._enter_phase("callbacks after the last step")
        for callback in self.callbacks:
            callback.on_end()
        return done

    def _run_step(self, step: int, prepared: OneAhead[StepInput], *, stall: float) -> StepRecord:
        """Waits for the data of one optimizer step and trains on it. `stall`: seconds since the previous step."""
        began = time.perf_counter()
        self._enter_phase(f"waiting for the data of step {step}")
        data = prepared.take(step)
        data_wait = time.perf_counter() - began
        loss, terms = self._train_step(step, data)
        return StepRecord(
            step=step,
            loss=loss,
            terms=terms,
            grad_norm=self._grad_norm(step),
            lr=learning_rate(self.recipe.optim, step),
            samples=self.recipe.optim.global_batch_size,
            seconds=time.perf_counter() - began,
            data_wait=data_wait,
            checkpoint_stall=stall,
            work=self._work,
            memory=peak_memory(self.device),
        )

    def _prepare_step(self, step: int) -> StepInput:
        """Reads this rank's micro-batches of a step, makes their draws, and counts. Runs in the thread, on the CPU."""
        turns = range(self.recipe.accumulation)
        micro_batches = [self.module.prepare(self._next_batch(step, turn)) for turn in turns]
        counts = [self.module.counts(batch) for batch in micro_batches]
        # fp64 holds integers up to 2^53 exactly; fp32 would round the number of elements.
        totals = {name: torch.tensor(count, dtype=torch.float64) for name, count in _added(counts).items()}
        return StepInput(
            micro_batches=[pinned(batch, self.device) for batch in micro_batches],
            counts=counts,
            totals=pinned(totals, self.device),
        )

    def _next_batch(self, step: int, turn: int) -> Batch:
        """This rank's micro-batch number `turn` of a step. Raises `DataError` if the stream yields another one."""
        arrays = next(self.batches, None)
        optim = self.recipe.optim
        # Ranks take turns: consecutive micro-batches go to consecutive ranks, so a step reads the same ones at any
        # number of workers. The check costs nothing and turns a stream at the wrong step into an error.
        expected = self.first_micro_batch + step * optim.micro_batches + turn * self.world + self.rank
        if arrays is None:
            raise DataError(f"the stream ended before micro-batch {expected} of step {step}")
        number, rows = int(arrays["micro_batch"][0]), len(arrays["micro_batch"])
        if (number, rows) != (expected, optim.micro_batch_size):
            raise DataError(
                f"the stream gave micro-batch {number} of {rows} samples where step {step} of rank {self.rank} needs "
                f"{expected} of {optim.micro_batch_size}"
            )
        return to_batch(arrays, pad_id=self.pad_id, device=torch.device("cpu"))

    def _train_step(self, step: int, data: StepInput) -> tuple[float, dict[str, float]]:
        """Forward, backward and optimizer step. Returns the global loss and the global mean of each term."""
        self._enter_phase(f"the workers' counts of step {step}")
        totals = self._global_counts(data)
        set_learning_rates(self.engine.optimizer.param_groups, self.recipe.optim, step)
        sums = self._accumulate(step, data, totals)
        work = _added([callback.measure(batch) for callback in self.callbacks for batch in data.micro_batches])
        # The wishes ride on the sum that every step makes anyway: all ranks learn of them at the same step.
        work[_STOP] = sum(callback.wants_stop() for callback in self.callbacks)
        self._enter_phase(f"the workers' losses of step {step}")
        means, self._work = self._reduce(sums, totals, work)
        self._stopping = self._work.pop(_STOP) > 0
        total = math.fsum(self._weight(name) * value for name, value in means.items())
        # Every rank has the same reduced loss here, so all ranks reject the step together and none waits for another.
        problem = self.guard.check(total)
        if problem is not None:
            raise self._bad_step(step, f"{problem} at step {step} ({means})")
        self._enter_phase(f"optimizer of step {step}")
        self.engine.step()
        return total, means

    def _accumulate(self, step: int, data: StepInput, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Forward and backward of every micro-batch. Returns this rank's sum of each term."""
        sums: dict[str, Tensor] = {}
        self._losses = []
        for turn, (batch, own) in enumerate(zip(data.micro_batches, data.counts, strict=True)):
            if turn > 0:
                self.engine.step()  # counts the previous micro-batch; weights only change after the last one
            self._enter_phase(f"arithmetic of step {step}, turn {turn}")
            terms = self.engine(to_device(batch, self.device))
            loss = sum(self._weight(name) * value / totals[name].to(value.dtype) for name, value in terms.items())
            # DeepSpeed averages over ranks and accumulation. We need the sum, so both divisors are multiplied back.
            self.engine.backward(loss * (self.world * self.recipe.accumulation))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            # The micro-batch's own mean loss: if the step turns out to be bad, it identifies the culprit.
            means = [self._weight(name) * value.detach() / max(own[name], 1) for name, value in terms.items()]
            self._losses.append(torch.stack(means).sum())
        return sums

    def _global_counts(self, data: StepInput) -> dict[str, Tensor]:
        """The count of each loss term in this step over all ranks, fp64 scalars on the device, at least 1.

        On a GPU, the sum over ranks is only launched here: the loop does not wait for it.
        """
        counts = to_device(data.totals, self.device)
        names = sorted(counts)  # the same order of elements on every rank
        stacked = torch.stack([counts[name] for name in names])
        dist.all_reduce(stacked)
        # A term with nothing to judge in this step has sum 0, and 0 / 1 is its mean.
        return dict(zip(names, stacked.clamp(min=1), strict=True))

    def _grad_norm(self, step: int) -> float:
        # DeepSpeed does not report a non-finite norm: it skips the step in fp32 and applies it in bf16.
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise self._bad_step(step, f"the gradient's norm is {norm} at step {step}")
        return norm

    def _bad_step(self, step: int, problem: str) -> BadStepError:
        """The error of a step that every rank rejects, with the micro-batches of all ranks that caused it."""
        first = step * self.recipe.optim.micro_batches + self.rank
        own = {first + turn * self.world: loss.item() for turn, loss in enumerate(self._losses)}
        gathered: list[dict[int, float]] = [{} for _ in range(self.world)]
        dist.all_gather_object(gathered, own)
        losses = {number: loss for ranks_losses in gathered for number, loss in ranks_losses.items()}
        message = f"{problem}: lower optim.lr, or look for bad samples"
        return BadStepError(message, step=step, micro_batches=self.guard.bad_micro_batches(losses))

    def _after_step(self, done: int, record: StepRecord) -> None:
        for callback in self.callbacks:
            callback.after_step(done, record)
        if self._stopping or any(callback.wants_checkpoint(done) for callback in self.callbacks):
            for callback in self.callbacks:
                callback.on_checkpoint(done, record)

    def _enter_phase(self, phase: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(phase)

    def _weight(self, name: str) -> float:
        return self.module.weights.get(name, 1.0)

    def _reduce(
        self, sums: dict[str, Tensor], totals: dict[str, Tensor], work: dict[str, int]
    ) -> tuple[dict[str, float], dict[str, int]]:
        """The mean of each term over all ranks, and the sum over ranks of each count of work.

        Waits for the GPU, once. Sorted names give every rank the same order of elements.
        """
        terms, measured = sorted(sums), sorted(work)
        counted = torch.tensor([work[name] for name in measured], dtype=torch.float64, device=self.device)
        stacked = torch.cat([torch.stack([sums[name].double() for name in terms]).to(self.device), counted])
        dist.all_reduce(stacked)
        values = torch.cat([stacked, torch.stack([totals[name] for name in terms])]).tolist()
        summed, counts, judged = values[: len(terms)], values[len(terms) : -len(terms)], values[-len(terms) :]
        means = {name: value / count for name, value, count in zip(terms, summed, judged, strict=True)}
        return means, {name: int(count) for name, count in zip(measured, counts, strict=True)}


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of each count."""
    total: dict[str, int] = {}
    for own in counts:
        for name, count in own.items():
            total[name] = total.get(name, 0) + count
    return total


def to_batch(arrays: dict[str, np.ndarray], *, pad_id: int, device: torch.device) -> Batch:
    """Arrays of the stream → tensors, as `to_device`. Texts are truncated to the longest row, in multiples of 8."""
    batch = {name: _tensor(array) for name, array in arrays.items() if name != "micro_batch"}
    for ids in TEXT_COLUMNS.keys() & batch.keys():
        longest = int((batch[ids] != pad_id).sum(1).max())
        length = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, batch[ids].shape[1])
        for name in TEXT_COLUMNS[ids]:
            if name in batch:
                batch[name] = batch[name][:, :length].long()
    return to_device(batch, device)


def _tensor(array: np.ndarray) -> Tensor:
    """A copy, since the arrays are read-only views of shared memory. uint16 holds the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)
