"""Every objective and every kind of decoder trains: the loss equals its formula, has the right gradients, and falls."""

import pytest
import torch

from blip3o.errors import ConfigError
from blip3o.model.backbone import Prompt
from blip3o.model.decoders.pixel import to_unit
from blip3o.model.flow import interpolate
from blip3o.model.unified import initialize
from blip3o.train.objectives import build_stage_module, flow_draws
from blip3o.train.stages import freeze, stage_of
from tests.model.helpers import IMAGE_TOKEN, PAD, randomise
from tests.model.variants import VARIANTS, variant
from tests.recipes import recipe
from tests.train.test_objectives import batch, rows_of

LATENT_DECODERS = ("sdxl", "sana")
RUNS = [(name, "generate") for name in VARIANTS if name not in LATENT_DECODERS]
RUNS += [(name, "decoder") for name in ("clip_flow", *LATENT_DECODERS)]


def module_of(name, stage, *, wake=True, **sections):
    settings = recipe(model=variant(name), stage={"name": stage, **sections})
    module = build_stage_module(settings, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    if wake:
        randomise(module, scale=0.1)
    freeze(module.model, stage_of(settings))
    return module


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_gradients_reach_trainable_parameters_only(name, stage):
    module = module_of(name, stage)
    sum(module(batch(stage)).values()).backward()
    names = dict(module.model.named_parameters())
    assert any(parameter.requires_grad for parameter in names.values())
    for key, parameter in names.items():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    frozen = {key.split(".")[0] for key, parameter in names.items() if not parameter.requires_grad}
    assert not any(key.startswith("decoder.vae.") and p.requires_grad for key, p in names.items())
    assert frozen  # each of these stages uses a frozen part


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_sums_and_counts_add_up_over_a_split_batch(name, stage):
    module, whole = module_of(name, stage), batch(stage)
    halves = [rows_of(whole, slice(0, 1)), rows_of(whole, slice(1, None))]
    with torch.no_grad():
        full = module(whole)
        for term, value in full.items():
            assert torch.allclose(sum(module(half)[term] for half in halves), value, rtol=1e-4)
            assert sum(module.counts(half)[term] for half in halves) == module.counts(whole)[term]
    assert full.keys() == module.counts(whole).keys()


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_the_loss_of_one_batch_falls(name, stage):
    module, whole = module_of(name, stage, wake=False), batch(stage)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    counts, losses = module.counts(whole), []
    for _ in range(15):
        loss = sum(value / counts[term] for term, value in module(whole).items())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def states_of(module, whole):
    ids = whole["input_ids"]
    return module.model.query_states(Prompt(input_ids=ids, attention_mask=(ids != PAD).long()))


@torch.no_grad()
def test_clip_mse_is_the_squared_distance_to_a_linear_map():
    module, whole = module_of("clip_mse", "generate"), batch("generate")
    weight = module.model.head.project.weight.double()
    features = module.model.encoder(whole["encoder_pixels"]).double()
    expected = (features - states_of(module, whole).double() @ weight.T).square().sum()
    assert torch.allclose(module(whole)["mse"].double(), expected, rtol=1e-5)


@torch.no_grad()
def test_the_target_of_vae_flow_is_the_autoencoders_latents():
    module, whole = module_of("vae_flow kl", "generate", wake=False), batch("generate")
    encoded = module.model.decoder.vae.encode(to_unit(whole["decoder_pixels"])).latent_dist.mean * 0.6
    draws = flow_draws(whole["draw_key"], seed=0, kind="flow-0", shape=(64, 4), dropout=0.1)
    # A fresh DiT predicts zero, so the loss is the squared target.
    expected = (draws.noise - encoded.flatten(2).transpose(1, 2)).square().sum()
    assert torch.allclose(module(whole)["flow"], expected, rtol=1e-5)


@torch.no_grad()
def test_the_flow_trains_on_normalised_latents():
    module, whole = module_of("clip_flow normalised", "generate", wake=False), batch("generate")
    scale = module.model.latent_scale
    scale.mean.copy_(torch.linspace(-1, 1, 16))
    scale.std.copy_(torch.linspace(0.5, 2, 16))
    features = module.model.encoder(whole["encoder_pixels"])
    draws = flow_draws(whole["draw_key"], seed=0, kind="flow-0", shape=(4, 16), dropout=0.1)
    expected = (draws.noise - (features - scale.mean) / scale.std).square().sum()
    assert torch.allclose(module(whole)["flow"], expected, rtol=1e-5)
    assert torch.allclose(module.model.to_features(module.model.to_latents(features)), features, atol=1e-5)


@torch.no_grad()
def test_density_shift_and_weight_change_the_loss():
    flow = {"density": "logit_normal", "logit_mean": 0.5, "logit_std": 0.7, "min_snr": 2.0}
    shifted = {**variant("clip_flow"), "sampler": {"shift": 3.0}}
    settings = recipe(model=shifted, stage={"name": "generate", "flow": flow, "noise_draws": 2})
    module = build_stage_module(settings, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module)
    whole, model, total = batch("generate"), module.model, 0.0
    data, states = model.encoder(whole["encoder_pixels"]), states_of(module, whole)
    draws = [
        flow_draws(whole["draw_key"], seed=0, kind=f"flow-{n}", shape=model.latent_shape, dropout=0.1) for n in (0, 1)
    ]
    condition = model.dit.condition(states * draws[0].keep[:, None, None])
    for draw in draws:
        # The k-th thousandth of the draw whose logit is normal, shifted; a larger uniform draw is less noise.
        continuous = torch.sigmoid(0.5 - 0.7 * torch.special.ndtri(draw.uniform.double()))
        sigma = torch.ceil(1000 * continuous) / 1000
        sigma = 3 * sigma / (1 + 2 * sigma)
        velocity = model.dit(interpolate(data, draw.noise, sigma.float()), 1000 * sigma.float(), condition)
        weight = sigma**2 * (((1 - sigma) / sigma) ** 2).clamp(max=2.0)
        total += (weight[:, None, None] * (velocity - draw.noise + data).double().square()).sum()
    assert torch.allclose(module(whole)["flow"].double(), total, rtol=1e-4)


@pytest.mark.parametrize("name", LATENT_DECODERS)
@torch.no_grad()
def test_a_dropped_condition_is_a_black_image(name):
    values = variant(name)
    sampler = (
        {"sampler": {"num_inference_steps": 4, "condition_dropout": 0.5}}
        if name == "sana"
        else {"condition_dropout": 0.5}
    )
    settings = recipe(model={**values, "decoder": values["decoder"] | sampler}, stage={"name": "decoder"})
    module = build_stage_module(settings, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    initialize(module.model, 0)
    randomise(module, scale=0.1)
    rows = batch("decoder", rows=8)
    shape = settings.model.decoder.noise_shape
    keep = flow_draws(rows["draw_key"], seed=0, kind="pixels", shape=shape, dropout=0.5).keep
    assert 0 < keep.sum() < 8
    black = {**rows, "encoder_pixels": torch.zeros_like(rows["encoder_pixels"])}
    for row in range(8):
        shown, unseen = (module(rows_of(pixels, slice(row, row + 1)))["latents"] for pixels in (rows, black))
        assert torch.equal(shown, unseen) != keep[row].item()


@pytest.mark.parametrize(
    ("name", "stage", "message"),
    [
        ("vae_flow kl", {"name": "decoder"}, "stage 'decoder' has nothing to train"),
        ("sdxl", {"name": "encoder"}, "decoder.kind sdxl does not have"),
        ("clip_mse", {"name": "generate", "noise_draws": 2}, "clip_mse draws no noise"),
        ("clip_mse", {"name": "generate", "flow": {"min_snr": 5.0}}, "clip_mse draws no noise"),
    ],
)
def test_settings_without_effect_are_refused(name, stage, message):
    with pytest.raises(ConfigError, match=message):
        recipe(model=variant(name), stage=stage)
