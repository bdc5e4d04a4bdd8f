"""The precision of inference as configuration. Imports no torch: the server's HTTP side reads it too."""

from typing import TYPE_CHECKING, Literal, get_args

from blip3o.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]
ResolvedPrecision = Literal["fp32", "bf16"]

DESCRIPTION = "dtype of weights and arithmetic; auto: bf16 on a GPU, fp32 on the CPU"


def resolve_precision(precision: Precision, *, gpu: bool) -> ResolvedPrecision:
    """What `auto` means on a device. Raises `ConfigError` for any other word."""
    if precision not in get_args(Precision):
        raise ConfigError(f"precision '{precision}' is unknown: use {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bf16" if gpu else "fp32"
    return precision


def dtype_of(precision: ResolvedPrecision) -> "torch.dtype":
    """torch's name of a precision."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32
