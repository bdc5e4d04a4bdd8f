"""The format of a shard changes nothing that is trained on: Parquet and tars of the same samples give equal arrays."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.manifest import read_manifest, write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.text.tokenizer import ChatTokenizer
from tests import recipes
from tests.evaluate.world import add_source, scenes

SAMPLES = 24


def as_parquet(shard: bytes) -> bytes:
    """The same samples as rows: struct of bytes and path (Hugging Face's image), text, and the record as JSON text."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}
    rows = [
        {"image": {"bytes": data, "path": name}, "text": files[f"{key}.txt"].decode(), "json": files[f"{key}.json"]}
        for name, data in files.items()
        if (key := name.removesuffix(".png")) != name
    ]
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    table = table.set_column(2, "json", table.column("json").cast(pa.string()))
    pq.write_table(table, sink, row_group_size=3)
    return sink.getvalue()


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two roots with one source and one tokenizer: in tars, and with every second shard as Parquet."""
    tars, mixed = (str(tmp_path_factory.mktemp(name)) for name in ("tars", "mixed"))
    content = scenes("train", size=SAMPLES)
    add_source(tars, "scenes", content)
    texts = [caption for scene in content for caption in scene.record["captions"]]
    tokenizer = ChatTokenizer.train([*texts, "user\nassistant\n"], 500).to_bytes()
    for root in (tars, mixed):
        storage.write_bytes(f"{root}/tokenizer.json", tokenizer)
    rows = []
    for shard in read_manifest(f"{tars}/manifests/scenes").shards:
        data = storage.read_bytes(shard.uri)
        name = shard.uri.rsplit("/", 1)[1]
        if shard.shard % 2:
            data, name = as_parquet(data), name.replace(".tar", ".parquet")
        uri = f"{mixed}/scenes/{name}"
        storage.write_bytes(uri, data)
        scan = scan_shard(storage.stat(uri), source="scenes", shard=shard.shard)
        rows.append(write_shard_index(f"{mixed}/manifests/scenes", storage.stat(uri), scan).row)
    write_manifest(f"{mixed}/manifests/scenes", "scenes", rows)
    return tars, mixed


@pytest.mark.parametrize("task", [Task.CHAT, Task.GENERATE])
def test_micro_batches_over_parquet_are_those_over_tars(roots, task):
    made = []
    for root in roots:
        data = {"root": root, "max_length": 160, "chunk": 4, "window": 2}
        build = build_micro_batches(StageInputs(recipes.recipe(run={"storage": f"{root}/runs"}, data=data)), task)
        made.append([build(number) for number in range(2 * SAMPLES // 4)])
    for one, other in zip(*made, strict=True):
        assert set(one) == set(other)
        assert all(np.array_equal(one[name], other[name]) for name in one)
