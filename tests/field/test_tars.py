"""Tars and Parquet files as writers and people leave them, through `jobs.index` and `blip3o data inspect`."""

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from blip3o import storage
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.shards.manifest import ledger_file, manifest_file, read_manifest
from blip3o.errors import Blip3oError
from blip3o.types import SampleRef
from jobs.cli import app
from jobs.index import main
from tests.data.shard_files import LFS_POINTER, Files, png, put, stored, tar
from tests.jobs import world

COPIES = [f"{name}{n}.{ext}" for name in ("cat", "dog", "owl") for n in (".1", ".2", "") for ext in ("jpg", "txt")]


def files(*names: str) -> Files:
    pictures = ("jpg", "png", "jpeg", "jfif")
    return [(name, png(number) if name.endswith(pictures) else name.encode()) for number, name in enumerate(names)]


def numbered(count: int) -> Files:
    return files(*[f"{number:05d}.{ext}" for number in range(count) for ext in ("jpg", "txt")])


def archive(entries: list[tuple[str, bytes, bytes, str]]) -> bytes:
    """A tar of entries: name, type, content, and where a link leads."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as written:
        for name, kind, data, target in entries:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(data)
            written.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def linked(kind: bytes) -> bytes:
    """Four samples, of which two share a caption and two a picture by links."""
    links = {"00002.txt": "00000.txt", "00003.jpg": "00001.jpg"}
    return archive(
        [
            (name, kind, b"", links[name]) if name in links else (name, tarfile.REGTYPE, data, "")
            for name, data in numbered(4)
        ]
    )


def parquet(count: int, image: Any = None, caption: Any = None, **columns: Any) -> bytes:
    pictures = [png(number) for number in range(count)]
    image = (lambda values: pa.array(values, pa.binary())) if image is None else image
    caption = (lambda values: pa.array(values, pa.string())) if caption is None else caption
    captions = [f"caption {number}" for number in range(count)]
    return stored(pa.table({"image": image(pictures), "caption": caption(captions), **columns}))


def structs(pictures: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": picture, "path": "x.png"} for picture in pictures]


MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A dot."}]},
]


@dataclass(frozen=True)
class Case:
    """Shards by name, and what is right: good samples, or what the refusal says; further keys of the source."""

    shards: dict[str, bytes]
    samples: int = 0
    says: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)


def of(data: bytes, samples: int = 0, *says: str, name: str = "a.tar", **source: Any) -> Case:
    return Case({name: data}, samples, says, source)


def rows(data: bytes, samples: int = 0, *says: str, **source: Any) -> Case:
    return of(data, samples, *says, name="a.parquet", **source)


EXTENSIONS = {"members": {"image": "input.jpg", "caption": "outputs.txt"}}
TWO_EXTENSIONS = tar(files(*[f"s{n}.{ext}" for n in range(4) for ext in ("input.jpg", "outputs.txt")]))
EMPTY_TAR, EMPTY_PARQUET = tar([]), parquet(0)
NO_COLUMNS = stored(pa.table({"n": pa.array([], pa.int8())}))
ONLY_FOLDERS = archive([("x", tarfile.DIRTYPE, b"", "")])
DEAD_LINK = archive([("a.jpg", tarfile.LNKTYPE, b"", "b.jpg"), ("a.txt", tarfile.REGTYPE, b"said", "")])
SAID_IN_LISTS = parquet(2, None, lambda v: pa.array([1] * len(v)), said=pa.array([["a"], ["b", "c"]]))
OTHERS = {
    "n": pa.array([2**64 - 1], pa.uint64()),
    "d": pa.array([1], pa.decimal128(9, 2)),
    "t": pa.array([1], pa.timestamp("ns")),
    "b": pa.array([True]),
    "m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
}
TWICE = pa.Table.from_arrays([pa.array([png()]), pa.array(["a"]), pa.array(["b"])], ["image", "caption", "caption"])
CHAT = pa.table({"images": pa.array([structs([png(1)])]), "messages": pa.array([MESSAGES])})


def by_number(values: list[Any]) -> pa.Array:
    return pa.array(values).dictionary_encode()


READ = {
    "copies": of(tar(files(*COPIES)), 9, key="last_dot"),
    "dates": of(tar(files("22.05.jpg", "22.05.txt", "22.06.jpg", "22.06.txt")), 2, key="last_dot"),
    "two extensions": of(TWO_EXTENSIONS, 4, **EXTENSIONS),
    "captions by another name": of(tar(files("0.jpg", "0.jpg.txt")), 1, members={"caption": "jpg.txt"}),
    "masks left on purpose": of(tar(files("a.jpg", "a.seg.png", "a.txt")), 1, members={"image": "jpg"}),
    "hard links": of(linked(tarfile.LNKTYPE), 4),
    "symbolic links": of(linked(tarfile.SYMTYPE), 4),
    "an empty shard": Case({"a.tar": tar(numbered(6)), "b.tar": EMPTY_TAR}, 6),
    "an empty shard first": Case({"a.tar": EMPTY_TAR, "b.tar": tar(numbered(6)), "c.tar": EMPTY_TAR}, 6),
    "only folders in a shard": Case({"a.tar": tar(numbered(2)), "b.tar": ONLY_FOLDERS}, 2),
    "a Mac's archive": of(tar(files("._a.jpg", "a.jpg", "__MACOSX/._a.txt", "a.txt", ".DS_Store")), 1),
    "a Mac's copies of shards": Case({"a.tar": tar(numbered(2)), "._a.tar": b"\0\5\x16\7", ".DS_Store": b"\0"}, 2),
    "jfif": of(tar(files("a.jfif", "a.txt")), 1),
    "Parquet under another name": of(parquet(3), 3, name="part-0000"),
    "views": rows(parquet(6, lambda v: pa.array(v, pa.binary_view()), lambda v: pa.array(v, pa.string_view())), 6),
    "large": rows(parquet(3, lambda v: pa.array(v, pa.large_binary()), lambda v: pa.array(v, pa.large_string())), 3),
    "dictionaries": rows(parquet(3, by_number, by_number), 3),
    "structs of views": rows(parquet(3, lambda v: pa.array(structs(v), pa.struct({"bytes": pa.binary_view()}))), 3),
    "one of fixed size": rows(parquet(1, lambda v: pa.array(v, pa.binary(len(v[0])))), 1),
    "lists of one": rows(parquet(3, lambda v: pa.array([[picture] for picture in v])), 3),
    "lists of one struct": rows(parquet(3, lambda v: pa.array([[it] for it in structs(v)])), 3),
    "a part of no rows": Case({"a.parquet": parquet(6), "b.parquet": EMPTY_PARQUET}, 6),
    "a part of no columns": Case({"a.parquet": parquet(6), "b.parquet": NO_COLUMNS}, 6),
    "captions in lists": rows(parquet(2, None, lambda v: pa.array([[text, f"{text}, again"] for text in v])), 2),
    "captions in lists, named": rows(SAID_IN_LISTS, 2, columns={"caption": "said"}),
    "chat": rows(stored(CHAT), 1),
    "other columns": rows(parquet(1, None, None, **OTHERS), 1),
}
REFUSED = {
    "copies": of(
        tar(files(*COPIES)),
        0,
        "6 of 9 pictures are further ones of a key",
        "key 'cat' also has 1.jpg, 1.txt",
        "set key: last_dot",
        "members: {image: jpg, caption: txt}",
    ),
    "forty of a key": of(tar(files(*[f"c.{n}.jpg" for n in range(40)], "c.txt")), 0, "39 of 40 pictures are further"),
    "two pictures a key": of(tar(files("a.jpg", "a.png", "a.txt")), 0, "1 of 2 pictures", "key 'a' also has png"),
    "captions in two languages": of(tar(files("a.jpg", "a.txt", "a.de.txt")), 0, "1 of 2 captions", "also has de.txt"),
    "two extensions": of(TWO_EXTENSIONS, 0, "the key has input.jpg, outputs.txt", "set members: {image: input.jpg, "),
    "format": of(tar(files("a.gif", "a.txt")), 0, "the key has gif, txt", "convert the picture"),
    "no extensions": of(tar(files("a", "b")), 0, "unused members: 'a' has no extension"),
    "hidden": of(tar(files(".d/a.jpg", ".d/a.txt")), 0, "all of 2 are hidden or system files"),
    "dead link": of(DEAD_LINK, 0, "hard link: 'a.jpg' leads to 'b.jpg'"),
    "packed": of(gzip.compress(tar(numbered(2))), 0, "is compressed with gzip: unpack it", name="packed.tar.gz"),
    "packed inside": of(gzip.compress(tar(numbered(2))), 0, "is compressed with gzip: unpack it"),
    "page": of(b"<!DOCTYPE html><html>" + b" " * 999, 0, "is an HTML page"),
    "pointer": of(LFS_POINTER, 0, "is a Git LFS pointer to 9 bytes: run `git lfs pull`"),
    "nothing": of(b"", 0, "is empty: "),
    "only empty shards": Case({"a.tar": EMPTY_TAR, "b.tar": EMPTY_TAR}, 0, ("none of its 2 shards holds anything",)),
    "only empty parts": rows(EMPTY_PARQUET, 0, "none of its 1 shards holds anything"),
    "two images": rows(parquet(2, lambda v: pa.array([v, v])), 0, "2 images, a sample has one"),
    "no images": rows(parquet(2, lambda v: pa.array([[] for _ in v], pa.list_(pa.binary()))), 0, "missing image"),
    "paths": rows(
        stored(pa.table({"Image": ["a.jpg"], "caption": ["a"]})),
        0,
        "no column 'image' of bytes among Image (string), caption (string): set columns.image",
        "'Image' holds text, and paths are not followed",
    ),
    "two of a name": rows(stored(TWICE), 0, "column 'caption' is there twice"),
    "text for Parquet": rows(b"image,caption\n", 0, "not a Parquet file"),
    "packed Parquet": rows(gzip.compress(parquet(1)), 0, "not a Parquet file: it is compressed with gzip"),
}


@pytest.fixture
def source(tmp_path, ray_cluster, capsys) -> Callable[[Case], tuple[int, str, str]]:
    """Indexes the shards of a case by its command; gives the exit code, the manifest's folder and all that is said."""

    def index(case: Case) -> tuple[int, str, str]:
        for name, data in case.shards.items():
            put(tmp_path / "data" / "s", name, data)
        named = {"name": "s", "shards": "s/*", **case.source}
        recipe = world.write_recipe(
            tmp_path / "r.yaml",
            str(tmp_path),
            data={"root": f"{tmp_path}/data", "sources": [named], "max_bad_share": 0.01},
        )
        capsys.readouterr()
        code = main([recipe])
        done = capsys.readouterr()
        return code, f"{tmp_path}/data/manifests/s", done.out + done.err

    return index


def account_of(said: str) -> tuple[int, int, int, int, int]:
    """Used, inputs, samples, listed and skipped, of the line that says so."""
    (line,) = [line for line in said.splitlines() if " became " in line]
    words = line.replace(";", "").split()
    numbers = [int(word) for word in words if word.isdigit()]
    used, inputs, samples, listed, skipped = numbers
    return used, inputs, samples, listed, skipped


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_what_can_be_read_is_indexed_and_read(source, case):
    code, manifest_uri, said = source(case)
    assert code == 0, said
    used, inputs, samples, listed, skipped = account_of(said)
    assert (samples, used + listed + skipped) == (case.samples, inputs)
    assert listed == sum(entry.count for entry in read_ledger(ledger_file(manifest_uri)))
    manifest = read_manifest(manifest_uri)
    refs = [
        SampleRef(source=0, shard=shard.shard, row=row, pass_index=0)
        for shard in manifest.shards
        for row in range(shard.rows)
        if row not in shard.bad_rows
    ]
    found = ShardReader([manifest]).fetch(refs)
    assert len(found) == case.samples
    assert all(sample.caption and sample.image for sample in found)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason_and_listed(source, case):
    code, manifest_uri, said = source(case)
    assert code == 1
    (error,) = [line for line in said.splitlines() if line.startswith("error: source 's': ")]
    for words in case.says:
        assert words in error
    entries = read_ledger(ledger_file(manifest_uri))
    assert entries
    assert not storage.exists(manifest_file(manifest_uri))
    assert f"see `blip3o data ledger {manifest_uri}`" in inspect(manifest_uri)
    used, inputs, _, listed, skipped = account_of(said)
    assert used + listed + skipped == inputs
    assert listed == sum(entry.count for entry in entries)


def test_a_source_with_only_system_files_is_refused(source):
    code, _, said = source(Case({"._a.tar": b"\0\5\x16\7"}))
    assert code == 1
    assert "error: only hidden or system files match, as " in said


def inspect(*argv: str) -> str:
    done = CliRunner().invoke(app, ["data", "inspect", *argv])
    if isinstance(done.exception, Blip3oError):
        return f"error: {done.exception}"
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    "name", ["packed", "packed inside", "two extensions", "paths", "nothing", "page", "two images"]
)
def test_inspecting_what_has_no_good_sample_says_why(tmp_path, name):
    case = REFUSED[name]
    ((file, data),) = case.shards.items()
    said = inspect(put(tmp_path, file, data).uri)
    assert said.startswith(f"error: {tmp_path}/{file} has no good sample: ")
    assert case.says[-1] in said
    assert "\n" not in said


def test_inspecting_takes_the_switches_that_read_a_set(tmp_path):
    uri = put(tmp_path, "a.tar", tar(files(*COPIES))).uri
    said = inspect(uri)
    assert "damage: 3 x unused members (12 inputs), e.g. key 'cat' also has 1.jpg" in said
    assert "6 of 18 members became 3 samples; 12 are listed in the lines of damage above" in said
    assert "indexing refuses these shards at a budget of 1%: 0 of 3 samples are damaged, 6 of 9 pictures" in said
    assert "18 of 18 members became 9 samples; 0 are listed" in inspect(uri, "--key", "last_dot")
    uri = put(tmp_path, "b.tar", TWO_EXTENSIONS).uri
    assert " 4 samples, 0 damaged" in inspect(uri, "--image", "input.jpg", "--caption", "Outputs.TXT")
    uri = put(tmp_path, "a.parquet", stored(pa.table({"a b": [png()], "c": [b"x"], "d": ["said"]}))).uri
    assert " 1 samples, 0 damaged" in inspect(uri, "--image", "A B", "--caption", "d")
    assert "error: --image a/b" in inspect(uri, "--image", "a/b")


def test_a_page_that_cannot_be_written_is_an_error_before_any_work(tmp_path, monkeypatch):
    uri = put(tmp_path, "a.tar", tar(numbered(2))).uri
    monkeypatch.setattr("jobs.commands.inspection.scan_shard", lambda *_, **__: pytest.fail("work was done"))
    assert inspect(uri, "--out", "/proc/x/y.html").startswith("error: /proc/x/y.html")
    assert inspect(uri, "--out", str(tmp_path)).startswith(f"error: {tmp_path}: ")


def test_a_page_is_there_only_if_it_was_made_and_an_older_one_stays(tmp_path):
    uri, page = put(tmp_path, "a.tar", b"").uri, Path(f"{tmp_path}/page.html")
    assert inspect(uri, "--out", str(page)).startswith("error: ")
    assert not page.exists()
    page.write_text("older")
    assert inspect(uri, "--out", str(page)).startswith("error: ")
    assert page.read_text() == "older"
