"""Stage losses: draws depend on samples, sums add up over any split of a batch, only the stage's parameters train."""

from dataclasses import replace

import pytest
import torch

from blip3o.config.objectives import stage_names
from blip3o.data.text.templates import IGNORE
from blip3o.errors import ConfigError
from blip3o.model.unified import initialize
from blip3o.train.objectives import build_stage_module, flow_draws
from blip3o.train.stages import freeze, stage_of
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe

ROWS = 4


def batch(stage, rows=ROWS):
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (rows, 32, 32, 3), dtype=torch.uint8, generator=generator)
    ids = torch.randint(10, 1000, (rows, 16), generator=generator)
    draw_ids = ids.flip(1)
    if stage in ("understand", "joint"):
        ids[:, 1:5] = IMAGE_TOKEN
    ids[0, 12:] = PAD
    labels = torch.where(torch.arange(16) >= 8, ids, IGNORE)
    labels[0, 12:] = IGNORE
    everything = {"input_ids": ids, "labels": labels, "draw_key": torch.arange(rows) + 100}
    if stage == "joint":  # rows 1, 4, … are asked about alone, rows 2, 5, … drawn alone, the others both
        part = torch.arange(rows) % 3
        labels[part == 2] = IGNORE
        everything |= {"draw_ids": draw_ids, "draws": part != 1}
    return everything | {f"{name}_pixels": pixels for name in ("encoder", "prompt", "decoder")}


def stage_module(stage, **sections):
    module = build_stage_module(recipe(stage={"name": stage, **sections}), image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    return module


def of_stage(name):
    return stage_of(recipe(stage={"name": name}))


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


@pytest.mark.parametrize("stage", ["understand", "generate", "decoder", "joint"])
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
def test_feature_noise_depends_on_the_sample_and_only_affects_pixels(stage, pixels):
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


def test_the_text_loss_covers_supervised_tokens_only():
    module = stage_module("understand")
    whole = batch("understand")
    assert module.counts(whole)["text"] == 8 * 3 + 4
    changed = {**whole, "input_ids": whole["input_ids"].clone()}
    before = module(whole)["text"]
    changed["labels"] = torch.where(whole["labels"] == IGNORE, IGNORE, whole["labels"])
    changed["labels"][0, 9] = (changed["labels"][0, 9] + 1) % 1000
    assert not torch.equal(module(changed)["text"], before)


def test_separate_questions_in_one_sequence_have_the_loss_of_each_by_itself():
    module, whole = stage_module("understand"), batch("understand", rows=2)
    ids = whole["input_ids"][1:, :]
    branches = (torch.arange(16) >= 6).long() + (torch.arange(16) >= 11)
    labels = torch.where((torch.arange(16) >= 7) & (torch.arange(16) != 11), ids, IGNORE)
    packed = rows_of(whole, slice(1, 2)) | {"labels": labels, "branches": branches[None]}
    kept = [(branches == 0) | (branches == number) for number in (1, 2)]
    alone = [rows_of(whole, slice(1, 2)) | {"input_ids": ids[:, k], "labels": labels[:, k]} for k in kept]
    with torch.no_grad():
        apart = sum(module(one)["text"] for one in alone)
        assert torch.allclose(module(packed)["text"], apart, rtol=1e-5)


@pytest.mark.parametrize("stage", sorted(stage_names()))
def test_gradients_reach_the_stages_trainable_parameters_only(stage):
    module = stage_module(stage)
    names = set(freeze(module.model, of_stage(stage)))
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
        freeze(module.model, replace(of_stage("understand"), trainable=("bakbone.*",)))


def alone(whole, name):
    """The rows of a joint batch for one of the two stages, in that stage's format."""
    if name == "understand":
        return rows_of(whole, (whole["labels"] != IGNORE).any(1))
    return rows_of(whole | {"input_ids": whole["draw_ids"]}, whole["draws"])


def gradients(module, losses):
    parameters = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(sum(losses), list(parameters.values()), allow_unused=True)
    return {name: torch.zeros(()) if value is None else value for name, value in zip(parameters, found, strict=True)}


def test_the_gradient_of_joint_is_the_sum_of_both_stages():
    joint, whole = stage_module("joint", weights={"text": 0.25}), batch("joint", rows=6)
    freeze(joint.model, of_stage("joint"))
    sums, counts = joint(whole), joint.counts(whole)
    assert list(sums) == ["text", "flow"] == list(counts)
    both = gradients(joint, [joint.weights.get(name, 1.0) * sums[name] / counts[name] for name in sums])
    expected = {name: torch.zeros(()) for name in both}
    for name, term, weight in (("understand", "text", 0.25), ("generate", "flow", 1.0)):
        single, rows = stage_module(name), alone(whole, name)
        single.load_state_dict({key: value for key, value in joint.state_dict().items() if key in single.state_dict()})
        freeze(single.model, replace(of_stage(name), trainable=of_stage(name).reached))
        assert torch.allclose(single(rows)[term], sums[term], rtol=1e-5)
        assert single.counts(rows)[term] == counts[term]
        for key, value in gradients(single, [weight * single(rows)[term] / counts[term]]).items():
            expected[key] = expected[key] + value
    for key, value in both.items():
        # fp32 sums of some hundred terms in another order.
        assert torch.allclose(value, expected[key], rtol=1e-4, atol=1e-7), key
    assert both["backbone.hf.model.language_model.embed_tokens.weight"].abs().sum() > 0


@pytest.mark.parametrize("missing", ["asked", "drawn"])
def test_joint_runs_every_part_if_a_batch_has_samples_for_one_task_only(missing):
    module, whole = stage_module("joint"), batch("joint")
    if missing == "asked":
        whole["labels"] = torch.full_like(whole["labels"], IGNORE)
        whole["input_ids"][:] = 20  # and no image either
    else:
        whole["draws"][:] = False
    names = freeze(module.model, of_stage("joint"))
    sums = module(whole)
    term = "text" if missing == "asked" else "flow"
    assert (sums[term].item(), module.counts(whole)[term]) == (0, 0)
    sum(sums.values()).backward()
    assert not [name for name, p in module.model.named_parameters() if name in names and p.grad is None]
    assert all(torch.isfinite(p.grad).all() for p in module.model.parameters() if p.grad is not None)


def test_a_trained_backbone_gets_the_gradient_of_generation():
    made = recipe(stage={"name": "generate", "trainable": ["queries", "backbone.hf.model.language_model.layers.1.*"]})
    module = build_stage_module(made, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    names = freeze(module.model, stage_of(made))
    module(batch("generate"))["flow"].backward()
    moved = {name for name, p in module.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == set(names)
    assert {name.split(".")[0] for name in names} == {"queries", "backbone"}


def test_a_pattern_of_parameters_without_gradient_is_an_error():
    made = recipe(stage={"name": "generate", "trainable": ["queries", "encoder.*"]})
    module = build_stage_module(made, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    with pytest.raises(ConfigError, match=r"'encoder.\*' matches encoder\..*which the stage's loss does not reach"):
        freeze(module.model, stage_of(made))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"stage": {"name": "generate", "weights": {"text": 1.0}}}, "stage.weights names text: .* the terms flow"),
        ({"stage": {"name": "joint"}, "data": {"task": "chat"}}, "no source in data.sources has task generate or both"),
        (
            {"stage": {"name": "generate"}, "data": {"task": "generate"}},
            "scenes names a task, which stage 'generate' dec",
        ),
    ],
)
def test_terms_and_tasks_that_do_not_fit_the_stage_are_named(sections, message):
    task = sections.get("data", {}).get("task", "both")
    sources = [{"name": "scenes", "shards": "scenes/train-*.tar", "task": task}]
    with pytest.raises(ConfigError, match=message):
        recipe(stage=sections["stage"], data={"sources": sources})
