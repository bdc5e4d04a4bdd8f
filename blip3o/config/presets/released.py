"""The released model at full size, part by part, for presets.

Numbers are those of the published configurations: BLIP3-o's 4B and 8B (one DiT, one target, one pixel decoder; they
differ in the Qwen2.5-VL that reads the prompt), and SigLIP2-so400m, the target of BLIP3-o's SANA decoder.
"""

from typing import Any

from blip3o.config.presets.decoders import SANA_512, SDXL_1024

# EVA-CLIP-E/14+ at 448 pixels: 1024 patches, pooled to 64 tokens of 1792.
EVA_448: dict[str, Any] = {
    "kind": "eva_clip",
    "image_size": 448,
    "patch_size": 14,
    "width": 1792,
    "layers": 64,
    "heads": 16,
    "mlp_width": 15360,
    "pool": 4,
}

# so400m-patch16-512 up to `hidden_states[-2]`, so 26 of its 27 blocks: 1024 patches, pooled to 64 tokens of 1152.
SIGLIP2_512: dict[str, Any] = {
    "kind": "siglip2",
    "resize": {"mode": "stretch", "resample": "bilinear"},
    "image_size": 512,
    "patch_size": 16,
    "width": 1152,
    "layers": 26,
    "heads": 16,
    "mlp_width": 4304,
    "pool": 4,
}

# Rows of the embedding: Qwen2.5's 151,665 tokens, [IMG], [/IMG], <image>.
_QWEN: dict[str, Any] = {
    "family": "qwen2_5_vl",
    "vocab_size": 151668,
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
    "vision": {
        "kind": "qwen2_5_vl",
        "resize": {"mode": "stretch"},
        "image_size": 448,
        "patch_size": 14,
        "merge": 2,
        "width": 1280,
        "layers": 32,
        "heads": 16,
        "mlp_width": 3420,
        "window": 112,
        "full_layers": [7, 15, 23, 31],
    },
}
QWEN_3B: dict[str, Any] = _QWEN | {
    "hidden_size": 2048,
    "layers": 36,
    "heads": 16,
    "kv_heads": 2,
    "mlp_width": 11008,
    "tied": True,
}
QWEN_7B: dict[str, Any] = _QWEN | {
    "hidden_size": 3584,
    "layers": 28,
    "heads": 28,
    "kv_heads": 4,
    "mlp_width": 18944,
    "tied": False,
}

# Qwen3-4B behind SigLIP2-so400m-patch16-512, whose 1024 tokens it reads one by one. Rows of the embedding: Qwen3's
# 151,669 tokens, and three more for images.
QWEN3_4B_SIGLIP2: dict[str, Any] = {
    "family": "qwen3",
    "vocab_size": 151672,
    "hidden_size": 2560,
    "layers": 36,
    "heads": 32,
    "kv_heads": 8,
    "head_width": 128,
    "mlp_width": 9728,
    "norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tied": True,
    "vision": {
        "kind": "siglip2",
        "resize": {"mode": "stretch", "resample": "bilinear"},
        "image_size": 512,
        "patch_size": 16,
        "merge": 1,
        "width": 1152,
        "layers": 27,
        "heads": 16,
        "mlp_width": 4304,
    },
}

# NextDiT; 4864 = two thirds of four times the width, rounded up to a multiple of 256.
NEXT_DIT: dict[str, Any] = {
    "patch_size": 1,
    "dim": 1792,
    "layers": 24,
    "heads": 28,
    "kv_heads": 28,
    "mlp_width": 4864,
    "time_width": 1024,
    "norm_eps": 1e-5,
}

_SAMPLER: dict[str, Any] = {"num_inference_steps": 30, "guidance_scale": 3.0, "condition_dropout": 0.1}


def _model(backbone: dict[str, Any], encoder: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_queries": 64,
        "query_std": 1.0,
        "objective": "clip_flow",
        "encoder": encoder,
        "backbone": backbone,
        "dit": NEXT_DIT,
        "decoder": decoder,
        "sampler": _SAMPLER,
    }


RELEASED: dict[str, dict[str, Any]] = {
    "4b": _model(QWEN_3B, EVA_448, SDXL_1024),
    "8b": _model(QWEN_7B, EVA_448, SDXL_1024),
    # The variant that is trained from its parts, whose weights were not released.
    "qwen3-siglip2": _model(QWEN3_4B_SIGLIP2, EVA_448, SDXL_1024),
    # Not released as a whole: the 4B's generator for the features of the published SigLIP2 → SANA decoder.
    "4b-sana": _model(QWEN_3B, SIGLIP2_512, SANA_512),
}
