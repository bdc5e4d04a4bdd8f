"""What DeepSpeed and AdamW are told, by device and ZeRO stage, and which settings do not go together."""

import pytest

from blip3o.errors import ConfigError
from blip3o.train.deepspeed.config import adamw_options, deepspeed_config, describe_engine
from tests.recipes import recipe

GPU = {"device": "gpu", "precision": "bf16"}


def zero(**parallel):
    return deepspeed_config(recipe(parallel=parallel))["zero_optimization"]


def test_gradients_are_reduced_during_the_backward_pass_where_that_hides_the_reduction():
    assert zero(**GPU, zero_stage=2) == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 100_000_000}
    assert zero(**GPU, zero_stage=2, overlap_comm=False) == {"stage": 2, "overlap_comm": False}
    assert zero(**GPU, zero_stage=1) == {"stage": 1, "overlap_comm": False}
    assert zero(zero_stage=2) == {"stage": 2, "overlap_comm": False}
    asked = zero(zero_stage=3, overlap_comm=True, reduce_bucket_size=7, param_persistence_threshold=0)
    assert (asked["overlap_comm"], asked["reduce_bucket_size"]) == (True, 7)


def test_no_timer_waits_for_the_device():
    from deepspeed.utils.config import get_timers_config

    assert not get_timers_config(deepspeed_config(recipe())).enabled


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        ({"zero_stage": 0}, None),
        ({"zero_stage": 1}, ("bf16", "bf16")),
        ({"zero_stage": 1, "gradient_accumulation_dtype": "fp32"}, ("fp32", "fp32")),
        ({"zero_stage": 2, "gradient_accumulation_dtype": "fp32"}, ("fp32", "bf16")),
        ({"zero_stage": 2, "communication_dtype": "fp32"}, ("bf16", "fp32")),
    ],
)
def test_dtypes_of_gradients(parallel, expected):
    config = deepspeed_config(recipe(parallel={"precision": "bf16", **parallel}))
    found = config.get("data_types", {}).get("grad_accum_dtype"), config.get("communication_data_type")
    assert found == (expected or (None, None))


def test_adamw_is_one_kernel_where_its_state_is_on_a_gpu():
    assert adamw_options(recipe(parallel=GPU).parallel) == {"fused": True}
    assert adamw_options(recipe(parallel={**GPU, "offload": "optimizer"}).parallel) == {}
    assert adamw_options(recipe().parallel) == {}


def test_defaults_are_said():
    assert describe_engine(recipe(parallel={**GPU, "zero_stage": 2})) == (
        "ZeRO 2 on gpu in bf16, gradients summed in bf16 over micro-batches and in bf16 over workers, reduced during "
        "the backward pass, layers compiled, AdamW fused"
    )
    assert describe_engine(recipe()) == (
        "ZeRO 1 on cpu in fp32, gradients summed in fp32 over micro-batches and in fp32 over workers, reduced after "
        "it, nothing compiled"
    )
    assert "nothing compiled" in describe_engine(recipe(parallel={**GPU, "zero_stage": 3}))
    assert "nothing compiled" in describe_engine(recipe(parallel={**GPU, "compile": False}))
    # A compiled layer need not repeat its bits in a resumed worker.
    assert describe_engine(recipe(parallel={**GPU, "deterministic": True})).endswith(
        "nothing compiled, AdamW fused, deterministic algorithms only"
    )


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"zero_stage": 1, "overlap_comm": True}, "overlap_comm needs parallel.zero_stage 2 or 3, it is 1"),
        ({"zero_stage": 0, "reduce_bucket_size": 7}, "reduce_bucket_size applies to ZeRO 1 to 3"),
        ({"zero_stage": 0, "gradient_accumulation_dtype": "fp32"}, "gradient_accumulation_dtype applies to ZeRO 1"),
        ({"communication_dtype": "bf16"}, "communication_dtype bf16 rounds what parallel.precision fp32 computes"),
        ({"zero_stage": 3, "compile": True}, "compile does not go with parallel.zero_stage 3"),
        ({"deterministic": True, "compile": True}, "compile does not go with parallel.deterministic: .*Leave one out"),
    ],
)
def test_settings_without_an_effect_are_refused(parallel, message):
    with pytest.raises(ConfigError, match=message):
        recipe(parallel=parallel)


def test_the_engine_names_the_matrices_of_muon():
    optim = {"steps": 2, "lr": 1e-3, "micro_batch_size": 4, "micro_batches": 2, "muon": ["dit.*", "*.blocks.*"]}
    described = describe_engine(recipe(optim=optim, parallel={"zero_stage": 0}))
    assert described.endswith("nothing compiled, Muon for dit.* *.blocks.*")
    assert "Muon" not in describe_engine(recipe())
