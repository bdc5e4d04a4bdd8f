"""The SDXL-type and the SANA decoder: noise and samplers against derivations, conditions, published sizes."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from blip3o.config.decoder import SanaDecoderConfig, SdxlDecoderConfig
from blip3o.config.presets.decoders import SANA_512, SDXL_1024
from blip3o.model.decoders.autoencoder import to_images
from blip3o.model.decoders.latent import SanaDecoder, SdxlDecoder, signal_levels
from tests.model.helpers import randomise
from tests.model.variants import SANA, SDXL

FEATURES, TOKENS = 10, 4


def build(values, **changes):
    torch.manual_seed(0)
    kind, config = (SdxlDecoder, SdxlDecoderConfig) if values["kind"] == "sdxl" else (SanaDecoder, SanaDecoderConfig)
    module = kind(config.model_validate(values | changes), feature_dim=FEATURES).eval().requires_grad_(False)
    randomise(module, scale=0.1)
    return module


@pytest.fixture(scope="module")
def sdxl():
    return build(SDXL)


@pytest.fixture(scope="module")
def sana():
    return build(SANA)


@pytest.fixture(params=["sdxl", "sana"])
def decoder(request):
    return request.getfixturevalue(request.param)


def inputs(decoder, rows=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = decoder.config.autoencoder.latent_shape
    return (
        torch.randn(rows, TOKENS, FEATURES, generator=generator),
        torch.randn(rows, *shape, generator=generator),
        torch.randn(TOKENS, FEATURES, generator=generator),
    )


def published_scheduler():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def test_signal_levels_are_those_of_the_published_schedule():
    assert torch.allclose(signal_levels(), published_scheduler().alphas_cumprod, rtol=1e-4)
    assert signal_levels()[0].item() == pytest.approx(1 - 0.00085)


def test_training_noise_is_that_of_the_published_schedule(sdxl):
    latents, noise = torch.randn(2, 4, 4, 8, 8)
    uniform = torch.tensor([0.0, 0.1239, 0.5, 0.99999])
    noised = sdxl.noised(latents, noise, uniform)
    assert noised.time.tolist() == [0, 123, 500, 999]
    assert torch.allclose(noised.noisy, published_scheduler().add_noise(latents, noise, noised.time.long()), atol=1e-4)
    assert noised.target is noise


def test_training_noise_of_sana_is_the_flows(sana):
    latents, noise = torch.randn(2, 2, 8, 8, 8)
    noised = sana.noised(latents, noise, torch.tensor([0.0, 0.75]))
    assert noised.time.tolist() == [1000, 250]
    assert torch.equal(noised.noisy[0], noise[0])
    assert torch.allclose(noised.noisy[1], 0.75 * latents[1] + 0.25 * noise[1], atol=1e-6)
    assert torch.allclose(noised.target, noise - latents)


def guided(decoder, noisy, time, features, null, guidance):
    """Both branches each in a call of its own, under features and nothing prepared."""
    times = torch.full((noisy.shape[0],), float(time))
    conditional = decoder.predict(noisy.float(), times, decoder.condition(features)).double()
    unconditional = decoder.predict(noisy.float(), times, decoder.condition(null.expand_as(features))).double()
    return unconditional + guidance * (conditional - unconditional)


def test_sdxl_sampling_equals_the_formulas(sdxl):
    features, noise, null = inputs(sdxl)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    level = (1 - betas).cumprod(0)
    times = [1 + 250 * k for k in (3, 2, 1, 0)]  # leading spacing of 4 steps, offset 1
    sigmas = [math.sqrt((1 - level[t]) / level[t]) for t in times] + [0.0]
    x = noise.double() * math.sqrt(sigmas[0] ** 2 + 1)
    for index, time in enumerate(times):
        seen = x / math.sqrt(sigmas[index] ** 2 + 1)
        x = x + (sigmas[index + 1] - sigmas[index]) * guided(sdxl, seen, time, features, null, 3.0)
    expected = to_images(sdxl.vae, x.float())
    assert torch.allclose(sdxl(features, noise, null), expected, atol=1e-3, rtol=1e-3)


def test_sana_sampling_equals_the_formulas(sana):
    features, noise, null = inputs(sana)
    x = noise.double()
    for step in range(4):
        x = x - guided(sana, x, 1000 - 250 * step, features, null, 3.0) / 4
    expected = to_images(sana.vae, x.float())
    assert torch.allclose(sana(features, noise, null), expected, atol=1e-3, rtol=1e-3)


def test_the_unet_sees_the_tokens_their_mean_and_the_size(sdxl):
    features, noise, _ = inputs(sdxl)
    seen = []
    hook = sdxl.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    sdxl.predict(noise, torch.tensor([1.0, 500.0, 999.0]), sdxl.condition(features))
    hook.remove()
    assert torch.equal(seen[0]["encoder_hidden_states"], features)
    added = seen[0]["added_cond_kwargs"]
    assert torch.allclose(added["text_embeds"], features.sum(1) / TOKENS, atol=1e-6)
    assert added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 3


def test_the_connector_equals_its_formula(sana):
    features = inputs(sana)[0]
    w = {name: value.double() for name, value in sana.connector.state_dict().items()}
    x = features.double() @ w["0.weight"].T + w["0.bias"]
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    x = x @ w["2.weight"].T + w["2.bias"]
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w["3.weight"]
    assert torch.allclose(sana.condition(features)[0].double(), x, atol=1e-5)


def test_steps_are_evaluations_of_both_branches_at_once(decoder):
    features, noise, null = inputs(decoder)
    network = decoder.unet if isinstance(decoder, SdxlDecoder) else decoder.transformer
    rows = []
    hook = network.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    decoder(features, noise, null)
    decoder(features, noise, None)
    hook.remove()
    assert rows == [6] * 4 + [3] * 4


def test_the_connector_runs_once_for_a_decode_and_once_for_its_null_branch(sana):
    features, noise, null = inputs(sana)
    shapes = []
    hook = sana.connector.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape[0]))
    sana(features, noise, null)
    hook.remove()
    assert sorted(shapes) == [1, 3]


def test_without_a_null_branch_only_the_condition_counts(decoder):
    features, noise, null = inputs(decoder)
    unguided = build({"sdxl": SDXL, "sana": SANA}[decoder.config.kind], **_guidance(decoder, 1.0))
    unguided.load_state_dict(decoder.state_dict())
    assert torch.allclose(unguided(features, noise, null), decoder(features, noise, None), atol=1e-4)


def _guidance(decoder, value):
    return (
        {"guidance_scale": value}
        if decoder.config.kind == "sdxl"
        else {"sampler": {"num_inference_steps": 4, "guidance_scale": value}}
    )


def test_an_image_depends_on_its_own_features_and_noise(decoder):
    features, noise, null = inputs(decoder)
    images = decoder(features, noise, null)
    order = torch.tensor([2, 0, 1])
    # Convolutions may sum in another order for another place in the batch.
    assert torch.allclose(decoder(features[order], noise[order], null), images[order], atol=1e-4)
    changed = features.clone()
    changed[0, 2] += 1
    other = decoder(changed, noise, null)
    assert not torch.allclose(other[0], images[0], atol=1e-3)
    assert torch.allclose(other[1:], images[1:], atol=1e-4)


def test_published_decoders_have_their_size():
    """SDXL's U-Net has 2,567,463,684 parameters with 2048 channels of condition and 2816 of added embedding."""
    with torch.device("meta"):
        sdxl = SdxlDecoder(SdxlDecoderConfig.model_validate(SDXL_1024), feature_dim=2048)
        sana = SanaDecoder(SanaDecoderConfig.model_validate(SANA_512), feature_dim=1152)
    assert count(sdxl.unet) == 2_567_463_684 + (2048 + 6 * 256 - 2816) * 1280
    assert sdxl.unet.add_embedding.linear_1.in_features == 2048 + 1536  # 3328 with EVA's 1792
    assert count(sana.transformer) == 1_604_462_752
    assert count(sana.connector) == 1152 * 2304 + 2304 + 2304 * 2304 + 2304 + 2304


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (SdxlDecoderConfig, SDXL | {"heads": [2]}, "2 channels, 2 attention_layers and 1 heads"),
        (SdxlDecoderConfig, SDXL | {"channels": [8] * 6, "attention_layers": [0] * 6, "heads": [1] * 6}, "grid of 8"),
        (SanaDecoderConfig, SANA | {"cross_heads": 5}, "width 32 is not a multiple of 5 cross_heads"),
        (SanaDecoderConfig, SANA | {"patch_size": 3}, "patch_size 3 does not divide the latent grid 8"),
    ],
)
def test_impossible_sizes_are_refused(config, values, message):
    with pytest.raises(ValueError, match=message):
        config.model_validate(values)
