"""The work of a step by formula against torch's counter over the real step, forward and backward, of every stage."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3o.data.text.templates import IGNORE
from blip3o.runs.rows import FLOPS, USEFUL_FLOPS, with_rates
from blip3o.train.metrics.meter import FlopsMeter
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from tests.model.families import FAMILIES, QWEN_VISION
from tests.model.helpers import IMAGE_TOKEN, PAD
from tests.model.variants import VARIANTS, variant
from tests.recipes import recipe
from tests.train.test_objectives import ROWS, batch, rows_of

LATENT_DECODERS = ("sdxl", "sana")
STEPS = [(name, "generate") for name in VARIANTS if name not in LATENT_DECODERS]
STEPS += [("clip_flow", stage) for stage in ("encoder", "understand", "instruct", "joint", "decoder")]
STEPS += [(name, "decoder") for name in LATENT_DECODERS]


def counted(made, whole):
    """Torch's count for a micro-batch's step, with attention as matrix products, which it counts exactly."""
    module = build_stage_module(made, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    freeze(module.model, stage_of(made))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        sum(module(whole).values()).backward()
    return counter.get_total_flops()


def metered(made, whole):
    return FlopsMeter(made, image_token_id=IMAGE_TOKEN, pad_id=PAD)(whole)


def total(work):
    return sum(value for name, value in work.items() if name.startswith(FLOPS))


@pytest.mark.parametrize(("name", "stage"), STEPS)
def test_the_parts_of_a_step_equal_torchs_count(name, stage):
    draws = 3 if stage == "generate" and name != "clip_mse" else 1
    made = recipe(model=variant(name), stage={"name": stage, "noise_draws": draws})
    whole = batch(stage)
    assert total(metered(made, whole)) == counted(made, whole)


def with_backbone(config, stage):
    """A step of a backbone, and its micro-batch: for a stage with images, as many image tokens as its tower makes."""
    sizes = config.model_dump() | {"vocab_size": 1024}
    made, whole = recipe(model={"backbone": sizes}, stage={"name": stage}), batch(stage)
    if stage == "understand":
        ids = whole["input_ids"].repeat(1, 2)
        ids[ids == IMAGE_TOKEN] = 10
        ids[:, 1 : 1 + config.image_tokens] = IMAGE_TOKEN
        whole |= {"input_ids": ids, "labels": whole["labels"].repeat(1, 2)}
    return made, whole


@pytest.mark.parametrize(
    ("family", "stage"),
    [(name, "generate") for name in sorted(FAMILIES)] + [(name, "understand") for name in ("qwen2_5_vl", "qwen3")],
)
def test_every_family_of_backbones_is_counted(family, stage):
    made, whole = with_backbone(FAMILIES[family], stage)
    assert total(metered(made, whole)) == counted(made, whole)


def test_windows_that_do_not_fill_the_image_are_smaller_at_its_edge():
    vision = QWEN_VISION.model_copy(update={"window": 24})  # three merged patches of four
    made, whole = with_backbone(FAMILIES["qwen2_5_vl"].model_copy(update={"vision": vision}), "understand")
    assert total(metered(made, whole)) == counted(made, whole)


def test_features_in_the_batch_need_no_encoder():
    made = recipe(stage={"name": "generate"})
    whole = batch("generate")
    online, cached = metered(made, whole), metered(made, whole | {"features": whole["draw_key"]})
    assert set(online) - set(cached) == {"flops/encoder"}
    assert cached == {name: value for name, value in online.items() if name != "flops/encoder"}


def test_tokens_exclude_padding_and_logits_are_those_of_supervised_tokens():
    made = recipe(stage={"name": "understand"})
    whole = batch("understand")
    work = metered(made, whole)
    assert work["tokens"] == ROWS * 16 - 4
    fewer = whole | {"labels": whole["labels"].clone()}
    fewer["labels"][1:] = IGNORE
    logits = {name: metered(made, it)["flops/logits"] for name, it in (("all", whole), ("one", fewer))}
    assert logits["all"] == 7 * logits["one"]  # 3 x 8 + 4 positions, and 4
    assert "tokens" not in metered(recipe(stage={"name": "decoder"}), {"draw_key": whole["draw_key"]})


def useful(work):
    """The useful operations of each part: all of them, where a part has no padding."""
    names = [name.removeprefix(FLOPS) for name in work if name.startswith(FLOPS)]
    return {name: work.get(USEFUL_FLOPS + name, work[FLOPS + name]) for name in names}


def unpadded(whole):
    """One row without its padding."""
    texts = {"input_ids": ("input_ids", "labels"), "draw_ids": ("draw_ids",)}
    columns = {name: whole[ids][0] != PAD for ids, names in texts.items() if ids in whole for name in names}
    return {name: value[:, columns[name]] if name in columns else value for name, value in whole.items()}


@pytest.mark.parametrize("stage", ["encoder", "understand", "generate", "instruct", "joint"])
def test_useful_operations_are_those_that_torch_counts_without_padding(stage):
    made, row = recipe(stage={"name": stage}), rows_of(batch(stage), slice(0, 1))
    if stage == "joint":
        row["draw_ids"][:, 7:] = PAD
    needed, work = counted(made, unpadded(row)), metered(made, row)
    assert sum(useful(work).values()) == needed < total(work)
    rates = with_rates({**work, "samples": 1, "seconds": 2.0}, peak_flops=needed)
    assert rates["mfu"] == pytest.approx(0.5)
    assert rates["padding"] == pytest.approx(1 - needed / total(work))
    wider = row | {name: torch.nn.functional.pad(row[name], (0, 8), value=PAD) for name in ("input_ids",)}
    if stage in ("encoder", "generate", "instruct"):  # more padding makes no step more useful
        assert useful(metered(made, wider)) == useful(work)


@pytest.mark.parametrize("stage", ["understand", "generate", "joint"])
def test_useful_operations_add_up_over_the_rows_of_a_batch(stage):
    made, whole = recipe(stage={"name": stage}), batch(stage, rows=6)
    rows = [useful(metered(made, rows_of(whole, slice(row, row + 1)))) for row in range(6)]
    together = useful(metered(made, whole))
    assert together == {name: sum(row[name] for row in rows) for name in together}
    prepared = build_stage_module(made, image_token_id=IMAGE_TOKEN, pad_id=PAD).prepare(whole)
    assert metered(made, prepared) == metered(made, whole)


def test_all_ranks_count_the_same_parts_for_any_batch():
    """Ranks sum parts by position: if one rank left a part out, the run would fail or add unrelated numbers."""
    made, whole = recipe(stage={"name": "joint"}), batch("joint")
    nothing_asked = whole | {"labels": torch.full_like(whole["labels"], IGNORE)}
    nothing_drawn = whole | {"draws": torch.zeros_like(whole["draws"])}
    parts = list(metered(made, whole))
    assert list(metered(made, nothing_asked)) == list(metered(made, nothing_drawn)) == parts
