"""Random folders and tables for the import, and what must hold of any of them.

`fuzz_folder(seed, folder)` and `fuzz_table(seed, folder)` make one case below an empty folder and import it: the import
ends well, or in one of our errors of one line, and accounts for every file and row. `fuzz(seconds)` runs many.
"""

import gzip
import itertools
import json
import os
import random
import tempfile
import time
from pathlib import Path

from blip3o import storage
from blip3o.data.sets.imported import Imported, import_set
from blip3o.data.sets.importing.captions import is_metadata, is_sidecar
from blip3o.data.sets.importing.columns import TableOptions
from blip3o.data.sets.importing.pictures import PICTURE_EXTENSIONS, extension
from blip3o.data.shards.ledger import read_ledger
from blip3o.errors import Blip3oError
from blip3o.storage.system_files import is_system_file
from tests.data.sets.importing.made import pictures, samples
from tests.data.shard_files import encode, png
from tests.data.shards.test_facts import picture

_STEMS = (
    "0",
    "1",
    "a.b",
    "a",
    "A",
    "e\u0301",
    "\u00e9",
    "new\nline",
    "caf\udce9",
    "x y",
    "%20",
    "-",
    "metadata",
    "dataset",
)
_EXTENSIONS = (
    *("jpg", "jpg", "png", "JPG", "jpeg", "webp", "tif", "gif", "bmp", "heic", "avif", "svg", "cr2", "jfif"),
    *(
        "txt",
        "txt",
        "TXT",
        "caption",
        "json",
        "jpg.txt",
        "jpg.json",
        "csv",
        "jsonl",
        "parquet",
        "md",
        "tags",
        "",
        "mp4",
    ),
)
_FOLDERS = (".", "sub", "sub/deep", ".git", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "x.csv", "caf\udce9s")
_CONTENTS = (
    *(png(0), png(1), encode(picture(1), "JPEG"), encode(picture(2), "TIFF"), encode(picture(3), "GIF")),
    *(b"", b"a caption", b"caf\xe9", b"{}", b'{"caption": "x"}', b'{"caption": NaN}', b"[", b"<html>", b"\xff\xd8\xff"),
    *(b"version https://git-lfs", b"file_name,text\n0.jpg,said\n0.jpg,again\nx.jpg,x\n", b'{"file_name": "1.png"}'),
)
_LINKS = ("..", ".", "0.jpg", "sub", "/nowhere/x", "../.git/annex/objects/x", "self", "../0.png")


def make_folder(rng: random.Random, root: Path) -> None:
    """Files, links and folders below `root`, many with names and contents that make trouble."""
    root.mkdir(parents=True)
    if rng.random() < 0.8:
        (root / "good.png").write_bytes(png(99))
        (root / "good.txt").write_bytes(b"said")
    for number in range(rng.randint(0, 14)):
        folder = root / rng.choice(_FOLDERS)
        folder.mkdir(parents=True, exist_ok=True)
        ext = rng.choice(_EXTENSIONS)
        path = folder / (rng.choice(_STEMS) + (f".{ext}" if ext else ""))
        if path.exists() or path.is_symlink():
            continue
        if rng.random() < 0.15:
            path.symlink_to(rng.choice(_LINKS))
        elif rng.random() < 0.03:
            os.mkfifo(path)
        else:
            path.write_bytes(png(number) if rng.random() < 0.4 else rng.choice(_CONTENTS))
        if rng.random() < 0.6:
            text = path.with_name(rng.choice((f"{path.stem}.txt", f"{path.stem}.json", f"{path.name}.caption")))
            if not text.exists() and not text.is_symlink():
                text.write_bytes(rng.choice((b"said", b'{"caption": "said"}')))


def check_account(done: Imported, root: Path) -> None:
    """Every file below `root` belongs to an item, has a row in the ledger, or is skipped by a rule; sums add up."""
    listing = done.listing
    assert sum(done.summary.counts.values()) + len(done.damage) == len(listing.items)
    assert len(samples(done)) == sum(done.summary.counts.values())
    assert {*read_ledger(done.ledger)} == {*done.damage, *done.unused}
    counted = listing.used + listing.listed + sum(listing.skipped.values()) + sum(listing.ignored.values())
    assert counted == listing.files
    own, linked = (
        [item.image for item in listing.items if os.path.islink(item.image) == is_link] for is_link in (0, 1)
    )
    real = {os.path.realpath(image) for image in own}
    assert len(real) == len(own) and real.isdisjoint(map(os.path.realpath, linked))
    part = {place for item in listing.items for place in (item.image, item.caption_file, item.record_file)}
    listed = {entry.uri for entry in done.unused}
    for folder, folders, names in os.walk(root):
        for path in (
            os.path.join(folder, name) for name in [*names, *filter(lambda n: os.path.islink(f"{folder}/{n}"), folders)]
        ):
            accounted = path in part or storage.shown(path) in listed or is_system_file(os.path.relpath(path, root))
            kind = not is_sidecar(path) and not is_metadata(path) and extension(path) not in PICTURE_EXTENSIONS
            assert (
                accounted
                or kind
                or os.path.islink(path)
                or (is_metadata(path) and any(i.record for i in listing.items))
            ), path


def fuzz_folder(seed: int, folder: Path) -> Imported | None:
    """Makes and imports one random folder; None where the import is refused."""
    make_folder(random.Random(seed), folder / "in")
    done = _imported(f"{folder}/in", f"{folder}/out", TableOptions())
    if done is not None:
        check_account(done, folder / "in")
        again = import_set(f"{folder}/in", f"{folder}/out")
        assert (again.summary.built, again.account()[-1]) == (False, done.account()[-1])
    return done


_CELLS = (
    *(
        "a.png",
        "b.png",
        "./a.png",
        "deep\\c.png",
        "gone.png",
        "",
        " ",
        "12",
        "true",
        "null",
        "NaN",
        '"',
        "'",
        "a, b",
        "x;y",
    ),
    *(
        "https://a.example/x.png",
        "data:image/png;base64,iVBOR",
        "a\tb",
        "a\nb",
        "a\r\nb",
        "caf\u00e9",
        "\ufeff",
        "\0",
        "\x1e",
    ),
    *('[{"from": "human"', "[]", "{}", "x" * 300, "..", "/", "~", "s3://", "file://", "\u2028", '"",""', '"a" b', "-"),
)
_NAMES = (
    "image",
    "caption",
    "Image",
    " text",
    "file_name",
    "conversations",
    "messages",
    "captions",
    "x",
    "",
    "qa",
    "prompt",
)
_CSV, _JSON = ("csv", "tsv", "tab", "CSV", "csv.gz"), ("json", "jsonl", "ndjson", "json.gz", "JSONL.GZ")
_ENDINGS = (*_CSV, *_JSON, "parquet")


def make_table(rng: random.Random) -> tuple[str, bytes]:
    """The name and the content of a table, or of what is hardly one."""
    names = ["image", "caption", *rng.choices(_NAMES, k=rng.randint(0, 2))]
    rows = [["a.png", "said"], *([rng.choice(_CELLS) for _ in names] for _ in range(rng.randint(0, 5)))]
    if rng.random() < 0.3:
        names = rng.choices(_NAMES, k=rng.randint(1, 4))
    if rng.random() < 0.3:
        rows.append(rng.choices(_CELLS, k=rng.randint(0, 6)))
    csv = rng.random() < 0.5
    if csv:
        mark = rng.choice((",", ", ", ";", "\t", "|"))
        quote = rng.choice(("{}", '"{}"', '"{}"', "'{}'"))
        end = rng.choice(("\n", "\r\n", "\r"))
        text = end.join(mark.join(quote.format(cell) for cell in row) for row in [names, *rows])
        text = rng.choice(("", "", "", f"sep={mark[0]}\n")) + text
    else:
        values = [dict(zip(names, [_value(rng, cell) for cell in row], strict=False)) for row in rows[1:]]
        values.append({"image": "b.png", "caption": "said"})
        text = rng.choice((json.dumps(values), "\n".join(map(json.dumps, values)), json.dumps({"data": values})))
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-8")), "replace")
    if rng.random() < 0.2:
        data = _damaged(rng, data)
    ending = rng.choice(_ENDINGS if rng.random() < 0.1 else _CSV if csv else _JSON)
    return f"t.{ending}", gzip.compress(data) if ending.endswith("gz") and rng.random() < 0.9 else data


def _value(rng: random.Random, cell: str) -> object:
    turns = [
        {"from": "human", "value": cell},
        {"role": rng.choice(("gpt", "tool", cell)), "content": [{"type": "image"}, cell]},
    ]
    forms = [
        cell,
        cell,
        cell,
        [cell],
        [cell, cell],
        {"path": cell},
        {"bytes": cell},
        3,
        None,
        True,
        float("nan"),
        turns,
        [turns],
    ]
    return rng.choice(forms)


def _damaged(rng: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if broken:
            broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken[: rng.randint(0, len(broken))] if rng.random() < 0.3 else broken)


def fuzz_table(seed: int, folder: Path) -> Imported | None:
    """Makes and imports one random table; None where the import is refused."""
    rng = random.Random(seed)
    name, data = make_table(rng)
    storage.write_bytes(f"{pictures(folder / 'in')}/{name}", data)
    options = TableOptions(delimiter=rng.choice((";", '"', "\n")) if rng.random() < 0.05 else None)
    done = _imported(f"{folder}/in/{name}", f"{folder}/out", options)
    if done is not None:
        assert len(samples(done)) + len(done.damage) == len(done.listing.items)
    return done


def _imported(uri: str, out: str, options: TableOptions) -> Imported | None:
    try:
        done = import_set(uri, out, options=options)
    except Blip3oError as error:
        assert len(str(error).encode().splitlines()) == 1, error
        return None
    for entry in (*done.damage, *done.unused):
        assert len(entry.reason.encode().splitlines()) == len(entry.uri.encode().splitlines()) == 1, entry
    return done


def fuzz(seconds: float, *, first: int = 0) -> int:
    """Cases for some seconds, seeds from `first` on; how many there were. An assertion names the seed that fails."""
    end = time.monotonic() + seconds
    for seed in itertools.count(first):
        if time.monotonic() > end:
            return seed - first
        for case in (fuzz_folder, fuzz_table):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    case(seed, Path(folder))
                except Exception as error:
                    raise AssertionError(f"{case.__name__}, seed {seed}") from error
    raise AssertionError("unreachable")
