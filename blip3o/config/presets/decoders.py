"""The published decoders at full size, for presets: BLIP3-o's SDXL-type decoder and its SigLIP2 → SANA decoder.

Numbers are those of the published configurations (Emu2-Gen's U-Net, SDXL's and SANA's autoencoders, SANA-1.6B at 512).
"""

from typing import Any

_SDXL_AUTOENCODER: dict[str, Any] = {
    "kind": "kl",
    "image_size": 1024,
    "latent_channels": 4,
    "channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "groups": 32,
    "scaling": 0.13025,
}

# Cross-attention over 64 EVA features; 2.53 billion parameters at 1792 channels.
SDXL_1024: dict[str, Any] = {
    "kind": "sdxl",
    "autoencoder": _SDXL_AUTOENCODER,
    "null": "prompt",
    "channels": [320, 640, 1280],
    "layers_per_block": 2,
    "attention_layers": [0, 2, 10],
    "heads": [5, 10, 20],
    "groups": 32,
    "size_width": 256,
    "num_inference_steps": 50,
    "guidance_scale": 3.0,
}

_SANA_AUTOENCODER: dict[str, Any] = {
    "kind": "dc",
    "image_size": 512,
    "latent_channels": 32,
    "channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers": [2, 2, 2, 3, 3, 3],
    "decoder_layers": [3, 3, 3, 3, 3, 3],
    "attention_levels": 3,
    "head_dim": 32,
    "scaling": 0.41407,
}

# Over 64 pooled SigLIP2 features through the connector; 1.6 billion parameters.
SANA_512: dict[str, Any] = {
    "kind": "sana",
    "autoencoder": _SANA_AUTOENCODER,
    "null": "black",
    "caption_width": 2304,
    "layers": 20,
    "heads": 70,
    "head_dim": 32,
    "cross_heads": 20,
    "mlp_ratio": 2.5,
    "sampler": {"num_inference_steps": 30, "guidance_scale": 3.0},
}
