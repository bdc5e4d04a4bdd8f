"""Every way to partition a stage over ranks trains like plain PyTorch, and resumes bit-identically."""

import functools
import weakref

import pytest
import torch
from torch._dynamo.utils import counters

from blip3o.device import release_memory
from blip3o.errors import CheckpointError, ConfigError
from blip3o.train.checkpoint.state import load, make_universal
from blip3o.train.deepspeed.engine import _require_applied, build_engine
from blip3o.train.deepspeed.gather import trainable_parameters
from blip3o.train.deepspeed.release import release_engine
from blip3o.train.ema import Ema
from blip3o.train.loop import Loop, to_batch
from blip3o.train.schedule import learning_rate, parameter_groups, set_learning_rates
from blip3o.train.validation.model import trained_weights
from tests.distributed import run_ranks
from tests.model.helpers import PAD
from tests.recipes import recipe
from tests.train.engines import CPU, ROWS, arrays, by_engine, by_hand, made, module_for, stream
from tests.train.test_objectives import batch

SPREAD = {"zero_stage": 3, "param_persistence_threshold": 0}
WAYS = {
    "nothing spread": {"zero_stage": 0},
    "nothing spread, matrices by Muon": {"zero_stage": 0, "muon": True},
    "optimizer": {"zero_stage": 1},
    "gradients": {"zero_stage": 2},
    "parameters": SPREAD,
    "two tasks, gradients, optimizer on the CPU": {"stage": "joint", "zero_stage": 2, "offload": "optimizer"},
    "two tasks, adapters, parameters on the CPU, recomputed": {
        **SPREAD,
        "stage": "joint",
        "lora": True,
        "offload": "parameters",
        "activation_checkpointing": True,
    },
}
# Measured: 0 to 2.1e-7 at stages 0 to 2, 1.7e-6 at 3, after three steps of at most 1e-3. AdamW divides a gradient by
# its own size, so that where it is nearly zero, sums in another order (1e-7) change the step by more than that.
TOLERANCE = 5e-6
# Muon gives every direction of a matrix the same size, also one where the gradient is only rounding. Measured:
# up to 2 % of what three steps change in a matrix (the queries of an attention to four tokens), mostly below 0.1 %.
MUON_TOLERANCE = 0.05


def train_all(folder, ways):
    """On each rank and for each configuration: a run, and whether resuming from its checkpoint gives the same run."""
    found = {}
    for name, parallel in ways.items():
        place = folder / name
        place.mkdir(exist_ok=True)
        values = made(world=torch.distributed.get_world_size(), **parallel)
        run = by_engine(values, place)
        torch.distributed.barrier()
        again = by_engine(values, place)
        figures = [(row["loss"], row["grad_norm"]) for row in run["rows"][1:]]
        run["resumed"] = figures == [(row["loss"], row["grad_norm"]) for row in again["rows"]]
        for kind in ("weights", "averaged"):
            run["resumed"] &= all(torch.equal(again[kind][key], value) for key, value in run[kind].items())
        found[name] = run
    return found


SUM = {"gradient_accumulation_dtype": "fp32", "communication_dtype": "fp32"}
HALF = {
    "half, nothing spread": {"zero_stage": 0},
    "half, nothing spread, matrices by Muon": {"zero_stage": 0, "muon": True},
    "half, optimizer": {"zero_stage": 1},
    "half, gradients": {"zero_stage": 2},
    "half, parameters": SPREAD,
    "half, optimizer, summed in fp32": {"zero_stage": 1, **SUM},
    "half, gradients, summed in fp32, overlapped, deterministic": {
        **SUM,
        "zero_stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 10_000,
        "deterministic": True,
    },
    "half, parameters, summed in fp32, deterministic": {**SPREAD, **SUM, "deterministic": True},
}


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    """The folder of two ranks' checkpoints."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def by_two(folder_of_two):
    """The results of two ranks, for each configuration; others follow those that are deterministic."""
    half = {name: {**way, "precision": "bf16"} for name, way in HALF.items()}
    return run_ranks(train_all, folder_of_two, folder_of_two, half | WAYS)


@functools.cache
def plain(stage, *, lora=False, muon=False):
    """The same by plain PyTorch."""
    return by_hand(made(world=1, stage=stage, lora=lora, muon=muon, zero_stage=0))


def agree(run, way):
    muon = way.get("muon", False)
    expected = plain(way.get("stage", "generate"), lora=way.get("lora", False), muon=muon)
    for one, other in zip(run["rows"], expected["rows"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        # Measured: up to 1.1e-6, by the machine: squares in fp32, summed part by part or at once.
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=3e-6)
    for kind in ("weights", "averaged"):
        assert run[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            if muon and name.startswith("dit.") and value.ndim == 2:
                change = (value - run["first"][name]).norm()
                assert (run[kind][name] - value).norm() < MUON_TOLERANCE * change, (kind, name)
            else:
                assert torch.allclose(run[kind][name], value, rtol=0, atol=TOLERANCE), (kind, name)


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_what_plain_pytorch_trains(by_two, way):
    first, second = (rank[way] for rank in by_two)
    agree(first, WAYS[way])
    assert not second["weights"] and not second["averaged"]  # only the first rank keeps gathered tensors
    assert first["resumed"] and second["resumed"]
    assert not first["deterministic"]  # although stages before it in the same process were


@pytest.mark.parametrize("way", HALF)
def test_bf16_trains_alike_with_weights_and_averages_in_fp32(by_two, way):
    run = by_two[0][way]
    for one, other in zip(run["rows"], plain("generate", muon=HALF[way].get("muon", False))["rows"], strict=True):
        # Measured: 7e-4. A first step that counts as the second is shorter by a quarter, which is off by 5e-3.
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)
    assert run["resumed"]
    assert run["deterministic"] == HALF[way].get("deterministic", False)
    for kind in ("averaged", "masters"):
        assert {tensor.dtype for tensor in run[kind].values()} == {torch.float32}


@pytest.mark.parametrize("way", HALF)
def test_a_bf16_stage_starts_from_exact_weights_and_its_result_has_those_of_the_optimizer(by_two, way):
    run = by_two[0][way]
    start = {name: p.detach() for name, p in trainable_parameters(module_for(made(world=1)).model).items()}
    assert run["first"].keys() == run["masters"].keys() == start.keys()
    for name, value in start.items():
        assert torch.equal(run["first"][name], value), name
        assert torch.equal(run["masters"][name].bfloat16(), run["weights"][name]), name
    assert any(not torch.equal(value.bfloat16().float(), value) for value in start.values())


@pytest.mark.parametrize("way", WAYS)
def test_validations_read_the_average_that_was_saved(by_two, folder_of_two, way):
    expected, found = by_two[0][way]["saved"], trained_weights(folder_of_two / way)
    assert expected
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_stage_three_halves_the_parameters_of_a_rank_including_frozen_ones(by_two):
    whole, half = (by_two[0][way]["held"] for way in ("optimizer", "parameters"))
    assert half == pytest.approx(whole / 2, rel=0.01)


PARTS = 8


def summed_gradients(ways):
    """For each way the gradients of one step of 8 micro-batches, and their sum by hand, each [elements], fp64."""
    from deepspeed.utils import safe_get_full_grad

    found = {}
    for name, parallel in {**ways, "by hand": {"zero_stage": 2}}.items():
        optim = {"steps": 1, "lr": 1e-3, "micro_batch_size": ROWS, "micro_batches": PARTS, "max_grad_norm": 1e9}
        values = recipe(optim=optim, parallel={"precision": "bf16", **parallel})
        module = module_for(values)
        batches = [to_batch(arrays(part, "generate"), pad_id=PAD, device=CPU) for part in range(PARTS)]
        trained = trainable_parameters(module.model)
        if name == "by hand":
            for parameter in module.parameters():  # buffers stay fp32
                parameter.data = parameter.data.bfloat16()
            for parameter in trained.values():
                parameter.register_hook(lambda gradient, it=parameter: _add_exactly(it, gradient))
            for batch in batches:
                (module(batch)["flow"] / PARTS).backward()
            parts = [parameter.exact for parameter in trained.values()]
        else:
            engine = build_engine(values, module)
            for batch in batches:
                engine.backward(engine(batch)["flow"])
                if batch is not batches[-1]:
                    engine.step()
            parts = [safe_get_full_grad(parameter).double() for parameter in trained.values()]
            release_engine(engine)
        found[name] = torch.cat([part.flatten() for part in parts])
    return found


def _add_exactly(parameter, gradient):
    parameter.exact = getattr(parameter, "exact", 0) + gradient.double()


def test_gradients_that_are_summed_in_fp32_are_those_of_one_large_micro_batch(tmp_path):
    # Not ZeRO 3: it has a linear layer of its own, which rounds in another way.
    exact = {str(stage): {"zero_stage": stage, "gradient_accumulation_dtype": "fp32"} for stage in (1, 2)}
    ways = {**exact, "rounded": {"zero_stage": 2}}
    [found] = run_ranks(summed_gradients, tmp_path, ways, world=1)
    expected = found.pop("by hand")
    errors = {name: ((it - expected).norm() / expected.norm()).item() for name, it in found.items()}
    assert errors.pop("rounded") > 1e-3  # measured: 8 bits of mantissa at each of 8 sums
    assert max(errors.values()) < 1e-6, errors  # measured: 24 bits


def train_and_go_on(folder, of_two):
    """On one rank: a run, runs resumed from two ranks' checkpoints, and the errors of wrong ones."""
    found = {"gradients": by_engine(made(world=1, **WAYS["gradients"]), folder)}
    for way in ("optimizer", "parameters"):
        make_universal(of_two / way)
        found[way] = by_engine(made(world=1, **WAYS[way]), of_two / way, universal=True)
    return found, refusal(of_two / "optimizer", made(world=1, **SPREAD))


def refusal(folder, values):
    """The errors of loading a checkpoint of another stage, and of a buffer in less than fp32."""
    engine = build_engine(values, module_for(values))
    with pytest.raises(CheckpointError) as caught:
        load(engine, str(folder), identity="x", universal=True)
    engine.module.register_buffer("angles", torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(ConfigError) as rounded:
        _require_applied(engine, values)
    release_engine(engine)
    return str(caught.value), str(rounded.value)


def test_one_rank_with_accumulation_trains_the_same_and_resumes_from_two(tmp_path, by_two, folder_of_two):
    place = tmp_path / "alone"
    place.mkdir()
    [(found, refused)] = run_ranks(train_and_go_on, tmp_path, place, folder_of_two, world=1)
    for way, run in found.items():
        if way != "gradients":
            run["rows"] = [*by_two[0][way]["rows"][:1], *run["rows"]]
        agree(run, WAYS[way])
    assert "was saved at ZeRO stage 1 or 2, and parallel.zero_stage is 3: set it back" in refused[0]
    assert refused[1].endswith("it runs with buffers below fp32 = ['angles'] (recipe: [])")


def left_over(ways):
    """For each way, what is still alive of a stage after its engine is released, and torch's linear layer."""
    found = {}
    for name, parallel in ways.items():
        references = ended_stage(made(world=1, **parallel))
        release_memory(CPU)
        found[name] = [part for part, reference in references.items() if reference() is not None]
    return found, torch.nn.functional.linear is torch._C._nn.linear


def ended_stage(values):
    """Trains a stage and releases its engine; returns weak references to its parts."""
    module = module_for(values)
    engine = build_engine(values, module)
    trained = trainable_parameters(module.model)
    ema = Ema(engine, trained, decay=0.5)
    Loop(
        recipe=values,
        engine=engine,
        module=module,
        batches=stream("generate", 0, 1),
        device=CPU,
        rank=0,
        world=1,
        pad_id=PAD,
        callbacks=[ema],
    ).run(0)
    parts = {"module": module, "engine": engine, "optimizer": engine.basic_optimizer, "ema": ema}
    release_engine(engine)
    return {name: weakref.ref(part) for name, part in (parts | trained).items()}


def test_nothing_of_a_stage_is_alive_after_it(tmp_path):
    """A next stage in the same worker has the device to itself, and computes as it would in a new process."""
    ways = {
        "gradients": {"zero_stage": 2, "precision": "bf16"},
        "parameters": SPREAD,
        "summed in fp32": {"zero_stage": 1, "precision": "bf16", **SUM},
    }
    [(found, plain)] = run_ranks(left_over, tmp_path, ways, world=1)
    assert found == dict.fromkeys(ways, [])
    assert plain


def graphs_of_stages(sizes):
    """For each stage of a worker, with micro-batches of this size, the number of graphs that it compiles."""
    found = []
    for rows in sizes:
        optim = {"steps": 1, "lr": 1e-3, "micro_batch_size": rows, "micro_batches": 1}
        values = recipe(optim=optim, parallel={"compile": True})
        engine = build_engine(values, module_for(values))
        with torch.compiler.set_stance(force_backend="eager"):
            engine.backward(engine(batch("generate", rows=rows))["flow"])
        release_engine(engine)
        found.append(counters["stats"].pop("unique_graphs"))
    return found


def test_a_later_stage_compiles_what_it_would_in_a_new_process(tmp_path):
    """Torch compiles a layer's code a limited number of times in a process, and then runs it eagerly."""
    [(first, later)] = run_ranks(graphs_of_stages, tmp_path, (2, 4), world=1)
    assert later == first > 0


def train_fused(folder):
    """On one rank, with the fused optimizer of GPUs, which torch has on the CPU too: a run, and two that resume."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blip3o.train.deepspeed.engine.adamw_options", lambda _: {"fused": True})
        run = by_engine(made(world=1), folder)
        again = by_engine(made(world=1), folder)
        make_universal(folder)
        return run, again, by_engine(made(world=1), folder, universal=True)


def test_the_fused_optimizer_trains_and_resumes_alike(tmp_path):
    place = tmp_path / "fused"
    place.mkdir()
    [(run, *resumed)] = run_ranks(train_fused, tmp_path, place, world=1)
    agree(run, WAYS["optimizer"])
    for again in resumed:
        assert [row["loss"] for row in again["rows"]] == [row["loss"] for row in run["rows"][1:]]
        for kind in ("weights", "averaged"):
            assert all(torch.equal(again[kind][name], value) for name, value in run[kind].items())


def named(*names):
    return {name: torch.nn.Parameter(torch.zeros(1)) for name in names}


def test_parameters_belong_to_the_first_matching_group_and_groups_scale_the_schedule():
    groups = [{"match": "dit.layers.*", "lr": 5e-4}, {"match": "dit.*", "weight_decay": 0.5}]
    optim = recipe(optim={"lr": 1e-3, "warmup_steps": 2, "groups": groups}).optim
    parameters = named("queries", "dit.layers.0.gate", "dit.norm", "dit.layers.1.gate")
    made = parameter_groups(optim, parameters)
    assert [len(group["params"]) for group in made] == [2, 1, 1]
    assert made[0]["params"][1] is parameters["dit.layers.1.gate"]
    assert (made[0]["weight_decay"], made[1]["weight_decay"]) == (optim.weight_decay, 0.5)
    for step in (0, 3):
        set_learning_rates(made, optim, step)
        rate = learning_rate(optim, step)
        assert [group["lr"] for group in made] == [rate / 2, rate, rate]


def test_a_group_that_matches_nothing_is_an_error():
    groups = [{"match": "dit.*"}, {"match": "dit.layers.*"}]
    with pytest.raises(ConfigError, match=r"optim.groups: 'dit.layers.\*' matches none of the 1 trainable .*queries"):
        parameter_groups(recipe(optim={"groups": groups}).optim, named("dit.layers.0", "queries"))


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"zero_stage": 0, "offload": "optimizer"}, "offload 'optimizer' needs parallel.zero_stage 1 or more, it is 0"),
        ({"zero_stage": 2, "offload": "parameters"}, "'parameters' needs parallel.zero_stage 3 or more, it is 2"),
        ({"zero_stage": 4}, "'parallel.zero_stage' = 4"),
    ],
)
def test_unsupported_partitioning_is_named(parallel, message):
    with pytest.raises(ConfigError, match=message):
        recipe(parallel=parallel)
