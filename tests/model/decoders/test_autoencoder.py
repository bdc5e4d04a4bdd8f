"""Autoencoders: scaled latents of both kinds equal those of diffusers; sizes of the published ones."""

import pytest
import torch
from pydantic import TypeAdapter

from blip3o.config.decoder import AutoencoderConfig
from blip3o.config.presets.decoders import SANA_512, SDXL_1024
from blip3o.model.decoders.autoencoder import build_autoencoder, to_images, to_latents
from tests.model.helpers import randomise
from tests.model.variants import DC, KL, model_config


def config(values):
    return TypeAdapter(AutoencoderConfig).validate_python(values)


@pytest.fixture(scope="module", params=[KL, DC], ids=["kl", "dc"])
def autoencoder(request):
    torch.manual_seed(0)
    module = build_autoencoder(config(request.param)).eval()
    randomise(module, scale=0.1)
    return request.param, module


def test_latents_are_scaled_and_have_the_shape_of_the_config(autoencoder):
    values, module = autoencoder
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    latents = to_latents(module, images)
    assert tuple(latents.shape[1:]) == config(values).latent_shape
    with torch.no_grad():
        encoded = module.encode(images)
    plain = encoded.latent_dist.mean if values["kind"] == "kl" else encoded.latent
    assert torch.allclose(latents, plain * values["scaling"], atol=1e-6)
    assert torch.equal(latents, to_latents(module, images))  # no draw: a target is a function of its image


def test_decoding_undoes_the_scaling(autoencoder):
    values, module = autoencoder
    latents = torch.randn(2, *config(values).latent_shape)
    with torch.no_grad():
        expected = torch.cat([module.decode(row / values["scaling"]).sample for row in latents.split(1)])
        assert torch.allclose(to_images(module, latents), expected, atol=1e-6)
    assert expected.shape == (2, 3, 32, 32)


def test_tokens_of_latents_are_row_major():
    from blip3o.model.decoders.autoencoder import AutoencoderDecoder

    module = AutoencoderDecoder(model_config("vae_flow kl").decoder).eval()
    images = torch.rand(1, 3, 32, 32)
    latents = to_latents(module.vae, images)
    tokens = module.encode(images)
    assert tokens.shape == (1, 64, 4)
    assert torch.equal(tokens[0, 8 * 3 + 5], latents[0, :, 3, 5])
    with torch.no_grad():
        assert torch.allclose(module(tokens, torch.empty(1, 0)), to_images(module.vae, latents), atol=1e-6)


@pytest.mark.parametrize(("decoder", "parameters"), [(SDXL_1024, 83_653_863), (SANA_512, 312_250_275)])
def test_published_autoencoders_have_their_size(decoder, parameters):
    with torch.device("meta"):
        module = build_autoencoder(config(decoder["autoencoder"]))
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (KL | {"image_size": 33}, "image_size 33 is not a multiple"),
        (DC | {"encoder_layers": [1, 1]}, "3 channels, 2 encoder_layers"),
        (DC | {"attention_levels": 4}, "4 attention_levels"),
    ],
)
def test_impossible_sizes_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config(values)
