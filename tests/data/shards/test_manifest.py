"""Manifests and indexes come back as written, and shards that changed since are named."""

import io
import json
import os
import zlib

import pyarrow.parquet as pq
import pytest
from PIL import Image

from blip3o import storage
from blip3o.config.shards import MembersConfig, SelectConfig
from blip3o.data.order.sample_order import SampleOrder, SourceRows
from blip3o.data.order.selection import judge_shards, write_selection
from blip3o.data.shards.accounts import account
from blip3o.data.shards.facts import perceptual_hash
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.manifest import (
    check_unchanged,
    manifest_file,
    read_manifest,
    read_shard_facts,
    read_shard_index,
    read_shard_summaries,
    write_manifest,
    write_shard_index,
)
from blip3o.data.shards.overview import good_samples
from blip3o.data.shards.scan import scan_shard
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import DataError
from blip3o.types import SampleRef
from tests.data.shard_files import index, png, put, sample, samples, tar


@pytest.fixture
def manifest(tmp_path):
    return index(tmp_path, [tar(samples(3)), tar(samples(2) + sample("bad", caption=b""))])


def test_a_manifest_counts_and_comes_back(manifest):
    assert (manifest.name, manifest.rows, manifest.good_rows) == ("src", 6, 5)
    assert [shard.bad_rows for shard in manifest.shards] == [(), (2,)]
    assert read_manifest(manifest.uri) == manifest


def test_the_fingerprint_follows_the_data(manifest, tmp_path):
    assert read_manifest(manifest.uri).fingerprint == manifest.fingerprint
    other = index(tmp_path, [tar(samples(3)), tar(samples(3))])
    assert other.fingerprint != manifest.fingerprint


def test_members_are_found_by_row_and_extension(manifest):
    found = read_shard_index(manifest, 1)
    assert len(found) == 3
    assert [found.key(row) for row in range(3)] == ["s000", "s001", "bad"]
    member = found.member(1, "txt")
    assert storage.read_ranges(manifest.shards[1].uri, [(member.offset, member.size)]) == [b"caption of s001"]
    assert [member.ext for member in found.members(0)] == ["png", "txt", "json"]
    assert found.member(1, "webp") is None


def test_summaries_carry_the_damage(manifest):
    summaries = read_shard_summaries(manifest.uri)
    assert [summaries[number].row for number in range(2)] == list(manifest.shards)
    assert summaries[0].damage == ()
    assert [(entry.uid, entry.reason) for entry in summaries[1].damage] == [("src/1/2", "empty caption")]


def test_facts_are_kept_for_good_samples(tmp_path):
    files = sample("a", caption=" zwölf Äpfel\n".encode(), record=b'{"score": 6.5, "language": "de", "tags": ["x"]}')
    manifest = index(tmp_path, [tar(files + sample("bad", caption=b""))])
    good, bad = read_shard_facts(manifest, 0).to_pylist()
    stored = b"".join(data for _, data in files)
    assert json.loads(good.pop("fields")) == {"score": 6.5, "language": "de"}
    assert good == {
        "width": 12,
        "height": 9,
        "caption_chars": len("zwölf Äpfel"),
        "phash": perceptual_hash(Image.open(io.BytesIO(files[0][1]))),
        "crc32": zlib.crc32(stored),
    }
    assert bad == {"width": 0, "height": 0, "caption_chars": 0, "phash": 0, "crc32": 0, "fields": "{}"}


def test_an_index_of_the_layout_before_serves_readers_and_has_no_counts(manifest):
    uri = f"{manifest.uri}/index/00001.parquet"
    table = pq.read_table(uri)
    header = json.loads(table.schema.metadata[b"blip3o"])
    header["layout"] = 3
    for name in ("tally", "members"):
        del header[name]
    for entry in header["damage"]:
        del entry["count"]
    pq.write_table(table.replace_schema_metadata({b"blip3o": json.dumps(header)}), uri)
    summaries = read_shard_summaries(manifest.uri)
    assert summaries[1].tally is None and summaries[0].tally is not None
    assert summaries[1].damage[0].count == 1
    assert account([summaries[0], summaries[1]]) is None
    (found,) = ShardReader([manifest]).fetch([SampleRef(source=0, shard=1, row=1, pass_index=0)])
    assert found.caption == "caption of s001"


def test_members_that_a_source_names_are_those_that_are_read(tmp_path):
    files = [("a.input.png", png()), ("a.png", png(1)), ("a.said.txt", b"said"), ("a.txt", b"else")]
    file = put(tmp_path, "a.tar", tar(files))
    options = ScanOptions(members=MembersConfig(image="input.png", caption="said.txt"))
    row = write_shard_index(str(tmp_path), file, scan_shard(file, source="src", shard=0, options=options)).row
    manifest = write_manifest(str(tmp_path), "src", [row])
    assert read_shard_summaries(str(tmp_path))[0].members == options.members
    (found,) = ShardReader([manifest]).fetch([SampleRef(source=0, shard=0, row=0, pass_index=0)])
    assert (found.image, found.caption) == (png(), "said")


def test_a_shard_of_nothing_is_in_no_order_and_costs_no_reader_anything(tmp_path):
    manifest = index(tmp_path, [tar([]), tar(samples(3)), tar([]), tar(samples(2, "t")), tar([])])
    assert [shard.rows for shard in manifest.shards] == [0, 3, 0, 2, 0]
    order = SampleOrder([SourceRows.from_manifest("src", manifest)], weights=[1.0], seed=0, micro_batch=5)
    found = ShardReader([manifest]).fetch(order.micro_batch_refs(0))
    assert sorted(sample.key for sample in found) == ["s000", "s001", "s002", "t000", "t001"]
    assert len(good_samples(manifest)) == 5
    assert len(read_shard_index(manifest, 0)) == 0
    select = SelectConfig(min_caption_chars=1)
    assert write_selection(manifest, select, list(judge_shards(manifest, select))) == 5


def test_an_index_of_an_older_layout_is_not_taken(manifest):
    uri = f"{manifest.uri}/index/00001.parquet"
    table = pq.read_table(uri)
    header = json.loads(table.schema.metadata[b"blip3o"])
    del header["layout"]
    pq.write_table(table.replace_schema_metadata({b"blip3o": json.dumps(header)}), uri)
    assert list(read_shard_summaries(manifest.uri)) == [0]
    with pytest.raises(DataError, match=r"00001\.parquet was written by an older version: index the source again"):
        read_shard_index(manifest, 1)


def test_a_source_that_is_not_indexed_says_how_to(tmp_path):
    with pytest.raises(DataError, match="python -m jobs.index RECIPE"):
        read_manifest(str(tmp_path))


def test_what_is_no_manifest_is_named(manifest):
    storage.write_bytes(manifest_file(manifest.uri), b"PAR1 or not")
    with pytest.raises(DataError, match="manifest.parquet is not a file of our index"):
        read_manifest(manifest.uri)


@pytest.mark.parametrize("kept", [0.3, 0.9, 1.0])
def test_a_damaged_index_is_named(tmp_path, kept):
    source = index(tmp_path, [tar(samples(4))])
    (file,) = storage.list_files(f"{tmp_path}/manifest/index")
    whole = storage.read_bytes(file.uri)
    # Cut, or overwritten where its data, its header, and its schema lie.
    for start in [None] if kept < 1 else range(4, len(whole) - 300, len(whole) // 12):
        torn = whole[: int(kept * len(whole))] if start is None else whole[:start] + b"~" * 300 + whole[start + 300 :]
        storage.write_bytes(file.uri, torn)
        with pytest.raises(DataError, match="is not a file of our index: delete it and index"):
            read_shard_summaries(source.uri)
            read_shard_facts(source, 0)
            read_shard_index(source, 0)


def test_an_index_of_another_shard_is_refused(manifest):
    swapped = write_manifest(manifest.uri, "src", [manifest.shards[0], manifest.shards[1]])
    first, second = (storage.read_bytes(f"{swapped.uri}/index/0000{number}.parquet") for number in range(2))
    assert first != second
    storage.write_bytes(f"{swapped.uri}/index/00000.parquet", second)
    with pytest.raises(DataError, match="of different shards"):
        read_shard_index(swapped, 0)


def test_unchanged_shards_pass(manifest):
    check_unchanged(manifest)


def test_a_shard_that_is_gone_grew_or_was_rewritten_is_named(manifest, tmp_path):
    shard = manifest.shards[1]
    data = storage.read_bytes(shard.uri)
    put(tmp_path, "train-00001.tar", data + b"\0")
    with pytest.raises(DataError, match=f"{shard.uri} has {shard.size + 1} bytes, {shard.size} when"):
        check_unchanged(manifest)
    put(tmp_path, "train-00001.tar", data)
    os.utime(shard.uri, ns=(0, int(shard.version) + 1))
    with pytest.raises(DataError, match=f"{shard.uri} was written again"):
        check_unchanged(manifest)
    storage.delete(shard.uri)
    with pytest.raises(DataError, match=f"{shard.uri} is gone"):
        check_unchanged(manifest)
