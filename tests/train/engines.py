"""A few steps of a nano stage by DeepSpeed at any setting, and by plain PyTorch, on the same micro-batches."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.model.unified import initialize
from blip3o.train.callbacks import Callback, MicroBatchCounter, StepRecord
from blip3o.train.checkpoint import state as checkpoint
from blip3o.train.deepspeed.engine import build_engine
from blip3o.train.deepspeed.gather import gather_parameters, trainable_parameters
from blip3o.train.deepspeed.release import release_engine
from blip3o.train.ema import Ema
from blip3o.train.loop import Loop, to_batch
from blip3o.train.lora import add_adapters
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.objectives import StageModule, build_stage_module
from blip3o.train.result import gather_result
from blip3o.train.schedule import learning_rate
from blip3o.train.stages import freeze, stage_of
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe
from tests.train.test_objectives import batch

ROWS, MICRO_BATCHES, STEPS = 4, 2, 3
DECAY = 0.22  # that of the first step is less, (1 + 1) / (10 + 1); from the second on it is this
CPU = torch.device("cpu")


def made(*, world: int, stage: str = "generate", lora: bool = False, muon: bool = False, **parallel: Any) -> Recipe:
    """A nano recipe of three steps with two micro-batches each, at any number of ranks."""
    optim = {"steps": STEPS, "lr": 1e-3, "micro_batch_size": ROWS, "micro_batches": MICRO_BATCHES, "weight_decay": 0.1}
    groups = [{"match": "dit.layers.*", "lr": 5e-4, "weight_decay": 0.0}] if stage == "generate" else []
    # A clip that acts: the gradients of a random nano model are larger.
    optim |= {"max_grad_norm": 0.05, "groups": groups, "muon": ["dit.*"] if muon else []}
    adapters = {"rank": 2, "alpha": 4.0} if lora else None
    return recipe(stage={"name": stage, "lora": adapters}, optim=optim, parallel={"workers": world, **parallel})


def module_for(values: Recipe) -> StageModule:
    """The stage's module with random values everywhere."""
    module = build_stage_module(values, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    if values.stage.lora:
        add_adapters(module.model, values.stage.lora, 0)
    randomise(module)
    freeze(module.model, stage_of(values))
    return module


def arrays(number: int, stage: str) -> dict[str, np.ndarray]:
    """Micro-batch `number` as the stream yields it."""
    whole = batch(stage, rows=ROWS * (number + 1))
    rows = {name: tensor[-ROWS:].numpy() for name, tensor in whole.items()}
    if stage == "joint" and number % 3 == 1:  # nothing to answer in it, and no image
        rows |= {"labels": np.full_like(rows["labels"], IGNORE), "input_ids": np.full_like(rows["input_ids"], 20)}
    if stage == "joint" and number % 3 == 2:  # nothing to draw in it
        rows["draws"] = np.zeros(ROWS, np.bool_)
    return {**rows, "micro_batch": np.full(ROWS, number)}


def stream(stage: str, first: int, world: int) -> Iterator[dict[str, np.ndarray]]:
    """A rank's micro-batches from its first on."""
    return (arrays(number, stage) for number in range(first, STEPS * MICRO_BATCHES, world))


def by_engine(values: Recipe, folder: Path, *, universal: bool = False, identity: str = "x") -> dict[str, Any]:
    """Trains; returns rows, complete weights (on the first rank) and the number of parameters that this rank held.

    The run resumes from the checkpoint in the folder if there is one; otherwise it saves one after the first step.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    module = module_for(values)
    if any(folder.iterdir()):  # as `prepare_module` leaves what a checkpoint must hold
        for parameter in trainable_parameters(module.model).values():
            parameter.data.fill_(math.nan)
    engine = build_engine(values, module, universal=universal)
    ema = Ema(engine, trainable_parameters(module.model), decay=DECAY)
    first = gather_result(values, engine, module.model, None, keep=rank == 0)[0]
    rows: list[dict[str, Any]] = []
    saved: dict[str, Tensor] = {}
    start = 0
    if any(folder.iterdir()):
        start, _ = checkpoint.load(engine, str(folder), identity=identity, universal=universal, ema=ema)

    class SavesFirst(Callback):
        """Records rows, and saves after the first step."""

        def after_step(self, done: int, record: StepRecord) -> None:
            rows.append(record.row())

        def wants_checkpoint(self, done: int) -> bool:
            return done == 1

        def on_checkpoint(self, done: int, record: StepRecord) -> None:
            checkpoint.save(engine, str(folder), step=done, identity=identity, state={}, ema=ema)
            saved.update(ema.gather(keep=rank == 0))

    Loop(
        recipe=values,
        engine=engine,
        module=module,
        batches=stream(values.stage.name, start * MICRO_BATCHES + rank, world),
        device=CPU,
        rank=rank,
        world=world,
        pad_id=PAD,
        callbacks=[ema, MicroBatchCounter(FlopsMeter(values, image_token_id=IMAGE_TOKEN, pad_id=PAD)), SavesFirst()],
    ).run(start)
    masters = gather_result(values, engine, module.model, None, keep=rank == 0)[0]
    spread = [getattr(p, "ds_tensor", p).numel() for p in module.model.parameters()]
    weights = gather_parameters(trainable_parameters(module.model), keep=rank == 0)
    averaged = ema.gather(keep=rank == 0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    release_engine(engine)
    assert not torch.are_deterministic_algorithms_enabled()  # what follows in this process did not ask for it
    found = {"rows": rows, "weights": weights, "averaged": averaged, "saved": saved, "masters": masters}
    return {**found, "first": first, "deterministic": deterministic, "held": sum(spread)}


def by_hand(values: Recipe) -> dict[str, Any]:
    """The same steps in one process: PyTorch's AdamW, complete batches, nothing partitioned; Muon by its formula."""
    module = module_for(values)
    names = trainable_parameters(module.model)
    scales = {name: _own(values, name) for name in names}
    matrices = {name: p for name, p in names.items() if values.optim.muon and name.startswith("dit.") and p.ndim == 2}
    momenta = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in matrices.items()}
    rest = {name: p for name, p in names.items() if name not in matrices}
    groups = [{"params": [p], "weight_decay": scales[name][1], "own": scales[name][0]} for name, p in rest.items()]
    optimizer = torch.optim.AdamW(groups, lr=values.optim.lr, betas=values.optim.betas)
    rows = []
    averaged = {name: p.detach().clone() for name, p in names.items()}
    for step in range(STEPS):
        numbers = range(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES)
        batches = [to_batch(arrays(number, values.stage.name), pad_id=PAD, device=CPU) for number in numbers]
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for part in batches:
            for name, value in module(part).items():
                sums[name] = sums.get(name, 0) + value
                counts[name] = counts.get(name, 0) + module.counts(part)[name]
        loss = sum(module.weights.get(name, 1.0) * sums[name] / max(counts[name], 1) for name in sums)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(names.values()), values.optim.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(values.optim, step) * group["own"]
        optimizer.step()
        for name, p in matrices.items():
            momenta[name] = 0.95 * momenta[name] + 0.05 * p.grad
            rate = learning_rate(values.optim, step) * scales[name][0]
            update = 0.2 * max(p.shape) ** 0.5 * nearly_orthogonal(0.05 * p.grad + 0.95 * momenta[name])
            p.data.copy_((1 - rate * scales[name][1]) * p.double() - rate * update)
        module.zero_grad()
        rows.append({"loss": loss.item(), "grad_norm": norm.item()})
        decay = min(DECAY, (2 + step) / (11 + step))
        averaged = {name: decay * averaged[name] + (1 - decay) * p.detach() for name, p in names.items()}
    return {"rows": rows, "weights": {name: p.detach().clone() for name, p in names.items()}, "averaged": averaged}


def nearly_orthogonal(matrix: Tensor) -> Tensor:
    """Five rounds of Muon's polynomial (Jordan et al. 2024) on the singular values, fp64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / matrix.double().norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


def _own(values: Recipe, name: str) -> tuple[float, float]:
    """Share of the learning rate, and weight decay, of a parameter."""
    optim = values.optim
    if optim.groups and name.startswith("dit.layers."):
        return 0.5, 0.0
    return 1.0, optim.weight_decay
