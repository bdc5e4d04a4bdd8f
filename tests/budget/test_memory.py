"""The memory of a budget against what torch's allocator gives out, and against itself at other depths and stages."""

import pytest

from benchmarks.budget import cases, flops_ratios, measured_peaks, predicted, small_recipe
from blip3o.budget import activations
from blip3o.budget.activations import measure_activations
from blip3o.budget.memory import device_memory
from blip3o.config.load import load_recipe
from blip3o.train.preflight.memory import Parameters
from tests.recipes import recipe

# Each ZeRO stage once, with stored or with recomputed activations; `python -m benchmarks.budget` measures all of them.
MEASURED = [case for case in cases(("bf16",)) if case["recompute"] == bool(case["zero_stage"] % 2)]
GPU = {"device": "gpu", "precision": "bf16"}


def test_the_peak_is_within_15_percent_of_the_measured_one():
    found = [predicted(small_recipe(**case)).peak for case in MEASURED]
    measured = measured_peaks(MEASURED)
    assert found == pytest.approx(measured, rel=0.15)


def test_flops_are_within_2_percent_of_counted_ones():
    ratios = flops_ratios(("tiny:generate", "tiny:encoder", "tiny:decoder", "blip3o-8b:pretrain"))
    assert list(ratios.values()) == pytest.approx([1.0] * len(ratios), rel=0.02)


@pytest.mark.parametrize("features", ["cache", "online"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_deep_model_is_a_shallow_one_continued(monkeypatch, features, recompute):
    model = {part: {"layers": 7} for part in ("backbone", "dit", "encoder")}
    deep = recipe(model=model, data={"features": features}, optim={"micro_batch_size": 16}, parallel=GPU)
    shallow = measure_activations(deep, recompute=recompute)
    monkeypatch.setattr(activations, "DEPTH", 100)
    whole = measure_activations(deep, recompute=recompute)
    assert (shallow.stored, shallow.peak) == pytest.approx((whole.stored, whole.peak), rel=0.005)
    assert shallow.with_gradients == pytest.approx(whole.with_gradients, rel=0.08)


def test_recomputation_keeps_a_small_part_of_the_activations():
    made = load_recipe("blip3o-8b:pretrain")
    stored, again = (measure_activations(made, recompute=recompute) for recompute in (False, True))
    assert again.stored < 0.2 * stored.stored
    assert again.stored < again.peak < 0.3 * stored.peak


def kept(size):
    return activations.Activations(stored=size, forward=size, backward=size, backward_all=size)


@pytest.mark.parametrize(
    ("parallel", "accumulates", "expected"),
    [
        # 1,000 trained and 3,000 frozen parameters, 4 workers, activations of 10,000 bytes.
        ({"zero_stage": 0}, True, 8000 + 12000 + 2000 + 10_000),
        ({"zero_stage": 0}, False, 8000 + 12000 + 10_000),  # its gradients are among the 10,000
        ({"zero_stage": 1, "reduce_bucket_size": 100}, True, 8000 + 3000 + 2000 + 10_000 + 200),
        ({"zero_stage": 2, "reduce_bucket_size": 100}, True, 8000 + 3000 + 500 + 500 + 10_000 + 600),
        ({"zero_stage": 2, "reduce_bucket_size": 100}, False, 8000 + 3000 + 500 + 10_000 + 600),
        ({"zero_stage": 2, "reduce_bucket_size": 100, "overlap_comm": False}, False, 8000 + 3000 + 500 + 10_000 + 400),
        ({"zero_stage": 3, "reduce_bucket_size": 100}, True, 2000 + 3000 + 500 + 10_000 + 2 * 8000 + 200),
        ({"zero_stage": 2, "reduce_bucket_size": 100, "offload": "optimizer"}, False, 8000 + 500 + 10_000 + 600),
    ],
)
def test_memory_by_hand(parallel, accumulates, expected):
    optim = {"micro_batches": 8 if accumulates else 4}
    made = recipe(optim=optim, parallel={**GPU, "workers": 4, **parallel})
    sizes = Parameters(trained=1000, frozen=3000)
    assert device_memory(made, sizes, kept(10_000), workers=4).peak == expected


def test_without_activations_the_optimizer_step_is_the_fullest_moment():
    made = recipe(optim={"micro_batches": 4}, parallel={**GPU, "workers": 4, "zero_stage": 1, "reduce_bucket_size": 1})
    sizes = Parameters(trained=1000, frozen=0)
    # Weights, optimizer and gradients; a quarter of the gradients joined in bf16, then in fp32.
    assert device_memory(made, sizes, kept(0), workers=4).peak == 2000 + 3000 + 2000 + 500 + 1000
