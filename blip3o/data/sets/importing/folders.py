"""A folder into items: every picture below it with the texts that belong to it, and an account of every other file."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping

from blip3o import storage
from blip3o.data.sets import writer
from blip3o.data.sets.importing.captions import CAPTIONS, RECORDS, Sidecars, described, is_metadata, is_sidecar
from blip3o.data.sets.importing.items import Item, Listing, file_entry, readable_name
from blip3o.data.sets.importing.local_files import LocalFiles, system_kind
from blip3o.data.sets.importing.pictures import PICTURE_EXTENSIONS, extension
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.data.shards.sample import MAX_MEMBER_BYTES
from blip3o.errors import DataError

OWN = "shards of this set"


def list_folder(uri: str, out: str) -> Listing:
    """The pictures below a folder as items. Files of the set at `out` are not part of it.

    Raises `DataError` if the folder does not exist, `StorageError` as listing does.
    """
    root = storage.normalize(uri)
    found, left_out, skipped = _files(uri, root)
    total = len(found) + len(left_out) + skipped.total()
    files: dict[str, storage.FileInfo] = {}
    for file in found:
        name = file.uri.removeprefix(root.rstrip("/") + "/")
        kind = OWN if writer.is_own(storage.normalize(out), file.uri) else system_kind(name)
        if kind:
            skipped[kind] += 1
        else:
            files[name] = file
    sidecars = Sidecars({name: file.uri for name, file in files.items()})
    items = [_item(name, file, sidecars) for name, file in files.items() if extension(name) in PICTURE_EXTENSIONS]
    whole = described(items, {name: file.uri for name, file in files.items() if is_metadata(name)})
    used = {name for name in files if extension(name) in PICTURE_EXTENSIONS} | sidecars.used | whole.used
    unused, ignored = _unused(files, used, sidecars)
    left_out += [*whole.left_out, *unused]
    # Other files do not matter: among them may be the shards themselves, written below the folder.
    state = json.dumps([(file.uri, file.size, file.version) for name, file in files.items() if name in used])
    return Listing(
        items=tuple(whole.items),
        digest=hashlib.sha256(state.encode()).hexdigest(),
        noun="pictures",
        files=total,
        used=len(used),
        listed=len({entry.uri for entry in left_out} - {storage.shown(files[name].uri) for name in used}),
        left_out=tuple(left_out),
        skipped=skipped,
        ignored=ignored,
    )


def is_folder(uri: str) -> bool:
    """Whether there is a folder at a URI: of an object store, one with objects in it."""
    root = storage.normalize(uri)
    return os.path.isdir(root) if root.startswith("/") else not storage.exists(uri) and bool(storage.list_files(uri))


def _files(uri: str, root: str) -> tuple[list[storage.FileInfo], list[LedgerEntry], Counter[str]]:
    """All files below a folder, rows for what cannot be read, and how many links are not followed, by kind."""
    if "://" in root:
        return storage.list_files(uri), [], Counter()
    if not os.path.isdir(root):
        raise DataError(f"{storage.shown(uri)} does not exist, or is no folder: check the path")
    local = LocalFiles(root)
    return local.files, local.left_out, local.skipped


def _item(name: str, file: storage.FileInfo, sidecars: Sidecars) -> Item:
    caption, record = sidecars.find(name, CAPTIONS), sidecars.find(name, RECORDS)
    large = file.size > MAX_MEMBER_BYTES
    return Item(
        name=readable_name(name),
        image=file.uri,
        caption_file=caption,
        record_file=record,
        fault=f"image too large: {file.size} bytes, limit {MAX_MEMBER_BYTES}" if large else "",
        hint=sidecars.hint(name),
    )


def _unused(
    files: Mapping[str, storage.FileInfo], used: set[str], sidecars: Sidecars
) -> tuple[list[LedgerEntry], Counter[str]]:
    """Rows for texts that belong to no picture, and how many files are of kinds that are not read, by extension."""
    rows, ignored = [], Counter[str]()
    for name, file in files.items():
        if name in used or is_metadata(name):
            continue
        if is_sidecar(name):
            rows.append(file_entry(name, file.uri, sidecars.unused_reason(name)))
        else:
            ignored[f".{extension(name)}" if extension(name) else "no extension"] += 1
    return rows, ignored
