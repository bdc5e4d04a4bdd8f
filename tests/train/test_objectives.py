"""Stage losses: draws belong to samples, sums add up over any split of a batch, only the stage's parameters train."""

import pytest
import torch

from blip3o.data.templates import IGNORE
from blip3o.errors import ConfigError
from blip3o.model.unified import initialize
from blip3o.train.objectives import build_stage_module, flow_draws
from blip3o.train.stages import STAGES, Stage, freeze
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe

ROWS = 4


def batch(stage, rows=ROWS):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (rows, 32, 32, 3), dtype=torch.uint8, generator=generator)
    ids = torch.randint(10, 1000, (rows, 16), generator=generator)
    if stage == "understand":
        ids[:, 1:5] = IMAGE_TOKEN
    ids[0, 12:] = PAD
    labels = torch.where(torch.arange(16) >= 8, ids, IGNORE)
    labels[0, 12:] = IGNORE
    everything = {"input_ids": ids, "labels": labels, "draw_key": torch.arange(rows) + 100}
    return everything | {f"{name}_pixels": pixels for name in ("encoder", "prompt", "decoder")}


def stage_module(stage, **sections):
    module = build_stage_module(recipe(stage={"name": stage, **sections}), image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    return module


def rows_of(whole, index):
    return {name: tensor[index] for name, tensor in whole.items()}


def test_draws_depend_on_the_sample_and_not_on_its_batch():
    keys = torch.tensor([3, 5, 8])
    together = flow_draws(keys, seed=1, kind="flow-0", shape=(2, 3), dropout=0.5)
    for position, key in enumerate(keys):
        alone = flow_draws(key[None], seed=1, kind="flow-0", shape=(2, 3), dropout=0.5)
        assert torch.equal(alone.noise[0], together.noise[position])
        assert torch.equal(alone.uniform[0], together.uniform[position])
    other = flow_draws(keys, seed=2, kind="flow-0", shape=(2, 3), dropout=0.5)
    assert not torch.equal(other.noise, together.noise)


def test_condition_dropout_has_its_rate():
    draws = flow_draws(torch.arange(4000), seed=0, kind="flow-0", shape=(1,), dropout=0.1)
    # Binomial(4000, 0.1): deviation 0.0047 of the share; five deviations.
    assert (~draws.keep).float().mean().item() == pytest.approx(0.1, abs=0.024)
    assert flow_draws(torch.arange(100), seed=0, kind="flow-0", shape=(1,), dropout=0.0).keep.all()


@pytest.mark.parametrize("stage", ["understand", "generate", "decoder"])
def test_sums_and_counts_add_up_over_a_split_batch(stage):
    module = stage_module(stage)
    whole = batch(stage)
    with torch.no_grad():
        full, counts = module(whole), module.counts(whole)
        halves = [rows_of(whole, slice(0, 1)), rows_of(whole, slice(1, None))]
        for name, value in full.items():
            parts = torch.stack([module(half)[name] for half in halves]).sum()
            assert torch.allclose(parts, value, rtol=1e-5)
            assert sum(module.counts(half)[name] for half in halves) == counts[name]


@pytest.mark.parametrize(("stage", "pixels"), [("encoder", "dense"), ("decoder", "coarse")])
def test_feature_noise_belongs_to_the_sample_and_reaches_pixels_alone(stage, pixels):
    whole = batch(stage)
    with torch.no_grad():
        plain, noisy = (stage_module(stage, feature_noise=largest)(whole) for largest in (0.0, 0.7))
        assert not torch.allclose(noisy[pixels], plain[pixels])
        if stage == "encoder":
            assert torch.equal(noisy["contrastive"], plain["contrastive"])
        turned = rows_of(whole, torch.arange(ROWS).flip(0))
        assert torch.allclose(stage_module(stage, feature_noise=0.7)(turned)[pixels], noisy[pixels], rtol=1e-5)
        other = whole | {"draw_key": whole["draw_key"] + 1}
        assert not torch.allclose(stage_module(stage, feature_noise=0.7)(other)[pixels], noisy[pixels])


def test_text_is_judged_where_it_is_supervised_and_nowhere_else():
    module = stage_module("understand")
    whole = batch("understand")
    assert module.counts(whole)["text"] == 8 * 3 + 4
    changed = {**whole, "input_ids": whole["input_ids"].clone()}
    before = module(whole)["text"]
    changed["labels"] = torch.where(whole["labels"] == IGNORE, IGNORE, whole["labels"])
    changed["labels"][0, 9] = (changed["labels"][0, 9] + 1) % 1000
    assert not torch.equal(module(changed)["text"], before)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_gradients_reach_what_the_stage_trains_and_nothing_else(stage):
    module = stage_module(stage)
    names = set(freeze(module.model, STAGES[stage]))
    sum(module(batch(stage)).values()).backward()
    for name, parameter in module.model.named_parameters():
        if name in names:
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name


def test_more_noise_draws_use_one_condition_and_other_noise():
    one, two = stage_module("generate"), stage_module("generate", noise_draws=2)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        single, double = one(batch("generate"))["flow"], two(batch("generate"))["flow"]
    assert double > single
    assert two.counts(batch("generate"))["flow"] == 2 * one.counts(batch("generate"))["flow"]
    assert not torch.allclose(double, 2 * single, rtol=1e-4)


def test_a_pattern_that_matches_nothing_is_an_error():
    module = stage_module("understand")
    with pytest.raises(ConfigError, match="stage trains 'bakbone"):
        freeze(module.model, Stage(task=STAGES["understand"].task, parts=(), trainable=("bakbone.",)))
