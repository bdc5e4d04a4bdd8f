"""Draws made ahead: those of the loss, for every objective, whatever the batch; and then the loss makes none itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blip3o.config.objectives import OBJECTIVES
from blip3o.model.unified import initialize
from blip3o.train import objectives
from blip3o.train.objectives import flow_draws, to_device
from blip3o.train.objectives.base import HOST_COLUMNS
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.model.variants import VARIANTS, variant
from tests.recipes import recipe
from tests.train.test_objectives import batch, rows_of

SEED, HELD_SEED = 11, 12
FEATURE_NOISE = ("features", SEED, None, 0.0)
# By objective: kind, seed, shape (None for that of the latents) and dropout of each draw in its loss.
FLOW = [(f"flow-{number}", SEED, None, 0.1) for number in range(2)]
DRAWS = {
    "contrastive": [FEATURE_NOISE],
    "text": [],
    "clip_flow": FLOW,
    "clip_mse": [],
    "vae_flow": FLOW,
    "joint_clip_flow": FLOW,
    "joint_clip_mse": [],
    "joint_vae_flow": FLOW,
    "pixel_decoder": [("pixels", SEED, (3, 32, 32), 0.0), FEATURE_NOISE],
    "sdxl_decoder": [("pixels", SEED, "decoder", 0.1)],
    "sana_decoder": [("pixels", SEED, "decoder", 0.1)],
}
VALIDATED = [("validation", HELD_SEED, None, 0.0)]


def stage_for(name):
    """A nano module of an objective with every option that draws, and a micro-batch of its stage."""
    spec = OBJECTIVES[name]
    selected = {"vae_flow": "vae_flow kl"}.get(spec.selected_by, spec.selected_by)
    stage = {"name": spec.stages[0]}
    if any(kind == "features" for kind, *_ in DRAWS[name]):
        stage["feature_noise"] = 0.5
    if any(kind == "flow-1" for kind, *_ in DRAWS[name]):
        stage["noise_draws"] = 2
    values = recipe(
        model=variant(selected if selected in VARIANTS else "clip_flow"),
        stage=stage,
        run={"seed": SEED},
        evaluate={"seed": HELD_SEED},
    )
    module = objectives.build_stage_module(values, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    return values, module, batch(spec.stages[0])


def columns(prepared):
    return {name: value for name, value in prepared.items() if "/" in name}


def expected(values, draws, keys):
    """The columns of draws that are made one after the other, from the keys."""
    shapes = {None: values.model.latent_shape, "decoder": values.model.decoder.noise_shape}
    found = {}
    for kind, seed, shape, dropout in draws:
        made = flow_draws(keys, seed=seed, kind=kind, shape=shapes.get(shape, shape), dropout=dropout)
        found |= {f"{kind}/{part}": getattr(made, part) for part in ("noise", "uniform", "keep")}
    return found


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_prepared_draws_are_those_of_the_samples_in_any_batch(name):
    values, module, whole = stage_for(name)
    prepared = module.prepare(whole)
    assert same(columns(prepared), expected(values, DRAWS[name], whole["draw_key"]))
    turned = torch.tensor([2, 0, 3, 1])
    assert same(columns(module.prepare(rows_of(whole, turned))), columns(rows_of(prepared, turned)))
    alone = [module.prepare(rows_of(whole, slice(row, row + 1))) for row in range(4)]  # as by another rank
    assert all(same(columns(one), columns(rows_of(prepared, slice(row, row + 1)))) for row, one in enumerate(alone))
    assert same(module.prepare(prepared), prepared)  # once is enough
    assert all(torch.equal(prepared[column], value) for column, value in whole.items())
    held = module._objective.prepare(whole, held_out=True)
    generates = OBJECTIVES[name].generation and OBJECTIVES[name].generation.draws_noise
    assert same(columns(held), expected(values, VALIDATED if generates else DRAWS[name], whole["draw_key"]))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_loss_of_a_prepared_batch_is_that_of_the_batch_and_draws_nothing(name, monkeypatch):
    _, module, whole = stage_for(name)
    initialize(module.model, 0)
    randomise(module, scale=0.1)
    prepared = module.prepare(whole)
    held = module._objective.prepare(whole, held_out=True)
    with torch.no_grad():
        loss, unseen = module(whole), module.held_out(whole)

        def refused(*key):
            raise AssertionError(f"the loss draws {key}")

        monkeypatch.setattr("blip3o.train.objectives.draws.torch_generator", refused)
        assert same(module(prepared), loss)
        sums, counts = module.held_out(held)
    assert same(sums, unseen[0]) and counts == unseen[1]
    assert module.counts(prepared) == module.counts(whole)


def test_what_the_cpu_must_know_stays_there():
    """Draw keys, rows and lengths decide shapes: read from a GPU, they would wait for all that was launched."""
    _, module, whole = stage_for("joint_clip_flow")
    whole["draw_ids"][2, 9:] = PAD
    prepared = module.prepare(whole)
    assert prepared["lengths"].tolist() == [12, 16, 16, 16]
    assert prepared["draw_lengths"].tolist() == [16, 16, 9, 16]
    assert prepared["asked"].tolist() == [True, True, False, True]
    moved = to_device(prepared, torch.device("meta"))
    stayed = {name for name, tensor in moved.items() if tensor.device.type == "cpu"}
    assert stayed == {"draw_key", "draws", "asked", "lengths", "draw_lengths"} == HOST_COLUMNS
    understood, generated = objectives.split_tasks(moved)  # no value of a column on the device is read
    assert understood["lengths"].tolist() == [12, 16, 16]
    assert generated["lengths"].tolist() == [16, 9, 16]
    assert generated["flow-1/noise"].shape == (3, 4, 16)


class Reads(TorchDispatchMode):
    """Records the operations whose result depends on values in a way that makes the CPU wait for a GPU."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found, self.off = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if not self.off and (name in self.WAIT or masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "text" not in (name, *OBJECTIVES[name].combines)])
def test_nothing_is_read_back_between_the_backbone_and_the_end_of_the_backward_pass(name, monkeypatch):
    """A GPU would have to finish all that was launched before, and then stand idle until the next launch."""
    _, module, whole = stage_for(name)
    initialize(module.model, 0)
    prepared, states = module.prepare(whole), module.model.query_states

    def unwatched(prompt):
        reads.off = True
        made = states(prompt)
        reads.off = False
        return made

    monkeypatch.setattr(module.model, "query_states", unwatched)
    with Reads() as reads:
        sum(module(prepared).values()).backward()
        assert not reads.found
        whole["draw_key"][whole["draw_key"] > 0].sum().item()
    assert reads.found == ["index", "_local_scalar_dense"]  # and it would have been noticed
