"""A budget: all that the other modules of this room say about one stage, and the time and money of the others."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blip3o.budget.activations import Activations, measure_activations
from blip3o.budget.memory import DeviceMemory, device_memory
from blip3o.budget.micro_batch import PROMPT_TOKENS
from blip3o.budget.prices import Prices
from blip3o.budget.serving import Serving, plan_serving
from blip3o.budget.store import FeatureStore, Nodes, Reading, feature_store, reading, split_nodes
from blip3o.budget.training import Training, plan_training
from blip3o.budget.work import sample_flops
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from blip3o.train.preflight.memory import Parameters, count_parameters
from blip3o.train.stages import stage_of

ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a budget is made for: a kind of GPU and how many, tokens of a prompt, images of the set, a load to serve.

    Without a `load`, nothing is said about serving.
    """

    gpu: str
    count: int
    tokens: int | None
    samples: float | None
    load: float | None
    slo_s: float


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Peak memory at one ZeRO stage, with or without recomputation."""

    zero_stage: int
    recompute: bool
    memory: DeviceMemory


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of one stage; bytes and seconds unless a name says otherwise."""

    name: str
    request: Request
    recipe: Recipe
    parameters: Parameters
    flops: dict[str, float]
    activations: dict[str, Activations]
    memory: DeviceMemory
    by_zero_stage: list[MemoryRow]
    training: Training
    by_count: list[Training]
    reading: Reading
    features: FeatureStore | None
    nodes: Nodes
    serving: Serving | None
    others: dict[str, Training]

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON values, with the peaks, which are sums."""
        figures = {
            name: asdict(getattr(self, name))
            for name in ("request", "parameters", "memory", "training", "reading", "nodes")
        }
        figures["memory"]["peak"] = self.memory.peak
        return {
            "name": self.name,
            **figures,
            "flops_per_sample": self.flops,
            "activations": {name: asdict(value) for name, value in self.activations.items()},
            "by_zero_stage": [{**asdict(row), "peak": row.memory.peak} for row in self.by_zero_stage],
            "by_count": [asdict(plan) for plan in self.by_count],
            "features": None if self.features is None else asdict(self.features),
            "serving": None if self.serving is None else {**asdict(self.serving), "image_s": self.serving.image_s},
            "others": {name: asdict(plan) for name, plan in self.others.items()},
        }


def make_budget(stages: Sequence[Recipe], request: Request, prices: Prices) -> Budget:
    """The budget of the stage with the most work, and the time and money of the others.

    Raises `ConfigError` for an unknown GPU, adapters, a recipe for the CPU or in fp32, and if the GPUs do not divide a
    step's micro-batches.
    """
    for recipe in stages:
        _require_known(recipe)
    sized = [with_count(recipe, request.count) for recipe in stages]
    flops = {recipe.run.name: sample_flops(recipe, tokens=request.tokens) for recipe in sized}
    sizes = _sizes(sized)
    plans = {
        it.run.name: plan_training(it, sizes[it.run.name], flops[it.run.name], gpu=request.gpu, prices=prices)
        for it in sized
    }
    main = max(sized, key=lambda it: plans[it.run.name].days)
    name = main.run.name
    kept = {
        kind: measure_activations(main, recompute=kind == "recomputed", tokens=request.tokens)
        for kind in ("stored", "recomputed")
    }
    own = kept["recomputed" if main.parallel.activation_checkpointing else "stored"]
    training = plans[name]
    seen = main.optim.steps * main.optim.global_batch_size
    return Budget(
        name=name,
        request=request,
        recipe=main,
        parameters=sizes[name],
        flops=flops[name],
        activations=kept,
        memory=device_memory(main, sizes[name], own, workers=request.count),
        by_zero_stage=list(_by_zero_stage(main, sizes[name], kept)),
        training=training,
        by_count=[
            plan_training(with_count(main, count), sizes[name], flops[name], gpu=request.gpu, prices=prices)
            for count in counts(main)
        ],
        reading=reading(main, prices, images_per_s=training.images_per_s),
        features=feature_store(main, prices, gpu=request.gpu, samples=request.samples or seen)
        if main.objective.stored_features
        else None,
        nodes=split_nodes(main, prices, gpu=request.gpu, images_per_s=training.images_per_s),
        serving=_serving(main, request, prices),
        others={other: plan for other, plan in plans.items() if other != name},
    )


def _sizes(stages: Sequence[Recipe]) -> dict[str, Parameters]:
    """The numbers of parameters of each stage; stages that train the same parts of the same model are counted once."""
    found: dict[str, Parameters] = {}
    for number, recipe in enumerate(stages):
        same = (it for it in stages[:number] if it.model == recipe.model and stage_of(it) == stage_of(recipe))
        equal = next(same, None)
        found[recipe.run.name] = count_parameters(recipe) if equal is None else found[equal.run.name]
    return found


def _serving(recipe: Recipe, request: Request, prices: Prices) -> Serving | None:
    if request.load is None:
        return None
    tokens = request.tokens or PROMPT_TOKENS
    return plan_serving(recipe.model, prices, gpu=request.gpu, load=request.load, slo_s=request.slo_s, tokens=tokens)


def counts(recipe: Recipe) -> list[int]:
    """The numbers of workers that divide a step of this recipe."""
    total = recipe.optim.micro_batches
    return [count for count in range(1, total + 1) if total % count == 0]


def with_count(recipe: Recipe, count: int) -> Recipe:
    """The recipe on `count` GPUs. Raises `ConfigError` if they do not divide a step's micro-batches."""
    if count not in counts(recipe):
        raise ConfigError(
            f"--count {count}: {recipe.run.name} has {recipe.optim.micro_batches} micro-batches a step, which "
            f"{', '.join(map(str, counts(recipe)))} GPUs divide: take one of these, or set optim.micro_batches"
        )
    return recipe.with_workers(count)


def _require_known(recipe: Recipe) -> None:
    parallel = recipe.parallel
    if (parallel.device, parallel.precision) != ("gpu", "bf16"):
        raise ConfigError(
            f"a budget is for GPUs in bf16, and {recipe.run.name} is for {parallel.device} in {parallel.precision}: "
            "--set parallel.device=gpu --set parallel.precision=bf16"
        )
    if recipe.stage.lora is not None:
        raise ConfigError("a budget does not count adapters: leave out stage.lora")


def _by_zero_stage(recipe: Recipe, parameters: Parameters, activations: dict[str, Activations]) -> Iterator[MemoryRow]:
    for stage in ZERO_STAGES:
        other = at_zero_stage(recipe, stage)
        for kind, kept in activations.items():
            memory = device_memory(other, parameters, kept, workers=recipe.parallel.max_workers)
            yield MemoryRow(zero_stage=stage, recompute=kind == "recomputed", memory=memory)


def at_zero_stage(recipe: Recipe, stage: int) -> Recipe:
    """The recipe at another ZeRO stage, nothing offloaded, with that stage's own way to reduce gradients."""
    changes: dict[str, Any] = {"zero_stage": stage, "overlap_comm": None, "offload": "none"}
    if stage == 0:  # has no choice of these
        changes |= dict.fromkeys(("reduce_bucket_size", "gradient_accumulation_dtype", "communication_dtype"))
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=changes)})
