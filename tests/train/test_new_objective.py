"""A new objective is one class in one file and one row of the table: all other code trains it unchanged."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3o.config.objectives import OBJECTIVES, ObjectiveSpec, Task, stage_names
from blip3o.errors import CheckpointError, ConfigError
from blip3o.train.checkpoint.state import identity
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.preflight.memory import count_parameters
from blip3o.train.stages import freeze, stage_of
from blip3o.train.validation.loss import held_out, validate
from tests.distributed import run_ranks
from tests.model.helpers import IMAGE_TOKEN, PAD
from tests.model.variants import VARIANTS, variant
from tests.recipes import recipe
from tests.train.engines import ROWS, STEPS, arrays, by_engine, by_hand, made, module_for
from tests.train.test_objectives import batch

STAGE = "colors"
ROW = ObjectiveSpec(
    stages=(STAGE,),
    task=Task.PIXELS,
    parts=("encoder", "coarse"),
    trainable=("coarse.*",),
    terms=("color",),
    implementation="tests.train.toy_objective:MaskedColor",
)


@pytest.fixture
def row(monkeypatch):
    """The table with the objective's row."""
    monkeypatch.setitem(OBJECTIVES, "masked_color", ROW)


def identity_of(values):
    return identity(values, data_sha256=["data"])


def train_and_resume(folder):
    """On a rank: a run, and the same from the checkpoint after its first step, which another recipe cannot take."""
    OBJECTIVES["masked_color"] = ROW
    values = made(world=1, stage=STAGE)
    runs = [by_engine(values, folder, identity=identity_of(values)) for _ in range(2)]
    other = values.model_copy(update={"stage": values.stage.model_copy(update={"weights": {"color": 0.5}})})
    with pytest.raises(CheckpointError, match="made with another recipe"):
        by_engine(other, folder, identity=identity_of(other))
    return runs


@pytest.mark.usefixtures("row")
def test_it_trains_and_resumes_by_the_loop_and_the_engine(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    [(run, again)] = run_ranks(train_and_resume, tmp_path, folder, world=1)
    plain = by_hand(made(world=1, stage=STAGE))
    assert len(run["rows"]) == STEPS
    for ours, expected in zip(run["rows"], plain["rows"], strict=True):
        assert ours["loss"] == ours["loss/color"] == pytest.approx(expected["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
        assert ours["flops/encoder"] > 0
        assert ours["flops/coarse"] > 0
    assert {name.split(".")[0] for name in run["weights"]} == {"coarse"}
    assert run["rows"][-1]["loss"] != run["rows"][0]["loss"]
    assert all(torch.allclose(run["weights"][name], value, atol=5e-6) for name, value in plain["weights"].items())
    assert [it["loss"] for it in again["rows"]] == [it["loss"] for it in run["rows"][1:]]
    assert all(torch.equal(again["weights"][name], value) for name, value in run["weights"].items())


@pytest.mark.usefixtures("row")
def test_its_loss_is_a_mean_over_its_counts_and_its_flops_equal_torchs_count():
    values = made(world=1, stage=STAGE)
    module, whole = module_for(values), batch(STAGE, rows=ROWS)
    pixels = ROWS * 3 * 32 * 32
    assert module.counts(whole) == {"color": pixels}
    # Attention as its matrix products, which the counter sees exactly.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(whole)["color"].backward()
    work = FlopsMeter(values, image_token_id=IMAGE_TOKEN, pad_id=PAD)(whole)
    assert work["flops/encoder"] + work["flops/coarse"] == counter.get_total_flops()
    assert count_parameters(values).trained == sum(p.numel() for p in module.model.coarse.parameters())
    unseen = held_out(values)
    figures = validate(unseen, module, [arrays(0, STAGE)], pad_id=PAD)
    assert figures.keys() == {"validation/color", "validation/loss"}
    assert figures["validation/color"] == pytest.approx(float(module(whole)["color"].detach()) / pixels)


@pytest.mark.usefixtures("row")
def test_recipes_are_checked_by_its_row():
    assert stage_names()[-1] == STAGE
    assert recipe(stage={"name": STAGE, "weights": {"color": 0.5}}).terms == ("color",)
    with pytest.raises(ConfigError, match="stage.weights names flow: .* the terms color"):
        recipe(stage={"name": STAGE, "weights": {"flow": 1.0}})
    with pytest.raises(ConfigError, match=f"stage.lora adapts the backbone, which stage '{STAGE}' does not have"):
        recipe(stage={"name": STAGE, "lora": {"rank": 2}})
    with pytest.raises(ConfigError, match="does not train only on them"):
        recipe(stage={"name": STAGE}, data={"features": "cache"})


def test_without_its_row_it_is_unknown(monkeypatch):
    with pytest.raises(ConfigError, match=f"'stage.name' = '{STAGE}': known are encoder, understand, generate, "):
        recipe(stage={"name": STAGE})
    monkeypatch.setitem(OBJECTIVES, "masked_color", replace(ROW, trainable=("decoder.*",)))
    with pytest.raises(ConfigError, match=r"stage trains 'decoder.\*', but the model has no such parameter"):
        module_for(made(world=1, stage=STAGE))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_rows_name_the_terms_of_their_class(name):
    """In the order in which reports show them; other parts are frozen."""
    spec = OBJECTIVES[name]
    selected = {"vae_flow": "vae_flow kl"}.get(spec.selected_by, spec.selected_by)
    model = variant(selected if selected in VARIANTS else "clip_flow")
    values = recipe(model=model, stage={"name": spec.stages[0]})
    assert values.objective is spec
    module, whole = module_for(values), batch(spec.stages[0])
    assert tuple(module.counts(whole)) == tuple(module(whole)) == spec.terms
    assert set(module.held_out(whole)[0]) == set(spec.terms)
    assert freeze(module.model, stage_of(values))
