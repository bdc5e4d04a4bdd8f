"""The backbone's vision: images to the image tokens of a prompt.

Qwen2.5-VL has its own tower (`QwenVision`), which takes patches in its own order (`patchify`). Qwen3 and Llama read
only text; they are paired with a SigLIP2 tower and an MLP projector (BLIP3-o's jointly trained variant: 512-pixel
images, 1024 tokens).

Legend: B batch, S image side, P patches and T language tokens of an image, C the tower's channels, D those of one of
its heads, H the language model's channels.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.backbone import VisionConfig
from blip3o.model.layers import attend

TEMPORAL_PATCH = 2
NORM_EPS = 1e-6


def patchify(images_B3SS: Tensor, patch: int, merge: int) -> Tensor:
    """Images → rows of patches in Qwen's order: the merge x merge patches of one language token are adjacent.

    [B, 3, S, S] → [B · (S / patch)², 3 · 2 · patch²]; the frame is doubled along time.
    """
    batch, side = images_B3SS.shape[0], images_B3SS.shape[-1] // (patch * merge)
    x = images_B3SS.view(batch, 3, side, merge, patch, side, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    return x.expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1).reshape(batch * (side * merge) ** 2, -1)


@dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """How one image's patches lie in memory, so that every window of attention is one piece.

    `order` [T] lists the language tokens by window, and `inverse` [T] undoes it. `groups` are (windows, patches of
    each): all are of one size, but for those at the edge of a side that the window does not divide. `cos` and `sin`
    [P, D / 2], fp32, are of the patches' rotary angles, in this order.
    """

    order: Tensor
    inverse: Tensor
    groups: tuple[tuple[int, int], ...]
    cos: Tensor
    sin: Tensor


@functools.cache
def window_layout(vision: VisionConfig, device: torch.device) -> WindowLayout:
    """The layout for a tower's images, all of one size: computed once, on the CPU, and kept.

    As in `layers.rotary_grid`, the tables are no buffers, which would follow the tower to bf16.
    """
    grid, merge = vision.grid, vision.merge
    window = grid if vision.window is None else vision.window // merge // vision.patch_size
    with torch.inference_mode(mode=False), torch.device("cpu"):
        tokens = torch.arange(grid * grid).view(grid, grid)
        starts = range(0, grid, window)
        windows = [
            tokens[row : row + window, column : column + window].flatten() for row in starts for column in starts
        ]
        windows.sort(key=len, reverse=True)
        order = torch.cat(windows)
        sizes = Counter(len(one) * merge**2 for one in windows)
        angles = _axial_angles(vision)[order].flatten(0, 1)
        return WindowLayout(
            order=order.to(device),
            inverse=order.argsort().to(device),
            groups=tuple((count, size) for size, count in sizes.items()),
            cos=angles.cos().to(device),
            sin=angles.sin().to(device),
        )


def _axial_angles(vision: VisionConfig) -> Tensor:
    """Rotary angles [T, merge², D / 2] in Qwen's order: D / 4 of the patch's row, then D / 4 of its column, in fp32."""
    grid, merge, half = vision.grid, vision.merge, vision.width // vision.heads // 2
    frequencies = 1.0 / 1e4 ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    place = torch.arange(grid * merge).view(grid, merge).float()
    rows = place[:, None, :, None].expand(grid, grid, merge, merge)
    columns = place[None, :, None, :].expand(grid, grid, merge, merge)
    return (torch.stack([rows, columns], dim=-1)[..., None] * frequencies).flatten(-2).flatten(0, 1).flatten(1, 2)


def _rotate_halves(x_BPHD: Tensor, cos_PE: Tensor, sin_PE: Tensor) -> Tensor:
    """Rotates channel pairs (i, i + D / 2) of x by the given angles, in at least fp32. E = D / 2.

    x · (cos, cos) + (second, first) · (−sin, sin): the bits of four products of halves, in a quarter of their time on a
    CPU, where half of a short row is slow to read.
    """
    exact = x_BPHD.to(torch.promote_types(x_BPHD.dtype, torch.float32))
    cos, sin = torch.cat([cos_PE, cos_PE], dim=-1)[:, None], torch.cat([-sin_PE, sin_PE], dim=-1)[:, None]
    return (exact * cos + exact.roll(cos_PE.shape[-1], dims=-1) * sin).to(x_BPHD.dtype)


class QwenAttention(nn.Module):
    """Multi-head self-attention among the patches of an image, or of each window of it."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.heads = vision.heads
        self.qkv = nn.Linear(vision.width, 3 * vision.width)
        self.proj = nn.Linear(vision.width, vision.width)

    def forward(self, x_BPC: Tensor, layout: WindowLayout, groups: tuple[tuple[int, int], ...]) -> Tensor:
        """[B, P, width] → [B, P, width]; `groups` are those of the layout, or the whole image as one window."""
        q, k, v = self.qkv(x_BPC).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (_rotate_halves(part, layout.cos, layout.sin) for part in (q, k))
        sizes = [count * size for count, size in groups]
        pieces = zip(groups, *(part.split(sizes, dim=1) for part in (q, k, v)), strict=True)
        attended = [_attend_within(count, *parts) for (count, _), *parts in pieces]
        return self.proj(attended[0] if len(attended) == 1 else torch.cat(attended, dim=1))


def _attend_within(windows: int, *qkv_BPHD: Tensor) -> Tensor:
    """Attention within each of `windows` equal pieces of P patches, all of them at once → [B, P, C]."""
    batch, patches = qkv_BPHD[0].shape[:2]
    q, k, v = (part.unflatten(1, (windows, -1)).flatten(0, 1).transpose(1, 2) for part in qkv_BPHD)
    return attend(q, k, v).reshape(batch, patches, -1)


class QwenMlp(nn.Module):
    """down( silu(gate x) · up x ), with biases."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(vision.width, vision.mlp_width)
        self.up_proj = nn.Linear(vision.width, vision.mlp_width)
        self.down_proj = nn.Linear(vision.mlp_width, vision.width)

    def forward(self, x_BPC: Tensor) -> Tensor:
        """[B, P, width] → [B, P, width]."""
        return self.down_proj(F.silu(self.gate_proj(x_BPC)) * self.up_proj(x_BPC))


class QwenBlock(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(vision.width, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(vision.width, eps=NORM_EPS)
        self.attn = QwenAttention(vision)
        self.mlp = QwenMlp(vision)

    def forward(self, x_BPC: Tensor, layout: WindowLayout, groups: tuple[tuple[int, int], ...]) -> Tensor:
        """[B, P, width] → [B, P, width]."""
        x_BPC = x_BPC + self.attn(self.norm1(x_BPC), layout, groups)
        return x_BPC + self.mlp(self.norm2(x_BPC))


class PatchProjection(nn.Module):
    """A convolution whose stride is its kernel, as the product that it is; the weight has the convolution's shape."""

    def __init__(self, vision: VisionConfig) -> None:
        super().__init__()
        side = vision.patch_size
        self.weight = nn.Parameter(torch.zeros(vision.width, 3, TEMPORAL_PATCH, side, side))

    def forward(self, patches: Tensor) -> Tensor:
        """[rows, 3 · 2 · patch²] → [rows, width]."""
        return F.linear(patches, self.weight.flatten(1))


class QwenMerger(nn.Module):
    """The merge x merge patches of a language token, side by side, through an MLP to the language model's width."""

    def __init__(self, vision: VisionConfig, *, out_width: int) -> None:
        super().__init__()
        merged = vision.width * vision.merge**2
        self.ln_q = nn.RMSNorm(vision.width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, out_width))

    def forward(self, x_BPC: Tensor) -> Tensor:
        """[B, P, width] → [B, T, H]."""
        return self.mlp(self.ln_q(x_BPC).reshape(x_BPC.shape[0], -1, self.mlp[0].in_features))


class QwenVision(nn.Module):
    """Qwen2.5-VL's tower for images of one size; names and arithmetic are those of `transformers`.

    There, each block loops over the windows of each image, whose sizes it reads from the device. Here the windows of
    all images are one call of attention, and nothing waits for the device.
    """

    def __init__(self, vision: VisionConfig, *, out_width: int) -> None:
        super().__init__()
        self.vision = vision
        self.patch_embed = nn.ModuleDict({"proj": PatchProjection(vision)})
        self.blocks = nn.ModuleList(QwenBlock(vision) for _ in range(vision.layers))
        self.merger = QwenMerger(vision, out_width=out_width)

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Standardised images [B, 3, S, S] → language tokens [B, T, H], row-major."""
        vision, batch = self.vision, images_B3SS.shape[0]
        layout = window_layout(vision, images_B3SS.device)
        images = images_B3SS.to(self.merger.ln_q.weight.dtype)
        patches = patchify(images, vision.patch_size, vision.merge)
        x = self.patch_embed["proj"](patches).view(batch, vision.num_tokens, vision.merge**2, -1)
        x = x[:, layout.order].flatten(1, 2)
        whole = ((1, x.shape[1]),)
        for number, block in enumerate(self.blocks):
            x = block(x, layout, whole if number in vision.full_layers else layout.groups)
        return self.merger(x)[:, layout.inverse]


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
