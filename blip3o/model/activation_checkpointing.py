"""Activation checkpointing, applied to a model from outside: layers recompute their activations in the backward pass.

It trades a second forward pass of each layer for the memory of its activations. A layer may be recomputed since its
forward changes nothing: it reads a prompt's keys and values, and returns new ones.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blip3o.model.unified import UnifiedModel


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the layer takes and gives
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # No layer draws random numbers, so there is no generator state to restore.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Makes each layer recompute its activations in the backward pass. Values and gradients do not change."""
    for layer in layers:
        layer.forward = _recomputed(layer.forward)


def checkpoint_activations(model: UnifiedModel) -> None:
    """Applies `checkpoint_layers` to the layers of backbone and DiT, which take most of the memory, if they exist."""
    if model.has("backbone"):
        checkpoint_layers(model.backbone.text.layers)
    if model.generates:
        checkpoint_layers(model.denoiser.blocks)
