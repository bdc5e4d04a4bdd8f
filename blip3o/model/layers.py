"""Layers that the networks share: multi-head attention, 2-D rotary positions, the sinusoidal time embedding.

Legend: B batch, L tokens, H heads, D channels of one head, C channels.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Activations of this size fit a CPU's caches. The allocator also returns larger ones to the system and maps them again,
# page by page, at every operation: a tower of 12 blocks then takes 25 % longer (benchmarks/train_step.py).
CPU_BYTES = 2**22
CPU_ROWS = 16


def rows_at_once(batch: Tensor, row_bytes: int) -> int:
    """How many rows of a batch a frozen network should process per pass.

    All of them; on a CPU at most as many as fit `CPU_BYTES`, but at least one. `row_bytes` is the size of a row's
    widest activation.
    """
    rows = batch.shape[0]
    return rows if batch.device.type != "cpu" else min(rows, max(1, CPU_BYTES // row_bytes))


def split_heads(x_BLC: Tensor, heads: int) -> Tensor:
    """[B, L, C] → [B, H, L, C / H]."""
    return x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention with scale 1 / sqrt(D) and no dropout. Key/value heads are repeated to match query heads.

    Returns [B, L, H, D]. `mask` is boolean, True where a query may attend, and broadcasts to [B, H, Lq, Lk].
    """
    repeats = q_BHLD.shape[1] // k_BHLD.shape[1]
    if repeats > 1:
        k_BHLD, v_BHLD = k_BHLD.repeat_interleave(repeats, 1), v_BHLD.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, attn_mask=mask).transpose(1, 2)


@functools.cache
def rotary_grid(side: int, head_dim: int, device: torch.device, *, theta: float = 1e4) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2-D rotary positions over a row-major `side` x `side` grid, each [side², head_dim / 2] fp32.

    head_dim / 4 frequencies theta^(-2i / (head_dim / 2)) per axis; row and column frequencies alternate (row first), as
    in Lumina-Next and therefore in BLIP3-o's DiT. The tables are cached here per device, not as a module's buffers:
    buffers would follow the module to bf16, whose eight bits are too few for the angles.
    """
    with torch.inference_mode(mode=False):  # else tables first made while sampling could not be used in training
        cos, sin = _rotary_tables(side, head_dim, theta)
        return cos.to(device), sin.to(device)


def _rotary_tables(side: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    quarter = head_dim // 4
    numbers = torch.arange(max(quarter, side), dtype=torch.float64, device="cpu")
    frequencies = theta ** (-numbers[:quarter] * 2 / (head_dim // 2))
    position = numbers[:side]
    angles = position[:, None] * frequencies
    rows = angles[:, None, :].expand(side, side, quarter)
    columns = angles[None, :, :].expand(side, side, quarter)
    both = torch.stack([rows, columns], dim=-1).reshape(side * side, 2 * quarter)
    return both.cos().float(), both.sin().float()


def rotate(x_BHLD: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotates adjacent channel pairs (2i, 2i + 1) of x by the given angles, in at least fp32. E = D / 2.

    In training on a CPU, last bits may depend on the size of the batch; in inference they never do.
    """
    pairs = x_BHLD.to(torch.promote_types(x_BHLD.dtype, torch.float32)).unflatten(-1, (-1, 2))
    # Compiled code has no complex numbers, and fuses the other way anyway.
    training = torch.is_grad_enabled() and pairs.device.type == "cpu" and not torch.compiler.is_compiling()
    turned = (_rotate_as_complex if training else _rotate_by_parts)(pairs, cos_LE, sin_LE)
    return turned.flatten(-2).to(x_BHLD.dtype)


def _rotate_by_parts(pairs: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    even, odd = pairs.unbind(-1)
    return torch.stack([even * cos_LE - odd * sin_LE, even * sin_LE + odd * cos_LE], dim=-1)


def _rotate_as_complex(pairs: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """The same in a third of the time, up to rounding: a CPU is slow at every second element.

    Whole vectors of the processor get the same bits; what is left at the end of a loop is rounded once less.
    """
    numbers = torch.view_as_complex(pairs.contiguous())
    return torch.view_as_real(numbers * torch.complex(cos_LE, sin_LE).to(numbers.dtype))


def sinusoidal(time_B: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding [B, width] of a time in 0 … 1000: cosines first, frequencies 10000^(-i / (width / 2))."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=time_B.device, dtype=torch.float32) * (-math.log(10_000) / half))
    angles = time_B.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class SwiGLU(nn.Module):
    """w2( silu(w1 x) · w3 x ) without biases; state-dict names as in the released checkpoints."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden, bias=False)
        self.linear_2 = nn.Linear(hidden, dim, bias=False)
        self.linear_3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """[B, L, dim] → [B, L, dim]."""
        return self.linear_2(F.silu(self.linear_1(x_BLC)) * self.linear_3(x_BLC))


class RowLinear(nn.Linear):
    """A linear layer for one vector per sample, [B, in] → [B, out], whose rows do not depend on B in inference.

    On a CPU, products of fewer than `CPU_ROWS` fp32 rows run other kernels, which round otherwise, so a row would
    differ between batch sizes. Such batches are padded. Products with a row for each token have more rows.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, in] → [B, out]."""
        rows = input.shape[0]
        if rows >= CPU_ROWS or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        return super().forward(torch.cat([input, input[-1:].expand(CPU_ROWS - rows, -1)]))[:rows]


class RowConv2d(nn.Conv2d):
    """A convolution whose samples do not depend on the size of the batch in inference.

    On a CPU, torch chooses between two libraries by the number of samples: a single one, or fewer than 16 with a 1 x 1
    kernel, go another way, which rounds otherwise. Here all go one way.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, h, w] → [B, C', h', w']."""
        if input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        input = input.contiguous()  # a single sample may be taken for one in another memory format
        one_way = input.dtype != torch.float32 or self.padding_mode != "zeros"
        if one_way or not torch.backends.mkldnn.is_available():
            return super().forward(input)
        return torch.ops.aten.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def make_rows_independent(module: nn.Module) -> None:
    """Replaces, in place, what makes a sample depend on the size of its batch: convolutions, and linear layers.

    For networks of other libraries whose linear layers take one vector per sample. Parameters stay the same objects.
    """
    exact = {nn.Conv2d: RowConv2d, nn.Linear: RowLinear}
    for part in module.modules():
        if type(part) in exact:
            part.__class__ = exact[type(part)]
