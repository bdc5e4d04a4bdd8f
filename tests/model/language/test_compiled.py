"""Compiled decoder layers: one graph for all layers of a pass, and the numbers of the uncompiled ones."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from blip3o.model.activation_checkpointing import checkpoint_layers
from blip3o.model.unified import UnifiedModel
from tests.model.families import backbone, prompt
from tests.model.helpers import nano_config, nano_model

LAYERS = 3


@pytest.fixture
def graphs():
    """The number of graphs that were compiled since the last look."""
    torch._dynamo.reset()
    counters.clear()

    def since():
        found = counters["stats"]["unique_graphs"]
        assert not counters["graph_break"]
        counters.clear()
        return found

    yield since
    torch._dynamo.reset()


def states_and_gradient(built, batch, queries):
    states = built.query_states(batch, queries)
    return states.detach(), torch.autograd.grad(states.square().sum(), queries)[0]


@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
def test_all_layers_of_a_pass_are_one_graph(graphs, recomputed):
    built = backbone("qwen3", layers=LAYERS)
    queries = torch.randn(5, built.config.hidden_size, generator=torch.Generator().manual_seed(11)).requires_grad_()
    sizes = ((24, 19, 20), (20, 23, 18), (22, 24, 19, 7))  # others, then another number
    batches = [prompt(built.config, lengths, width=24) for lengths in sizes]
    batches = [replace(batch, lengths=batch.attention_mask.sum(1)) for batch in batches]
    expected = [states_and_gradient(built, batch, queries) for batch in batches]
    if recomputed:
        checkpoint_layers(built.text.layers)
    model = UnifiedModel(nano_config(), image_token_id=5, parts=(), max_length=24)
    model.backbone = built
    seen = []
    with torch.compiler.set_stance(force_backend="eager"):
        model.compile_layers()
        for batch, wanted in zip(batches, expected, strict=True):
            found = states_and_gradient(built, batch, queries)
            # The same operations in the same order. Measured: 0.
            close = (torch.allclose(one, other, rtol=1e-5, atol=1e-5) for one, other in zip(found, wanted, strict=True))
            assert all(close)
            seen.append(graphs())
    # Prompts, at which torch 2.13 takes a second look, and queries. Then no more, whatever the sizes: the kernels of a
    # batch do not depend on the batches before it.
    assert seen == [3, 0, 0]


def test_a_models_layers_are_compiled_in_place(graphs):
    model = nano_model(("encoder", "backbone", "queries", "dit"))
    pixels = torch.randint(0, 256, (2, *[model.config.target_size] * 2, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = model.features(pixels)
    names = [name for name, _ in model.named_parameters()]
    model.compile_layers()
    compiled = Counter(type(part).__name__ for part in model.modules() if part._compiled_call_impl is not None)
    assert compiled == {"EvaBlock": 1, "DecoderLayer": 2, "DiTBlock": 2}
    assert names == [name for name, _ in model.named_parameters()]
    with torch.no_grad(), torch.compiler.set_stance(force_backend="eager"):
        assert torch.equal(model.features(pixels), expected)
    assert graphs() == 1


def test_a_model_without_an_encoder_compiles_what_it_has():
    model = nano_model(("queries", "dit"))
    model.compile_layers()
    assert {type(part).__name__ for part in model.modules() if part._compiled_call_impl is not None} == {"DiTBlock"}
