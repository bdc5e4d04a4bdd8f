"""Feature files: a row's features lie where its number says; nothing cut, damaged or of other things passes."""

from dataclasses import replace

import numpy as np
import pytest

from blip3o import storage
from blip3o.data.features.files import (
    HEADER_BYTES,
    FeatureHeader,
    feature_folder,
    missing_features,
    provenance_sha256,
    read_footer,
    read_header,
    record_range,
    require_features,
    scan_records,
    write_features,
    write_provenance,
)
from blip3o.data.features.reader import EXACT_BYTES, NO_FEATURES, FeatureReader
from blip3o.data.features.records import RecordFormat
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.errors import DataError, StorageError
from blip3o.types import RawSample, SampleRef
from tests.data.shard_files import index, sample, samples, tar

N, F, ROWS = 3, 4, 6
RECORD = RecordFormat(dtype="fp32", tokens=N, channels=F)
MADE_BY = {"kind": "eva_clip", "dtype": "float32", "weights_sha256": "aa"}


def of_row(shard, row):
    return np.full((N, F), 100 * shard + row, np.float32)


@pytest.fixture
def cache(tmp_path):
    """A source of two shards with features of every row but row 4 of the second, which is damaged."""
    bad = samples(4, "t") + sample("bad", caption=b"") + sample("last")
    manifest = index(tmp_path, [tar(samples(ROWS)), tar(bad)])
    folder = feature_folder(manifest.uri, provenance_sha256(MADE_BY), RECORD)
    write_provenance(folder, MADE_BY)
    for shard in manifest.shards:
        rows = [None if row in shard.bad_rows else of_row(shard.shard, row) for row in range(shard.rows)]
        write_features(folder.file(shard.shard), folder.header(shard), rows)
    return manifest, folder


def change(uri, at, data):
    whole = bytearray(storage.read_bytes(uri))
    whole[at : at + len(data)] = data
    storage.write_bytes(uri, bytes(whole))


def ref(shard, row):
    return SampleRef(source=0, shard=shard, row=row, pass_index=0)


def reader(cache):
    manifest, folder = cache
    return FeatureReader([manifest], {manifest.name: folder})


def test_features_come_back_by_row(cache):
    manifest, folder = cache
    require_features(folder, manifest, MADE_BY)
    refs = [ref(1, 5), ref(0, 0), ref(1, 4), ref(0, 3)]
    found = reader(cache).read(refs)
    assert found.pop("src/1/4") is None
    assert {uid: features[0, 0] for uid, features in found.items()} == {"src/1/5": 105, "src/0/0": 0, "src/0/3": 3}
    header = read_header(folder.file(1))
    assert header == folder.header(manifest.shards[1])
    footer = read_footer(folder.file(1), header)
    assert (footer.encoded, footer.absent, footer.relative_error) == (5, 1, 0)
    records = dict(scan_records(folder.file(0), read_header(folder.file(0))))
    assert [RECORD.unpack(records[row])[0, 0] for row in range(ROWS)] == list(range(ROWS))


def test_a_damaged_record_names_file_and_row(cache):
    manifest, folder = cache
    offset, size = record_range(RECORD, 2)
    change(folder.file(0), offset + 5, b"\x55")
    require_features(folder, manifest, MADE_BY)  # that is not seen without reading every byte
    with pytest.raises(StorageError, match=r"00000\.bin: the features of row 2 are damaged .*jobs.encode RECIPE"):
        reader(cache).read([ref(0, 1), ref(0, 2)])
    assert reader(cache).read([ref(0, 1)])["src/0/1"][0, 0] == 1
    with pytest.raises(StorageError, match="the features of row 2 are damaged"):
        list(scan_records(folder.file(0), read_header(folder.file(0))))
    assert (offset, size) == (HEADER_BYTES + 2 * RECORD.record_bytes, 4 * N * F + 4)


def test_a_file_that_is_missing_cut_or_of_another_shard_is_named(cache):
    manifest, folder = cache
    whole = storage.read_bytes(folder.file(0))
    storage.write_bytes(folder.file(0), whole[:-1])
    with pytest.raises(
        DataError, match=rf"for 1 of 2 shards: .*00000.bin has {len(whole) - 1} bytes, .* have {len(whole)}"
    ):
        require_features(folder, manifest, MADE_BY)
    storage.write_bytes(folder.file(0), storage.read_bytes(folder.file(1)))
    assert "has shard 1, expected 0" in missing_features(folder, manifest)[0]
    storage.write_bytes(folder.file(0), whole)
    change(folder.file(0), 20, b"xx")
    assert "is not a feature file, or its header is damaged" in missing_features(folder, manifest)[0]
    storage.delete(folder.file(1))
    assert list(missing_features(folder, manifest)) == [0, 1]
    storage.write_bytes(folder.file(0), whole)
    shards = (replace(manifest.shards[0], version="1"), manifest.shards[1])
    changed = missing_features(folder, replace(manifest, shards=shards))
    assert f"has version {manifest.shards[0].version}, expected 1" in changed[0]
    # A row that is no longer bad, though the shard is as it was.
    assert (
        "has bad_rows"
        in missing_features(
            folder,
            replace(
                manifest, shards=(replace(shards[0], bad_rows=(3,), version=manifest.shards[0].version), shards[1])
            ),
        )[0]
    )


def test_features_made_by_something_else_are_refused_by_name_and_value(cache):
    manifest, _ = cache
    asked = MADE_BY | {"weights_sha256": "bb", "dtype": "bfloat16"}
    folder = feature_folder(manifest.uri, provenance_sha256(asked), RECORD)
    expected = (
        "no features for 2 of 2 shards: .*/features/[0-9a-f]{16} has dtype float32 where the recipe has bfloat16, "
        "weights_sha256 aa where the recipe has bb: run `python -m jobs.encode RECIPE`, or set data.features=online"
    )
    with pytest.raises(DataError, match=expected):
        require_features(folder, manifest, asked)


def test_a_file_with_another_number_of_rows_is_not_left_behind(cache):
    manifest, folder = cache
    uri = storage.join(folder.uri, "other.bin")
    with pytest.raises(DataError, match="5 rows were encoded, the shard has 6"):
        write_features(uri, folder.header(manifest.shards[0]), [of_row(0, row) for row in range(5)])
    assert not storage.exists(uri)


def test_a_header_that_does_not_fit_or_has_other_fields_is_refused(cache, tmp_path):
    manifest, folder = cache
    long = replace(folder.header(manifest.shards[0]), uri="x" * HEADER_BYTES)
    with pytest.raises(DataError, match="do not fit 4096: shorten the shard's URI"):
        write_features(f"{tmp_path}/long.bin", long, [])
    footer_as_header = storage.read_bytes(folder.file(0))[-512:].ljust(HEADER_BYTES, b"\0")
    storage.write_bytes(f"{tmp_path}/other.bin", footer_as_header)
    with pytest.raises(StorageError, match="was written by another version of this program"):
        read_header(f"{tmp_path}/other.bin")


def test_large_records_are_read_by_their_own_ranges(tmp_path, monkeypatch):
    large = RecordFormat(dtype="fp16", tokens=64, channels=512)
    assert large.record_bytes > EXACT_BYTES > RECORD.record_bytes
    manifest = index(tmp_path, [tar(samples(4))])
    folder = feature_folder(manifest.uri, provenance_sha256(MADE_BY), large)
    rows = [np.full((64, 512), row, np.float32) for row in range(4)]
    write_features(folder.file(0), folder.header(manifest.shards[0]), rows)
    monkeypatch.setattr("blip3o.storage.block_cache.BlockCache.read", lambda *_: pytest.fail("read by blocks"))
    found = reader((manifest, folder)).read([ref(0, 3), ref(0, 1)])
    assert {uid: float(features[5, 5]) for uid, features in found.items()} == {"src/0/3": 3, "src/0/1": 1}


def raw(shard, row):
    return RawSample(uid=f"src/{shard}/{row}", key="k", pass_index=0, image=b"", caption="c", meta={})


def test_features_join_the_columns_of_their_sample_and_an_image_without_them_is_damaged(cache):
    encode = reader(cache).with_features(lambda raw: {"name": np.array(raw.uid)}, [ref(0, 1), ref(1, 4)])
    assert encode(raw(0, 1))["features"][0, 0] == 1
    assert encode(raw(0, 1))["name"] == "src/0/1"
    assert encode(raw(1, 5))["features"][0, 0] == 105  # a replacement, read when it is needed
    with pytest.raises(DamagedSampleError, match=NO_FEATURES):
        encode(raw(1, 4))


def test_a_header_follows_its_shard(cache):
    manifest, folder = cache
    header = FeatureHeader.of(manifest.shards[1], folder.sha256, RECORD)
    assert header.file_bytes == storage.stat(folder.file(1)).size
    assert header.bad_rows != FeatureHeader.of(manifest.shards[0], folder.sha256, RECORD).bad_rows
