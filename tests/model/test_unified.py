"""The unified model: composition, initialization, decoder and contrastive loss."""

import torch
from torch.nn import functional as F

from blip3o.model.decoders.pixel import to_pixels, to_unit
from blip3o.model.unified import PARTS, UnifiedModel, initialize
from tests.model.helpers import IMAGE_TOKEN, nano_config, nano_model


def build(parts):
    return UnifiedModel(nano_config(), image_token_id=IMAGE_TOKEN, parts=parts, max_length=24)


def test_initialisation_reaches_every_parameter():
    model = build(PARTS)
    kept = {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if name.endswith(("log_scale", "contrastive.bias"))
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in kept:
                parameter.fill_(float("nan"))
    initialize(model, 0)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_part_starts_from_the_same_numbers_whichever_others_are_built():
    single, together = build(("queries", "dit")), build(PARTS)
    initialize(single, 3)
    initialize(together, 3)
    everything = dict(together.named_parameters())
    assert all(torch.equal(parameter, everything[name]) for name, parameter in single.named_parameters())
    other = build(("queries", "dit"))
    initialize(other, 4)
    assert not torch.equal(single.queries, other.queries)


def test_an_untrained_dit_predicts_zero_and_an_untrained_decoder_the_coarse_image():
    model = build(PARTS)
    initialize(model, 0)
    states, latents = torch.randn(2, 64, 32), torch.randn(2, *model.latent_shape)
    assert torch.equal(
        model.dit(latents, torch.tensor([10.0, 900.0]), model.dit.condition(states)), torch.zeros_like(latents)
    )
    features = torch.randn(2, *model.latent_shape)
    decoded = model.decode(features, torch.randn(2, 3, 32, 32))
    assert torch.allclose(decoded, model.coarse(features), atol=1e-5)


def test_pixels_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)


def test_sampling_with_guidance_one_runs_only_the_conditional_branch():
    model = nano_model()
    states, noise = torch.randn(2, 64, 32), torch.randn(2, *model.latent_shape)
    evaluations = []
    handle = model.dit.register_forward_hook(lambda _, args, __: evaluations.append(len(args[0])))
    plain = model.sample_features(states, noise, num_inference_steps=4, guidance_scale=1.0)
    assert evaluations == [2] * 4
    guided = model.sample_features(states, noise, num_inference_steps=4, guidance_scale=3.0)
    handle.remove()
    assert evaluations == [2] * 4 + [4] * 4  # rows: conditional and null ones in one pass
    assert not torch.allclose(plain, guided)


def test_the_null_condition_is_zeros():
    model = nano_model()
    noise = torch.randn(1, *model.latent_shape)
    zeros = torch.zeros(1, 64, 32)
    # Under a zero condition both branches agree, so guidance has nothing to act on.
    assert torch.allclose(
        model.sample_features(zeros, noise, num_inference_steps=3, guidance_scale=5.0),
        model.sample_features(zeros, noise, num_inference_steps=3, guidance_scale=1.0),
        atol=1e-5,
    )


def test_contrastive_loss_is_siglips():
    model = nano_model(("encoder", "contrastive"))
    features = torch.randn(3, 4, 16)
    ids = torch.randint(1, 100, (3, 8))
    mask = torch.ones(3, 8, dtype=torch.long)
    images, texts = model.contrastive.image_vectors(features), model.contrastive.text(ids, mask)
    scale, bias = model.contrastive.log_scale.exp(), model.contrastive.bias
    expected = [
        sum(F.softplus(-(1 if i == j else -1) * (scale * images[i] @ texts[j] + bias)) for j in range(3))
        for i in range(3)
    ]
    assert torch.allclose(model.contrastive(features, ids, mask), torch.cat(expected), atol=1e-5)


def test_padding_of_a_caption_does_not_change_its_vector():
    model = nano_model(("encoder", "contrastive"))
    ids = torch.randint(1, 100, (1, 6))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], 1)
    mask = torch.tensor([[1] * 6 + [0] * 4])
    short = model.contrastive.text(ids, torch.ones_like(ids))
    assert torch.allclose(model.contrastive.text(padded, mask), short, atol=1e-5)
