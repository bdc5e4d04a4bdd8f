"""A stage's initial weights: those of building and initialising it whole, read once, by one of all ranks."""

import re

import pytest
import torch

from blip3o import storage
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import CheckpointError
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import WEIGHTS, write_final
from blip3o.storage import s3_connection
from blip3o.train.deepspeed.gather import trainable_parameters
from blip3o.train.initial_weights import prepare_module
from blip3o.train.objectives import build_stage_module
from blip3o.train.stages import freeze, stage_of
from blip3o.weights.safetensors_header import read_header
from tests.distributed import run_ranks
from tests.faults import FaultProxy
from tests.recipes import recipe

TOKENIZER = ChatTokenizer.train(["a red circle"], 300)
RUNS = ("frozen", "encoder", "later")


def started(folder, *, precision="bf16", features="online", **stage):
    """A recipe of the `generate` stage that starts from `RUNS` below the folder."""
    return recipe(
        run={"storage": folder},
        data={"features": features},
        stage={"name": "generate", "start_from": list(RUNS), **stage},
        parallel={"precision": precision},
    )


def write_runs(folder):
    """The backbone, the encoder, and a part of the backbone again with the DiT's gates; returns what counts."""
    values = started(folder)
    model = UnifiedModel(values.model, image_token_id=0, parts=("backbone", "encoder", "dit"), max_length=64)
    initialize(model, 9)
    named = dict(model.named_parameters())
    again = {name: value + 1 for name, value in named.items() if name.endswith("gate") or ".layers.1.mlp" in name}
    parts = {
        "frozen": {name: value for name, value in named.items() if name.startswith("backbone.")},
        "encoder": {name: value for name, value in named.items() if name.startswith("encoder.")},
        "later": again,
    }
    for run, tensors in parts.items():
        write_final(final_uri(folder, run), tensors, {"run": run})
    return parts["frozen"] | parts["encoder"] | parts["later"]


def whole_module(values, held):
    """The same by building the module in fp32, initialising all of it, loading, and casting what is frozen."""
    module = build_stage_module(values, image_token_id=1, pad_id=0)
    initialize(module.model, values.run.seed)
    module.model.load_state_dict(held, strict=False)
    freeze(module.model, stage_of(values))
    for parameter in module.parameters():
        if values.parallel.precision == "bf16" and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return module


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_those_of_a_module_that_is_built_and_initialised_whole(tmp_path, precision):
    held = write_runs(str(tmp_path))
    values = started(str(tmp_path), precision=precision)
    ours, whole = prepare_module(values, TOKENIZER), whole_module(values, held)
    expected = dict(whole.named_parameters())
    assert {name for name, _ in ours.named_parameters()} == expected.keys()
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == expected[name].dtype, name
        assert torch.equal(parameter, expected[name]), name
    assert {name for name, it in ours.model.named_parameters() if not it.requires_grad} == {
        name for name in held if name.startswith(("backbone.", "encoder."))
    }


def test_adapters_are_drawn_in_fp32_whatever_the_precision(tmp_path):
    """The optimizer's weights start from them, as from all that trains."""
    write_runs(str(tmp_path))
    stage = {"name": "understand", "lora": {"rank": 2, "alpha": 4.0}}
    whole, half = (
        trainable_parameters(prepare_module(started(str(tmp_path), precision=it, **stage), TOKENIZER).model)
        for it in ("fp32", "bf16")
    )
    assert half and half.keys() == whole.keys()
    for name, parameter in half.items():
        assert parameter.dtype == torch.float32, name
        assert torch.equal(parameter, whole[name]), name
    assert any(not torch.equal(it.bfloat16().float(), it) for it in whole.values())


def test_a_resumed_start_reads_frozen_weights_only(tmp_path):
    held = write_runs(str(tmp_path))
    model = prepare_module(started(str(tmp_path)), TOKENIZER, resuming=True).model
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.isnan().all(), name
        else:
            assert torch.equal(parameter, held[name].bfloat16()), name


def prepared(values, missing):
    """On a rank: the sum of each parameter, and the error of a stage whose frozen part no run holds."""
    module = prepare_module(values, TOKENIZER)
    sums = {name: parameter.double().sum().item() for name, parameter in module.named_parameters()}
    with pytest.raises(CheckpointError) as error:
        prepare_module(missing, TOKENIZER)
    return sums, str(error.value)


def test_two_ranks_read_every_byte_once_and_what_is_not_needed_never(s3, tmp_path, monkeypatch):
    """The ranks share a store behind a proxy; features are cached, so the stage has no encoder."""
    folder = f"{s3}/initial-weights"
    write_runs(folder)
    values = started(folder, features="cache")
    missing = started(folder, features="cache", start_from=["encoder"])
    alone, error = prepared(values, missing)
    asked = []
    with FaultProxy(s3_connection.connection().endpoint) as proxy, monkeypatch.context() as patch:
        for name, value in proxy.environment.items():
            patch.setenv(name, value)
        proxy.follow(lambda request: asked.append(request))
        assert run_ranks(prepared, tmp_path, values, missing) == [(alone, error)] * 2
    assert "frozen parts backbone have no weights" in error
    ranges = {run: [] for run in RUNS}
    for request in asked:
        if request.method == "GET" and request.path.endswith(WEIGHTS):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range).groups()
            ranges[request.path.split("/")[-3]].append(range(int(first), int(last) + 1))
    for run in ("frozen", "later"):
        found = sorted(ranges[run], key=lambda extent: extent.start)
        assert [extent.stop for extent in found[:-1]] == [extent.start for extent in found[1:]], run
        assert found[-1].stop == storage.stat(f"{final_uri(folder, run)}/{WEIGHTS}").size
    with storage.open_ranges(f"{final_uri(folder, 'encoder')}/{WEIGHTS}") as file:
        head = len(read_header("", file)[0])
    assert max(extent.stop for extent in ranges["encoder"]) == head
