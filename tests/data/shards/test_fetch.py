"""Samples come out of shards as they went in, with few reads; damaged ones are noted and replaced by a fixed rule."""

import pytest

from blip3o import storage
from blip3o.data.images.decode import decode_image
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.fetch import REPLACEMENT_TRIES, ShardReader, coalesce, load_samples
from blip3o.data.shards.ledger import Ledger, read_ledger
from blip3o.errors import DataError, StorageError
from blip3o.types import Member, RawSample, SampleRef
from tests.data.shard_files import index, put, sample, samples, tar


def ref(shard: int, row: int, *, pass_index: int = 0, source: int = 0) -> SampleRef:
    return SampleRef(source=source, shard=shard, row=row, pass_index=pass_index)


@pytest.fixture
def manifest(tmp_path):
    return index(tmp_path, [tar(samples(12)), tar(samples(12, "t"))])


@pytest.fixture
def ledger(tmp_path):
    return Ledger(f"{tmp_path}/run/ledger")


def rewrite(manifest, shard: int, old: bytes, new: bytes) -> None:
    """Changes bytes of a shard behind its index's back."""
    uri = manifest.shards[shard].uri
    data = storage.read_bytes(uri)
    assert len(old) == len(new)
    assert data.count(old) == 1
    storage.write_bytes(uri, data.replace(old, new))


def notes(ledger: Ledger) -> dict[str, str]:
    return {entry.uid: entry.reason for entry in read_ledger(ledger.uri)}


def test_samples_come_back_in_the_order_asked(manifest, tmp_path):
    other = index(tmp_path / "other", [tar(samples(1, "o"))], name="second")
    reader = ShardReader([manifest, other])
    asked = [ref(1, 3), ref(0, 11, pass_index=5), ref(0, 0, source=1), ref(1, 3)]
    found = reader.fetch(asked)
    assert [(item.uid, item.key, item.pass_index) for item in found] == [
        ("src/1/3", "t003", 0),
        ("src/0/11", "s011", 5),
        ("second/0/0", "o000", 0),
        ("src/1/3", "t003", 0),
    ]
    image, caption, _ = sample("s011")
    assert (found[1].image, found[1].caption, found[1].meta) == (image[1], caption[1].decode(), {"key": "s011"})
    assert reader.fetch([]) == []


def test_a_sample_without_a_record_has_no_meta(tmp_path):
    manifest = index(tmp_path, [tar(sample("a")[:2])])
    assert ShardReader([manifest]).fetch([ref(0, 0)])[0].meta == {}


def test_neighbours_are_read_in_one_go_and_indexes_once(manifest, monkeypatch):
    asked = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, r: asked.extend(r) or read_ranges(uri, r))
    reader = ShardReader([manifest])
    reader.fetch([ref(0, row) for row in range(12)])
    assert len(asked) == 1
    monkeypatch.setattr("blip3o.data.shards.fetch.read_shard_index", None)
    reader.fetch([ref(0, 5)])


def test_ranges_stop_at_gaps_and_at_their_limit():
    kib = 2**10
    at = [(0, kib), (2 * kib, kib), (70 * kib, kib), (71 * kib, 3 * 2**20), (5 * 2**20, 9 * 2**20), (14 * 2**20, kib)]
    members = [Member(ext="x", offset=offset, size=size) for offset, size in at]
    groups = coalesce(set(members))
    assert groups == [members[0:2], members[2:4], members[4:5], members[5:6]]


def test_healthy_samples_are_passed_on_without_a_note(manifest, ledger):
    asked = [ref(0, 2), ref(1, 4)]
    keys = load_samples(asked, ShardReader([manifest]), lambda raw: raw.key, ledger)
    assert keys == ["s002", "t004"]
    assert notes(ledger) == {}


def test_a_caption_gone_bad_is_noted_and_replaced_by_a_rule_of_its_uid(manifest, ledger):
    rewrite(manifest, 0, b"caption of s002", b"\xff" * 15)
    first, second = (
        load_samples([ref(0, 1), ref(0, 2, pass_index=9), ref(0, 3)], ShardReader([manifest]), lambda raw: raw, ledger)
        for _ in range(2)
    )
    assert first == second
    assert [raw.key for raw in first][::2] == ["s001", "s003"]
    assert first[1].key not in ("s002", "t002")
    assert first[1].uid == f"src/0/{int(first[1].key[1:])}"
    assert first[1].pass_index == 9
    alone = load_samples([ref(0, 2)], ShardReader([manifest]), lambda raw: raw, ledger)
    assert alone[0].key == first[1].key
    assert notes(ledger) == {"src/0/2": "caption is not UTF-8: byte 0"}


def test_an_image_gone_bad_is_found_where_it_is_decoded(manifest, ledger):
    image = sample("t005")[0][1]
    rewrite(manifest, 1, image, image[: len(image) // 2].ljust(len(image), b"\0"))
    (pixels,) = load_samples(
        [ref(1, 5)], ShardReader([manifest]), lambda raw: (raw.key, decode_image(raw.image, 8)), ledger
    )
    assert pixels[0] != "t005"
    assert pixels[1].shape == (8, 8, 3)
    (entry,) = read_ledger(ledger.uri)
    assert (entry.uid, entry.stage, entry.uri) == ("src/1/5", "train", manifest.shards[1].uri)
    assert storage.read_ranges(entry.uri, [(entry.offset, 8)]) == [image[:8]]


def test_what_the_caller_refuses_is_replaced_too(manifest, ledger):
    def even(raw: RawSample) -> str:
        if int(raw.key[1:]) % 2:
            raise DataError("an odd one")
        return raw.key

    (key,) = load_samples([ref(0, 7)], ShardReader([manifest]), even, ledger)
    assert int(key[1:]) % 2 == 0
    assert notes(ledger)["src/0/7"] == "an odd one"
    assert all(int(uid.rsplit("/", 1)[1]) % 2 for uid in notes(ledger))


def test_replacements_are_good_rows_of_the_same_shard(tmp_path, ledger):
    files = [file for number in range(6) for file in sample(f"s{number}", caption=b"" if number % 2 else None)]
    manifest = index(tmp_path, [tar(files), tar(samples(5))])
    tried = []

    def refuse(raw: RawSample) -> None:
        tried.append(raw.uid)
        raise DataError("no")

    with pytest.raises(DataError, match="src/0/2 is damaged, and so is all that could replace it"):
        load_samples([ref(0, 2)], ShardReader([manifest]), refuse, ledger)
    assert tried[0] == "src/0/2"
    assert sorted(tried[1:]) == ["src/0/0", "src/0/4"]


def test_replacing_ends(manifest, ledger):
    def refuse(raw: RawSample) -> None:
        raise DamagedSampleError("broken")

    with pytest.raises(DataError, match="see the ledger"):
        load_samples([ref(0, 2)], ShardReader([manifest]), refuse, ledger)
    assert len(notes(ledger)) == 1 + REPLACEMENT_TRIES


def test_a_shard_that_was_cut_loses_what_is_gone_and_no_more(manifest, ledger, tmp_path):
    reader = ShardReader([manifest])
    offset, _ = reader.locate(ref(0, 6)).span
    put(tmp_path, "train-00000.tar", storage.read_bytes(manifest.shards[0].uri)[: offset + 50])
    keys = load_samples([ref(0, row) for row in range(12)], reader, lambda raw: raw.key, ledger)
    assert keys[:6] == [f"s{number:03d}" for number in range(6)]
    assert set(keys[6:]) <= set(keys[:6])
    assert {f"src/0/{row}" for row in range(6, 12)} == set(notes(ledger))
    with pytest.raises(DamagedSampleError, match="shorter than when it was indexed"):
        reader.fetch([ref(0, 11)])


def test_a_store_that_fails_is_no_damage(manifest, ledger):
    storage.delete(manifest.shards[0].uri)
    with pytest.raises(StorageError, match="does not exist"):
        load_samples([ref(0, 0)], ShardReader([manifest]), lambda raw: raw, ledger)
    assert notes(ledger) == {}


def test_a_read_that_fails_on_a_whole_shard_is_passed_on(manifest, ledger, monkeypatch):
    def fail(uri: str, ranges: list) -> list[bytes]:
        raise StorageError("the store does not answer")

    monkeypatch.setattr(storage, "read_ranges", fail)
    with pytest.raises(StorageError, match="does not answer"):
        load_samples([ref(0, 0)], ShardReader([manifest]), lambda raw: raw, ledger)
    assert notes(ledger) == {}
