"""Validation: the same samples, noise and times for any batching; and a checkpoint's model without an engine."""

import pytest
import torch

from blip3o.config.training import LoraConfig
from blip3o.errors import CheckpointError, ConfigError
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from blip3o.train.lora import adapted_layers
from blip3o.train.objectives import StageModule, build_stage_module, split_tasks
from blip3o.train.stages import freeze, stage_of
from blip3o.train.validation.loss import held_out, num_micro_batches, validate
from blip3o.train.validation.model import validation_model
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.recipes import recipe
from tests.train.test_objectives import batch, rows_of

HELD = [{"name": "held", "shards": "held/*.tar"}]
CPU = torch.device("cpu")


def made(stage="generate", *, seed=0, bins=5, **sections):
    evaluate = {"sources": HELD, "sigma_bins": bins, "seed": 3}
    return recipe(run={"seed": seed}, stage={"name": stage, **sections}, evaluate=evaluate)


def module_of(settings, *, wake=True):
    module = build_stage_module(settings, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    if wake:
        randomise(module)
    return module


def arrays(whole):
    """As the stream yields them."""
    rows = len(whole["draw_key"])
    return {name: tensor.numpy() for name, tensor in whole.items()} | {"micro_batch": torch.zeros(rows).numpy()}


def figures(settings, module, batches):
    unseen = held_out(settings)
    judge = StageModule(unseen, module.model, pad_id=PAD)
    return validate(unseen, judge, map(arrays, batches), pad_id=PAD)


def test_metrics_depend_neither_on_batches_nor_on_the_runs_seed():
    whole = batch("generate")
    module = module_of(made())
    together = figures(made(), module, [whole])
    parts = [rows_of(whole, slice(0, 1)), rows_of(whole, slice(1, None))]
    assert figures(made(seed=5, noise_draws=2), module, [whole]) == together
    for name, value in figures(made(), module, parts).items():
        assert value == pytest.approx(together[name], rel=1e-5)  # a text's width differs, and with it fp32's rounding
    assert figures(made(), module_of(made(), wake=False), [whole]) != together


def test_bins_cover_all_noise_levels_and_their_mean_is_the_metric():
    found = figures(made(), module_of(made()), [batch("generate")])
    bins = [name for name in found if name.startswith("validation/flow/")]
    assert bins == [f"validation/flow/{low}" for low in ("0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1")]
    assert found["validation/flow"] == pytest.approx(sum(found[name] for name in bins) / 5)
    assert found["validation/loss"] == found["validation/flow"]
    # A fresh DiT predicts zero, so every bin has the squared target: the mean of (noise − data)² over one noise.
    fresh = figures(made(), module_of(made(), wake=False), [batch("generate")])
    assert {fresh[name] for name in bins} == {fresh["validation/flow"]}
    assert fresh["validation/flow"] == pytest.approx(
        2, rel=0.2
    )  # both have deviation one: nano's features are normalised


@pytest.mark.parametrize(("stage", "terms"), [("understand", {"text"}), ("decoder", {"coarse", "clean"})])
def test_other_stages_report_the_terms_of_their_loss(stage, terms):
    settings = made(stage)
    module, whole = module_of(settings), batch(stage)
    found = figures(settings, module, [whole])
    assert set(found) == {f"validation/{name}" for name in (*terms, "loss")}
    with torch.no_grad():
        expected = StageModule(held_out(settings), module.model, pad_id=PAD)(whole)
    for name in terms:
        assert found[f"validation/{name}"] == pytest.approx(float(expected[name]) / module.counts(whole)[name])


def test_with_two_tasks_the_text_loss_and_the_binned_flow_are_reported():
    settings = made("joint")
    module, whole = module_of(settings), batch("joint")
    whole["draws"] = torch.tensor([True, False, True, False])
    found = figures(settings, module, [whole])
    assert len([name for name in found if name.startswith("validation/flow/")]) == 5
    drawn = {name: rows for name, rows in split_tasks(whole)[1].items() if name != "draws"}
    alone = figures(made(), module_of(made()), [drawn])
    assert found["validation/flow"] == pytest.approx(alone["validation/flow"], rel=1e-5)
    assert found["validation/loss"] == pytest.approx(found["validation/flow"] + found["validation/text"])
    nothing = figures(settings, module, [whole | {"draws": torch.zeros(4, dtype=torch.bool)}])
    assert set(nothing) == {"validation/text", "validation/loss"}


def test_adapters_are_in_the_weights_that_are_validated(tmp_path):
    settings, model, trained = finished(tmp_path, ("first", ("encoder.", "backbone.")))
    lora = LoraConfig(rank=2, alpha=4.0)
    settings = settings.model_copy(update={"stage": settings.stage.model_copy(update={"lora": lora})})
    layer = adapted_layers(model, lora)[0]
    weight = dict(model.named_parameters())[f"{layer}.weight"]
    low, high = torch.ones(2, weight.shape[1]), torch.ones(weight.shape[0], 2)
    adapter = {f"{layer}.lora_A.default.weight": low, f"{layer}.lora_B.default.weight": high}
    loaded = validation_model(settings, trained | adapter, image_token_id=IMAGE_TOKEN, device=CPU)
    assert torch.allclose(dict(loaded.named_parameters())[f"{layer}.weight"], weight + 4)  # 4 / 2 · (1 + 1)


def test_held_out_samples_use_pixels_and_have_a_separate_ledger():
    settings = recipe(
        data={"features": "cache", "feature_dtype": "int8"}, stage={"name": "generate"}, evaluate={"sources": HELD}
    )
    unseen = held_out(settings)
    assert [source.name for source in unseen.data.sources] == ["held"]
    assert (unseen.data.features, unseen.data.feature_dtype) == ("online", None)
    assert unseen.run.name != settings.run.name
    assert num_micro_batches(settings) == 64 // settings.optim.micro_batch_size


def finished(tmp_path, *runs):
    """Results of runs that trained these parts, and the recipe of a stage that starts from the first of them."""
    settings = recipe(
        run={"storage": str(tmp_path)},
        stage={"name": "generate", "start_from": [name for name, _ in runs]},
        evaluate={"sources": HELD},
    )
    parts = ("encoder", "backbone", "queries", "dit", "coarse", "decoder")
    model = UnifiedModel(settings.model, image_token_id=IMAGE_TOKEN, parts=parts, max_length=64)
    initialize(model, 0)
    named = dict(model.named_parameters())
    for run, prefixes in runs:
        tensors = {name: value for name, value in named.items() if name.startswith(prefixes)}
        write_final(final_uri(str(tmp_path), run), tensors, {})
    freeze(model, stage_of(settings))
    return settings, model, {name: 2 * p.detach() for name, p in named.items() if p.requires_grad}


def test_a_checkpoints_model_has_its_trained_weights_and_the_frozen_ones_of_the_runs_before(tmp_path):
    settings, model, trained = finished(tmp_path, ("first", ("encoder.", "coarse.")), ("second", "backbone."))
    loaded = validation_model(settings, trained, image_token_id=IMAGE_TOKEN, device=CPU)
    named = dict(loaded.named_parameters())
    expected = {name: value for name, value in model.named_parameters() if not name.startswith("decoder.")} | trained
    assert named.keys() == expected.keys()  # the decoder has no weights yet, so there is none
    assert all(torch.equal(named[name], value) for name, value in expected.items())
    assert not any(parameter.requires_grad for parameter in named.values())
    assert not loaded.training


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    settings, _, trained = finished(tmp_path, ("first", "encoder."))
    with pytest.raises(CheckpointError, match=r"backbone\..* has no weights: name the run that trained it"):
        validation_model(settings, trained, image_token_id=IMAGE_TOKEN, device=CPU)
    with pytest.raises(CheckpointError, match="has dit.other, which the model has not"):
        validation_model(settings, {"dit.other": torch.zeros(1)}, image_token_id=IMAGE_TOKEN, device=CPU)
    with pytest.raises(CheckpointError, match="queries has shape"):
        validation_model(settings, {"queries": torch.zeros(1)}, image_token_id=IMAGE_TOKEN, device=CPU)


def test_validations_need_checkpoints_and_held_out_data():
    every = {"every": 3, "sources": HELD}
    with pytest.raises(ConfigError, match="evaluate.every 3 is not a multiple of checkpoint.every 2"):
        recipe(evaluate=every)
    with pytest.raises(ConfigError, match="evaluate.every 4 asks for validations, and evaluate.sources is empty"):
        recipe(evaluate={"every": 4})
    evaluate = recipe(evaluate=every, checkpoint={"every": 3}).evaluate
    assert [done for done in range(1, 8) if evaluate.due(done)] == [3, 6]
