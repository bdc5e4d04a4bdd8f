"""The training loop: next batches, forward and backward, optimizer, callbacks. It knows no Ray, storage, or stage.

The loss of a step is Σ weight · (global sum / global count): counts are known before any arithmetic, so every
micro-batch is scaled by the global count of its optimizer step and gradients do not depend on workers or accumulation.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.config.resilience import GuardConfig
from blip3o.device import peak_memory
from blip3o.errors import DataError
from blip3o.train.callbacks import Callback, StepRecord
from blip3o.train.loss_guard import BadStepError, Guard
from blip3o.train.objectives import Batch, StageModule
from blip3o.train.schedule import learning_rate, set_rates

TEXT_COLUMNS = {"input_ids": ("input_ids", "labels", "branches"), "draw_ids": ("draw_ids",)}
WIDTH_STEP = 8


@dataclass
class Loop:
    """Trains `engine` from `start` to the recipe's last step.

    `batches` yields this rank's micro-batches in order; `first_micro_batch` is the stream's number of the stage's first
    one: a pipeline's stages share one numbering. Checkpoints and logs are made by `callbacks`.
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
    guard: Guard = field(default_factory=lambda: Guard(GuardConfig()))
    _wait: float = field(default=0.0, init=False)
    _counts: list[dict[str, int]] = field(default_factory=list, init=False)
    _parts: list[Tensor] = field(default_factory=list, init=False)
    _work: dict[str, int] = field(default_factory=dict, init=False)

    def run(self, start: int) -> None:
        """Runs steps `start` … `optim.steps` − 1.

        Raises `DataError` if the stream is not at that step or ends early, and `BadStepError`, on all ranks, if the
        guard refuses the loss or the gradient is not finite: after such a step nothing is saved.
        """
        stall = 0.0
        for callback in self.callbacks:
            callback.on_start(start)
        for step in range(start, self.recipe.optim.steps):
            began = time.perf_counter()
            self._wait = 0.0
            self._begin(f"waiting for the data of step {step}")
            group = [self._next(step, turn) for turn in range(self.recipe.accumulation)]
            loss, terms = self._step(step, group)
            record = StepRecord(
                step=step,
                loss=loss,
                terms=terms,
                grad_norm=self._grad_norm(step),
                lr=learning_rate(self.recipe.optim, step),
                samples=self.recipe.optim.global_batch_size,
                seconds=time.perf_counter() - began,
                data_wait=self._wait,
                checkpoint_stall=stall,
                work=self._work,
                memory=peak_memory(self.device),
            )
            ended = time.perf_counter()
            self._begin(f"what follows step {step}")
            self._after_step(step + 1, record)
            stall = time.perf_counter() - ended
        self._begin("what follows the last step")
        for callback in self.callbacks:
            callback.on_end()

    def _begin(self, doing: str) -> None:
        for callback in self.callbacks:
            callback.on_phase(doing)

    def _after_step(self, done: int, record: StepRecord) -> None:
        for callback in self.callbacks:
            callback.after_step(done, record)
        if any(callback.wants_checkpoint(done) for callback in self.callbacks):
            for callback in self.callbacks:
                callback.on_checkpoint(done, record)

    def _next(self, step: int, turn: int) -> Batch:
        began = time.perf_counter()
        arrays = next(self.batches, None)
        self._wait += time.perf_counter() - began
        optim = self.recipe.optim
        expected = self.first_micro_batch + step * optim.micro_batches + turn * self.world + self.rank
        if arrays is None:
            raise DataError(f"the stream ended before micro-batch {expected} of step {step}")
        number, rows = int(arrays["micro_batch"][0]), len(arrays["micro_batch"])
        if (number, rows) != (expected, optim.micro_batch_size):
            raise DataError(
                f"the stream gave micro-batch {number} of {rows} samples where step {step} of rank {self.rank} needs "
                f"{expected} of {optim.micro_batch_size}"
            )
        return to_batch(arrays, pad_id=self.pad_id, device=self.device)

    def _step(self, step: int, group: list[Batch]) -> tuple[float, dict[str, float]]:
        self._begin(f"the workers' counts of step {step}")
        totals = self._global_counts(group)
        set_rates(self.engine.optimizer.param_groups, self.recipe.optim, step)
        sums: dict[str, Tensor] = {}
        self._parts = []
        for turn, batch in enumerate(group):
            if turn > 0:
                self.engine.step()  # counts the micro-batch before; the weights wait for the last one
            self._begin(f"arithmetic of step {step}, turn {turn}")
            terms = self.engine(batch)
            loss = sum(self._weight(name) * value / totals[name] for name, value in terms.items())
            # DeepSpeed averages over ranks and accumulation; the sum is wanted, so both divisors are put back.
            self.engine.backward(loss * (self.world * self.recipe.accumulation))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            own = self._counts[turn]
            parts = [self._weight(name) * value.detach() / max(own[name], 1) for name, value in terms.items()]
            self._parts.append(torch.stack(parts).sum())
        self._begin(f"the workers' losses of step {step}")
        means = {name: value / totals[name] for name, value in self._reduce(sums).items()}
        total = math.fsum(self._weight(name) * value for name, value in means.items())
        fault = self.guard.fault(total)
        if fault is not None:
            raise self._bad(step, f"{fault} at step {step} ({means})")
        self._begin(f"optimizer of step {step}")
        self.engine.step()
        return total, means

    def _grad_norm(self, step: int) -> float:
        # DeepSpeed says nothing of a norm that is not finite: it skips the step in fp32 and applies it in bf16.
        norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise self._bad(step, f"the gradient's norm is {norm} at step {step}")
        return norm

    def _bad(self, step: int, what: str) -> BadStepError:
        """The error of a step that every rank finds bad, with the micro-batches of all ranks that are behind it."""
        first = step * self.recipe.optim.micro_batches + self.rank
        own = {first + turn * self.world: part.item() for turn, part in enumerate(self._parts)}
        every: list[dict[int, float]] = [{} for _ in range(self.world)]
        dist.all_gather_object(every, own)
        guilty = self.guard.guilty({number: loss for part in every for number, loss in part.items()})
        message = f"{what}: lower optim.lr, or look for bad samples"
        return BadStepError(message, step=step, micro_batches=guilty)

    def _weight(self, name: str) -> float:
        return self.module.weights.get(name, 1.0)

    def _global_counts(self, group: list[Batch]) -> dict[str, int]:
        """What each term judges in this step, over all ranks; with it, in one reduction, the step's work."""
        self._counts = [self.module.counts(batch) for batch in group]
        measured = [callback.measure(batch) for callback in self.callbacks for batch in group]
        counts: dict[str, int] = {}
        for own in (*self._counts, *measured):
            for name, count in own.items():
                counts[name] = counts.get(name, 0) + count
        tensors = {name: torch.tensor(count, dtype=torch.float64) for name, count in counts.items()}
        totals = {name: int(value) for name, value in self._reduce(tensors).items()}
        self._work = {name: totals[name] for name in sorted({name for own in measured for name in own})}
        # At least one: a term that judges nothing in this step is a sum of nothing, zero.
        return {name: max(total, 1) for name, total in totals.items()}

    def _reduce(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Sums over ranks, in fp64, in the order of names."""
        names = sorted(values)
        stacked = torch.stack([values[name].double() for name in names]).to(self.device)
        dist.all_reduce(stacked)
        return dict(zip(names, stacked.tolist(), strict=True))


def _tensor(array: np.ndarray) -> Tensor:
    """A copy; uint16 is NumPy's stand-in for the bits of bfloat16."""
    if array.dtype == np.uint16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def to_batch(arrays: dict[str, np.ndarray], *, pad_id: int, device: torch.device) -> Batch:
    """Arrays of the stream → tensors; a text is cut to its longest row, rounded up to a multiple of 8."""
    # Copied: the arrays are read-only views of shared memory.
    batch = {name: _tensor(array) for name, array in arrays.items() if name != "micro_batch"}
    for ids in TEXT_COLUMNS.keys() & batch.keys():
        longest = int((batch[ids] != pad_id).sum(1).max())
        width = min(-(-longest // WIDTH_STEP) * WIDTH_STEP, batch[ids].shape[1])
        for name in TEXT_COLUMNS[ids]:
            if name in batch:
                batch[name] = batch[name][:, :width].long()
    return {name: tensor.to(device) for name, tensor in batch.items()}
