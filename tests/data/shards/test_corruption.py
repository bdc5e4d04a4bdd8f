"""A hundred seeded corruptions of tar and Parquet shards: each is in the ledger or harms nothing, and none spreads.

Met at indexing, and, where it leaves the size alone, once more behind the back of an index that knows nothing of it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from blip3o.data.images.decode import decode_image
from blip3o.data.shards.fetch import ShardReader, load_samples
from blip3o.data.shards.ledger import Ledger, LedgerEntry, read_ledger
from blip3o.data.shards.manifest import Manifest, write_manifest, write_shard_index
from blip3o.data.shards.scan import ShardScan, scan_shard
from blip3o.errors import DataError
from blip3o.types import RawSample, SampleRef
from tests.data.shard_files import header_of, parquet, png_bomb, put, rows, samples, tar

COUNT = 12
FILES, ROWS = samples(COUNT), rows(COUNT)
MEMBERS = len(FILES) // COUNT
INTACT = {"tar": tar(FILES), "parquet": parquet(ROWS, group=3)}
STARTS = [header_of(INTACT["tar"], FILES[MEMBERS * n][0]) for n in range(COUNT)]


@dataclass
class Corrupted:
    """A shard, and the numbers of the samples that were meant: these may be lost, or other than they were."""

    data: bytes
    meant: set[int] = field(default_factory=set)


def owner(offset: int) -> int:
    """The sample of the intact tar in whose bytes an offset lies."""
    return max(sum(start <= offset for start in STARTS) - 1, 0)


def flips(rng: random.Random, kind: str) -> Corrupted:
    data = bytearray(INTACT[kind])
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 8))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    # Parquet has checksums: there, even a sample that was hit is as it was or in the ledger.
    return Corrupted(bytes(data), {owner(place) for place in places} if kind == "tar" else set())


def truncation(rng: random.Random, kind: str) -> Corrupted:
    return Corrupted(INTACT[kind][: rng.randrange(len(INTACT[kind]))])


def swapped(rng: random.Random, kind: str) -> Corrupted:
    """Two members change their places, in the tar with or without their names; in Parquet, two stretches of bytes."""
    if kind == "parquet":
        data = bytearray(INTACT[kind])
        a, b = (rng.randrange(len(data) // 128) * 64 for _ in range(2))
        data[a : a + 64], data[b : b + 64] = data[b : b + 64], data[a : a + 64]
        return Corrupted(bytes(data))
    files = list(FILES)
    a, b = rng.sample(range(len(files)), 2)
    files[a], files[b] = files[b], files[a]
    if rng.random() < 0.5:
        files[a], files[b] = (files[b][0], files[a][1]), (files[a][0], files[b][1])
    return Corrupted(tar(files), {a // MEMBERS, b // MEMBERS})


def replaced(column: str, make: Callable[[random.Random], bytes]) -> Callable[[random.Random, str], Corrupted]:
    """The image or the caption of one sample is something else."""

    def corrupt(rng: random.Random, kind: str) -> Corrupted:
        number, value = rng.randrange(COUNT), make(rng)
        if kind == "tar":
            at = MEMBERS * number + ["image", "caption"].index(column)
            return Corrupted(tar([*FILES[:at], (FILES[at][0], value), *FILES[at + 1 :]]), {number})
        changed = [{**row, "caption": row["caption"].encode()} for row in ROWS]
        changed[number][column] = value
        return Corrupted(parquet(changed, group=3), {number})

    return corrupt


def zero_length(rng: random.Random, kind: str) -> Corrupted:
    if rng.random() < 0.3:
        return Corrupted(b"")
    return replaced(rng.choice(["image", "caption"]), lambda _: b"")(rng, kind)


KINDS = {
    "flips": flips,
    "truncation": truncation,
    "swapped": swapped,
    "zero length": zero_length,
    "bomb": replaced("image", lambda _: png_bomb(10_000, 10_000)),
    "long caption": replaced("caption", lambda _: b"word " * 200_000),
    "not UTF-8": replaced("caption", lambda rng: bytes(rng.randrange(128, 256) for _ in range(20))),
}
CASES = [(seed, list(KINDS)[seed % len(KINDS)], ("tar", "parquet")[seed % 2]) for seed in range(100)]
# A tar whose members change places is another file; that is found by its version.
AFTERWARDS = [case for case in CASES if case[1] == "flips" or case[1:] == ("swapped", "parquet")]


def indexed(folder, kind: str, data: bytes) -> tuple[Manifest, ShardScan]:
    file = put(folder, f"shard.{kind}", data)
    scan = scan_shard(file, source="src", shard=0)
    row = write_shard_index(str(folder), file, scan).row
    return write_manifest(str(folder), "src", [row]), scan


def refs(numbers) -> list[SampleRef]:
    return [SampleRef(source=0, shard=0, row=number, pass_index=0) for number in numbers]


def number_of(key: str) -> int:
    """Of a sample by its key: a row of Parquet, or a name of the tar's."""
    return int(key.removeprefix("s"))


def content(found: RawSample) -> tuple[bytes, str, dict]:
    return found.image, found.caption, found.meta


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Manifest and contents of the shards before anything happens to them, by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in INTACT}
    manifests = {kind: indexed(folder, kind, INTACT[kind])[0] for kind, folder in folders.items()}
    contents = {
        kind: [content(found) for found in ShardReader([manifest]).fetch(refs(range(COUNT)))]
        for kind, manifest in manifests.items()
    }
    return manifests, contents


def named(entry: LedgerEntry, scan: ShardScan, number: int, kind: str) -> bool:
    """Whether a ledger entry speaks of a sample: by its row, or by a stretch of the shard that it lay in."""
    _, _, row = entry.uid.partition("/")[2].partition("/")
    if row and number_of(scan.samples[int(row)].key) == number:
        return True
    if kind == "parquet" or entry.reason.startswith("is empty"):
        return not row
    end = STARTS[number + 1] if number + 1 < COUNT else len(INTACT["tar"])
    if entry.reason.startswith("truncated"):  # also of a row: the shard ends in it
        return entry.offset < end
    return not row and entry.offset < end and STARTS[number] < entry.offset + entry.size


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("seed", "what", "kind"), CASES, ids=lambda value: str(value))
def test_a_corruption_is_in_the_ledger_or_harmless(tmp_path, intact, seed, what, kind):
    corrupted = KINDS[what](random.Random(seed), kind)
    manifest, scan = indexed(tmp_path, kind, corrupted.data)
    good = sorted(set(range(len(scan.samples))) - set(scan.bad_rows))
    before = intact[1][kind]
    kept = set()
    for found in ShardReader([manifest]).fetch(refs(good)):
        decode_image(found.image, 8)
        kept.add(number := number_of(found.key))
        assert content(found) == before[number] or number in corrupted.meant
    for lost in set(range(COUNT)) - kept:
        assert any(named(entry, scan, lost, kind) for entry in scan.damage), f"{lost} is lost without a word"
    if what in ("zero length", "bomb", "long caption", "not UTF-8"):
        assert scan.damage


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("seed", "what", "kind"), AFTERWARDS)
def test_a_corruption_after_indexing_is_replaced_or_ends_the_run(tmp_path, intact, seed, what, kind):
    corrupted = KINDS[what](random.Random(seed), kind)
    manifest, before = intact[0][kind], intact[1][kind]
    assert len(corrupted.data) == manifest.shards[0].size
    ledger = Ledger(str(tmp_path))

    def accept(found: RawSample) -> RawSample:
        decode_image(found.image, 8)
        return found

    put(manifest.uri, f"shard.{kind}", corrupted.data)
    try:
        found = load_samples(refs(range(COUNT)), ShardReader([manifest]), accept, ledger)
    except DataError as error:
        assert "and so is all that could replace it" in str(error)
        found = []
    finally:
        put(manifest.uri, f"shard.{kind}", INTACT[kind])
    noted = {int(entry.uid.rsplit("/", 1)[1]) for entry in read_ledger(ledger.uri)}
    for number, sample in enumerate(found):
        taken = int(sample.uid.rsplit("/", 1)[1])
        assert taken == number or number in noted
        assert content(sample) == before[taken] or taken in corrupted.meant
    assert found or noted
