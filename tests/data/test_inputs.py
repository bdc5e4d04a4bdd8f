"""The inputs of a stage: each is read once, whoever asks, and decides the sha256 of the data."""

from collections import Counter

import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.errors import StorageError
from tests.data.test_batches import recipe, root  # noqa: F401 - a fixture


@pytest.fixture
def reads(monkeypatch):
    """How often each object was read whole."""
    counted, read = Counter(), storage.read_bytes

    def read_bytes(uri):
        counted[uri.rpartition("/")[2]] += 1
        return read(uri)

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    return counted


def test_each_is_read_once_whoever_asks(root, reads):  # noqa: F811
    inputs = StageInputs(recipe(root))
    assert not reads  # whoever needs only a part reads only that
    assert inputs.pad_id != inputs.image_token_id
    assert set(reads) == {"tokenizer.json"}
    for task in (Task.GENERATE, Task.CHAT):
        build_micro_batches(inputs, task)
    assert len(inputs.sha256) == 3
    assert inputs.sha256 == inputs.sha256
    assert reads["tokenizer.json"] == 1
    assert reads["manifest.parquet"] == 1
    assert inputs.manifests is inputs.manifests and inputs.order is inputs.order


def test_stored_features_are_part_of_what_decides_the_numbers(root):  # noqa: F811
    plain, stored = StageInputs(recipe(root)), StageInputs(recipe(root), features_sha256="f" * 64)
    assert stored.sha256 == [*plain.sha256, "f" * 64]
    assert StageInputs(recipe(root, chunk=8)).sha256 != plain.sha256


def test_what_was_not_there_is_looked_for_again(tmp_path):
    inputs = StageInputs(recipe(tmp_path))
    for _again in range(2):
        with pytest.raises(StorageError, match="tokenizer.json does not exist: `blip3o tokenizer RECIPE` trains"):
            _ = inputs.tokenizer
