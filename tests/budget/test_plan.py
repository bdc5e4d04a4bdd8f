"""Time, money, storage and serving of a budget: formulas by hand, and properties that they must have."""

import math
from pathlib import Path

import pytest

from blip3o.budget.prices import peak_flops, read_prices
from blip3o.budget.serving import erlang_c, fewest_servers, plan_serving
from blip3o.budget.store import PREFIX_GETS, feature_store, reading, record_bytes, split_nodes
from blip3o.budget.training import (
    checkpoint_plan,
    collective_seconds,
    daly,
    decode_ms,
    feed_rate,
    implied_mfu,
    plan_training,
    young,
)
from blip3o.budget.work import encoder_flops, executed_flops, forward_flops, sample_flops
from blip3o.config.load import load_recipe, preset_model
from blip3o.errors import ConfigError
from blip3o.train.preflight.memory import Parameters
from jobs.commands.budget.command import PRICES

SIZES = Parameters(trained=1_365_000_000, frozen=8_289_000_000)
PRICED = read_prices(PRICES)


def assuming(**rates):
    return PRICED.model_copy(update={"assumptions": PRICED.assumptions.model_copy(update=rates)})


def pretrain(*keys):
    return load_recipe("blip3o-8b:pretrain", keys)


def plan(recipe, prices=PRICED, gpu="h100"):
    return plan_training(recipe, SIZES, sample_flops(recipe), gpu=gpu, prices=prices)


def test_every_gpu_of_the_prices_file_has_a_peak():
    assert {kind: peak_flops(kind) > 0 for kind in PRICED.gpus} == dict.fromkeys(PRICED.gpus, True)
    with pytest.raises(ConfigError, match="did you mean 'h100'"):
        PRICED.gpu("h10")


def test_a_prices_file_that_is_missing_or_wrong_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="name another one with --prices"):
        read_prices(tmp_path / "none.yaml")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(PRICES).read_text(encoding="utf-8").replace("mfu: 0.40", "mfu: 4", 1), encoding="utf-8")
    with pytest.raises(ConfigError, match="assumptions.mfu"):
        read_prices(wrong)


def test_a_step_without_delays_has_the_stated_mfu():
    one = load_recipe("blip3o-8b-one-gpu:pretrain")
    found = plan(one, assuming(mfu=0.4, checkpoint_gb_s=1e9, restart_s=0, node_mtbf_h=1e9))
    assert (found.communication_s, found.waiting_s) == (0, 0)
    assert found.mfu == pytest.approx(0.4, rel=0.01)  # the optimizer takes the rest
    assert found.images_per_s == pytest.approx(0.4 * 989.4e12 / sum(sample_flops(one).values()), rel=0.01)
    assert found.days * 86_400 == pytest.approx(one.optim.steps * found.step_s, rel=1e-6)
    assert found.usd == pytest.approx(found.days * 24 * 55.04 / 8)


def test_recomputation_costs_a_forward_pass_of_what_trains():
    useful = {"encoder": 9.0, "prompt": 3.0, "queries": 6.0, "dit": 6.0}
    again = pretrain("parallel.activation_checkpointing=true")
    assert executed_flops(again, useful) == 9 + 3 + 8 + 8
    assert executed_flops(again, {"decoder": 6.0, "coarse": 3.0}) == 9  # no layers of backbone or DiT
    assert executed_flops(pretrain(), useful) == 24
    assert plan(again).mfu < plan(pretrain()).mfu  # useful FLOPs only


def test_reduction_hides_behind_what_runs_backward():
    assert forward_flops({"encoder": 9.0, "prompt": 3.0, "queries": 6.0, "dit": 6.0}) == 9 + 3 + 3 + 2
    assert forward_flops({"backbone": 6.0, "queries": 6.0, "dit": 6.0}) == 6  # joint: gradients of all
    assert forward_flops({"encoder": 9.0, "contrastive": 3.0}) == 4  # the encoder trains
    useful = {"prompt": 9e15, "queries": 0.0, "dit": 0.0}
    found = plan_training(pretrain(), SIZES, useful, gpu="h100", prices=PRICED)
    sent = collective_seconds(pretrain(), SIZES, PRICED.gpu("h100"), PRICED.assumptions)
    assert found.communication_s == pytest.approx(sent.reduced_s + sent.gathered_s)  # a prompt has no backward pass


@pytest.mark.parametrize(
    ("keys", "reduced", "gathered"),
    [
        # Bytes through the network of a node of 400 GB/s, of which 0.7 are reached: 31/32 of the message, twice.
        (["parallel.zero_stage=0"], 2 * 2, 0),
        (["parallel.zero_stage=1"], 2 * 2, 2),
        (["parallel.zero_stage=2"], 2 * 2, 2),
        (["parallel.zero_stage=2", "parallel.communication_dtype=fp32"], 2 * 4, 2),
        (["parallel.zero_stage=2", "optim.micro_batches=64"], 2 * 2 * 2, 2),  # in each of two micro-batches
    ],
)
def test_collectives_send_the_bytes_of_their_stage(keys, reduced, gathered):
    sent = collective_seconds(pretrain(*keys), SIZES, PRICED.gpu("h100"), PRICED.assumptions)
    per_byte = 31 / 32 / (400e9 * 0.7) * SIZES.trained
    assert (sent.reduced_s, sent.gathered_s) == pytest.approx((reduced * per_byte, gathered * per_byte))


def test_zero_3_gathers_everything_twice_and_once_more_to_recompute():
    wanted = ["parallel.zero_stage=3"]
    stored, recomputed = (
        collective_seconds(pretrain(*wanted, *more), SIZES, PRICED.gpu("h100"), PRICED.assumptions).gathered_s
        for more in ([], ["parallel.activation_checkpointing=true"])
    )
    assert stored == pytest.approx(2 * 2 * (SIZES.trained + SIZES.frozen) * 31 / 32 / (400e9 * 0.7))
    assert recomputed == pytest.approx(1.5 * stored)


def test_a_feed_that_is_too_slow_decides_the_step():
    starved = plan(pretrain(), assuming(text_ms=64 * 1000.0))  # 64 actors make one sample a second
    assert starved.step_s == pytest.approx(512)
    assert plan(pretrain()).waiting_s == 0


@pytest.mark.parametrize(
    ("recipe", "features", "decoded"),
    [
        ("blip3o-8b:pretrain", "cache", False),
        ("blip3o-8b:pretrain", "online", True),
        ("blip3o-8b:pretrain", "stream", True),
        ("tiny:decoder", "cache", True),
    ],
)
def test_images_are_decoded_unless_stored_features_replace_them(recipe, features, decoded):
    """For actors that encode, too; and the pixel decoder's targets are pixels whatever is stored."""
    rates = PRICED.assumptions
    made = load_recipe(recipe, [f"data.features={features}"])
    assert decode_ms(made, rates) == (rates.decode_ms if decoded else rates.text_ms)


def test_workers_that_read_by_themselves_decode_with_their_threads():
    keys = ["data.features=online", "data.reader=local", "parallel.workers=32", "parallel.data_threads=6"]
    assert feed_rate(pretrain(*keys), assuming(decode_ms=10.0).assumptions) == 32 * 6 * 100


def overhead(stall, interval, between):
    """Share of the time that checkpoints take and failures cost, exactly, for failures at random (Daly 2006, 13)."""
    return between * (math.exp((interval + stall) / between) - 1) / interval - 1


@pytest.mark.parametrize(("stall", "between"), [(3.2, 450_000), (30, 20_000), (60, 3600)])
def test_the_intervals_of_young_and_daly_are_nearly_the_best(stall, between):
    best = min((overhead(stall, each, between), each) for each in [1.02**n for n in range(600)])
    for interval in (young(stall, between), daly(stall, between)):
        assert overhead(stall, interval, between) <= best[0] * 1.02
    assert daly(stall, between) == pytest.approx(best[1], rel=0.03)  # the grid's step is 2 %
    assert daly(100, 10) == 10


def test_more_nodes_fail_more_often():
    one, four = (checkpoint_plan(pretrain(), SIZES, PRICED.assumptions, step_s=0.2, nodes=nodes) for nodes in (1, 4))
    assert four.lost == pytest.approx(4 * one.lost)
    assert four.young_s == pytest.approx(one.young_s / 2)
    # bf16 weights on the first worker, and a 32nd of Adam's state.
    assert one.stall_s == pytest.approx(SIZES.trained * (2 + 12 / 32) / 1e9)
    spread = checkpoint_plan(pretrain("parallel.zero_stage=3"), SIZES, PRICED.assumptions, step_s=0.2, nodes=1)
    assert spread.stall_s == pytest.approx(SIZES.trained * (2 + 12) / 32 / 1e9)


def test_published_effort_implies_a_small_share_of_the_peak():
    online = pretrain("data.features=online")
    flops = sample_flops(online)
    assert implied_mfu(online, flops, gpu="h200", days=14) == pytest.approx(0.027, abs=0.001)
    made = plan(online, gpu="h200")
    assert implied_mfu(online, flops, gpu="h200", days=made.days) == pytest.approx(made.mfu)


def test_stored_features_pay_from_the_pass_at_which_both_cost_the_same():
    found = feature_store(pretrain(), PRICED, gpu="h100", samples=30e6)
    online = found.passes * found.encode_usd
    assert online == pytest.approx(found.encode_usd + found.store_usd + found.passes * found.read_usd)
    assert 1 < found.passes < 2
    assert found.stored_gb == pytest.approx(30e6 * record_bytes(pretrain()) / 1e9) == pytest.approx(6881.4)
    free = assuming(encode_mfu=1.0)
    dear = free.model_copy(update={"store": free.store.model_copy(update={"usd_per_million_gets": 1000.0})})
    assert feature_store(pretrain(), dear, gpu="h100", samples=30e6).passes is None


def test_reading_stored_features_adds_a_request_and_a_record():
    cached, online = (reading(pretrain(*keys), PRICED, images_per_s=1000) for keys in ([], ["data.features=online"]))
    assert cached.gets_per_sample == online.gets_per_sample + 1
    assert cached.bytes_per_sample == online.bytes_per_sample + record_bytes(pretrain())
    assert online.gbit_per_s == pytest.approx(117e3 * 3.1 * 1000 * 8 / 1e9)
    assert cached.gets_per_s < PREFIX_GETS
    assert cached.usd == pytest.approx(150_000 * 512 * 1.82 / 1e6 * 0.4)


def test_nodes_follow_what_is_decoded_and_encoded():
    cached = split_nodes(pretrain(), PRICED, gpu="h100", images_per_s=3000)
    assert (cached.trainer_nodes, cached.encoder_gpus, cached.decode_nodes) == (4, 0, 0)
    assert cached.cpus_per_gpu == pytest.approx(3000 * 1.3e-3 / 32)
    slow = split_nodes(pretrain("data.features=online"), assuming(decode_ms=300.0), gpu="h100", images_per_s=3000)
    assert slow.decode_nodes == math.ceil((900 - 4 * 192 + 32 * 4) / 64)
    streamed = split_nodes(pretrain("data.features=stream"), PRICED, gpu="h100", images_per_s=3000)
    assert streamed.encoder_gpus == math.ceil(3000 * encoder_flops(pretrain()) / (989.4e12 * 0.5))


def test_the_share_of_requests_that_wait():
    assert erlang_c(0.5, 1) == pytest.approx(0.5)  # M/M/1: the load
    assert erlang_c(2.0, 3) == pytest.approx(4 / 9)  # by the textbook
    for offered in (0.3, 2.0, 17.5):
        servers = fewest_servers(offered, wait=0.5)
        late = [erlang_c(offered, n) * math.exp(-(n - offered) * 0.5) for n in (servers - 1, servers) if n > offered]
        assert late[-1] <= 0.05 < (late[0] if len(late) > 1 else 1)


def test_replicas_follow_the_load_and_the_service_level():
    slow = assuming(serve_mfu=1e-6)
    made = plan_serving(preset_model("nano"), slow, gpu="l4", load=1e4, slo_s=1e4, tokens=20)
    assert made.replicas >= 1e4 * made.image_s > made.replicas - 100
    assert made.busy == pytest.approx(1e4 * made.image_s / made.replicas)
    assert made.usd_per_hour == pytest.approx(made.replicas * 13.35 / 8)
    hopeless = plan_serving(preset_model("nano"), slow, gpu="l4", load=1.0, slo_s=made.image_s / 2, tokens=20)
    assert hopeless.replicas is None
