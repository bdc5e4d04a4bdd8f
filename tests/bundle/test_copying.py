"""A copy of a bundle is the bundle, or no bundle."""

import pytest

import blip3o
from blip3o import storage
from blip3o.bundle import copying
from blip3o.bundle.copying import copy_bundle
from blip3o.bundle.layout import SEAL, WEIGHTS
from blip3o.errors import BundleError, StorageError
from tests.bundles import write_nano_bundle


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    write_nano_bundle(str(folder))
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_copy_has_every_byte_and_is_made_once(source, tmp_path, monkeypatch):
    monkeypatch.setattr("blip3o.storage.files.PIECE_BYTES", 1000)
    copy_bundle(str(source), str(tmp_path))
    assert content(tmp_path) == content(source)
    assert blip3o.load(str(tmp_path)).generate("a red circle", num_inference_steps=1)
    monkeypatch.setattr(copying, "_copy", lambda *_: pytest.fail("copied again"))
    copy_bundle(str(source), str(tmp_path))


def test_another_bundle_is_replaced_and_an_altered_one_is_not_sealed(source, tmp_path):
    other, target = tmp_path / "other", tmp_path / "target"
    write_nano_bundle(str(other), seed=1)
    copy_bundle(str(source), str(target))
    copy_bundle(str(other), str(target))
    assert content(target) == content(other)
    data = bytearray((source / WEIGHTS).read_bytes())
    data[-1] ^= 1
    altered = tmp_path / "altered"
    for name, kept in (content(source) | {WEIGHTS: bytes(data)}).items():
        storage.write_bytes(str(altered / name), kept)
    with pytest.raises(BundleError, match="model.safetensors is not what was exported"):
        copy_bundle(str(altered), str(target))
    assert not (target / SEAL).exists()


def test_a_copy_that_breaks_off_is_no_bundle_and_is_completed(source, tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(copying, "_copy", full)
        copy_bundle(str(source), str(tmp_path))
    with pytest.raises(BundleError, match="is not a bundle"):
        blip3o.load(str(tmp_path))
    copy_bundle(str(source), str(tmp_path))
    assert content(tmp_path) == content(source)
