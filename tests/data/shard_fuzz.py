"""Bytes that somebody gives as a tar or a Parquet file: seeded, and what must hold of each.

`fuzz_shards(seed, folder)` is one round of all kinds; a fuzzer with more time calls it with more seeds.
"""

import random
import tarfile
from pathlib import Path

import pyarrow as pa

from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import ShardScan, scan_shard
from blip3o.types import RawSample, SampleRef
from tests.data.shard_files import png, put, samples, stored, tar

BLOCK = tarfile.BLOCKSIZE
PNG = png()
TARS = [tar(samples(3), kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
NAMES = ["a.png", "a.txt", "a.json", "a.1.png", ".DS_Store", "x/" * 60 + "y.png", "ü.png", "a", "\udcff.png", "'\n.txt"]
KINDS = [bytes([kind]) for kind in b"000012345679gxLKSVMDXN?\0"]
SIZES = [0, 1, 511, 512, 513, 10**6, 8**11 - 1, 2**63 - 1, 2**64, -1, -512]
PAYLOADS = [
    b"",
    b"12 path=a.p\n",
    b"20 size=99999999999\n",
    b"9 size=-\n",
    b"31 GNU.sparse.name=x/y/zzzz.png\n",
    b"\xff" * 40,
]


def _header(rng: random.Random) -> bytes:
    """A header of any kind and size with a right checksum."""
    member = tarfile.TarInfo(rng.choice(NAMES))
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")[-BLOCK:])
    block[156:157] = rng.choice(KINDS)
    size = rng.choice(SIZES)
    octal = 0 <= size < 8**11
    block[124:136] = b"%011o\0" % size if octal else b"\x80" + (size % 2**88).to_bytes(11, "big")
    block[157:257] = rng.choice(NAMES).encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0")
    block[482] = rng.randrange(2)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    payload = rng.choice([*PAYLOADS, PNG, bytes(rng.randrange(256) for _ in range(90))])
    return bytes(block) + payload.ljust(-(-len(payload) // BLOCK) * BLOCK, b"\0")


def tar_bytes(rng: random.Random) -> bytes:
    """A tar that is damaged, hostile or odd."""
    data = bytearray(rng.choice(TARS))
    way = rng.randrange(5)
    if way == 0:
        data = bytearray(b"".join(_header(rng) for _ in range(rng.randrange(1, 8)))) + bytes(rng.choice([0, 1024]))
    elif way == 1:
        at = rng.randrange(0, len(data), BLOCK)
        data[at:at] = _header(rng)
    elif way == 2:
        blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        rng.shuffle(blocks)
        data = bytearray(b"".join(blocks))
    return _spoiled(rng, data)


def _tables() -> list[pa.Table]:
    pictures, words = [PNG] * 3, ["a", "b", None]
    structs = [{"bytes": PNG, "path": "x"}] * 3
    said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}]] * 3
    return [
        pa.table({"image": pictures, "caption": words, "n": [1, 2, 3], "f": [0.5, None, float("nan")]}),
        pa.table({"image": pa.array(pictures, pa.binary_view()), "caption": pa.array(words, pa.string_view())}),
        pa.table(
            {"image": structs, "text": pa.array(words).dictionary_encode(), "t": pa.array([1] * 3, pa.timestamp("ns"))}
        ),
        pa.table({"images": [[it] for it in structs], "messages": said, "json": ['{"a": 1}', "{", None]}),
        pa.table({"image": pictures, "caption": [["a", "b"], [], None], "d": pa.array([1] * 3, pa.decimal128(5, 1))}),
    ]


PARQUETS = [
    stored(table, row_group_size=2, write_page_checksum=checksum, compression=codec, store_schema=schema)
    for table in _tables()
    for checksum, codec, schema in ((True, "snappy", True), (False, "none", False), (False, "zstd", True))
]


def parquet_bytes(rng: random.Random) -> bytes:
    """A Parquet file that is damaged, most often in its footer."""
    data = bytearray(rng.choice(PARQUETS))
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    way = rng.randrange(8)
    if way < 3:
        for _ in range(way + 1):
            data[rng.randrange(start, len(data) - 8)] ^= 1 << rng.randrange(8)
    elif way < 6:
        data[rng.randrange(4, start)] ^= 1 << rng.randrange(8)
    elif way == 6:
        data[-8:-4] = rng.choice([0, 1, len(data), 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    return _spoiled(rng, data) if way == 7 else bytes(data)


def _spoiled(rng: random.Random, data: bytearray) -> bytes:
    """Bits flipped, a stretch replaced, or the end cut off; often nothing."""
    way = rng.randrange(6)
    if way == 0 and data:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 1:
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(600)] = bytes(rng.randrange(256) for _ in range(rng.randrange(600)))
    elif way == 2:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def check_shard(folder: Path, name: str, data: bytes) -> ShardScan:
    """Scans bytes as a shard: its account adds up, and what it calls good is read."""
    file = put(folder, name, data)
    scan = scan_shard(file, source="src", shard=0)
    tally = scan.tally
    assert tally.inputs == tally.used + sum(entry.count for entry in scan.damage) + tally.skipped
    row = write_shard_index(str(folder), file, scan).row
    good = sorted(set(range(row.rows)) - set(row.bad_rows))
    refs = [SampleRef(source=0, shard=0, row=number, pass_index=0) for number in good]
    read = ShardReader([write_manifest(str(folder), "src", [row])]).fetch_each(refs)
    assert all(isinstance(sample, RawSample) for sample in read)
    return scan


def fuzz_shards(seed: int, folder: Path) -> None:
    """One round: a tar and a Parquet file, also under each other's names."""
    rng = random.Random(seed)
    for data in (tar_bytes(rng), parquet_bytes(rng)):
        check_shard(folder, rng.choice(["a.tar", "a.parquet"]), data)
