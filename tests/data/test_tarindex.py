"""The scan of a tar finds what is there, says what is damaged, and lets no damage spread."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.data import storage
from blip3o.data.tarindex import (
    BAD_HEADER,
    BLOCK,
    NO_END,
    TRUNCATED,
    ShardFile,
    TarItem,
    TarSample,
    group_samples,
    scan_tar,
    split_name,
)
from tests.data.shards import UNHURRIED, header_of, put, samples, tar

LONG = "folder-" + "x" * 120 + "/" + "y" * 150
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
INTACT = tar(samples(4))


def scan(data: bytes) -> list[TarItem]:
    return list(scan_tar(lambda offset, size: data[offset : offset + size], len(data)))


def files_of(items: list[TarItem]) -> list[TarItem]:
    return [item for item in items if not item.damage]


def damage_of(items: list[TarItem]) -> list[str]:
    return [item.damage for item in items if item.damage]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_names_and_bytes(kind):
    names = ["a.png", "ä/ü.txt", "dir/sub/b.json"] + ([f"{LONG}.txt"] if kind != tarfile.USTAR_FORMAT else [])
    contents = [(name, name.encode() * (number * 200)) for number, name in enumerate(names)]
    data = tar(contents, kind)
    items = scan(data)
    assert [(item.name, data[item.offset : item.offset + item.size]) for item in items] == contents


def test_only_regular_files_are_items():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, kind in [("dir", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            archive.addfile(member)
        member = tarfile.TarInfo("a.png")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert [(item.name, item.size) for item in scan(sink.getvalue())] == [("a.png", 3)]


@given(cut=st.integers(0, len(INTACT)))
@settings(UNHURRIED, max_examples=150)
def test_a_cut_shard_keeps_what_is_whole_and_says_that_it_was_cut(cut):
    whole = files_of(scan(INTACT))
    items = scan(INTACT[:cut])
    assert files_of(items) == [item for item in whole if item.offset + item.size <= cut]
    end = whole[-1].offset + -(-whole[-1].size // BLOCK) * BLOCK
    assert damage_of(items) in ([], [TRUNCATED], [NO_END])
    assert bool(damage_of(items)) == (cut <= end)


@given(header=st.integers(0, 11), position=st.integers(0, BLOCK - 1), bit=st.integers(0, 7))
@settings(UNHURRIED, max_examples=150)
def test_a_flipped_bit_in_a_header_costs_that_file_alone(header, position, bit):
    whole = files_of(scan(INTACT))
    data = bytearray(INTACT)
    data[whole[header].offset - BLOCK + position] ^= 1 << bit
    items = scan(bytes(data))
    lost = [item for item in whole if item not in items]
    assert lost in ([], [whole[header]])
    assert bool(lost) == (BAD_HEADER in damage_of(items))
    assert all(item in whole for item in files_of(items))


def test_a_bad_header_is_reported_with_its_range():
    data = bytearray(INTACT)
    start, end = header_of(INTACT, "s001.png"), header_of(INTACT, "s001.txt")
    data[start] ^= 1
    assert [(item.offset, item.size) for item in scan(bytes(data)) if item.damage] == [(start, end - start)]


def test_a_header_of_zeros_does_not_end_the_archive():
    data = bytearray(INTACT)
    start = header_of(INTACT, "s001.png")
    data[start : start + BLOCK] = bytes(BLOCK)
    items = scan(bytes(data))
    assert len(files_of(items)) == 11
    assert damage_of(items) == [BAD_HEADER]


def test_archives_one_after_another_are_read_to_the_end():
    assert [item.name for item in scan(tar(samples(1)) + tar(samples(1, "t")))] == [
        f"{key}.{ext}" for key in ("s000", "t000") for ext in ("png", "txt", "json")
    ]


@pytest.mark.parametrize(("data", "expected"), [(b"", []), (b"no tar at all", [NO_END]), (b"x" * 2000, [BAD_HEADER])])
def test_what_is_no_tar_has_no_files(data, expected):
    items = scan(data)
    assert not files_of(items)
    assert damage_of(items)[: len(expected)] == expected


def test_a_header_that_claims_a_negative_size_is_damage():
    member = tarfile.TarInfo("a.png")
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    block[124:136] = (-512).to_bytes(12, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert damage_of(scan(bytes(block) + INTACT)) == [BAD_HEADER]


# The last two state a size that is none, one of them with more digits than Python converts.
PAYLOADS = [b"nonsense", b"0 path=x\n", b"999 path=x\n", b"8 path=x\n", b"12 path=abcd", b"11 size=-5\n"]
PAYLOADS += [b"5011 size=" + b"9" * 5000 + b"\n"]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload[:20])
def test_an_extended_header_that_is_no_record_is_damage(payload):
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, len(payload)
    data = member.tobuf(tarfile.USTAR_FORMAT) + payload.ljust(-(-len(payload) // BLOCK) * BLOCK, b"\0") + INTACT
    items = scan(data)
    assert damage_of(items) == [BAD_HEADER]
    assert len(files_of(items)) == 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", ("a", "png")),
        ("./d/a.PNG", ("d/a", "png")),
        ("d.x/a.seg.png", ("d.x/a", "seg.png")),
        ("a", None),
        (".hidden", None),
        ("d/", None),
        ("a.", None),
    ],
)
def test_names_split_at_the_first_dot_of_the_file(name, expected):
    assert split_name(name) == expected


def grouped(names: list[str]) -> list[tuple[str, list[str]]]:
    found = group_samples(TarItem(name=name, offset=0, size=1) for name in names)
    return [(sample.key, [member.ext for member in sample.members]) for sample in found]


def test_members_of_a_sample_come_in_any_order():
    assert grouped(["a.txt", "a.png", "b.png", "readme", "b.json", "b.txt"]) == [
        ("a", ["txt", "png"]),
        ("b", ["png", "json", "txt"]),
    ]


def test_folders_part_samples_of_one_name():
    assert grouped(["x/a.png", "y/a.png"]) == [("x/a", ["png"]), ("y/a", ["png"])]


def test_two_samples_of_one_key_are_not_mixed():
    assert grouped(["a.png", "a.txt", "a.png", "a.txt"]) == [("a", ["png", "txt"])] * 2


def test_chunked_reads_give_the_same_bytes_and_fetch_each_once(tmp_path, monkeypatch):
    file = put(tmp_path, "a.tar", INTACT)
    asked = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, r: asked.extend(r) or read_ranges(uri, r))
    read = ShardFile(file.uri, file.size, chunk_bytes=BLOCK).read
    assert list(scan_tar(read, file.size)) == scan(INTACT)
    assert len(asked) == len(set(asked))
    for offset, size in [(0, 10), (500, 30), (511, 2000), (len(INTACT) - 3, 10), (len(INTACT), 5)]:
        assert read(offset, size) == INTACT[offset : offset + size]


def test_a_cut_inside_a_file_of_no_sample_is_damage_and_one_without_a_name_is_none():
    readme = tarfile.TarInfo("README")
    readme.size = 10**9
    torn = INTACT[: header_of(INTACT, "s002.png")] + readme.tobuf() + INTACT[header_of(INTACT, "s002.png") :]
    found = list(group_samples(scan(torn)))
    assert [item.damage for item in found if isinstance(item, TarItem)] == [TRUNCATED]
    assert [item.key for item in found if isinstance(item, TarSample)] == ["s000", "s001"]
    assert scan(tar([("", b"nameless"), *samples(4)]))[0].name == "s000.png"
