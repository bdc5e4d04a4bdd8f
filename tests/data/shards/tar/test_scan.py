"""Every member of a tar is used by a good sample, or covered by one entry of the ledger, or skipped as the system's."""

import io
import tarfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.config.shards import LimitsConfig, MembersConfig
from blip3o.data.shards import scan_result
from blip3o.data.shards.sample import choose_members
from blip3o.data.shards.scan_result import ScanOptions, ScanResult, ledger_entries
from blip3o.data.shards.tar.index import BLOCK, TarItem, scan_tar, split_name
from blip3o.data.shards.tar.scan import scan_tar_shard
from blip3o.storage.system_files import is_system_file
from tests.data.shard_files import UNHURRIED, Files, png, sample, samples, tar

LAST = ScanOptions(key="last_dot")
PNG = png()


def scan(data: bytes, options: ScanOptions | None = None) -> ScanResult:
    return scan_tar_shard(lambda offset, size: data[offset : offset + size], len(data), options or ScanOptions())


def entries(found: ScanResult) -> list[tuple[str, str, int]]:
    return [(entry.uid, entry.reason, entry.count) for entry in ledger_entries("u", "src/0", found)]


def settled(found: ScanResult) -> bool:
    listed = sum(count for _, _, count in entries(found))
    return found.inputs == found.used + listed + found.skipped


def files(*names: str) -> Files:
    return [(name, PNG if name.lower().endswith((".png", ".jpg", ".gif")) else b"said") for name in names]


STEMS = ["cat", "cat.1", "cat.2", "dog", "22.05", "x/cat", "./y.z/cat", "", ".hid", "__MACOSX/._cat", "a b", "ü'\n"]
EXTS = [".png", ".jpg", ".txt", ".json", ".TXT", ".seg.png", ".gif", ".npy", "", ".", "..png"]
NAMES = st.builds(lambda stem, ext: stem + ext, st.sampled_from(STEMS), st.sampled_from(EXTS))
NAMES |= st.sampled_from(["README", ".DS_Store", "Thumbs.db", "@eaDir/x.png", "PaxHeaders.1/cat.png", "f/"])
CONTENTS = st.sampled_from([PNG, b"said", b"", b'{"caption": "said"}', PNG[:50]])
TYPES = st.sampled_from([tarfile.REGTYPE] * 12 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
ENTRIES = st.lists(st.tuples(NAMES, TYPES, CONTENTS, NAMES), max_size=24)
# Samples of several members in a row, so that good ones are frequent.
WHOLE = st.lists(st.sampled_from(STEMS[:8]), max_size=6).map(
    lambda stems: [
        (f"{stem}{ext}", tarfile.REGTYPE, data, "") for stem in stems for ext, data in ((".png", PNG), (".txt", b"t"))
    ]
)


def archive(members: list[tuple[str, bytes, bytes, str]], kind: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as written:
        for name, type_of, data, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_of, target
            member.size = len(data) if type_of == tarfile.REGTYPE else 0
            written.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def covered(data: bytes, found: ScanResult, options: ScanOptions) -> None:
    """That what a scan found adds up, member by member."""
    items = list(scan_tar(lambda offset, size: data[offset : offset + size], len(data)))
    listed = entries(found)
    assert found.inputs == len(items)
    assert settled(found)
    # One entry for each bad row, none for a good one; each covers the members of its row.
    rows = {uid: count for uid, _, count in listed if uid != "src/0"}
    assert len(rows) == len([uid for uid, _, _ in listed if uid != "src/0"])
    assert rows == {f"src/0/{row}": len(found.members[row]) for row in found.reasons}
    assert not found.facts.keys() & found.reasons.keys()
    assert found.facts.keys() | found.reasons.keys() == set(range(len(found.keys)))
    # What is not a member of a row is unused, one entry for each key, and for each file without a key.
    loose = [item for item in items if is_stray(item, options)]
    unused = []
    for row in found.facts:
        members = found.members[row]
        unused += [len(members) - len(choose_members(members, options.members).all())]
    expected = Counter([1] * len(loose) + [count for count in unused if count])
    all_skipped = [count for _, reason, count in listed if reason.startswith("unused members: all of")]
    assert Counter(count for uid, _, count in listed if uid == "src/0") == expected + Counter(all_skipped)
    system = [item for item in items if is_system_file(item.name) and not item.torn]
    assert found.skipped + sum(all_skipped) == len(system)


def is_stray(item: TarItem, options: ScanOptions) -> bool:
    system = is_system_file(item.name) and not item.torn
    return not system and split_name(item.name, options.key) is None


@given(
    members=st.one_of(ENTRIES, st.tuples(WHOLE, ENTRIES, WHOLE).map(lambda parts: [*parts[0], *parts[1], *parts[2]])),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    rule=st.sampled_from(["first_dot", "last_dot"]),
    cut=st.none() | st.floats(0, 1),
    flips=st.lists(st.integers(0, 10**6), max_size=2),
)
@settings(UNHURRIED, max_examples=250)
def test_every_member_is_accounted_for_once(members, kind, rule, cut, flips):
    data = bytearray(archive(members, kind))
    whole = cut is None and not flips
    for flip in flips:
        data[flip % len(data)] ^= 1 << flip % 8
    data = bytes(data[: int(cut * len(data))] if cut is not None else data)
    options = ScanOptions(key=rule)
    found = scan(data, options)
    covered(data, found, options)
    if whole:  # as another reader counts them
        with tarfile.open(fileobj=io.BytesIO(data)) as read:
            assert found.inputs == sum(not member.isdir() for member in read.getmembers())


COPIES = [
    f"{name}{copy}.{ext}" for name in ("cat", "dog", "owl") for copy in (".1", ".2", "") for ext in ("jpg", "txt")
]


def test_members_beside_those_of_a_good_sample_are_named_by_their_key():
    found = scan(tar(files(*COPIES)))
    assert (found.used, found.inputs, found.further, found.spare_captions) == (6, 18, 6, 6)
    assert entries(found) == [
        ("src/0", f"unused members: key '{key}' also has 1.jpg, 1.txt, 2.jpg, 2.txt, which no sample uses", 4)
        for key in ("cat", "dog", "owl")
    ]


def test_keys_that_end_at_the_last_dot_read_each_copy():
    found = scan(tar(files(*COPIES)), LAST)
    assert (found.used, found.inputs, entries(found)) == (18, 18, [])
    assert found.keys[:3] == ["cat.1", "cat.2", "cat"]


@pytest.mark.parametrize(
    ("names", "samples", "further"),
    [
        ([f"cat.{number}.jpg" for number in range(40)], 1, 39),
        (["a.jpg", "a.png", "a.txt"], 1, 1),
        (["22.05.jpg", "22.05.txt", "22.06.jpg", "22.06.txt"], 1, 1),
        (["a.jpg", "a.mask.gif", "a.txt"], 1, 1),
        (["a.jpg", "a.npy", "a.cls", "a.txt"], 1, 0),
        (["a.txt", "b.jpg", "b.txt"], 2, 0),
    ],
)
def test_pictures_count_where_keys_would_count_as_one(names, samples, further):
    found = scan(tar(files(*names)))
    assert (found.samples, found.further) == (samples, further)
    assert settled(found)


NAMED = MembersConfig(image="input.jpg", caption="outputs.TXT")


def test_members_are_those_that_are_named_and_others_are_left_on_purpose():
    names = [f"s{number}.{ext}" for number in range(3) for ext in ("input.jpg", "jpg", "outputs.txt", "txt")]
    found = scan(tar(files(*names)), ScanOptions(members=NAMED))
    assert (found.used, found.further, found.spare_captions, len(found.facts)) == (6, 0, 0, 3)
    assert [count for _, _, count in entries(found)] == [2, 2, 2]
    record = scan(
        tar([("a.jpg", PNG), ("a.meta", b'{"caption": "c"}')]), ScanOptions(members=MembersConfig(record="meta"))
    )
    assert len(record.facts) == 1


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["s0.input.jpg", "s0.outputs.txt"],
            "missing image: the key has input.jpg, outputs.txt, not jpg or jpeg or png or webp or jpe or jfif: "
            "set members: {image: input.jpg, caption: outputs.txt} for the source to read it",
        ),
        (["c.1.jpg", "c.1.txt", "c.2.jpg", "c.2.txt"], "missing image: the key has 1.jpg, 1.txt, 2.jpg, 2.txt, not "),
        (
            ["a.gif", "a.txt"],
            "missing image: the key has gif, txt, not jpg or jpeg or png or webp or jpe or jfif: conv",
        ),
        (
            ["a.jpg", "a.caption"],
            "missing caption: the key has jpg, caption, not txt or json: set members: {caption: capt",
        ),
        (
            ["0.jpg", "0.jpg.txt"],
            "missing caption: the key has jpg, jpg.txt, not txt or json: set members: {caption: jpg.t",
        ),
        ([f"a.{n}" for n in range(9)], "missing image: the key has 0, 1, 2, 3, 4, 5, …, not jpg or "),
        (["a.jpg", "a.cls"], "missing caption: the key has jpg, cls, not txt or json: set members: {caption: cls}"),
        (
            ["a.img", "a.txt"],
            "missing image: the key has img, txt, not jpg or jpeg or png or webp or jpe or jfif: set ",
        ),
        (["a.jpg", "a.seg.png"], "missing caption: the key has jpg, seg.png, not txt or json: write one for each key"),
        (["10.30.15.png", "10.30.15.txt"], "missing image: the key has 30.15.png, 30.15.txt, not jpg or jpeg or png "),
        (["a.jpg"], "missing caption"),
        (["a.txt"], "missing image"),
    ],
)
def test_what_a_key_has_is_named_where_what_it_lacks_may_be_under_another_name(names, reason):
    ((uid, said, count),) = entries(scan(tar(files(*names))))
    assert (uid, said[: len(reason)], count) == ("src/0/0", reason, len(names))
    if reason in ("missing caption", "missing image"):
        assert said == reason
    assert ("key: last_dot" in said) == ("2.txt" in said or "15.txt" in said)


def test_files_without_a_key_are_named_and_the_systems_own_are_skipped():
    odd = files("README", "dir/LICENSE", "a.") + [("", b"x")] + files(".DS_Store", "__MACOSX/._s000.png", "Thumbs.db")
    found = scan(tar([*samples(2), *odd]))
    assert (found.used, found.skipped) == (6, 3)
    assert entries(found) == [
        ("src/0", "unused members: 'README' has no extension", 1),
        ("src/0", "unused members: 'dir/LICENSE' has no extension", 1),
        ("src/0", "unused members: 'a.' has no extension", 1),
        ("src/0", "unused members: one has no name", 1),
    ]


def test_system_files_inside_a_sample_do_not_part_it():
    names = ["a.jpg", "._a.jpg", "._a.txt", "a.txt"]
    found = scan(tar(files(*names)))
    assert (found.keys, found.used, found.skipped) == (["a"], 2, 2)


def test_an_archive_below_a_hidden_folder_is_not_skipped_in_silence():
    found = scan(tar(files(".data/a.jpg", ".data/a.txt")))
    reason = (
        "unused members: all of 2 are hidden or system files, as '.data/a.jpg': write them to a tar without the hidden "
        "folder"
    )
    assert (found.skipped, entries(found)) == (0, [("src/0", reason, 2)])


def linked(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tuple[str, bytes, bytes, str]:
    return name, kind, b"", target


def test_a_link_that_leads_nowhere_costs_its_sample_only_if_it_is_used():
    whole = [("a.png", tarfile.REGTYPE, PNG, ""), ("a.txt", tarfile.REGTYPE, b"said", "")]
    found = scan(archive([*whole, linked("a.npy", "z.npy")], tarfile.GNU_FORMAT))
    assert (len(found.facts), entries(found)[0][2]) == (1, 1)
    found = scan(archive([whole[0], linked("a.txt", "z.txt")], tarfile.GNU_FORMAT))
    reason = "hard link: 'a.txt' leads to 'z.txt', which is no file before it in the tar"
    assert entries(found) == [("src/0/0", reason, 2)]
    found = scan(archive([*whole, linked("a.json", "../z.json", tarfile.SYMTYPE)], tarfile.GNU_FORMAT))
    assert entries(found)[0][1].startswith("symbolic link: 'a.json' leads to '../z.json'")


def test_linked_pictures_and_captions_are_those_that_are_linked_to():
    members = [("a.png", tarfile.REGTYPE, PNG, ""), ("a.txt", tarfile.REGTYPE, b"said", "")]
    members += [linked("b.png", "a.png"), linked("b.txt", "a.txt", tarfile.SYMTYPE)]
    found = scan(archive(members, tarfile.PAX_FORMAT))
    assert (found.used, entries(found), found.facts[0]) == (4, [], found.facts[1])


def test_entries_of_one_kind_are_bounded_and_still_add_up(monkeypatch):
    monkeypatch.setattr(scan_result, "LISTED", 5)
    bad = [file for number in range(20) for file in sample(f"b{number}", caption=b"")]
    found = scan(tar([*samples(2), *bad, *files(*[f"README{'x' * n}" for n in range(9)])]))
    listed = entries(found)
    assert len(listed) == 5 + 5 + 2
    assert listed[-2:] == [
        ("src/0", "unused members: 4 more like the 5 that are listed", 4),
        ("src/0", "empty caption: 15 more like the 5 that are listed", 45),
    ]
    assert settled(found)
    whole = ledger_entries("u", "src/0", found)[-1]
    assert (whole.offset % BLOCK, whole.offset + whole.size) == (
        0,
        max(m[-1].offset + m[-1].size for m in found.members),
    )


def test_limits_and_options_are_part_of_what_an_index_is_made_with():
    as_before = f"{LimitsConfig().model_dump_json()} {ScanOptions().columns.model_dump_json()}"
    assert ScanOptions().text() == as_before
    texts = {options.text() for options in (ScanOptions(), LAST, ScanOptions(members=NAMED))}
    assert len(texts) == 3
