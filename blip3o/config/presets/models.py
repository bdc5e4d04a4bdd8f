"""Model sizes by name. A recipe says `model: {preset: tiny}` and may override single fields next to it."""

from typing import Any

from blip3o.config.presets.decoders import SDXL_1024
from blip3o.config.presets.released import EVA_448, NEXT_DIT, QWEN_7B, RELEASED

TINY: dict[str, Any] = {
    "num_queries": 64,
    "query_std": 0.12,
    "encoder": {
        "image_size": 64,
        "patch_size": 8,
        "width": 64,
        "layers": 3,
        "heads": 4,
        "mlp_width": 256,
        "pool": 1,
        "feature_dim": 8,
        "normalize": True,
    },
    "text_tower": {"width": 64, "layers": 1, "heads": 4, "embed_dim": 64},
    "backbone": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 256,
        "embedding_std": 0.09,
        "vision": {
            "image_size": 64,
            "patch_size": 8,
            "merge": 2,
            "width": 128,
            "layers": 2,
            "heads": 4,
            "mlp_width": 256,
        },
    },
    "dit": {
        "patch_size": 2,
        "dim": 128,
        "layers": 4,
        "heads": 4,
        "kv_heads": 4,
        "mlp_width": 384,
        "time_width": 128,
        "gate_init": 0.5,
    },
    "decoder": {"kind": "pixel", "image_size": 64, "fold": 4, "coarse_width": 256, "channels": [48, 64]},
    "sampler": {"steps": 20, "guidance": 3.0},
}

# The smallest model with every part of the real one: for tests that check wiring, not quality.
NANO: dict[str, Any] = {
    "num_queries": 64,
    "encoder": {
        "image_size": 32,
        "patch_size": 8,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "mlp_width": 32,
        "pool": 2,
        "normalize": True,
    },
    "text_tower": {"width": 16, "layers": 1, "heads": 2, "embed_dim": 16},
    "backbone": {
        "vocab_size": 1024,
        "hidden_size": 32,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "mlp_width": 64,
        "vision": {
            "image_size": 32,
            "patch_size": 8,
            "merge": 2,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "mlp_width": 32,
        },
    },
    "dit": {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 2, "mlp_width": 64, "time_width": 32},
    "decoder": {"kind": "pixel", "image_size": 32, "coarse_width": 32, "channels": [16], "steps": 2},
    "sampler": {"steps": 4, "guidance": 3.0},
}

# The real geometry (448 pixels, windows, 8 x 8 features, four levels of latents) with everything narrow and shallow: to
# see the shapes of the released model move on a laptop.
DEBUG: dict[str, Any] = {
    "num_queries": 64,
    "encoder": EVA_448 | {"width": 32, "layers": 2, "heads": 2, "mlp_width": 96},
    "backbone": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "mlp_width": 128,
        "norm_eps": 1e-6,
        "vision": QWEN_7B["vision"] | {"width": 64, "layers": 4, "heads": 4, "mlp_width": 96, "full_layers": [3]},
    },
    "dit": NEXT_DIT | {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 4, "mlp_width": 192, "time_width": 64},
    "decoder": SDXL_1024
    | {
        "autoencoder": SDXL_1024["autoencoder"] | {"image_size": 64, "channels": [8, 8, 16, 16], "groups": 4},
        "channels": [16, 32, 32],
        "attention_layers": [0, 1, 2],
        "heads": [2, 4, 4],
        "groups": 4,
        "size_width": 16,
        "steps": 4,
    },
    "sampler": {"steps": 4, "guidance": 3.0},
}

PRESETS: dict[str, dict[str, Any]] = {"tiny": TINY, "nano": NANO, "debug": DEBUG, **RELEASED}
