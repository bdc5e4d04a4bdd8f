"""A bundle reads back as written, or not at all: the error names what is missing, damaged or foreign."""

import hashlib
import json
import re

import pytest
import torch

import blip3o
from blip3o import storage
from blip3o.bundle import reading
from blip3o.bundle.layout import PARTS, SEAL
from blip3o.bundle.reading import load_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.errors import BundleError, ConfigError, StorageError
from blip3o.model import unified
from tests.bundles import MAX_LENGTH, bundle_config, tokenizer, weights, write_nano_bundle

FILES = ("config.json", "model.safetensors", "tokenizer.json", "provenance.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a whole bundle by name."""
    folder = tmp_path_factory.mktemp("bundle")
    write_nano_bundle(str(folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(files, tmp_path):
    """A bundle of its own for each test, to be damaged."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def seal(folder, **changes):
    """Seals a folder again after a file was replaced, as a writer of another version would have."""
    (folder / SEAL).unlink()
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / SEAL).write_text(json.dumps(sums | changes))


def test_a_bundle_reads_back_as_written(files, folder):
    assert set(files) == {*FILES, SEAL}
    pipeline = blip3o.load(str(folder))
    read = dict(pipeline.model.named_parameters())
    written = weights()
    assert set(read) == set(written)
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())
    assert not any(parameter.requires_grad for parameter in read.values())
    assert not pipeline.model.training
    assert (pipeline.max_length, pipeline.model.config) == (MAX_LENGTH, bundle_config().model)
    assert pipeline.tokenizer.to_bytes() == tokenizer().to_bytes()
    assert pipeline.template.instruction == bundle_config().template.instruction
    assert json.loads((folder / "provenance.json").read_text()) == {"seed": 0}


def test_a_bundle_may_hold_every_part_of_a_model_that_serves():
    assert PARTS == tuple(part for part in unified.PARTS if part != "contrastive")


def test_one_content_gives_one_bundle(files, tmp_path):
    write_nano_bundle(str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_a_flipped_byte_is_found_in_every_file(folder, name, place):
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data))] ^= 0x80
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(
        BundleError, match=f"{re.escape(str(folder))}: {name} is not what was exported .*: export it again"
    ):
        load_bundle(str(folder))


def test_a_missing_seal_and_a_missing_folder_are_no_bundle(folder):
    (folder / SEAL).unlink()
    for uri in (folder, folder / "nowhere"):
        with pytest.raises(BundleError, match=f"^{re.escape(str(uri))} is not a bundle .*: give the folder that"):
            load_bundle(str(uri))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"the bundle is incomplete .*{name} does not exist"):
        load_bundle(str(folder))


@pytest.mark.parametrize("content", [b"", b"\x80{}", b"[]", b'["config.json"]', b'{"config.json": 1}', b"{}"])
def test_a_seal_that_is_none_is_an_error_in_one_line(folder, content):
    (folder / SEAL).write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load_bundle(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("written", range(5))
def test_an_export_that_breaks_off_leaves_no_bundle(tmp_path, monkeypatch, written):
    calls = iter(range(5))
    write = storage.write_bytes

    def broken(uri, data):
        if next(calls) == written:
            raise StorageError(f"{uri}: the store went away")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", broken)
    with pytest.raises(StorageError):
        write_nano_bundle(str(tmp_path))
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(str(tmp_path))


def test_an_export_over_another_that_breaks_off_is_not_mistaken_for_either(folder, monkeypatch):
    write = storage.write_bytes

    def broken(uri, data):
        if uri.endswith(SEAL):
            raise StorageError(f"{uri}: the store went away")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", broken)
    with pytest.raises(StorageError):
        write_nano_bundle(str(folder), seed=1)
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(str(folder))


def test_another_format_is_refused_by_name(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": "blip3o-bundle-0"}))
    seal(folder)
    with pytest.raises(
        BundleError, match="has format 'blip3o-bundle-0', this version reads blip3o-bundle-2: export it again"
    ):
        load_bundle(str(folder))
    (folder / "config.json").write_text("{}")
    seal(folder)
    with pytest.raises(BundleError, match=r"config\.json is not that of a blip3o-bundle-2"):
        load_bundle(str(folder))


def test_a_bundle_of_the_last_layout_is_named_before_its_old_keys(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["sampler"] = {"steps": 4, "guidance": 3.0}
    (folder / "config.json").write_text(json.dumps(config | {"format": "blip3o-bundle-1"}))
    seal(folder)
    with pytest.raises(BundleError, match="'blip3o-bundle-1', this version reads blip3o-bundle-2: export it again"):
        load_bundle(str(folder))


@pytest.mark.parametrize("device", ["gpux", "meta:x"])
def test_a_device_that_does_not_exist_is_refused(folder, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used .*: leave it out for the CPU"):
        blip3o.load(str(folder), device=device)


def test_weights_of_another_model_are_refused(folder):
    from safetensors.torch import load, save

    tensors = load((folder / "model.safetensors").read_bytes())
    incomplete = {name: tensor for name, tensor in tensors.items() if name != "queries"}
    for other in (incomplete, tensors | {"queries": torch.zeros(2, 2)}):
        (folder / "model.safetensors").write_bytes(save(other))
        seal(folder)
        with pytest.raises(BundleError, match="queries"):
            load_bundle(str(folder))


def test_untrained_parts_are_not_exported(tmp_path):
    tensors = {name: tensor for name, tensor in weights().items() if not name.startswith("dit.")}
    with pytest.raises(BundleError, match=r"tensors have no weights, e\.g\. dit\..*: export all trained stages"):
        write_bundle(str(tmp_path), config=bundle_config(), tensors=tensors, tokenizer=tokenizer(), provenance={})
    assert not list(tmp_path.iterdir())


def test_an_export_that_reads_back_otherwise_fails(tmp_path, monkeypatch):
    tensors = {name: tensor.detach().clone() for name, tensor in weights().items()}
    load_file = reading.load_file

    def altered(uri, place, digest):
        placed = {}
        load_file(uri, lambda entry: placed.setdefault(entry.name, place(entry)), digest)
        placed["queries"] += 1

    monkeypatch.setattr(reading, "load_file", altered)
    with pytest.raises(BundleError, match="queries reads back differently than it was written"):
        write_bundle(str(tmp_path), config=bundle_config(), tensors=tensors, tokenizer=tokenizer(), provenance={})
