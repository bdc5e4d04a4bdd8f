"""One's own images become shards that index without damage; what cannot be used is named and left out."""

import csv
import io
import json
import re

import pytest
from PIL import Image

from blip3o import storage
from blip3o.data.sets.imported import import_set
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import Manifest, write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.text.normalise import normalise
from blip3o.errors import DataError, StorageError
from blip3o.types import RawSample, SampleRef
from tests.data.shard_files import encode, png, png_bomb


@pytest.fixture
def folder(tmp_path):
    """Three pictures and what is said of them, in three ways."""
    for name, data in {
        "a.png": png(1),
        "a.txt": b" a dot \n",
        "deep/b.PNG": png(2),
        "deep/b.json": json.dumps({"captions": ["two dots", "dots"], "score": 5}).encode(),
        "c.x.png": png(3),
        "c.x.txt": b"three dots",
        "c.x.json": b'{"lang": "en", "source": "phone", "file": 7}',
        "readme.md": b"no image",
    }.items():
        storage.write_bytes(f"{tmp_path}/in/{name}", data)
    return f"{tmp_path}/in"


def samples_of(shards: list[str]) -> list[RawSample]:
    """All samples of some shards, which must be without damage."""
    base = storage.join(shards[0].rsplit("/", 1)[0], "manifest")
    scans = [scan_shard(storage.stat(uri), source="mine", shard=number) for number, uri in enumerate(shards)]
    assert not [scan.damage for scan in scans if scan.damage]
    rows = [write_shard_index(base, storage.stat(uri), scan).row for uri, scan in zip(shards, scans, strict=True)]
    manifest: Manifest = write_manifest(base, "mine", rows)
    return ShardReader([manifest]).fetch(
        [
            SampleRef(source=0, shard=shard.shard, row=row, pass_index=0)
            for shard in manifest.shards
            for row in range(shard.rows)
        ]
    )


def test_a_folder_becomes_shards(folder, tmp_path):
    seen = []
    done = import_set(folder, f"{tmp_path}/out", samples_per_shard=2, on_progress=lambda *at: seen.append(at))
    assert (done.summary.counts, done.damage, done.summary.built) == ({"train": 3}, (), True)
    assert seen == [(n, 3) for n in (1, 2, 3)]
    found = samples_of(done.summary.shards["train"])
    assert [(s.key, s.caption, s.meta["file"]) for s in found] == [
        ("0000000", "a dot", "a.png"),
        ("0000001", "three dots", "c.x.png"),
        ("0000002", "two dots", "deep/b.PNG"),
    ]
    assert [s.image for s in found] == [png(1), png(3), png(2)]
    assert (found[1].meta["lang"], found[2].meta["score"], found[2].meta["captions"]) == ("en", 5, ["two dots", "dots"])
    # What it says of a picture under names of ours is kept aside.
    assert [s.meta.get("original") for s in found] == [None, {"source": "phone", "file": 7}, None]
    assert {s.meta["source"] for s in found} == {"import"}


def test_an_import_again_changes_nothing_and_of_another_listing_is_refused(folder, tmp_path):
    out = f"{tmp_path}/out"
    import_set(folder, out)
    before = {file.uri: file.version for file in storage.list_files(out)}
    assert not import_set(folder, out).summary.built
    assert {file.uri: file.version for file in storage.list_files(out)} == before
    storage.delete(f"{out}/train-00000.tar")
    assert import_set(folder, out).summary.built
    storage.write_bytes(f"{folder}/d.png", png(4))
    with pytest.raises(DataError, match="holds a set made with digest [0-9a-f]+ and not [0-9a-f]+: take"):
        import_set(folder, out)


TABLES = {
    "t.jsonl": [
        {"img_path": "a.png", "prompt": "a dot, 8k", "Task1": {"Caption": "a dot"}},
        {"img_path": "c.x.png", "Task1": {"Caption": "three dots"}},
    ],
    "t.json": [
        {
            "id": 7,
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": "a dot, 8k"},
            ],
        },
        {"image": "c.x.png", "caption": "three dots", "score": 1.5},
    ],
    "t.csv": [
        {"file": "a.png", "text": "a dot, 8k", "score": -1.5, "zip": "007", "note": "", "prompt": ""},
        {"file": "c.x.png", "text": "three dots", "score": 20, "zip": "070", "note": "1e3", "prompt": "12"},
    ],
}


def written(name: str, rows: list[dict]) -> bytes:
    if name.endswith(".json"):
        return json.dumps(rows).encode()
    if name.endswith(".jsonl"):
        return "\n\n".join(map(json.dumps, rows)).encode()
    sink = io.StringIO(newline="")
    table = csv.DictWriter(sink, rows[0])
    table.writeheader()
    table.writerows(rows)
    return sink.getvalue().encode("utf-8-sig")


@pytest.mark.parametrize("name", TABLES)
def test_tables_become_shards(folder, tmp_path, name):
    storage.write_bytes(f"{folder}/{name}", written(name, TABLES[name]))
    done = import_set(f"{folder}/{name}", f"{tmp_path}/out")
    found = samples_of(done.summary.shards["train"])
    assert [(s.image, s.caption) for s in found] == [(png(1), "a dot, 8k"), (png(3), "three dots")]
    rest = {key: value for key, value in TABLES[name][1].items() if value != "c.x.png"}
    assert rest.items() <= found[1].meta.items()


def test_what_cannot_be_used_is_listed(folder, tmp_path):
    rows = [
        {"image": "a.png", "caption": "fine"},
        {"image": "gone.png", "caption": "x"},
        {"image": "readme.md", "caption": "x"},
        {"image": "bomb.png", "caption": "x"},
        {"image": "a.png", "caption": " "},
        {"image": "a.png"},
        {"image": "a.png", "caption": "half \ud800"},
        {"image": "a.png", "caption": "x", "conversations": [{"from": "gpt", "value": "?"}]},
    ]
    storage.write_bytes(f"{folder}/bomb.png", png_bomb(9000, 9000))
    storage.write_bytes(f"{folder}/t.jsonl", written("t.jsonl", rows))
    done = import_set(f"{folder}/t.jsonl", f"{tmp_path}/out")
    assert done.summary.counts == {"train": 1}
    reasons = [(entry.uid, entry.reason.split(":")[0]) for entry in done.damage]
    assert reasons == [
        ("import/1", "missing image"),
        ("import/2", "undecodable image"),
        ("import/3", "image too large"),
        ("import/4", "empty caption"),
        ("import/5", "missing caption"),
        ("import/6", "caption is not UTF-8"),
        ("import/7", "conversations does not alternate between human and gpt, human first"),
    ]
    assert tuple(read_ledger(done.ledger)) == done.damage
    assert import_set(f"{folder}/t.jsonl", f"{tmp_path}/out").damage == done.damage


@pytest.mark.parametrize(
    "path",
    [
        "gs://h/x.png",
        "C:\\photos\\a.png",
        "b\0.png",
        "half \ud800.png",
        "b" * 300 + ".png",
        "é" * 128,
        ".",
        "a.png/b.png",
        "file://~nobody-of-that-name/a.png",
        "s3:///a.png",
        "s3://my bucket/a.png",
        "s3://bucket",
        "s3://bucket/../a.png",
    ],
)
def test_a_path_that_no_file_can_have_costs_its_row_alone(folder, tmp_path, path):
    rows = [{"image": "a.png", "caption": "x"}, {"image": path, "caption": "y"}, {"image": "c.x.png", "caption": "z"}]
    storage.write_bytes(f"{folder}/t.jsonl", written("t.jsonl", rows))
    done = import_set(f"{folder}/t.jsonl", f"{tmp_path}/out")
    assert [s.caption for s in samples_of(done.summary.shards["train"])] == ["x", "z"]
    (entry,) = read_ledger(done.ledger)
    assert (entry.uid, entry.reason.split(":")[0]) == ("import/1", "unusable image path")
    assert len(entry.reason.splitlines()) == len(entry.uri.splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "environment", "message"),
    [
        ("s3://blip3o-no-such-bucket/a.png", {}, "the bucket does not exist"),
        ("s3://blip3o-test/a.png", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the store rejects the signature"),
        ("s3://blip3o-test/a.png", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer"),
    ],
)
def test_a_store_that_fails_ends_the_import(s3, folder, tmp_path, monkeypatch, path, environment, message):
    rows = [{"image": "a.png", "caption": "x"}, {"image": path, "caption": "y"}]
    storage.write_bytes(f"{folder}/t.jsonl", written("t.jsonl", rows))
    for name, value in {"BLIP3O_STORE_PATIENCE_S": "0.1", **environment}.items():
        monkeypatch.setenv(name, value)
    if "AWS_ENDPOINT_URL" in environment:
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    storage.forget_clients()
    try:
        with pytest.raises(StorageError, match=f"^{re.escape(str(path))}: {message}"):
            import_set(f"{folder}/t.jsonl", f"{tmp_path}/out")
    finally:
        monkeypatch.undo()
        storage.forget_clients()
    done = import_set(f"{folder}/t.jsonl", f"{tmp_path}/out") if path.startswith(s3) else None
    assert done is None or [entry.reason for entry in done.damage] == ["missing image"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"image": "a.png"}\n{', "cannot be read as jsonl: row 2: "),
        ("t.json", b'{"a": 1}', "it holds a dict, not a list"),
        ("t.csv", b"\xff\xfe\xfa", "cannot be read as csv"),
        (
            "t.csv",
            b"a,b\n1,2\n",
            "cannot be read as csv: no column names an image: found 'a', 'b', delimited by ','; .*",
        ),
        (
            "t.jsonl",
            b'{"a": 1, "b": 2}\n{"a": 1}',
            "none of 2 .*no image: row 1 has nothing .*its columns are 'a', 'b'",
        ),
        ("t.csv", b'image,caption\na.png,"one\na.png,two\n', "as csv: row 1: unexpected end of data: close each quote"),
        (
            "t.csv",
            b'image,caption\na.png,one\na.png,"two\na.png,"three"\n',
            "cannot be read as csv: row 2: .*close each",
        ),
        ("t.json", b"[3]", "row 1 is a int, not an object"),
        ("t.jsonl", b"", "has no rows"),
        ("t.jsonl", b'{"image": "gone.png"}', "none of 1 samples can be used, the first: .*/gone.png: missing image"),
    ],
)
def test_tables_that_cannot_be(tmp_path, name, content, message):
    storage.write_bytes(f"{tmp_path}/{name}", content)
    with pytest.raises(DataError, match=message):
        import_set(f"{tmp_path}/{name}", f"{tmp_path}/out")
    assert not storage.exists(f"{tmp_path}/out/dataset.json")


def test_a_share_is_held_out_by_name_alone(tmp_path):
    for number in range(60):
        storage.write_bytes(f"{tmp_path}/in/{number}.png", png(0))
        storage.write_bytes(f"{tmp_path}/in/{number}.txt", b"a")
    done = import_set(f"{tmp_path}/in", f"{tmp_path}/out", heldout=0.3)
    assert sum(done.summary.counts.values()) == 60
    assert 8 <= done.summary.counts["heldout"] <= 28
    held = {s.meta["file"] for s in samples_of(done.summary.shards["heldout"])}
    storage.delete(f"{tmp_path}/in/7.png")
    again = import_set(f"{tmp_path}/in", f"{tmp_path}/again", heldout=0.3)
    assert {s.meta["file"] for s in samples_of(again.summary.shards["heldout"])} == held - {"7.png"}


def import_captioned(root, rows, **options):
    """Imports rows of (picture, captions), and returns the import, and of each side captions by picture."""
    for name, _ in rows:
        storage.write_bytes(f"{root}/{name}", png(0))
    lines = [
        json.dumps({"image": name, **(captions if isinstance(captions, dict) else {"captions": captions})})
        for name, captions in rows
    ]
    storage.write_bytes(f"{root}/t.jsonl", "\n".join(lines).encode())
    done = import_set(f"{root}/t.jsonl", f"{root}/out", heldout=0.3, **options)
    sides = {side: samples_of(shards) for side, shards in done.summary.shards.items()}
    return done, {side: {s.meta["file"]: s.meta["captions"] for s in found} for side, found in sides.items()}


ROWS = [
    (f"{number}.png", [f"A  dog {number % 20}." if number < 20 else f"a dog {number % 20}"]) for number in range(60)
]
# Two captions in one sample join all that have one of them.
JOINED = [*ROWS, ("both.png", ["a dog 3", "a dog 4"]), ("other.png", ["A cat", "a dog 4"])]


def test_samples_of_equal_captions_are_on_one_side(tmp_path):
    done, sides = import_captioned(tmp_path / "a", JOINED, group_by="caption")
    assert min(map(len, sides.values())) > 6
    told = {side: {normalise(text) for texts in found.values() for text in texts} for side, found in sides.items()}
    assert not told["train"] & told["heldout"]
    assert len(done.account()) == 1
    # The caption that is read counts, too, where the list has others.
    named = [(f"{number}.png", {"caption": "A cup", "captions": [f"cup {number}"]}) for number in range(20)]
    for options, together in (({"group_by": "caption"}, True), ({}, False)):
        done, found = import_captioned(tmp_path / str(together), [*named, *ROWS[30:]], **options)
        assert ({len({*found[side]} & {name for name, _ in named}) for side in found} == {0, 20}) is together
        assert ("captions are training captions as well" in done.account()[-1]) is not together
    _, again = import_captioned(tmp_path / "b", JOINED[::-1], group_by="caption")
    assert again == sides
    fewer = import_captioned(tmp_path / "c", ROWS[7:], group_by="caption")[1]
    joined = {"a dog 3", "a dog 4"}
    for side, found in fewer.items():  # of the captions that are no longer joined, one may have changed its side
        assert {normalise(texts[0]) for texts in found.values()} - joined <= told[side]


def test_captions_on_both_sides_are_counted(tmp_path):
    done, sides = import_captioned(tmp_path, ROWS)
    train, held = ({normalise(*texts) for texts in sides[side].values()} for side in ("train", "heldout"))
    assert len(train & held) > 3
    said = f"{len(train & held)} of {len(held)} held-out captions are training captions as well: --group-by caption"
    assert done.account()[-1].startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b.png", "nothing is held out: each picture is held out with probability 0.3; give a larger --heldout"),
        ("a.png", "nothing is left to train on: each picture is held out with probability 0.3; give a smaller"),
    ],
)
def test_an_import_with_an_empty_side_says_so(tmp_path, name, said):
    done, _ = import_captioned(tmp_path, [(name, ["a"])])
    assert done.account()[-1].startswith(said)


def test_rows_that_make_no_sample_are_listed_and_cost_no_other(folder, tmp_path):
    storage.write_bytes(f"{folder}/t.csv", b'image,caption\na.png,"a dot, red"\na.png,a dot, red\n,nothing\n')
    done = import_set(f"{folder}/t.csv", f"{tmp_path}/out")
    assert [s.caption for s in samples_of(done.summary.shards["train"])] == ["a dot, red"]
    assert [(entry.uri, entry.reason.split(":")[0]) for entry in done.damage] == [
        (f"{folder}/t.csv", "row has more values than columns"),
        (f"{folder}/t.csv", "row names no image"),
    ]


def test_a_row_ends_at_a_newline_alone(folder, tmp_path):
    lines = [json.dumps({"image": "a.png", "caption": f"one\u2028{n}\x85two"}, ensure_ascii=False) for n in range(2)]
    storage.write_bytes(f"{folder}/t.jsonl", "\r\n".join(lines).encode())
    done = import_set(f"{folder}/t.jsonl", f"{tmp_path}/out")
    assert [s.caption for s in samples_of(done.summary.shards["train"])] == [f"one\u2028{n}\x85two" for n in range(2)]


def test_pictures_of_phones_and_texts_of_windows(tmp_path):
    picture = Image.new("RGB", (12, 9))
    several = encode(picture, "MPO", save_all=True, append_images=[picture])
    for name, data in {"a.JPG": several, "a.TXT": "\ufeffa dot\r\n".encode()}.items():
        storage.write_bytes(f"{tmp_path}/in/{name}", data)
    done = import_set(f"{tmp_path}/in", f"{tmp_path}/in/shards")
    assert [(s.image, s.caption) for s in samples_of(done.summary.shards["train"])] == [(several, "a dot")]
    # Shards below the folder are no part of its listing.
    assert not import_set(f"{tmp_path}/in", f"{tmp_path}/in/shards").summary.built
