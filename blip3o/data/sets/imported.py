"""A small set of one's own into shards: a folder of images with texts beside them, or a table (CSV, JSONL, JSON).

- folder: every image below it; `NAME.txt` beside it is its caption, `NAME.json` its record
- CSV, JSONL, JSON list: an image path (relative ones join the table's folder) and a caption a row; all else is the
  record. Known as they are: JourneyDB's lines (`img_path`, `prompt` or `Task1.Caption`), LLaVA's `conversations`

Every image and text is checked as indexing would. What is damaged goes to `ledger.parquet` beside the shards.
"""

import csv
import hashlib
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from blip3o.config.shards import LimitsConfig
from blip3o.data import storage
from blip3o.data.containers import image_format
from blip3o.data.damage import DamagedSampleError
from blip3o.data.decode import open_image
from blip3o.data.ledger import LedgerEntry, read_ledger, write_ledger
from blip3o.data.sample import IMAGE_EXTENSIONS, Stored, decode_words
from blip3o.data.sets import writer
from blip3o.errors import DataError
from blip3o.rng import derive_seed

IMAGE_COLUMNS = ("image", "img_path", "image_path", "file_name", "filename", "file", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt")
_WORDS = (*IMAGE_COLUMNS, *CAPTION_COLUMNS)
# As JSON writes numbers, within 18 digits: names like 007 stay texts.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?")
STAGE = "import"
# Many phones write MPO: a JPEG with further pictures after it.
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample to be: its `image` by URI and by the `name` the source calls it, its caption by URI or in words (None:
    in the record), its record. A row of a table that makes no sample has a `fault`, and `image` is the table.
    """

    name: str
    image: str
    caption_file: str | None = None
    caption: str | None = None
    record_file: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The set as written, and what was left out of it."""

    summary: writer.SetSummary
    ledger: str
    damage: tuple[LedgerEntry, ...]


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What a source holds: its items, and a hash that changes when they do."""

    items: tuple[Item, ...]
    digest: str


def import_set(
    uri: str,
    out: str,
    *,
    heldout: float = 0.0,
    samples_per_shard: int = 1000,
    limits: LimitsConfig | None = None,
    on_progress: writer.Progress | None = None,
) -> Imported:
    """Writes the samples at `uri` (a folder, or a `.csv`, `.jsonl` or `.json` file) as shards below `out`.

    A share `heldout` of them, chosen by hashes of their images' names, goes to shards of their own. A set that is there
    already, of the same listing, is only reported; one that was broken off is begun again. Raises `DataError` if the
    table cannot be read, nothing in it can be used, or `out` holds another set; `StorageError` as reads do.
    """
    listing = _list_table(uri) if uri.endswith((".csv", ".jsonl", ".json")) else _list_folder(uri)
    if not listing.items:
        raise DataError(f"{uri} names no image ({', '.join(IMAGE_EXTENSIONS)}): check the path")
    limits = limits or LimitsConfig()
    settings: writer.Settings = {
        "set": "import",
        "from": storage.normalize(uri),
        "digest": listing.digest,
        "heldout": str(heldout),
        "limits": limits.model_dump_json(),
        "samples_per_shard": samples_per_shard,
    }
    ledger = storage.join(out, "ledger.parquet")
    there = writer.completed(out, settings)
    if there is None:
        checked = _checked(listing.items, ledger, heldout, limits, on_progress)
        total = len(listing.items)
        there = writer.write_set(out, checked, settings=settings, total=total, samples_per_shard=samples_per_shard)
    return Imported(summary=there, ledger=ledger, damage=tuple(read_ledger(ledger)))


def _list_folder(uri: str) -> _Listing:
    files = storage.list_files(uri)
    by_name = {(stem, ext.lower()): uri for uri in (file.uri for file in files) for stem, ext in [_stem_ext(uri)]}
    items = []
    for file in files:
        stem, ext = _stem_ext(file.uri)
        if ext.lower() in IMAGE_EXTENSIONS:
            text, record = by_name.get((stem, "txt")), by_name.get((stem, "json"))
            name = file.uri.removeprefix(f"{storage.normalize(uri)}/")
            items.append(Item(name=name, image=file.uri, caption_file=text, record_file=record))
    # Other files do not matter: among them may be the shards themselves, written below the folder.
    used = {name for item in items for name in (item.image, item.caption_file, item.record_file)}
    state = json.dumps([(file.uri, file.size, file.version) for file in files if file.uri in used])
    return _Listing(items=tuple(items), digest=hashlib.sha256(state.encode()).hexdigest())


def _stem_ext(uri: str) -> tuple[str, str]:
    stem, _, ext = uri.rpartition(".")
    return stem, ext


def _list_table(uri: str) -> _Listing:
    data = storage.read_bytes(uri)
    folder = posixpath.dirname(storage.normalize(uri))
    try:
        rows = list(_rows(uri, data.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{uri} cannot be read as {uri.rsplit('.', 1)[1]}: {error}") from error
    items = tuple(_item(uri, number, row, folder) for number, row in enumerate(rows, start=1))
    return _Listing(items=items, digest=hashlib.sha256(data).hexdigest())


def _rows(uri: str, text: str) -> Iterator[Any]:
    if uri.endswith(".csv"):
        for row in _csv_rows(text):
            yield {column: value if column in _WORDS else _number(value) for column, value in row.items()}
    elif uri.endswith(".jsonl"):
        # Not by `splitlines`: texts may hold other line separators than the one that ends a row.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _parsed(line, number)
    else:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError(f"it holds a {type(rows).__name__}, not a list of samples")
        yield from rows


def _csv_rows(text: str) -> Iterator[dict[Any, Any]]:
    """Raises `ValueError` for quotes that do not match: an open one would make all rows after it a part of one text."""
    number = 0
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            yield row
            number += 1
    except csv.Error as error:
        fix = 'close each quote, and write a quote within a text as ""'
        raise ValueError(f"row {number + 1}: {error}: {fix}") from error


def _number(value: object) -> object:
    """A value of a CSV as the number that it writes, so that selections can compare it; anything else as it is."""
    return json.loads(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def _parsed(line: str, number: int) -> Any:  # noqa: ANN401 - a JSON value
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def _item(uri: str, number: int, row: object, folder: str) -> Item:
    if not isinstance(row, dict):
        raise DataError(f"{uri}: row {number} is a {type(row).__name__}, not an object of columns")
    name = next((column for column in IMAGE_COLUMNS if row.get(column)), None)
    fault = ""
    if name is None or not isinstance(row[name], str):
        fault = f"row names no image: row {number} has nothing in any of {', '.join(IMAGE_COLUMNS)}"
    elif None in row:  # where `csv` puts what is too much
        fault = f"row has more values than columns: row {number}, put quotes around texts with commas"
    if fault or name is None:
        return Item(name=f"row {number}", image=uri, fault=fault)
    path = row[name]
    image = path if "://" in path or path.startswith("/") else storage.join(folder, path)
    record = {key: value for key, value in row.items() if key != name}
    caption = next((record[column] for column in CAPTION_COLUMNS if isinstance(record.get(column), str)), None)
    return Item(name=path, image=image, caption=caption, record=record)


def _checked(
    items: tuple[Item, ...], ledger: str, heldout: float, limits: LimitsConfig, on_progress: writer.Progress | None
) -> Iterator[writer.Sample]:
    """The samples that can be used; at the end, before the set counts as whole, the ledger of the others."""
    damage: list[LedgerEntry] = []
    for number, item in enumerate(items):
        try:
            yield _sample(number, item, heldout, limits)
        except DamagedSampleError as found:
            uid, image = f"import/{number}", storage.shown(item.image)
            damage.append(LedgerEntry(uid=uid, uri=image, offset=0, size=0, reason=found.reason, stage=STAGE))
        if on_progress:
            on_progress(number + 1, len(items))
    write_ledger(ledger, damage)
    if len(damage) == len(items):
        raise DataError(f"none of {len(items)} samples can be used, the first: {damage[0].reason}: see {ledger}")


def _sample(number: int, item: Item, heldout: float, limits: LimitsConfig) -> writer.Sample:
    if item.fault:
        raise DamagedSampleError(item.fault)
    image = _image_bytes(item)
    stored = Stored(
        image=image,
        caption=_caption_bytes(item),
        record=storage.read_bytes(item.record_file) if item.record_file else json.dumps(item.record).encode(),
    )
    words = decode_words(stored, max_caption_chars=limits.max_caption_chars)
    open_image(image, max_pixels=limits.max_pixels)
    ours = {
        "source": "import",
        "split": "heldout" if derive_seed("import", "split", item.name) < heldout * 2**63 else "train",
        "captions": words.record.get("captions") or [words.caption],
        "file": item.name,
    }
    theirs = {key: words.record[key] for key in ours if key != "captions" and key in words.record}
    record = {**words.record, **ours, **({"original": theirs} if theirs else {})}
    kind = image_format(image) or ""
    return writer.Sample(key=f"{number:07d}", image=image, ext=_EXTENSIONS[kind], record=record)


def _image_bytes(item: Item) -> bytes:
    """Raises `DamagedSampleError` if the image is not there or cannot be, `StorageError` if the store cannot say."""
    try:
        return storage.read_bytes(item.image)
    except storage.MissingFileError as error:
        raise DamagedSampleError("missing image") from error
    except storage.BadUriError as error:
        raise DamagedSampleError(f"unusable image path: {error}") from error


def _caption_bytes(item: Item) -> bytes | None:
    if item.caption_file is not None:
        return storage.read_bytes(item.caption_file)
    # Half a surrogate pair is found where the bytes are decoded again.
    return None if item.caption is None else item.caption.encode("utf-8", "surrogatepass")
