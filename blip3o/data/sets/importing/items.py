"""What a source of an import lists: its items, each a sample to be, and everything else that was found there."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3o import storage
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.data.shards.sample import MAX_MEMBER_BYTES
from blip3o.errors import StorageError, one_line

STAGE = "import"
_FILE_UID = "import/files/"
# How Python spells the bytes of a local name that are not UTF-8.
_RAW_BYTES = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sample to be.

    `image` is the picture's URI, `others` are further spellings of it that are tried where no such file exists, and
    `name` is what the source calls it. `data` is the picture itself where a table holds it; `image` is the table then.
    The caption is the text of `caption_file`, or `caption`, or else in the record: the object in `record_file` on top
    of `record`. `hint` says more where there is no caption. An item that cannot become a sample has a `fault`.
    """

    name: str
    image: str
    others: tuple[str, ...] = ()
    data: bytes | None = field(default=None, repr=False)
    caption_file: str | None = None
    caption: str | None = None
    record_file: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds. `digest` changes when the items do; `noun` is what an item is called.

    Of a folder: every one of its `files` belongs to items (`used` of them), has a row in `left_out` (`listed` of them),
    or is counted by kind in `skipped` (what systems leave, links, the set itself) or by extension in `ignored`.
    """

    items: tuple[Item, ...]
    digest: str
    noun: str
    files: int = 0
    used: int = 0
    listed: int = 0
    left_out: tuple[LedgerEntry, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)


def item_entry(number: int, uri: str, reason: str) -> LedgerEntry:
    """The ledger's row of an item, by its number from 0, that makes no sample."""
    return _entry(f"import/{number}", uri, reason)


def file_entry(name: str, uri: str, reason: str) -> LedgerEntry:
    """The ledger's row of a file, by its name in the folder, that belongs to no item."""
    return _entry(f"{_FILE_UID}{name}", uri, reason)


def _entry(uid: str, uri: str, reason: str) -> LedgerEntry:
    uid, uri, reason = map(storage.shown, (uid, uri, reason))
    return LedgerEntry(uid=uid, uri=uri, offset=0, size=0, reason=reason, stage=STAGE)


def is_file_entry(entry: LedgerEntry) -> bool:
    """Whether a row is one of `file_entry`."""
    return entry.uid.startswith(_FILE_UID)


def readable_name(name: str) -> str:
    """A name as text that can be encoded: bytes of a local name that are not UTF-8 are written as `\\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_file(uri: str, what: str) -> bytes:
    """A file's bytes.

    Raises `DamagedSampleError` if it is missing, cannot be, is too large, or this machine refuses to read it;
    `StorageError` if an object store does not answer or refuses.
    """
    path = _local_path(uri)
    try:
        size = os.path.getsize(path) if path is not None and os.path.isfile(path) else 0
        if size > MAX_MEMBER_BYTES:
            raise DamagedSampleError(f"{what} too large: {size} bytes, limit {MAX_MEMBER_BYTES}")
        return path.read_bytes() if path is not None and _RAW_BYTES.search(uri) else storage.read_bytes(uri)
    except storage.MissingFileError as error:
        raise DamagedSampleError(f"missing {what}") from error
    except storage.BadUriError as error:
        raise DamagedSampleError(f"unusable {what} path: {error}") from error
    except (StorageError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if path is None or not isinstance(cause, OSError):
            raise
        raise DamagedSampleError(
            f"{what} cannot be read: {os.strerror(cause.errno) if cause.errno else one_line(cause)}"
        ) from error


def _local_path(uri: str) -> Path | None:
    """The place of a file on this machine; None for an object, or for what no file can be called."""
    if _RAW_BYTES.search(uri):  # which no URI holds, but the names that the system gives may
        return Path(uri)
    try:
        path = storage.normalize(uri)
    except storage.BadUriError:
        return None
    return Path(path) if path.startswith("/") else None
