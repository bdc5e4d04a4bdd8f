"""Parquet shards give the samples that tars give; what is damaged is named, and costs a row or a row group."""

import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip3o import storage
from blip3o.config.shards import ColumnsConfig
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.fetch import ShardReader, load_samples
from blip3o.data.shards.ledger import Ledger, read_ledger
from blip3o.data.shards.manifest import differences, read_shard_facts, read_shard_index
from blip3o.data.shards.parquet.rows import RowGroupCache
from blip3o.data.shards.parquet.samples import Columns, ParquetShard
from blip3o.data.shards.scan import ScanOptions, scan_shard
from blip3o.data.text.conversations import conversation_pairs
from blip3o.errors import StorageError
from blip3o.types import SampleRef
from tests.data.shard_files import LFS_POINTER, index, parquet, png, put, rows, samples, stored, tar

STRUCTS = [{"image": {"bytes": png(n), "path": f"{n}.png"}, "text": f"no. {n}", "score": n / 2} for n in range(3)]


def refs(count: int, shard: int = 0) -> list[SampleRef]:
    return [SampleRef(source=0, shard=shard, row=row, pass_index=0) for row in range(count)]


def columns(data: bytes, **asked) -> Columns:
    return ParquetShard(lambda offset, size: data[offset : offset + size], len(data)).columns(ColumnsConfig(**asked))


@pytest.fixture
def scan(tmp_path):
    def run(data: bytes, **options):
        return scan_shard(put(tmp_path, "a.parquet", data), source="src", shard=0, options=ScanOptions(**options))

    return run


def test_parquet_and_tar_give_the_same_samples_and_facts(tmp_path):
    manifest = index(tmp_path, [tar(samples(10)), parquet(rows(10))])
    found = ShardReader([manifest]).fetch([*refs(10), *refs(10, 1)])
    assert [(s.image, s.caption, s.meta) for s in found[:10]] == [(s.image, s.caption, s.meta) for s in found[10:]]
    assert [(s.uid, s.key) for s in found[10:12]] == [("src/1/0", "0"), ("src/1/1", "1")]
    assert read_shard_facts(manifest, 0).equals(read_shard_facts(manifest, 1))


def test_rows_come_in_any_order_and_a_group_is_read_once_in_one_range(tmp_path, monkeypatch):
    manifest = index(tmp_path, [parquet(rows(10))])
    reader = ShardReader([manifest])
    asked = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, r: asked.extend(r) or read_ranges(uri, r))
    found = reader.fetch([refs(10)[row] for row in (9, 0, 5, 1, 0)])
    assert [sample.caption for sample in found] == [f"caption of s00{row}" for row in (9, 0, 5, 1, 0)]
    footer, *groups = asked
    assert len(groups) == 3
    assert sum(footer) == manifest.shards[0].size
    reader.fetch(refs(10))
    assert len(asked) == 4
    offset, size = reader.locate(refs(10)[5]).span
    assert (offset, size) in groups


def test_a_cache_too_small_changes_nothing_but_the_reads(tmp_path, monkeypatch):
    manifest = index(tmp_path, [parquet(rows(10))])
    asked = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, r: asked.extend(r) or read_ranges(uri, r))
    shard, cache = manifest.shards[0], RowGroupCache(capacity=1)
    where = {row: read_shard_index(manifest, 0).members(row)[0] for row in range(10)}
    for _ in range(2):
        found = cache.read(shard.uri, shard.size, columns(parquet(rows(10))), where)
        assert [found[row].caption for row in range(10)] == [f"caption of s00{row}".encode() for row in range(10)]
    assert len(asked) == 1 + 2 * 3


def test_columns_are_found_by_their_usual_names_or_as_told():
    assert columns(parquet(STRUCTS)) == Columns(image="image.bytes", caption="text", record=("score",))
    named = [{"jpg": png(), "TXT": "t", "json": "{}", "thumb": b"x"}]
    assert columns(parquet(named)) == Columns(image="jpg", caption="TXT", record=("json",))
    odd = [{"blob": png(), "words": "t", "note": "n"}]
    assert columns(parquet(odd)) == Columns(image="blob", caption="", record=("words", "note"))
    assert columns(parquet(odd), caption="words", record=()) == Columns(image="blob", caption="words", record=())
    for asked, message in [
        (
            {"image": "words"},
            r"no column 'words' of bytes among blob \(binary\), words \(string\), note",
        ),
        ({"caption": "blob"}, "no column 'blob' of text"),
        ({"record": ["x"]}, "no column 'x' among"),
    ]:
        with pytest.raises(DamagedSampleError, match=message):
            columns(parquet(odd), **asked)
    with pytest.raises(
        DamagedSampleError, match="no column 'image' of bytes among a .binary., b .binary.: set columns.image"
    ):
        columns(parquet([{"a": b"", "b": b""}]))
    twice = pa.Table.from_arrays([pa.array([b""]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"])
    with pytest.raises(DamagedSampleError, match="column 'text' is there twice"):
        columns(stored(twice))


def named(data: dict, **asked) -> Columns:
    return columns(stored(pa.table(data)), **asked)


def test_columns_are_taken_by_type_and_in_any_case():
    views = {"Image": pa.array([b""], pa.binary_view()), "CAPTION": pa.array([""], pa.string_view())}
    assert named(views) == Columns(image="Image", caption="CAPTION", record=())
    assert named({"img": [b""], "Image": [b""], "x": [1]}) == Columns(image="Image", caption="", record=("x",))
    assert named({"image": pa.array([b"ab"], pa.binary(2)), "text": [""]}).image == "image"
    # An id of fixed size is no picture, though it is the only column of bytes.
    with pytest.raises(DamagedSampleError, match="among id .fixed_size_binary.16.., text .string.: set columns.image"):
        named({"id": pa.array([bytes(16)], pa.binary(16)), "text": [""]})
    assert named({"photos": [[b""]], "text": [""]}) == Columns(image="photos", caption="text", record=())
    assert named({"images": [[{"bytes": b"", "path": ""}]], "masks": [[b""]]}).image == "images"
    assert named({"image": [b""], "masks": [[b""]]}) == Columns(image="image", caption="", record=("masks",))
    assert named({"A": [b""], "b": [["x"]], "c": ["y"]}, image="a", caption="B") == Columns(
        image="A", caption="b", record=("c",)
    )
    assert named({"a": [b""], "A": [b""]}, image="A").image == "A"
    listed = {f"c{number}": [1] for number in range(30)}
    with pytest.raises(DamagedSampleError, match=r"among c0 \(int64\), .*, c19 \(int64\) and 10 more: set columns"):
        named(listed)


LISTS = {
    "one": ([[png()]], ""),
    "two": ([[png(), png(1)]], "2 images, a sample has one"),
    "none": ([[]], "missing image"),
    "null": ([None], "missing image"),
    "one of null": ([[None]], "missing image"),
    "struct": ([[{"bytes": png(), "path": "x"}]], ""),
    "structs": ([[{"bytes": png(), "path": "x"}] * 3], "3 images, a sample has one"),
    "struct of null": ([[{"bytes": None, "path": "x"}]], "missing image"),
}


@pytest.mark.parametrize(("values", "reason"), LISTS.values(), ids=LISTS)
def test_a_list_of_one_image_is_that_image(scan, values, reason):
    structs = any(isinstance(value, dict) for value in values[0] or ())
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if structs else pa.binary()
    first = {"bytes": png(), "path": ""} if structs else png()
    images = pa.array([[first], *values], pa.list_(kind))
    found = scan(stored(pa.table({"images": images, "caption": ["a", "b"]})))
    assert [entry.reason for entry in found.damage] == ([reason] if reason else [])
    assert (found.tally.inputs, found.tally.used) == (2, 1 if reason else 2)


def test_the_same_pictures_are_the_same_samples_in_every_type(tmp_path):
    pictures, words = [png(n) for n in range(3)], ["a", "b", "c"]
    made = [
        pa.table({"image": pictures, "caption": words}),
        pa.table({"image": pa.array(pictures, pa.binary_view()), "caption": pa.array(words, pa.string_view())}),
        pa.table({"image": pa.array(pictures, pa.large_binary()), "caption": pa.array(words, pa.large_string())}),
        pa.table({"image": pa.array(pictures).dictionary_encode(), "caption": words}),
        pa.table({"image": [{"bytes": picture, "path": "x"} for picture in pictures], "caption": words}),
        pa.table({"images": pa.array([[p] for p in pictures], pa.large_list(pa.binary())), "caption": words}),
    ]
    manifest = index(tmp_path, [stored(table, row_group_size=2) for table in made])
    for shard in range(len(made)):
        found = ShardReader([manifest]).fetch(refs(3, shard))
        assert [(it.image, it.caption, it.meta) for it in found] == list(zip(pictures, words, [{}] * 3, strict=True))
    facts = [read_shard_facts(manifest, shard) for shard in range(len(made))]
    assert all(table.equals(facts[0]) for table in facts)


def test_the_first_of_a_list_of_captions_counts_and_all_are_kept(tmp_path):
    table = {"image": [png()], "caption": [[" ", "a dot", "a spot"]]}
    (found,) = ShardReader([index(tmp_path, [stored(pa.table(table))])]).fetch(refs(1))
    assert (found.caption, found.meta["captions"]) == ("a dot", ["a dot", "a spot"])


CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what?"}]},
    {"role": "assistant", "content": "a dot"},
]


def test_messages_of_a_chat_are_a_conversation_where_there_is_no_caption(tmp_path, scan):
    data = [{"images": [{"bytes": png(), "path": None}], "messages": json.dumps(CHAT)}]
    assert scan(parquet(data)).damage[0].reason.endswith("; the record has messages")  # text that nobody parses
    rows_of = pa.table({"images": [[png()]], "json": [json.dumps({"messages": CHAT})]})
    (found,) = ShardReader([index(tmp_path, [stored(rows_of)])]).fetch(refs(1))
    assert found.caption == "a dot"
    assert conversation_pairs(found.meta["conversations"]) == [("what?", "a dot")]
    kept = pa.table({"images": [[png()]], "caption": ["c"], "json": [json.dumps({"messages": CHAT})]})
    (found,) = ShardReader([index(tmp_path, [stored(kept)])]).fetch(refs(1))
    assert (found.caption, "conversations" in found.meta) == ("c", False)


def test_questions_with_their_answers_as_texts_are_a_conversation(tmp_path, scan):
    said = [{"user": "what?", "assistant": "a dot", "source": "x"}, {"user": "sure?", "assistant": "yes"}]
    data = parquet([{"images": [{"bytes": png(), "path": None}], "texts": said}])
    (found,) = ShardReader([index(tmp_path, [data])]).fetch(refs(1))
    assert conversation_pairs(found.meta["conversations"]) == [("what?", "a dot"), ("sure?", "yes")]
    for other in ("?", [], ["?"], [{"user": "?"}]):
        assert scan(parquet([{"image": png(), "texts": other}])).damage[0].reason.startswith("missing caption")


def test_rows_without_a_column_of_captions_say_which_columns_there_are(scan):
    found = scan(parquet([{"image": png(), "title": "a dot"}] * 2))
    reason = "missing caption: no column 'caption' of text among image (binary), title (string): set columns.caption"
    assert [entry.reason for entry in found.damage] == [reason] * 2
    assert (
        scan(parquet([{"image": png(), "text": None}, {"image": png(), "text": "a"}])).damage[0].reason
        == "missing caption"
    )
    assert scan(parquet([{"image": png(), "title": "a"}]), columns=ColumnsConfig(caption="title")).damage == ()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize(("name", "columns"), [("caption", {}), ("Text", {}), ("said", {"caption": "said"})])
def test_a_caption_may_be_bytes_that_no_type_marks_as_text(tmp_path, scan, kind, name, columns):
    asked = ColumnsConfig(**columns)
    data = stored(pa.table({"image": [png(), png(1)], name: pa.array([b"caf\xc3\xa9", b"caf\xe9"], kind)}))
    found = scan(data, columns=asked)
    assert [entry.reason for entry in found.damage] == ["caption is not UTF-8: byte 3"]
    assert found.columns.caption == name and found.samples[0].facts.caption_chars == 4


def test_bytes_are_no_caption_where_something_else_can_hold_one(scan):
    table = {"image": [png()], "text": [b"\xff\xfe"], "json": ['{"caption": "x"}']}
    assert scan(stored(pa.table(table))).damage == ()
    alone = scan(stored(pa.table({"text": [png()], "caption": ["x"]})))  # the only bytes there are
    assert (alone.columns.image, alone.columns.caption, alone.damage) == ("text", "caption", ())


@pytest.mark.parametrize("kind", [pa.list_(pa.uint8()), pa.list_(pa.list_(pa.float32())), pa.int64()])
def test_a_column_of_images_that_holds_none_is_named(scan, kind):
    found = scan(stored(pa.table({"image": pa.array([None], kind), "caption": ["x"]})))
    assert found.damage[0].reason.endswith(": write 'image' as binary, or set columns.image")


def test_parts_and_row_groups_without_rows_lose_nothing(scan):
    empty = scan(parquet([], schema=pa.schema([("image", pa.binary()), ("caption", pa.string())])))
    assert (empty.samples, empty.damage, empty.tally.inputs) == ((), (), 0)
    assert scan(stored(pa.table({"n": pa.array([], pa.int8())}))).damage == ()
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows(3))
    with pq.ParquetWriter(sink, table.schema) as writer:
        for part in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(part)
    found = scan(sink.getvalue())
    assert (len(found.samples), found.damage) == (3, ())


def test_rows_of_a_file_without_the_columns_are_all_counted(scan):
    found = scan(parquet([{"n": 1}] * 5))
    assert (found.tally.inputs, found.damage[0].count, len(found.damage)) == (5, 5, 1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (pa.array([2**62], pa.timestamp("us", "UTC")), "17036-07-06"),
        (pa.array([3600], pa.timestamp("s", "Mars/City")), "1970-01-01 01:00:00+00:00"),
        (pa.array([0], pa.timestamp("ms", "CEST")), "1970-01-01 00:00:00+00:00"),
        (pa.array([0], pa.timestamp("us", "Z")), "1970-01-01 00:00:00+00:00"),
        (pa.array([2**31 - 1], pa.date32()), "<value out of range: 2147483647>"),
        (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([123], pa.decimal128(5, 2)), "123.00"),
    ],
)
def test_values_of_other_columns_never_cost_the_picture(tmp_path, value, said):
    table = pa.table({"image": [png()], "caption": ["c"], "x": value})
    (found,) = ShardReader([index(tmp_path, [stored(table)])]).fetch(refs(1))
    assert str(found.meta["x"]).startswith(said)


FOREIGN = {
    "gzip": (gzip.compress(b"PAR1"), "not a Parquet file: it is compressed with gzip: unpack it"),
    "page": (b"<html><body>no</body></html>", "not a Parquet file: it is an HTML page"),
    "pointer": (LFS_POINTER, "not a Parquet file: it is a Git LFS pointer"),
    "nothing": (b"", "not a Parquet file: it is empty"),
    "table": (b"image,caption\na.jpg,a\n", "not a Parquet file: it is text"),
}


@pytest.mark.parametrize(("data", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_what_stands_in_place_of_a_parquet_file_is_named(scan, data, reason):
    (entry,) = scan(data).damage
    assert entry.reason.startswith(reason)


def test_a_shard_is_what_its_first_bytes_say(tmp_path):
    for name, data in [("a.tar", parquet(rows(2))), ("part-0", parquet(rows(2))), ("b.parquet", tar(samples(2)))]:
        found = scan_shard(put(tmp_path, name, data), source="src", shard=0)
        assert (len(found.samples), found.bad_rows, found.columns is None) == (2, (), data[:4] != b"PAR1")


@pytest.mark.parametrize("row", [{"my.image": png()}, {"my.image": {"bytes": png()}}], ids=["bytes", "structs"])
def test_names_of_columns_may_be_odd(tmp_path, row):
    (found,) = ShardReader([index(tmp_path, [parquet([row | {"text": "a dot", "": 1, "x.y": 2}])])]).fetch(refs(1))
    assert (found.image, found.caption, found.meta) == (png(), "a dot", {"": 1, "x.y": 2})


def test_values_that_grow_beyond_the_limit_once_decoded_cost_their_row_group(scan, monkeypatch):
    """One that repeats is stored once: a few bytes could become more than memory holds."""
    image = png(size=(60, 60))
    repeated = parquet([{"image": image, "caption": "c"}] * 50, group=25)
    monkeypatch.setattr("blip3o.data.shards.parquet.samples.MAX_GROUP_BYTES", 2 * len(image))
    found = scan(repeated)
    assert len(repeated) < 4 * len(image)
    assert len(found.bad_rows) == 50
    assert {entry.reason for entry in found.damage} == {
        f"row group of over {2 * len(image)} bytes decoded: write smaller ones"
    }


def test_records_hold_nested_values_and_those_of_a_json_column(tmp_path):
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dot"}]
    data = parquet(
        [{"image": png(), "conversations": said, "json": json.dumps({"score": 3}), "score": 1, "skip": None}]
    )
    (found,) = ShardReader([index(tmp_path, [data])]).fetch(refs(1))
    assert found.meta == {"conversations": said, "score": 3, "skip": None}
    assert found.caption == "a dot"


ROW_DAMAGE = {
    "no image": ({"image": None}, "missing image"),
    "no picture": ({"image": b"x"}, "undecodable image"),
    "no caption": ({"caption": None}, "missing caption"),
    "empty caption": ({"caption": " "}, "empty caption"),
    "endless caption": ({"caption": "x" * 1_000_000}, "caption too long"),
    "record that is none": ({"json": "[1]"}, "record is not a JSON object but a list"),
    "record that is no JSON": ({"json": "{"}, "record is not JSON"),
}


@pytest.mark.parametrize(("change", "reason"), ROW_DAMAGE.values(), ids=ROW_DAMAGE)
def test_a_damaged_row_costs_itself(scan, change, reason):
    data = [{"json": "{}"} | row for row in rows(6)]
    data[2] |= change
    found = scan(parquet(data))
    assert found.bad_rows == (2,)
    (entry,) = found.damage
    assert entry.uid == "src/0/2"
    assert entry.reason.startswith(reason)


def test_text_that_is_not_utf8_is_a_row_of_the_ledger(scan):
    (image,) = (row["image"] for row in rows(1))
    bad = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    sink = pa.BufferOutputStream()
    for names, reason in [(["image", "caption"], "caption is not UTF-8"), (["image", "note"], "record is not UTF-8")]:
        table = pa.table([pa.array([image, image]), bad], names=names)
        if "note" in names:
            table = table.append_column("caption", pa.array(["a", "b"]))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        found = scan(sink.getvalue().to_pybytes())
        assert [(entry.uid, entry.reason[: len(reason)]) for entry in found.damage] == [("src/0/1", reason)]


def test_a_flipped_byte_costs_its_row_group(scan):
    whole = parquet(rows(10))
    (group,) = scan(whole).samples[4].members
    data = bytearray(whole)
    data[group.offset + group.size // 2] ^= 16
    found = scan(bytes(data))
    assert found.bad_rows == (4, 5, 6, 7)
    assert {(entry.offset, entry.size) for entry in found.damage} == {(group.offset, group.size)}
    assert all(entry.reason.startswith("bad row group: ") for entry in found.damage)


@pytest.mark.parametrize("data", [b"", b"PAR1", parquet(rows(3))[:-20], b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_one_entry_of_its_shard(scan, data):
    found = scan(data)
    assert (found.samples, [entry.uid for entry in found.damage]) == ((), ["src/0"])


def test_a_footer_that_contradicts_itself_is_refused(scan):
    said = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a dot"}]
    whole = parquet([{"image": png(), "caption": "c", "conversations": said}])
    assert not scan(whole).damage
    # Names stand in plain letters in the list of Parquet, which comes first, in base64 in that of Arrow.
    footer = whole.rindex(b"schema", 0, whole.rindex(b"ARROW:schema"))
    for name in (b"caption", b"value"):
        at = whole.index(name, footer)
        (entry,) = scan(whole[:at] + name.upper() + whole[at + len(name) :]).damage
        assert entry.reason == "bad footer: its two lists of columns differ"


def test_a_footer_that_lies_of_its_columns_does_not_end_the_process(scan):
    """ScanResult by flipping bits: the statistics of a column that do not fit its kind."""
    rng = random.Random(0)
    whole = parquet(rows(6))
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
        found = scan(bytes(data))
        assert len(found.samples) in (0, 6)


def test_too_large_a_row_group_is_refused_before_it_is_read(scan, monkeypatch):
    monkeypatch.setattr("blip3o.data.shards.parquet.samples.MAX_GROUP_BYTES", 2000)
    found = scan(parquet([*rows(4), *[{"image": b"", "caption": "c", "key": "k"}]]))
    assert found.damage[0].reason.startswith("row group of ")
    assert found.damage[4].reason.startswith("undecodable")


def test_groups_gone_bad_are_noted_and_replaced_and_a_cut_file_stops(tmp_path):
    manifest = index(tmp_path, [parquet(rows(12))])
    uri = manifest.shards[0].uri
    whole = storage.read_bytes(uri)
    offset, size = ShardReader([manifest]).locate(refs(6)[5]).span
    ledger = Ledger(f"{tmp_path}/ledger")
    put(tmp_path, "train-00000.parquet", whole[: offset + 30] + b"\x7f" + whole[offset + 31 :])
    found = [load_samples(refs(12), ShardReader([manifest]), lambda raw: raw, ledger) for _ in range(2)]
    assert found[0] == found[1]
    assert {entry.uid for entry in read_ledger(ledger.uri)} == {f"src/0/{row}" for row in range(4, 8)}
    assert {sample.uid for sample in found[0]} == {f"src/0/{row}" for row in (0, 1, 2, 3, 8, 9, 10, 11)}
    put(tmp_path, "train-00000.parquet", whole[: offset + size])
    with pytest.raises(StorageError, match="index it again"):
        load_samples(refs(12), ShardReader([manifest]), lambda raw: raw, ledger)


def test_what_changed_since_it_was_indexed_is_named(tmp_path):
    manifest = index(tmp_path, [parquet(rows(6)), tar(samples(4))])

    def compare(number: int, data: bytes) -> list[str]:
        file = put(tmp_path / "new", manifest.shards[number].uri.rsplit("/", 1)[1], data)
        return differences(manifest, scan_shard(file, source="src", shard=number))

    assert compare(0, parquet(rows(6))) == []
    changed = tar(samples(4)).replace(b"caption of s002", b"caption of s0_2")
    (line,) = compare(1, changed)
    assert line.startswith(f"src/1/2 of {manifest.shards[1].uri} has crc32 ")
    (line,) = compare(1, tar(samples(3)))
    assert line.endswith("has 3 samples, 4 when it was indexed")
    (line,) = compare(1, tar(samples(4)).replace(b"caption of s002", b" " * 15))
    assert "is empty caption, which it was not when it was indexed" in line


def test_options_are_part_of_an_index(scan):
    assert scan(parquet(rows(1)), columns=ColumnsConfig(image="image")).options != scan(parquet(rows(1))).options
