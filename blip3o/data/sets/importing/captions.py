"""The texts of the pictures in a folder: files named as the picture, and tables named `metadata`.

For a picture NAME.jpg: NAME.txt, NAME.caption, NAME.jpg.txt or NAME.jpg.caption is its caption, NAME.json or
NAME.jpg.json its record. `metadata.csv`, `.jsonl` or `.parquet` in any folder (Hugging Face's imagefolder) has rows of
a `file_name` relative to it, a caption, and the record.
"""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from blip3o import storage
from blip3o.data.sets.importing.columns import TableOptions
from blip3o.data.sets.importing.items import Item, file_entry, read_file, readable_name
from blip3o.data.sets.importing.pictures import PICTURE_EXTENSIONS, extension
from blip3o.data.sets.importing.tables import table_items, table_kind
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.errors import DataError

CAPTIONS = ("txt", "caption")
RECORDS = ("json",)
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_metadata(name: str) -> bool:
    """Whether a file of this name is a table of the pictures in its folder."""
    return posixpath.basename(name).lower() in _METADATA


def is_sidecar(name: str) -> bool:
    """Whether a file of this name is a picture's caption or record."""
    return extension(name) in (*CAPTIONS, *RECORDS)


class Sidecars:
    """Finds the files that belong to a picture, by names in a folder → URIs.

    A name is compared as it is spelled, then in Unicode's composed form.
    """

    def __init__(self, uris: Mapping[str, str]) -> None:
        self.used: set[str] = set()  # names
        self._exact: dict[tuple[str, str], str] = {}
        self._composed: dict[tuple[str, str], str] = {}
        self._alike: dict[str, list[str]] = defaultdict(list)
        self._tables: dict[str, str] = {}  # the first table in a folder
        self._uris = uris
        for name in sorted(uris):
            stem, ext = posixpath.splitext(name)[0], extension(name)
            self._exact[stem, ext] = name
            self._composed[_composed(stem), ext] = name
            self._alike[_composed(stem).casefold()].append(name)
            if table_kind(name) and not is_sidecar(name) and not is_metadata(name):
                self._tables.setdefault(posixpath.dirname(name), posixpath.basename(name))

    def find(self, picture: str, extensions: Iterable[str]) -> str | None:
        """The URI of the first file with one of these extensions that belongs to a picture, by its name."""
        for index, form in ((self._exact, str), (self._composed, _composed)):
            for stem in (posixpath.splitext(picture)[0], picture):
                for ext in extensions:
                    if name := index.get((form(stem), ext)):
                        self.used.add(name)
                        return self._uris[name]
        return None

    def hint(self, picture: str) -> str:
        """What lies next to a picture that has no caption."""
        near = [name for name in self._near(picture) if extension(name) not in PICTURE_EXTENSIONS]
        forms = "NAME.txt, NAME.caption or NAME.json"
        if not near:
            table = self._tables.get(posixpath.dirname(picture))
            listed = f"; import {readable_name(table)}, or call it metadata.csv" if table else ""
            return f"no {forms} lies next to it{listed}"
        return f"{readable_name(posixpath.basename(near[0]))} lies next to it, but captions are {forms}"

    def unused_reason(self, sidecar: str) -> str:
        """Why a caption or record is not read."""
        stem = posixpath.splitext(sidecar)[0]
        near = [name for name in self._near(sidecar) if extension(name) in PICTURE_EXTENSIONS]
        if not near:
            return "belongs to no picture: none next to it has its name"
        same = any(_composed(stem) in map(_composed, (name, posixpath.splitext(name)[0])) for name in near)
        picture = readable_name(posixpath.basename(near[0]))
        return f"is not read: '{picture}' {'has another one' if same else 'is spelled otherwise'}"

    def _near(self, name: str) -> list[str]:
        """Other files whose names differ from a file's only in extensions and case."""
        stem = _composed(posixpath.splitext(name)[0]).casefold()
        keys = (stem, posixpath.splitext(stem)[0], _composed(name).casefold())
        return [other for key in dict.fromkeys(keys) for other in self._alike.get(key, []) if other != name]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True, kw_only=True)
class Described:
    """Items with what the metadata tables say of them, the names of tables of which a row was used, and the rest."""

    items: list[Item]
    used: set[str]
    left_out: list[LedgerEntry]


def described(items: list[Item], tables: Mapping[str, str]) -> Described:
    """Items with caption and record of their rows in metadata tables (names in the folder → URIs)."""
    by_image = {item.image: item for item in items}
    found = Described(items=[], used=set(), left_out=[])
    rows: dict[str, Item] = {}
    unread: dict[str, str] = {}  # folder → why its table is not read
    for name, uri in tables.items():
        try:
            listed = table_items(uri, read_file(uri, "table"), TableOptions())
        except DataError as error:
            found.left_out.append(file_entry(name, uri, f"is not read: {error}"))
            unread[posixpath.dirname(uri)] = f"{posixpath.basename(name)} is not read"
            continue
        for number, row in enumerate(listed, start=1):
            image = next((place for place in _places(row) if place in by_image), None)
            if image is not None and image not in rows:
                rows[image] = row
                found.used.add(name)
                continue
            what = "has another row already" if image else "is no picture of this folder"
            reason = row.fault or f"row {number} is not read: '{row.name}' {what}"
            found.left_out.append(file_entry(f"{name}/{number}", uri, reason))
    found.items.extend(_with_row(item, rows.get(item.image), unread) for item in items)
    return found


def _places(row: Item) -> Iterator[str]:
    for uri in () if row.fault or row.data is not None else (row.image, *row.others):
        with suppress(storage.BadUriError):
            yield storage.normalize(uri)


def _with_row(item: Item, row: Item | None, unread: Mapping[str, str]) -> Item:
    if row is not None:
        return replace(item, record=row.record, caption=None if item.record_file else row.caption, hint=row.hint)
    why = next((why for folder, why in unread.items() if item.image.startswith(f"{folder}/")), "")
    return replace(item, hint=f"{why}, and {item.hint}") if why else item
