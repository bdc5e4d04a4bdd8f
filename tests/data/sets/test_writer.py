"""Shards are a function of their samples and follow the data contract; a set broken off is not taken for whole."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from blip3o import storage
from blip3o.data.sets import writer
from blip3o.errors import DataError

SETTINGS = {"set": "test", "seed": 0}


def sample(number: int, split: str = "train") -> writer.Sample:
    record = {"source": "test", "split": split, "captions": [f"number {number} ✓", "another"]}
    return writer.Sample(key=f"{split}-{number}", image=bytes([number]) * number, ext="png", record=record)


def write(out: Path, samples, **changes) -> writer.SetSummary:
    return writer.write_set(str(out), samples, **{"settings": SETTINGS, "total": 7, "samples_per_shard": 3} | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


SAMPLES = [sample(n) for n in range(5)] + [sample(n, "heldout") for n in range(2)]


def test_a_shard_holds_image_caption_and_record_of_each_sample_and_nothing_of_time_or_owner():
    with tarfile.open(fileobj=io.BytesIO(writer.shard_bytes([sample(1), sample(2)]))) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"train-{n}.{ext}" for n in (1, 2) for ext in ("png", "txt", "json")]
        assert all((m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", "") for m in members)
        image, text, record = (tar.extractfile(m).read() for m in members[3:])
    assert image == b"\2\2" and text.decode() == "number 2 ✓" and json.loads(record) == sample(2).record


def test_equal_samples_give_equal_bytes_and_each_split_has_its_shards(tmp_path):
    interleaved = sorted(SAMPLES, key=lambda s: s.key[-1])
    first, second = write(tmp_path / "a", SAMPLES), write(tmp_path / "b", interleaved)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert first.counts == second.counts == {"train": 5, "heldout": 2} and first.built
    names = {split: [Path(uri).name for uri in uris] for split, uris in first.shards.items()}
    assert names == {"train": ["train-00000.tar", "train-00001.tar"], "heldout": ["heldout-00000.tar"]}


def test_a_whole_set_is_reported_and_one_of_other_settings_refused(tmp_path):
    written = write(tmp_path, SAMPLES)
    found = writer.completed(str(tmp_path), SETTINGS)
    assert (found.counts, found.shards, found.built) == (written.counts, written.shards, False)
    with pytest.raises(DataError, match="another folder"):
        writer.completed(str(tmp_path), SETTINGS | {"seed": 1})


def test_a_set_without_all_its_shards_is_not_whole(tmp_path):
    write(tmp_path, SAMPLES)
    (tmp_path / "train-00001.tar").write_bytes(b"cut")
    assert writer.completed(str(tmp_path), SETTINGS) is None
    assert writer.completed(str(tmp_path / "nowhere"), SETTINGS) is None


def test_a_set_broken_off_is_not_whole_and_is_built_again_without_its_leftovers(tmp_path):
    def broken():
        yield from [sample(n) for n in range(9)]
        raise KeyboardInterrupt

    (tmp_path / "mine.tar").write_bytes(b"not of the set")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, broken())
    assert (tmp_path / "train-00002.tar").exists() and writer.completed(str(tmp_path), SETTINGS) is None

    write(tmp_path, SAMPLES)
    write(tmp_path / "clean", SAMPLES)
    assert contents(tmp_path) == contents(tmp_path / "clean") | {"mine.tar": b"not of the set"}


def test_shards_of_others_are_neither_removed_nor_taken_for_the_sets_own(tmp_path):
    theirs = {"own/train-00000.tar": b"theirs", "train-00000.tar": b"theirs too"}
    for name, data in theirs.items():
        storage.write_bytes(f"{tmp_path}/{name}", data)
    with pytest.raises(DataError, match=r"train-00000.tar is of no set of ours .* take another folder"):
        write(tmp_path, SAMPLES)
    assert {name: storage.read_bytes(f"{tmp_path}/{name}") for name in theirs} == theirs
    storage.delete(f"{tmp_path}/train-00000.tar")
    write(tmp_path, SAMPLES)
    assert writer.completed(str(tmp_path), SETTINGS) is not None  # though a shard of its names lies deeper
    (tmp_path / "train-00001.tar").unlink()
    write(tmp_path, SAMPLES)
    assert (tmp_path / "own/train-00000.tar").read_bytes() == b"theirs"


def test_progress_counts_samples(tmp_path):
    seen = []
    write(tmp_path, SAMPLES, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]


def test_a_foreign_dataset_json_and_an_empty_shard_size_are_refused(tmp_path):
    odd = {"settings": [], "splits": {}}, {"settings": {}, "splits": {"train": [3]}}, {"settings": {}, "splits": [3]}
    for document in ([1], *odd, {"settings": {}, "splits": {"train": [{"name": "x", "size": "3", "samples": 1}]}}):
        storage.write_bytes(str(tmp_path / "dataset.json"), json.dumps(document).encode())
        with pytest.raises(DataError, match="not a record of ours"):
            writer.completed(str(tmp_path), SETTINGS)
    with pytest.raises(DataError, match="samples_per_shard=0"):
        write(tmp_path / "other", SAMPLES, samples_per_shard=0)


def test_a_set_is_found_whole_in_an_object_store(s3):
    out = storage.join(s3, "sets", "writer")
    written = writer.write_set(out, SAMPLES, settings=SETTINGS, total=7, samples_per_shard=3)
    found = writer.completed(out, SETTINGS)
    assert found is not None and found.shards == written.shards
    assert storage.read_bytes(found.shards["heldout"][0]) == writer.shard_bytes(SAMPLES[5:])
