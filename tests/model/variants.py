"""Nano models for every objective and every kind of decoder, as changes to the nano preset."""

from typing import Any

from blip3o.config.model import ModelConfig
from tests.recipes import recipe

KL = {
    "kind": "kl",
    "image_size": 32,
    "latent_channels": 4,
    "channels": [8, 8, 16],
    "layers_per_block": 1,
    "groups": 4,
    "scaling": 0.6,
}
DC = {
    "kind": "dc",
    "image_size": 32,
    "latent_channels": 8,
    "channels": [8, 8, 16],
    "encoder_layers": [1, 1, 1],
    "decoder_layers": [1, 1, 1],
    "attention_levels": 1,
    "head_dim": 4,
    "scaling": 0.41407,
}
SDXL = {
    "kind": "sdxl",
    "autoencoder": KL,
    "null": "prompt",
    "channels": [16, 32],
    "layers_per_block": 1,
    "attention_layers": [0, 1],
    "heads": [2, 4],
    "groups": 4,
    "size_width": 8,
    "num_inference_steps": 4,
}
SANA = {
    "kind": "sana",
    "autoencoder": DC,
    "null": "black",
    "caption_width": 24,
    "layers": 2,
    "heads": 4,
    "head_dim": 8,
    "cross_heads": 2,
    "sampler": {"num_inference_steps": 4},
}
ONE_PASS = {"num_inference_steps": 1, "guidance_scale": 1.0, "condition_dropout": 0.0}

# Nano's encoder pools 4 x 4 patches to 4 tokens; 64 queries are upstream's.
VARIANTS: dict[str, dict[str, Any]] = {
    "clip_flow": {},
    "clip_flow normalised": {"normalize_latents": True},
    "clip_mse": {"objective": "clip_mse", "num_queries": 4, "sampler": ONE_PASS},
    "vae_flow kl": {"objective": "vae_flow", "decoder": {"kind": "autoencoder", "autoencoder": KL}},
    "vae_flow dc": {"objective": "vae_flow", "decoder": {"kind": "autoencoder", "autoencoder": DC}},
    "sdxl": {"decoder": SDXL},
    "sana": {"decoder": SANA},
}


def variant(name: str) -> dict[str, Any]:
    """The model section of a recipe."""
    return {"preset": "nano", **VARIANTS[name]}


def model_config(name: str) -> ModelConfig:
    """The same, validated."""
    return recipe(model=variant(name)).model
