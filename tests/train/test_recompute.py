"""Activation checkpointing: bit-identical loss and gradients, with fewer activations kept for the backward pass."""

import pytest
import torch

from blip3o.model.activation_checkpointing import checkpoint_activations
from tests.train.test_objectives import batch
from tests.train.test_variants import module_of


def step(module, stage):
    """Terms, gradients of trainable parameters, and the bytes of stored activations."""
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = module(batch(stage))
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(sum(terms.values()), list(trainable.values()), allow_unused=True)
    return terms, dict(zip(trainable, gradients, strict=True)), sum(kept.values())


@pytest.mark.parametrize("stage", ["generate", "understand"])
def test_loss_and_gradients_are_unchanged_and_activations_are_freed(stage):
    module = module_of("clip_flow", stage).train()
    terms, gradients, kept = step(module, stage)
    checkpoint_activations(module.model)
    again, recomputed, left = step(module, stage)
    assert {name: term.item() for name, term in again.items()} == {name: term.item() for name, term in terms.items()}
    for name, gradient in gradients.items():
        assert (gradient is None) == (recomputed[name] is None)
        assert gradient is None or torch.equal(gradient, recomputed[name])
    assert left < 0.7 * kept  # two layers each: what stays is their input, the ends, and the batch
