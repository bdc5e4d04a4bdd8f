"""Each kind of damage is named, costs one sample, and leaves the others and their rows alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o.config.shards import MAX_CAPTION_CHARS, LimitsConfig
from blip3o.data.shards.scan import ScanOptions, ShardScan, scan_shard
from blip3o.storage import FileInfo
from tests.data.shard_files import UNHURRIED, Files, header_of, png, png_bomb, put, sample, samples, tar


@pytest.fixture
def scan(tmp_path):
    def run(data: bytes) -> ShardScan:
        file: FileInfo = put(tmp_path, "a.tar", data)
        return scan_shard(file, source="src", shard=3)

    return run


def reasons(found: ShardScan) -> dict[str, str]:
    return {entry.uid: entry.reason for entry in found.damage}


def only(files: Files, *extensions: str) -> Files:
    return [(name, data) for name, data in files if name.split(".")[-1] in extensions]


def test_healthy_samples_are_indexed_with_the_bytes_of_their_members(scan):
    files = samples(3)
    data = tar(files)
    found = scan(data)
    stored = {
        f"{item.key}.{member.ext}": data[member.offset : member.offset + member.size]
        for item in found.samples
        for member in item.members
    }
    assert list(stored.items()) == files
    assert (found.bad_rows, found.damage) == ((), ())


DAMAGE = {
    "zero-length image": (sample("x", image=b""), "undecodable image"),
    "text for an image": (sample("x", image=b"hello"), "undecodable image"),
    "cut image": (sample("x", image=png()[:-30]), "undecodable image"),
    "bomb": (sample("x", image=png_bomb(10_100, 10_000)), "image too large: 10100x10000"),
    "empty caption": (sample("x", caption=b" \n"), "empty caption"),
    "latin-1 caption": (sample("x", caption="fin d'été".encode("latin-1")), "caption is not UTF-8: byte 6"),
    "endless caption": (sample("x", caption=b"a" * (MAX_CAPTION_CHARS + 1)), "caption too long"),
    "no image": (only(sample("x"), "txt", "json"), "missing image"),
    "no caption": (only(sample("x"), "png", "json"), "missing caption"),
    "broken record": (sample("x", record=b"{"), "record is not JSON"),
    "list for a record": (sample("x", record=b"[1]"), "record is not a JSON object but a list"),
    "deep record": (sample("x", record=b"[" * 100_000), "record is not JSON"),
    "key twice": (sample("s000"), "duplicate key"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("files", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_sample_is_one_bad_row(scan, files, reason):
    healthy = samples(3)
    found = scan(tar(healthy[:6] + files + healthy[6:]))
    assert [item.key for item in found.samples] == ["s000", "s001", files[0][0].split(".")[0], "s002"]
    assert found.bad_rows == (2,)
    (entry,) = found.damage
    assert entry.uid == "src/3/2"
    assert entry.reason.startswith(reason)
    first, last = found.samples[2].members[0], found.samples[2].members[-1]
    assert (entry.offset, entry.size) == (first.offset, last.offset + last.size - first.offset)


SAID = b'{"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a dot"}]}'
RECORDS = {
    "captions that are no list": (b'{"captions": "a dot"}', "captions is not a list of texts"),
    "question alone": (
        b'{"qa": [{"question": "what?"}]}',
        "qa cannot be used: qa[0] has no 'answer': it has",
    ),
    "conversation of one": (b'{"conversations": [{"from": "human", "value": "?"}]}', "conversations is not a list of"),
    "half a pair": (b'{"note": "\\ud800"}', "record holds half a surrogate pair"),
}


@pytest.mark.parametrize(("record", "reason"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_cannot_be_asked_is_damage(scan, record, reason):
    found = scan(tar(sample("a") + sample("x", record=record)))
    assert [(entry.uid, entry.reason[: len(reason)]) for entry in found.damage] == [("src/3/1", reason)]


@pytest.mark.parametrize("record", [b'{"captions": ["a dot"]}', b'{"caption": "a dot"}', SAID])
def test_a_record_can_hold_the_caption(scan, record):
    found = scan(tar(only(sample("x", record=record), "png", "json")))
    assert (found.bad_rows, found.samples[0].facts.caption_chars) == ((), len("a dot"))


def test_members_that_lie_apart_are_reported_by_the_name_of_their_key(scan):
    a, b = samples(2)[:3], samples(2)[3:]
    found = scan(tar([*a[:2], *b, *a[2:]]))
    assert [item.key for item in found.samples] == ["s000", "s001", "s000"]
    assert found.bad_rows == (0, 2)
    assert {entry.reason for entry in found.damage} == {
        "members of key 's000' lie apart in the tar: write them one after another"
    }


def test_limits_are_those_of_the_options(tmp_path):
    file = put(tmp_path, "a.tar", tar(sample("a") + sample("b", caption=b"b")))
    limits = LimitsConfig(max_caption_chars=5)
    found = scan_shard(file, source="src", shard=0, options=ScanOptions(limits=limits))
    assert reasons(found) == {"src/0/0": "caption too long: 12 characters, limit 5"}
    found = scan_shard(file, source="src", shard=0, options=ScanOptions(limits=LimitsConfig(max_pixels=12 * 9 - 1)))
    assert set(reasons(found).values()) == {"image too large: 12x9 pixels, limit 107"}


def test_a_record_is_optional(scan):
    assert scan(tar(only(sample("a"), "png", "txt"))).bad_rows == ()


INTACT = tar(samples(4))


@given(cut=st.integers(0, len(INTACT)))
@settings(UNHURRIED, max_examples=40)
def test_a_cut_shard_keeps_the_samples_before_the_cut(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("cut")
    found = scan_shard(put(folder, "a.tar", INTACT[:cut]), source="src", shard=0)
    whole = scan_shard(put(folder, "b.tar", INTACT), source="src", shard=0)
    good = [item for row, item in enumerate(found.samples) if row not in found.bad_rows]
    ends = [max(member.offset + member.size for member in item.members) for item in whole.samples]
    complete = [item for item, end in zip(whole.samples, ends, strict=True) if end <= cut]
    assert good[: len(complete)] == complete
    # The first sample alone cannot tell what a sample usually has: its record may be gone without a trace.
    assert len(good) == len(complete) or not complete
    if len(found.samples) > len(good):
        assert found.bad_rows == (len(good),)
        reason = reasons(found)[f"src/0/{len(good)}"]
        assert reason.startswith("truncated") or reason.startswith("missing")


def test_a_cut_between_members_is_seen_by_what_the_others_have(scan):
    found = scan(INTACT[: header_of(INTACT, "s002.json")])
    assert found.bad_rows == (2,)
    assert reasons(found) == {"src/3": "truncated: no end of archive", "src/3/2": "truncated: no end of archive"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("s001.png", "missing image"),
        ("s001.txt", "missing caption: no text is under caption, captions, text or prompt; the record has key"),
        ("s001.json", "bad header"),
    ],
)
def test_a_torn_header_costs_the_sample_it_belongs_to(scan, name, reason):
    data = bytearray(INTACT)
    data[header_of(INTACT, name) + 5] ^= 4
    found = scan(bytes(data))
    assert found.bad_rows == (1,)
    assert reasons(found) == {"src/3": "bad header", "src/3/1": reason}
    assert len(found.samples) == 4


def test_a_sample_lost_whole_is_in_the_ledger_as_a_range_of_its_shard(scan):
    data = bytearray(INTACT)
    start, end = header_of(INTACT, "s001.png"), header_of(INTACT, "s002.png")
    data[start:end] = b"\xff" * (end - start)
    found = scan(bytes(data))
    assert [item.key for item in found.samples] == ["s000", "s002", "s003"]
    assert found.bad_rows == ()
    assert [(entry.uid, entry.offset, entry.size) for entry in found.damage] == [("src/3", start, end - start)]


def test_an_empty_file_has_no_samples_and_is_in_the_ledger(scan):
    found = scan(b"")
    assert (found.samples, reasons(found)) == ((), {"src/3": "is empty: fetch the file itself again"})
