"""Results of runs: complete or absent, and never silently wrong."""

import pytest
import torch

from blip3o import storage
from blip3o.errors import CheckpointError
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import WEIGHTS, read_description, read_final, write_final
from blip3o.train.export import averaged_runs
from blip3o.train.initial_weights import Placement, load_run, require_frozen_weights
from tests.model.helpers import nano_model
from tests.model.variants import variant
from tests.recipes import recipe


def test_what_was_written_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4.0)}
    write_final(str(tmp_path), tensors, {"run": "x"})
    read, description = read_final(str(tmp_path))
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert description["run"] == "x"


def test_a_moving_average_is_stored_next_to_the_weights(tmp_path):
    last, mean = {"a": torch.ones(2)}, {"a": torch.zeros(2)}
    write_final(str(tmp_path), last, {"run": "x"}, mean)
    assert torch.equal(read_final(str(tmp_path))[0]["a"], last["a"])
    assert torch.equal(read_final(str(tmp_path), averaged=True)[0]["a"], mean["a"])
    write_final(str(tmp_path), last, {"run": "x"})
    with pytest.raises(CheckpointError, match="holds no moving average: train the run with optim.ema_decay"):
        read_final(str(tmp_path), averaged=True)


def test_the_average_of_a_run_that_others_start_from_is_not_exported(tmp_path):
    starts = {"encoder": [], "generate": ["encoder"], "decoder": ["encoder"], "plain": []}
    for run, start in starts.items():
        description = {"recipe": {"stage": {"start_from": start}}}
        mean = None if run == "plain" else {"a": torch.zeros(2)}
        write_final(final_uri(str(tmp_path), run), {"a": torch.ones(2)}, description, mean)
    assert averaged_runs(str(tmp_path), list(starts)) == {"generate", "decoder"}
    assert averaged_runs(str(tmp_path), ["encoder", "plain"]) == {"encoder"}


def test_an_unfinished_run_has_no_result(tmp_path):
    assert read_description(str(tmp_path)) is None
    storage.write_bytes(str(tmp_path / WEIGHTS), b"half")
    with pytest.raises(CheckpointError, match="holds no finished run"):
        read_final(str(tmp_path))


def test_a_flipped_byte_is_found(tmp_path):
    write_final(str(tmp_path), {"a": torch.zeros(8)}, {})
    path = tmp_path / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="sha256"):
        read_final(str(tmp_path))


def test_another_models_weights_are_refused(tmp_path):
    model = nano_model(("queries",))
    write_final(str(tmp_path), {"queries": torch.zeros(2, 2)}, {})
    with pytest.raises(CheckpointError, match=r"queries has shape \(2, 2\)"):
        load_run(model, str(tmp_path), to=Placement())


def test_loading_returns_the_loaded_names_and_a_random_frozen_part_is_refused(tmp_path):
    model = nano_model(("queries", "dit", "encoder"))
    source = nano_model(("encoder",))
    initialize(source, 9)
    write_final(str(tmp_path), {**dict(source.named_parameters()), "unknown": torch.zeros(1)}, {})
    loaded = load_run(model, str(tmp_path), to=Placement())
    assert loaded == {name for name, _ in source.named_parameters()}
    assert torch.equal(model.encoder.pos_embed, source.encoder.pos_embed)
    trainable = [name for name, _ in model.named_parameters() if name.startswith(("queries", "dit."))]
    require_frozen_weights(model, loaded, trainable)
    with pytest.raises(CheckpointError, match="frozen parts encoder have no weights"):
        require_frozen_weights(model, set(), trainable)


def test_the_latents_scale_must_be_loaded_and_bf16_leaves_it_exact(tmp_path):
    """A missing scale would train on unscaled latents without a word, a rounded one would move every channel."""
    values = recipe(model=variant("clip_flow normalised"))
    model = UnifiedModel(values.model, image_token_id=0, parts=("latent_scale",), max_length=8)
    with pytest.raises(CheckpointError, match=r"frozen parts latent_scale have no weights \(2 tensors"):
        require_frozen_weights(model, set(), [])
    exact = {name: torch.full_like(scale, 1 / 3) for name, scale in model.state_dict().items()}
    write_final(str(tmp_path), exact, {})
    loaded = load_run(model, str(tmp_path), to=Placement(dtype=torch.bfloat16))
    require_frozen_weights(model, loaded, [])
    assert all(torch.equal(scale, exact[name]) for name, scale in model.state_dict().items())
