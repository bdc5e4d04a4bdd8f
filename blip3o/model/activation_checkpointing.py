"""Activation checkpointing, applied to a model from outside: layers recompute their activations in the backward pass.

It trades a second forward pass of each layer for the memory of its activations. Do not use transformers' own switch
here: it silently drops the key/value cache, so queries behind a frozen prefix would not attend to their prompt. Layers
checkpointed by this module read the prompt's cache without appending to it, since recomputation would append twice.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blip3o.model.unified import UnifiedModel


class FixedPrefix:
    """A read-only key/value cache, with the methods that a decoder layer of `transformers` calls."""

    def __init__(self, cache: Any) -> None:  # noqa: ANN401 - a transformers cache
        """Raises `RuntimeError` for an empty cache: new keys and values would be lost."""
        if not cache.get_seq_length():
            raise RuntimeError("recomputed layers fill no cache: run the prompt under torch.no_grad()")
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def update(self, keys_BHLD: Tensor, values_BHLD: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values of this layer, followed by the new ones, each [B, H, P + L, D]."""
        past_keys, past_values = self._layers[layer]
        return torch.cat([past_keys, keys_BHLD], dim=-2), torch.cat([past_values, values_BHLD], dim=-2)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the layer takes and gives
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = FixedPrefix(kwargs["past_key_values"])
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
