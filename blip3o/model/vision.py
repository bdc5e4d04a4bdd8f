"""The backbone's vision: images to the image tokens of a prompt.

Qwen2.5-VL has its own tower, which takes patches in its own order (`patchify`). Qwen3 and Llama read only text; they
are paired with a SigLIP2 tower and an MLP projector (BLIP3-o's jointly trained variant: 512-pixel images, 1024 tokens).

Legend: B batch, S image side, T language tokens of an image, H the language model's channels.
"""

from typing import Any

from torch import Tensor, nn

from blip3o.config.backbone import VisionConfig

TEMPORAL_PATCH = 2


def patchify(images_B3SS: Tensor, patch: int, merge: int) -> Tensor:
    """Images → rows of patches in Qwen's order: the merge x merge patches of one language token are adjacent.

    [B, 3, S, S] → [B · (S / patch)², 3 · 2 · patch²]; the frame is doubled along time.
    """
    batch, side = images_B3SS.shape[0], images_B3SS.shape[-1] // (patch * merge)
    x = images_B3SS.view(batch, 3, side, merge, patch, side, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    return x.expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1).reshape(batch * (side * merge) ** 2, -1)


def build_qwen_tower(vision: VisionConfig, *, out_width: int) -> nn.Module:
    """Qwen2.5-VL's vision tower with its merger, uninitialised: patches → the language model's `out_width` channels."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    return Qwen2_5_VisionTransformerPretrainedModel(
        Qwen2_5_VLVisionConfig(**qwen_vision_options(vision, out_width=out_width))
    )


def qwen_vision_options(vision: VisionConfig, *, out_width: int) -> dict[str, Any]:
    """The `vision_config` of a transformers Qwen2.5-VL. Blocks outside `full_layers` attend within windows."""
    every = tuple(range(vision.layers))
    options: dict[str, Any] = {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.heads,
        "out_hidden_size": out_width,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge,
        "fullatt_block_indexes": list(every if vision.window is None else vision.full_layers),
    }
    return options if vision.window is None else options | {"window_size": vision.window}


class SiglipVision(nn.Module):
    """A SigLIP2 tower of fixed resolution and its projector; names as in BLIP3-o's Qwen3-Siglip2 checkpoints."""

    def __init__(self, vision: VisionConfig, *, out_width: int) -> None:
        super().__init__()
        from transformers import SiglipVisionConfig, SiglipVisionModel

        config = SiglipVisionConfig(
            hidden_size=vision.width,
            intermediate_size=vision.mlp_width,
            num_hidden_layers=vision.layers,
            num_attention_heads=vision.heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            vision_use_head=False,
        )
        self.vision_tower = SiglipVisionModel(config)
        self.mm_projector = nn.Sequential(
            nn.Linear(vision.width, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] → language tokens [B, T, H]: the tower's last states after its norm, projected."""
        images = (pixels_BSS3.permute(0, 3, 1, 2) / 127.5 - 1).to(self.vision_tower.dtype)
        return self.mm_projector(self.vision_tower(pixel_values=images).last_hidden_state)
