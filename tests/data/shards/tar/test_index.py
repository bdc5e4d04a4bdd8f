"""The scan of a tar finds what is there, says what is damaged, and lets no damage spread."""

import bz2
import gzip
import io
import lzma
import tarfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o import storage
from blip3o.data.shards.tar import index as tarindex
from blip3o.data.shards.tar.index import (
    BAD_HEADER,
    BLOCK,
    MAX_ZEROS,
    NO_END,
    TRUNCATED,
    ShardFile,
    TarItem,
    TarSample,
    group_samples,
    scan_tar,
    split_name,
)
from tests.data.shard_files import LFS_POINTER, UNHURRIED, header_of, png, put, samples, tar

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


REGULAR, HARD, SYMBOLIC = tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
ABC = ("a.png", REGULAR, "abc")


def tar_of(entries: list[tuple[str, bytes, str]], kind: int = tarfile.GNU_FORMAT) -> bytes:
    """Entries by name and type, each with its content, or where it leads."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as archive:
        for name, type_of, what in entries:
            member = tarfile.TarInfo(name)
            member.type, member.size = type_of, len(what) if type_of == REGULAR else 0
            member.linkname = what if type_of in (HARD, SYMBOLIC) else ""
            archive.addfile(member, io.BytesIO(what.encode()))
    return sink.getvalue()


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, b"V", b"D"])
def test_folders_and_names_of_volumes_are_no_items(kind):
    assert [item.name for item in scan(tar_of([("dir", kind, ""), ABC]))] == ["a.png"]


@pytest.mark.parametrize(
    "links",
    [
        [("b.png", HARD, "a.png")],
        [("b.png", HARD, "./a.png")],
        [("b.png", SYMBOLIC, "a.png")],
        [("x/b.png", SYMBOLIC, "../a.png")],
        [("x/y/b.png", SYMBOLIC, "../z/../../a.png")],
        [("c.png", HARD, "a.png"), ("b.png", HARD, "c.png")],
        [("x/c.png", SYMBOLIC, "../a.png"), ("b.png", SYMBOLIC, "./x/c.png")],
        [("c.png", SYMBOLIC, "a.png"), (f"{LONG}/b.png", HARD, "c.png")],
        [(f"{LONG}.png", HARD, "a.png"), ("b.png", HARD, f"{LONG}.png")],
    ],
)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_link_to_a_member_before_it_has_that_members_bytes(links, kind):
    items = scan(tar_of([ABC, *links, ("d.png", REGULAR, "d")], kind))
    assert [item.name for item in items] == ["a.png", *(name for name, _, _ in links), "d.png"]
    assert {(item.offset, item.size, item.damage) for item in items[:-1]} == {(items[0].offset, 3, "")}


def test_a_link_has_the_bytes_of_the_last_member_of_that_name_before_it():
    entries = [ABC, ("a.png", REGULAR, "abcd"), ("b.png", HARD, "a.png"), ("a.png", REGULAR, "abcde")]
    assert [item.size for item in scan(tar_of(entries))] == [3, 4, 4, 5]


@pytest.mark.parametrize(
    ("name", "kind", "target", "reason"),
    [
        ("b.png", HARD, "z.png", "hard link: 'b.png' leads to 'z.png', which is no file before it in the tar"),
        ("b.png", HARD, "b.png", "hard link: 'b.png' leads to 'b.png'"),
        ("x/b.png", HARD, "../a.png", "hard link: 'x/b.png'"),  # hard links are not relative
        ("b.png", SYMBOLIC, "/srv/a.gif", "symbolic link: 'b.png' leads to '/srv/a.gif'"),
        ("x/b.png", SYMBOLIC, "a.png", "symbolic link: 'x/b.png'"),
        ("b.png", SYMBOLIC, "../../etc/passwd", "symbolic link: 'b.png'"),
        ("b.png", tarfile.FIFOTYPE, "", "special file: 'b.png' is of type b'6'"),
        ("b.png", tarfile.CHRTYPE, "", "special file: 'b.png' is of type b'3'"),
        ("b.png", b"M", "", "special file: 'b.png' is of type b'M'"),
    ],
)
def test_what_holds_no_bytes_is_an_item_with_the_reason(name, kind, target, reason):
    _, item, last = scan(tar_of([ABC, (name, kind, target), ("d.png", REGULAR, "d")]))
    assert (item.name, item.damage[: len(reason)], item.torn, last.name) == (name, reason, False, "d.png")


def sparse(extended: int) -> bytes:
    """GNU's header of a sparse file of 3 stored bytes, its map going on in `extended` further blocks."""
    member = tarfile.TarInfo("b.png")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 3
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[482] = extended > 0
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    maps = b"".join(bytes(504) + bytes([number + 1 < extended]) + bytes(7) for number in range(extended))
    return bytes(block) + maps + b"abc".ljust(BLOCK, b"\0")


@pytest.mark.parametrize("extended", [0, 1, 3])
def test_a_sparse_file_is_named_and_what_follows_is_found(extended):
    items = scan(sparse(extended) + INTACT)
    assert items[0].damage == "sparse file: 'b.png' is stored with holes, write it plainly"
    assert [item.name for item in items[1:]] == [item.name for item in scan(INTACT)]


def test_a_sparse_file_of_pax_has_its_own_name():
    member = tarfile.TarInfo("GNUSparseFile.0/b.png")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "x/b.png"}
    (item, *_) = scan(member.tobuf(tarfile.PAX_FORMAT) + INTACT)
    assert (item.name, item.damage.split(":")[0]) == ("x/b.png", "sparse file")


@given(cut=st.integers(0, len(INTACT)))
@settings(UNHURRIED, max_examples=150)
def test_a_cut_shard_keeps_what_is_whole_and_says_that_it_was_cut(cut):
    whole = files_of(scan(INTACT))
    items = scan(INTACT[:cut])
    assert files_of(items) == [item for item in whole if item.offset + item.size <= cut]
    end = whole[-1].offset + -(-whole[-1].size // BLOCK) * BLOCK
    no_tar = [[item.damage] for item in items if item.damage.startswith(("is empty: ", "is text ")) and cut < 10]
    assert damage_of(items) in ([], [TRUNCATED], [NO_END], *no_tar)
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


PACKED = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True),
}
OTHERS = {
    "zip": (b"PK\x03\x04" + bytes(2000), "is a zip archive: write its files to a plain tar"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(20), "is a 7z archive"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
    "store's error": (
        b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
        "is an XML reply (NoSuchKey)",
    ),
    "pointer": (LFS_POINTER, "is a Git LFS pointer to 9 bytes: run `git lfs pull`"),
    "picture": (png(), "is a PNG: shards are tars or Parquet files"),
    "json": (b'{"message": "Forbidden"}', "is JSON text"),
    "text": (b"Entry not found", "is text ('Entry not found')"),
    "nothing": (b"", "is empty: "),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_tar_is_one_item_that_says_how_it_is_packed(kind):
    packed = PACKED[kind](INTACT)
    (item,) = scan(packed)
    assert (item.offset, item.size, item.torn) == (0, len(packed), True)
    assert item.damage == f"is compressed with {kind}: unpack it (training reads byte ranges of a plain file)"


@pytest.mark.parametrize(("data", "reason"), OTHERS.values(), ids=OTHERS)
def test_what_stands_in_place_of_a_tar_is_one_item_that_says_what_it_is(data, reason):
    (item,) = scan(data)
    assert item.damage.startswith(reason)


@pytest.mark.parametrize("name", ["BZh.png", "PK\x03\x04.png", "GIF8.txt", "{}.txt", "<html.txt"])
def test_a_tar_is_a_tar_whatever_its_first_name_begins_with(name):
    assert [(item.name, item.damage) for item in scan(tar([(name, b"x")]))] == [(name, "")]


def test_more_zeros_than_a_writer_appends_are_damage():
    assert scan(bytes(10240)) == []
    assert not damage_of(scan(INTACT + bytes(MAX_ZEROS - 20000)))
    for data in (bytes(MAX_ZEROS + BLOCK), INTACT[: header_of(INTACT, "s002.png")] + bytes(MAX_ZEROS + BLOCK)):
        *files, item = scan(data)
        assert item.damage.startswith("truncated: ends in ") and item.torn and not damage_of(files)
        assert item.offset + item.size == len(data)


@pytest.mark.parametrize(("data", "expected"), [(b"\1", [NO_END]), (b"\2" * 2000, [BAD_HEADER])])
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat.1.jpg", ("cat.1", "jpg")),
        ("./d.x/22.05.JPG", ("d.x/22.05", "jpg")),
        ("a.png", ("a", "png")),
        ("a..png", ("a.", "png")),
        ("a", None),
        (".png", None),
        ("a.b.", None),
    ],
)
def test_names_split_at_the_last_dot_where_that_is_the_rule(name, expected):
    assert split_name(name, "last_dot") == expected


def grouped(names: list[str]) -> list[tuple[str, list[str]]]:
    found = group_samples(TarItem(name=name, offset=0, size=1) for name in names)
    return [(it.key, [member.ext for member in it.members]) for it in found if isinstance(it, TarSample)]


def test_members_of_a_sample_come_in_any_order():
    assert grouped(["a.txt", "a.png", "b.png", "readme", "b.json", "b.txt"]) == [
        ("a", ["txt", "png"]),
        ("b", ["png", "json", "txt"]),
    ]


def test_folders_part_samples_of_one_name():
    assert grouped(["x/a.png", "y/a.png"]) == [("x/a", ["png"]), ("y/a", ["png"])]


def test_members_of_one_key_are_grouped_in_linear_time(monkeypatch):
    """All members of an archive are of one key where a prefix of their names ends in a dot."""
    compared = 0

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    monkeypatch.setattr(tarindex, "split_name", lambda name, _: ("photo", Counted(name)))
    items = [TarItem(name=f"{number:06}.jpg", offset=0, size=1) for number in range(1000)]
    (found,) = group_samples(items)
    assert len(found.members) == 1000 and compared < 3000


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
    assert [item.damage for item in scan(tar([("", b"nameless"), *samples(4)])) if not item.name] == [""]
