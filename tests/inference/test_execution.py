"""Compiled and recorded denoisers: the same bytes in any company, and eager execution's values."""

from dataclasses import replace

import pytest
import torch

from blip3o.bundle.reading import load_bundle
from blip3o.device import Recorded
from blip3o.errors import ConfigError
from blip3o.inference.execution import replay_graphs, set_execution
from tests.bundles import write_nano_bundle

PROMPTS, SEEDS = ["a red circle", "It is green.", "a blue star"], [3, 5, 8]
BATCH = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("bundle"))
    write_nano_bundle(uri)
    return uri


@pytest.fixture(scope="module")
def eager(bundle):
    return load_bundle(bundle, batch_size=BATCH)


def _features(pipeline, guidance, rows=slice(None)):
    options = {"num_inference_steps": 3, "guidance_scale": guidance}
    return pipeline.generate_features(PROMPTS[rows], seeds=SEEDS[rows], **options)


def _check(pipeline, eager, guidance, *, tolerance):
    together = _features(pipeline, guidance)
    assert torch.equal(_features(pipeline, guidance, slice(None, None, -1)).flip(0), together)
    assert torch.equal(_features(pipeline, guidance, slice(1, 2))[0], together[1])
    assert (together - _features(eager, guidance)).abs().max() <= tolerance


def test_a_compiled_denoiser_compiles_each_shape_once_and_differs_by_rounding(bundle, eager):
    """With a backend that needs no C++ compiler; inductor was tried by hand."""
    torch._dynamo.reset()
    pipeline = load_bundle(bundle, batch_size=BATCH)
    pipeline = replace(pipeline, execution="compile")
    set_execution(pipeline.model, "compile", batch_size=BATCH, device=pipeline.device, backend="aot_eager")
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        _check(pipeline, eager, 1.0, tolerance=1e-4)
        _check(pipeline, eager, 3.0, tolerance=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_replayed_denoiser_is_the_eager_one(bundle, eager, guidance):
    """Graphs need a GPU. Here a recording computes again into the same memory when it is replayed, as a graph does."""
    pipeline, recorded, replayed = load_bundle(bundle, batch_size=BATCH), [], []

    def record(function):
        output = function()
        recorded.append(output.shape[0])

        def replay():
            replayed.append(output.shape[0])
            output.copy_(function())

        return Recorded(replay=replay, output=output)

    pipeline = replace(pipeline, execution="graph")
    replay_graphs(pipeline.model.denoiser, record)
    assert pipeline.denoiser_widths == (BATCH, 2 * BATCH)
    assert sorted(recorded) == [BATCH, 2 * BATCH]  # by the trial of the widths, each once
    replayed.clear()
    _check(pipeline, eager, guidance, tolerance=0)
    assert len(recorded) == 2
    assert len(replayed) == 3 * 5  # steps of two batches, of two again, and of one


def test_graphs_are_refused_on_the_cpu(bundle):
    with pytest.raises(ConfigError, match="execution 'graph' needs a GPU: use eager or compile"):
        load_bundle(bundle, execution="graph")


def test_a_machine_that_cannot_compile_says_so_at_loading(eager, bundle):
    torch._dynamo.reset()
    pipeline = load_bundle(bundle, batch_size=BATCH)
    with pytest.raises(ConfigError, match="execution 'compile' does not work here .*: use eager"):
        set_execution(pipeline.model, "compile", batch_size=BATCH, device=pipeline.device, backend=_no_compiler)


def _no_compiler(*_):
    raise RuntimeError("No working C++ compiler found")
