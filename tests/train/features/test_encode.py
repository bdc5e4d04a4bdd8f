"""Stored features equal those that the trainer would compute with the weights it would load: bit-identical loss."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.features.files import missing_features, read_header, record_range, write_provenance
from blip3o.data.features.records import to_float
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import read_manifest
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import CheckpointError, ConfigError, DataError, StorageError
from blip3o.model.encoder import tensors_sha256
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.runs.paths import final_uri
from blip3o.runs.results import WEIGHTS, read_final, write_final
from blip3o.train.checkpoint.state import identity
from blip3o.train.features import encoder
from blip3o.train.features.encode import ENCODING, STAGE, TOLERANCE_FP32, ShardEncoder, load_shard_encoder, prefetch
from blip3o.train.features.encoder import FeatureCache, FrozenEncoder, require_encoder
from blip3o.train.initial_weights import prepare_module
from blip3o.train.loop import to_batch
from blip3o.train.stages import stage_of
from blip3o.weights.tensor_file import write_tensor_file
from tests.evaluate.world import add_source, scenes
from tests.jobs import world

SCENES = 22  # shards of ten, so that their last batches are not full
BATCHES = 4
CPU = torch.device("cpu")


def made(base, *, dtype=None, features="cache", engine="pillow", **sections):
    data = {
        "root": f"{base}/data",
        "max_length": 96,
        "sources": [{"name": "scenes", "shards": "scenes/part-*.tar"}],
        "features": features,
        "feature_dtype": dtype,
        "decode": {"engine": engine},
    }
    return world.recipe(str(base), data=data, **sections)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Scenes, a tokenizer, the weights to start from, and features as the encoder computes them."""
    folder = tmp_path_factory.mktemp("encoding")
    content = scenes("train", size=SCENES)
    add_source(f"{folder}/data", "scenes", content)
    texts = [caption for scene in content for caption in scene.record["captions"]]
    storage.write_bytes(f"{folder}/data/tokenizer.json", ChatTokenizer.train(texts, 512).to_bytes())
    world.write_finals(made(folder))
    store(made(folder))
    return folder


def encoder_of(recipe):
    cache = FeatureCache.of(recipe)
    ((manifest, folder),) = cache.sources(StageInputs(recipe).manifests)
    maker = FrozenEncoder(recipe, CPU)
    width = recipe.optim.micro_batch_size
    return cache, ShardEncoder(
        recipe=recipe, manifest=manifest, folder=folder, encode=maker, batch_size=width, threads=2
    )


def store(recipe):
    cache, work = encoder_of(recipe)
    write_provenance(work.folder, cache.provenance)
    footers = [work.write(shard.shard) for shard in work.manifest.shards]
    return cache, work, footers


def module_of(recipe):
    tokenizer = ChatTokenizer.from_bytes(storage.read_bytes(f"{recipe.data.root}/tokenizer.json"))
    return prepare_module(recipe, tokenizer)


def batches(recipe, sha256=None):
    build = build_micro_batches(StageInputs(recipe, features_sha256=sha256), stage_of(recipe).task)
    return [build(number) for number in range(BATCHES)]


def losses(recipe, sha256=None):
    """Loss and gradient's norm of some micro-batches."""
    module = module_of(recipe)
    found = []
    for arrays in batches(recipe, sha256):
        module.zero_grad()
        loss = sum(module(to_batch(arrays, pad_id=0, device=CPU)).values())
        loss.backward()
        norm = sum(float(p.grad.double().square().sum()) for p in module.parameters() if p.grad is not None)
        found.append((loss.item(), norm**0.5))
    return found


STAGES = {
    "flow": {"stage": {"name": "generate", "start_from": ["world-encoder", "world-understand"]}},
    "pixels": {"stage": {"name": "decoder", "start_from": ["world-encoder"]}},
}


@pytest.mark.parametrize("sections", STAGES.values(), ids=STAGES)
def test_the_loss_from_stored_features_is_the_online_loss_to_the_bit(base, sections):
    cached = made(base, **sections)
    sha256 = FeatureCache.of(cached).sha256
    assert losses(cached, sha256) == losses(made(base, features="online", **sections))
    assert not hasattr(module_of(cached).model, "encoder")


# Of the loss. Measured on the four micro-batches: up to 2.1e-4 (bf16), 1.5e-5 (fp16), 2.2e-4 (int8).
TOLERANCE = {"bf16": 1e-3, "fp16": 1e-4, "int8": 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_smaller_records_change_the_loss_and_report_their_error(base, dtype):
    recipe = made(base, dtype=dtype)
    cache, work, footers = store(recipe)
    online = losses(made(base, features="online"))
    for (loss, _), (expected, _) in zip(losses(recipe, cache.sha256), online, strict=True):
        assert loss != expected
        assert loss == pytest.approx(expected, rel=TOLERANCE[dtype])
    assert [footer.encoded for footer in footers] == [10, 10, 2]
    assert all(0 < footer.relative_error < {"bf16": 2e-3, "fp16": 3e-4, "int8": 1e-2}[dtype] for footer in footers)
    assert work.verify(0) == footers[0]


def test_an_encoder_outside_the_trainer_computes_the_same_column(base):
    recipe = made(base, features="stream")
    maker = FrozenEncoder(recipe, CPU)
    sha256 = FeatureCache.of(made(base)).sha256
    for streamed, cached in zip(batches(recipe), batches(made(base), sha256), strict=True):
        assert set(cached) == {"features", *streamed} - {"encoder_pixels"}
        assert np.array_equal(maker.column(streamed["encoder_pixels"]), cached["features"])
        assert np.array_equal(streamed["draw_key"], cached["draw_key"])


def test_features_in_bf16_are_stored_exactly_and_sent_as_bits(base):
    recipe = made(base, parallel={"precision": "bf16"})
    cache, work, footers = store(recipe)
    assert (cache.provenance["dtype"], cache.provenance["stored"]["dtype"]) == ("bfloat16", "bf16")
    assert [footer.relative_error for footer in footers] == [0, 0, 0]
    assert work.verify(1) == footers[1]
    encoder = module_of(made(base, features="online")).model.encoder.bfloat16()
    (pixels, *_), (cached, *_) = batches(made(base, features="stream")), batches(recipe, cache.sha256)
    assert cached["features"].dtype == np.uint16
    with torch.no_grad():
        online = encoder(torch.tensor(pixels["encoder_pixels"]))
    assert torch.equal(to_batch({"features": cached["features"]}, pad_id=0, device=CPU)["features"], online)
    assert np.array_equal(FrozenEncoder(recipe, CPU).column(pixels["encoder_pixels"]), cached["features"])


def test_provenance_is_that_of_the_encoder_itself(base):
    cache = FeatureCache.of(made(base))
    online = module_of(made(base, features="online")).model.encoder.provenance()
    stored = cache.provenance.pop("stored")
    assert cache.provenance == json.loads(json.dumps(online.__dict__))
    assert stored == {"dtype": "fp32", "tokens": 4, "channels": 16}
    assert FrozenEncoder(made(base), CPU).weights_sha256 == online.weights_sha256


def test_another_encoder_is_refused_by_its_weights(base):
    other = UnifiedModel(made(base).model, image_token_id=5, parts=("encoder",), max_length=96)
    initialize(other, 99)
    uri = final_uri(made(base).run.storage, "other-encoder")
    write_final(uri, dict(other.named_parameters()), {"run": "other-encoder", "identity": "x"})
    stage = {"name": "generate", "start_from": ["world-encoder", "world-understand", "other-encoder"]}
    asked = FeatureCache.of(made(base, stage=stage))
    held, wanted = FeatureCache.of(made(base)).provenance["weights_sha256"], asked.provenance["weights_sha256"]
    with pytest.raises(DataError, match=f"weights_sha256 {held} where the recipe has {wanted}: run `python -m jobs.e"):
        asked.require(StageInputs(asked.recipe).manifests)
    FeatureCache.of(made(base)).require(StageInputs(made(base)).manifests)


def test_features_of_one_decoder_are_not_trained_on_with_the_other(base):
    pytest.importorskip("cykooz_resizer", reason="the extra simd is not installed")
    fast = made(base, engine="simd")
    with pytest.raises(DataError, match="decode_engine None where the recipe has simd"):
        FeatureCache.of(fast).require(StageInputs(fast).manifests)
    cache, _, _ = store(fast)
    assert losses(fast, cache.sha256) == losses(made(base, features="online", engine="simd"))


def test_the_encoder_is_hashed_once_until_its_file_changes(base, monkeypatch):
    hashed = []

    def counted(tensors):
        hashed.append(tensors_sha256(tensors))
        return hashed[-1]

    monkeypatch.setattr(encoder, "tensors_sha256", counted)
    stage = {"name": "generate", "start_from": ["world-encoder", "world-understand", "replaced"]}
    recipe = made(base, stage=stage)
    uri = final_uri(recipe.run.storage, "replaced")
    tensors, _ = read_final(final_uri(recipe.run.storage, "world-encoder"))
    write_final(uri, tensors, {"run": "replaced", "identity": "x"})
    found = [FeatureCache.of(recipe).provenance["weights_sha256"] for _ in range(2)]
    assert found == hashed * 2
    half = FeatureCache.of(made(base, stage=stage, parallel={"precision": "bf16"})).provenance["weights_sha256"]
    assert hashed == [found[0], half] != [half, found[0]]
    # Also where the description does not tell.
    write_tensor_file(f"{uri}/{WEIGHTS}", {name: tensor + 1 for name, tensor in tensors.items()})
    assert FeatureCache.of(recipe).provenance["weights_sha256"] == hashed[2] not in hashed[:2]
    assert len(hashed) == 3


def test_a_missing_encoder_is_named(base):
    missing = made(base, stage={"name": "generate", "start_from": ["world-understand"]})
    with pytest.raises(ConfigError, match=r"stage.start_from \(world-understand\) holds no encoder\.\w"):
        require_encoder(missing)
    unfinished = made(base, features="stream", stage={"name": "generate", "start_from": ["world-encoder", "later"]})
    with pytest.raises(
        ConfigError, match="'stream' needs the encoder's .* run 'later' in stage.start_from has not fin"
    ):
        require_encoder(unfinished)
    tensors, _ = read_final(final_uri(missing.run.storage, "world-encoder"))
    changed = {name: tensor[..., :1] for name, tensor in tensors.items()}
    write_final(final_uri(missing.run.storage, "narrow"), changed, {"run": "narrow", "identity": "x"})
    with pytest.raises(CheckpointError, match=r"narrow/final: encoder.\S+ has shape .* use the same model preset"):
        require_encoder(made(base, stage={"name": "generate", "start_from": ["narrow"]}))


@pytest.mark.parametrize(
    ("sections", "features", "message"),
    [
        ({"stage": {"name": "understand"}}, "cache", "'cache' stores or streams .* stage 'understand'"),
        ({"stage": {"name": "encoder"}}, "stream", "'stream' stores or streams .* leave data.features at online"),
    ],
)
def test_stages_without_a_frozen_encoder_take_no_features(base, sections, features, message):
    with pytest.raises(ConfigError, match=message):
        made(base, features=features, **sections)
    with pytest.raises(
        ConfigError, match="feature_dtype int8 applies to stored features, and data.features is 'online'"
    ):
        made(base, features="online", dtype="int8")


def test_a_damaged_image_has_no_features_and_is_replaced_as_online(base, tmp_path):
    content = scenes("train", size=SCENES)
    root = f"{tmp_path}/data"
    add_source(root, "scenes", content)
    storage.write_bytes(f"{root}/tokenizer.json", storage.read_bytes(f"{base}/data/tokenizer.json"))
    world.write_finals(made(tmp_path))
    manifest = read_manifest(f"{root}/manifests/scenes")
    # Damaged after it was indexed, in place: size and version of the file are those of the manifest.
    uri = manifest.shards[0].uri
    whole = storage.read_bytes(uri)
    at = whole.index(content[3].image)
    storage.write_bytes(uri, whole[:at] + bytes(len(content[3].image)) + whole[at + len(content[3].image) :])
    cache, work, footers = store(made(tmp_path))
    assert (footers[0].encoded, footers[0].absent) == (9, 1)
    (entry,) = read_ledger(f"{work.folder.uri}/ledger")
    assert (entry.uid, entry.stage) == ("scenes/0/3", STAGE)
    assert work.verify(0) == footers[0]
    online, cached = batches(made(tmp_path, features="online")), batches(made(tmp_path), cache.sha256)
    assert [one["draw_key"].tolist() for one in online] == [one["draw_key"].tolist() for one in cached]


def test_verifying_finds_damaged_features_and_features_of_other_images(base, tmp_path):
    recipe = made(base, dtype="fp16")
    cache, work, footers = store(recipe)
    uri = work.folder.file(1)
    whole = storage.read_bytes(uri)
    offset, size = record_range(work.folder.record, 4)
    storage.write_bytes(uri, whole[:offset] + b"\x01" + whole[offset + 1 :])
    assert not missing_features(work.folder, work.manifest)
    with pytest.raises(StorageError, match=r"00001.bin: the features of row 4 are damaged"):
        work.verify(1)
    swapped = whole[offset + size : offset + 2 * size] + whole[offset : offset + size]
    storage.write_bytes(uri, whole[:offset] + swapped + whole[offset + 2 * size :])
    with pytest.raises(DataError, match="features of rows 0 to 7, encoded again, differ by .* is allowed: delete"):
        work.verify(1)
    storage.write_bytes(uri, whole[:offset] + work.folder.record.absent + whole[offset + size :])
    with pytest.raises(DataError, match="row 4 has features, or an image, where the other is missing"):
        work.verify(1)
    storage.write_bytes(uri, whole)
    assert work.verify(1) == footers[1]
    assert footers[1].relative_error + TOLERANCE_FP32 < 1e-3
    assert read_header(uri) == work.folder.header(work.manifest.shards[1])


def test_a_record_does_not_depend_on_the_rows_around_it(base):
    """A shard of ten rows in batches of eight: the last two are encoded in a padded batch of eight."""
    recipe = made(base)
    _, work = encoder_of(recipe)
    alone = replace(work, encode=lambda pixels: np.stack([work.encode(pixels[[i] * 8])[0] for i in range(8)]))
    rows = [dict(which._features(0, range(10))) for which in (work, alone)]
    assert all(np.array_equal(rows[0][row], rows[1][row]) for row in range(10))


def test_prefetching_keeps_the_order_and_raises_errors():
    with ThreadPoolExecutor(3) as pool:
        assert list(prefetch(pool, lambda number: number * number, range(20), ahead=3)) == [
            number * number for number in range(20)
        ]
        with pytest.raises(ZeroDivisionError):
            list(prefetch(pool, lambda number: 1 // (5 - number), range(20), ahead=3))


def test_cached_rows_of_the_decoder_stage_keep_their_pixels(base):
    recipe = made(base, **STAGES["pixels"])
    (first, *_) = batches(recipe, FeatureCache.of(recipe).sha256)
    assert stage_of(recipe).task is Task.PIXELS
    assert {name: first[name].shape for name in first} == {
        "features": (8, 4, 16),
        "decoder_pixels": (8, *[recipe.model.decoder.image_size] * 2, 3),
        "draw_key": (8,),
    }
    assert to_float(first["features"]).dtype == np.float32


def wait_for_another_batch(work):
    """An encoder that continues when the next batch has arrived too: with one at a time it would wait in vain."""
    arrived = threading.Barrier(2, timeout=60)

    def encode(pixels):
        arrived.wait()
        return work.encode(pixels)

    return replace(work, encode=encode)


def stored(work, shards):
    return [storage.read_bytes(work.folder.file(shard)) for shard in shards]


def test_the_next_batch_is_with_the_encoder_before_the_last_one_is_back(base):
    _, work = encoder_of(made(base))
    before = stored(work, [0, 1])  # each of two batches
    for shard in (0, 1):
        storage.delete(work.folder.file(shard))
        wait_for_another_batch(work).write(shard)
    assert stored(work, [0, 1]) == before


def test_the_next_shard_is_decoded_while_the_last_one_is_encoded_and_waits_its_turn(base, monkeypatch):
    _, work = encoder_of(made(base, dtype="fp16"))
    work = replace(work, batch_size=1)  # ten batches a shard, more than the encoder takes at once
    serial, seen, decoded = [], [], {0: threading.Event(), 1: threading.Event()}
    recording = replace(work, encode=lambda pixels: serial.append(pixels.tobytes()) or work.encode(pixels))
    for shard in (0, 1):
        recording.write(shard)
    before = stored(work, [0, 1])

    def encode(pixels):
        seen.append(pixels.tobytes())
        assert decoded[1].wait(60)
        return work.encode(pixels)

    def pixels_of(self, reader, shard, rows):
        found = decode(self, reader, shard, rows)
        decoded[shard].set()
        return found

    decode, both = ShardEncoder._pixels, replace(work, encode=encode)
    monkeypatch.setattr(ShardEncoder, "_pixels", pixels_of)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(both.write, 0)
        assert decoded[0].wait(60)
        while not both._turn.locked():
            threading.Event().wait(0.001)
        second = callers.submit(both.write, 1)
        assert [footer.encoded for footer in (first.result(), second.result())] == [10, 10]
    # The first shard's last batches may still be on their way to the encoder, by as many threads.
    assert set(seen[: 10 - ENCODING]) <= set(serial[:10])
    assert stored(work, [0, 1]) == before


def test_an_error_of_the_encoder_ends_its_shard_and_gives_up_its_turn(base):
    _, work = encoder_of(made(base))
    before = stored(work, [0, 1])
    broken = replace(work, encode=lambda pixels: work.encode(pixels)[:, :1])
    with pytest.raises(DataError, match=r"features have shape \(1, 16\)") as kept:
        broken.write(0)
    assert not broken._turn.locked()
    assert replace(broken, encode=work.encode).write(1).encoded == 10
    assert kept.value
    assert stored(work, [0, 1]) == before


def test_threads_take_turns_with_the_encoder(base):
    """Each gets its own features: those that it would get alone."""
    maker = FrozenEncoder(made(base), CPU)
    pixels = [batch["encoder_pixels"] for batch in batches(made(base, features="stream"))]
    alone = [maker(one) for one in pixels]
    with ThreadPoolExecutor(2) as callers:
        together = list(callers.map(maker, pixels))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


# Relative, of the features in fp32. Measured here: 0; other shapes and processors choose other kernels.
ROUNDING = 1e-5


def test_batches_of_a_size_of_their_own_make_a_cache_of_their_own_that_differs_by_rounding(base):
    recipe, other = made(base), made(base, parallel={"encoder_batch_size": 3})
    cache, own = FeatureCache.of(recipe), FeatureCache.of(other)
    assert own.provenance == {**cache.provenance, "batch_size": 3}
    with pytest.raises(DataError, match="has batch_size None where the recipe has 3: run"):
        own.require(StageInputs(other).manifests)
    sizes = []
    ((manifest, folder),) = own.sources(StageInputs(other).manifests)
    work = load_shard_encoder(own, 0, threads=1)
    work = replace(work, encode=lambda pixels, encode=work.encode: sizes.append(len(pixels)) or encode(pixels))
    for shard in manifest.shards:
        work.write(shard.shard)
    assert set(sizes) == {3}
    own.require([manifest])
    assert work.verify(2).encoded == 2
    for found, expected in zip(batches(other, own.sha256), batches(recipe, cache.sha256), strict=True):
        assert np.allclose(found["features"], expected["features"], rtol=ROUNDING, atol=ROUNDING)
    assert identity(recipe, data_sha256=[]) != identity(other, data_sha256=[])
    online = made(base, features="online")
    assert identity(online, data_sha256=[]) == identity(
        made(base, features="online", parallel={"encoder_batch_size": 3}), data_sha256=[]
    )


def test_compiled_layers_make_a_cache_of_their_own(base):
    """Also where they are the default, on a GPU; ZeRO 3 compiles nothing."""
    plain, compiled = made(base), made(base, parallel={"compile": True})
    cache, own = FeatureCache.of(plain), FeatureCache.of(compiled)
    assert own.provenance == {**cache.provenance, "compiled": True}
    with pytest.raises(DataError, match="has compiled None where the recipe has True: run"):
        own.require(StageInputs(compiled).manifests)
    for parallel, expected in (({}, True), ({"zero_stage": 3}, None), ({"compile": False}, None)):
        recipe = made(base, parallel={"device": "gpu", **parallel})
        assert FeatureCache.of(recipe).provenance.get("compiled") is expected
    (pixels, *_) = [batch["encoder_pixels"] for batch in batches(made(base, features="stream"))]
    with torch.compiler.set_stance(force_backend="eager"):
        assert np.array_equal(FrozenEncoder(compiled, CPU)(pixels), FrozenEncoder(plain, CPU)(pixels))
