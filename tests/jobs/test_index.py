"""Indexing a source on Ray: finds its shards, keeps within the budget, resumes where it stopped."""

import io
import json
import re
import shutil
import zlib
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from blip3o import storage
from blip3o.config.shards import ColumnsConfig, LimitsConfig
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import ledger_file, manifest_file, read_manifest, write_manifest
from blip3o.data.shards.scan import ScanOptions
from blip3o.errors import DataError
from blip3o.storage.patterns import find_shards
from blip3o.types import SampleRef
from jobs.index import index_source, main, verify_source
from tests.data.shard_files import parquet, png, put, rows, sample, samples, tar
from tests.jobs import world


def test_shards_match_a_pattern_and_come_sorted(tmp_path):
    for name in ("train-00001.tar", "train-00000.tar", "heldout-00000.tar", "train-00000.tar.md5", "sub/train-9.tar"):
        put(tmp_path, name, b"x")
    assert [file.uri for file in find_shards(f"{tmp_path}/train-*.tar")] == [
        f"{tmp_path}/train-0000{number}.tar" for number in range(2)
    ]
    with pytest.raises(DataError, match=r"no file matches .*/test-\*\.tar \(4 files lie in"):
        find_shards(f"{tmp_path}/test-*.tar")


def test_a_source_in_a_store_is_indexed_resumed_and_kept_within_its_budget(ray_cluster, s3):
    folder, manifest_uri = f"{s3}/index-job/data", f"{s3}/index-job/manifest"
    source = {"name": "src", "shards_uri": f"{folder}/train-*.tar", "manifest_uri": manifest_uri}
    put(folder, "train-00000.tar", tar(samples(6)))
    put(folder, "train-00001.tar", tar(samples(5, "t") + sample("bad", caption=b"")))

    with pytest.raises(DataError, match="1 of 12 samples are damaged, 0 of 2 shards .* the budget is 5.00%"):
        index_source(**source)
    assert not storage.exists(manifest_file(manifest_uri))
    assert [entry.uid for entry in read_ledger(ledger_file(manifest_uri))] == ["src/1/5"]

    # What was scanned is not scanned again, and the result is that of a run that was not stopped.
    done = index_source(**source, max_bad_share=0.1)
    assert (done.scanned, done.bad_rows, done.bad_share) == (0, 1, 1 / 12)
    assert done.manifest == read_manifest(manifest_uri)
    assert [(shard.rows, shard.bad_rows) for shard in done.manifest.shards] == [(6, ()), (6, (5,))]
    refs = [SampleRef(source=0, shard=shard, row=4, pass_index=0) for shard in range(2)]
    assert [item.key for item in ShardReader([done.manifest]).fetch(refs)] == ["s004", "t004"]

    # Only a shard that was replaced is scanned again; one without a good sample counts as a whole shard.
    put(folder, "train-00001.tar", tar([("README", b"?")]))
    with pytest.raises(DataError, match="0 of 6 samples are damaged, 1 of 2 shards have no good one"):
        index_source(**source, max_bad_share=0.1)
    put(folder, "train-00001.tar", tar(samples(7, "u")))
    again = index_source(**source)
    assert (again.scanned, again.manifest.good_rows) == (1, 13)
    assert again.manifest.shards[0] == done.manifest.shards[0]
    assert read_ledger(ledger_file(manifest_uri)) == []


def test_what_is_not_as_it_was_indexed_is_named(ray_cluster, s3):
    folder, manifest_uri = f"{s3}/index-verify/data", f"{s3}/index-verify/manifest"
    source = {"name": "src", "shards_uri": f"{folder}/*.tar", "manifest_uri": manifest_uri}
    put(folder, "0.tar", tar(samples(2)))
    put(folder, "1.tar", tar(samples(7, "u")))
    manifest = index_source(**source).manifest
    shown = {"name": "src", "manifest_uri": manifest_uri}
    assert verify_source(**shown) == 9
    put(folder, "1.tar", tar(samples(7, "u")).replace(b"caption of u003", b"caption of u_03"))
    with pytest.raises(DataError, match=r"/1\.tar was written again since it was indexed"):
        verify_source(**shown)
    # A byte that changed behind the index's back is found by its sample.
    pretend_indexed(manifest, replace(manifest.shards[1], version=storage.stat(f"{folder}/1.tar").version))
    with pytest.raises(DataError, match=r"differs from its index in 1 places: src/1/3 of .*/1\.tar has crc32"):
        verify_source(**shown)
    other = ScanOptions(limits=LimitsConfig(max_pixels=9))
    with pytest.raises(DataError, match="was indexed with other limits, columns or members: index the source again"):
        verify_source(**shown, options=other)
    with pytest.raises(DataError, match="9 of 9 samples are damaged"):
        index_source(**source, options=other)


def test_columns_of_parquet_are_chosen_by_name(ray_cluster, s3):
    named = [{"blob": row["image"], "caption": row["caption"], "n": 7} for row in rows(5)]
    put(f"{s3}/index-columns", "a.parquet", parquet(named))
    source = {"name": "table", "shards_uri": f"{s3}/index-columns/*.parquet", "manifest_uri": f"{s3}/index-columns/m"}
    with pytest.raises(DataError, match="5 of 5 samples are damaged, 1 of 1 shards have no good one"):
        index_source(**source, options=ScanOptions(columns=ColumnsConfig(image="picture")))
    (entry,) = read_ledger(ledger_file(source["manifest_uri"]))
    found = "blob (binary), caption (string), n (int64)"
    assert entry.reason == f"no column 'picture' of bytes among {found}: set columns.image"
    assert entry.count == 5
    table = index_source(**source, options=ScanOptions(columns=ColumnsConfig(image="blob")))
    (found,) = ShardReader([table.manifest]).fetch([SampleRef(source=0, shard=0, row=4, pass_index=0)])
    assert (found.image, found.caption, found.meta) == (png(zlib.crc32(b"s004")), "caption of s004", {"n": 7})


def test_without_ray_a_small_source_is_indexed_to_the_same_bytes(ray_cluster, tmp_path, monkeypatch):
    put(tmp_path, "train-0.tar", tar(samples(5, "t") + sample("bad", caption=b"")))
    put(tmp_path, "train-1.tar", tar(samples(3))[:-3000])  # cut off
    put(tmp_path, "train-2.tar", tar(samples(4, "u")))
    manifest = tmp_path / "manifest"

    def indexed():
        done = index_source(name="src", shards_uri=f"{tmp_path}/*.tar", manifest_uri=str(manifest), max_bad_share=0.9)
        written = {file.relative_to(manifest): file.read_bytes() for file in manifest.rglob("*") if file.is_file()}
        shutil.rmtree(manifest)
        return str(done), written

    on_ray = indexed()
    assert "3 shards" in on_ray[0] and "2 damaged" in on_ray[0] and len(on_ray[1]) > 3
    monkeypatch.setattr("jobs.index.has_ray", lambda: False)
    monkeypatch.setattr("jobs.index.join_ray", lambda: pytest.fail("a Ray for this"))
    assert indexed() == on_ray


def test_every_source_of_a_pipeline_is_indexed(base, tmp_path, capsys):
    sources = [{"name": name, "shards": f"{name}/*.tar"} for name in ("left", "right")]
    stages = {}
    for number, source in enumerate(sources):
        put(f"{base}/pipeline/{source['name']}", "0.tar", tar(samples(number + 2)))
        data = {"root": f"{base}/pipeline", "sources": sources[: number + 1]}
        stages[f"stage-{number}"] = world.tree(base, run={"name": f"stage-{number}"}, data=data)
    (tmp_path / "both.yaml").write_text(yaml.safe_dump({"pipeline": {"name": "both", "stages": stages}}))
    assert main([str(tmp_path / "both.yaml")]) == 0
    printed = capsys.readouterr().out
    said = r"{}: left, 1 shards \([\d.]+ kB\), 2 samples, 0 damaged; manifest in .*/pipeline/manifests/left"
    assert re.search(f"^{said.replace('{}:', 'indexed')}$", printed, re.MULTILINE)
    # The second stage names it again.
    assert re.search(f"^{said.replace('{}', 'already indexed')}$", printed, re.MULTILINE)
    rows = [read_manifest(f"{base}/pipeline/manifests/{source['name']}").rows for source in sources]
    assert rows == [2, 3]


def test_a_recipe_is_verified_from_the_command_line(base, tmp_path, capsys):
    recipe = world.write_recipe(tmp_path / "recipe.yaml", base)
    assert main([recipe, "--verify"]) == 0
    assert main([recipe, "--verify", "--set", "data.limits.max_pixels=5"]) == 1
    assert "was indexed with other limits, columns or members: index the source again" in capsys.readouterr().err


def test_shards_that_an_older_version_indexed_are_read_again_and_give_the_same(ray_cluster, tmp_path, caplog):
    put(tmp_path / "data", "0.tar", tar(samples(3)))
    source = {"name": "src", "shards_uri": f"{tmp_path}/data/*.tar", "manifest_uri": f"{tmp_path}/m"}
    before = index_source(**source)
    assert index_source(**source).scanned == 0
    change_header(f"{tmp_path}/m/index/00000.parquet", lambda header: header.pop("tally") and header.update(layout=3))
    with caplog.at_level("INFO", "blip3o.data.shards.indexing"):
        again = index_source(**source)
    assert (again.scanned, again.manifest.fingerprint) == (1, before.manifest.fingerprint)
    assert "src: 1 shards were indexed by an older version: read again" in caplog.text


def test_other_names_of_members_index_a_source_again(ray_cluster, tmp_path, capsys):
    put(tmp_path / "data", "0.tar", tar([*samples(1), ("a.1.png", png()), ("a.1.txt", b"said")]))
    source = {"name": "src", "shards_uri": f"{tmp_path}/data/*.tar", "manifest_uri": f"{tmp_path}/m"}
    with pytest.raises(DataError, match=r"1 of 2 samples are damaged.*most often: missing image: the key has 1\.png, "):
        index_source(**source)
    assert capsys.readouterr().out.startswith("src: 3 of 5 members became 1 samples; 2 are listed in ")
    done = index_source(**source, options=ScanOptions(key="last_dot"))
    assert (done.scanned, done.manifest.good_rows) == (1, 2)
    with pytest.raises(DataError, match="other limits, columns or members"):
        verify_source(name="src", manifest_uri=f"{tmp_path}/m")
    assert verify_source(name="src", manifest_uri=f"{tmp_path}/m", options=ScanOptions(key="last_dot")) == 2


def change_header(file, change):
    """Changes what the header of an index file says."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(file)))
    header = json.loads(table.schema.metadata[b"blip3o"])
    change(header)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"blip3o": json.dumps(header)}), sink)
    storage.write_bytes(file, sink.getvalue())


def pretend_indexed(manifest, row):
    """Makes a manifest and an index file say that they were made of the shard as it is now."""
    file = f"{manifest.uri}/index/{row.shard:05d}.parquet"
    change_header(file, lambda header: header["row"].update(version=row.version))
    write_manifest(manifest.uri, manifest.name, [row if old.shard == row.shard else old for old in manifest.shards])
