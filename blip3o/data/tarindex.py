"""Where the members of a tar lie, and which of them form a sample. Reads headers only, and trusts none of them.

Own scan rather than `tarfile.open`, which stops silently at the first damaged header: here damage becomes an item, and
the scan goes on at the next whole header. Understands ustar, GNU and PAX long names. Contents are `blip3o.data.scan`'s
business.
"""

import functools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from blip3o.data import storage
from blip3o.types import Member

BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 16 * 2**20
# An entry with larger or more extended headers (long names and the like) than this is taken for damage.
MAX_EXTENDED_BYTES = 2**20
MAX_EXTENDED_HEADERS = 8
BAD_HEADER = "bad header"
TRUNCATED = "truncated"
NO_END = "truncated: no end of archive"
# What a PAX header may say of a size: up to 10^18 bytes. Python refuses to convert thousands of digits at all.
_SIZE = re.compile(r"[0-9]{1,19}")

Read = Callable[[int, int], bytes]  # (offset, size) → the bytes there, fewer where the file ends


class ShardFile:
    """Ranged reads of one file through a few large chunks, of which at most two are held.

    A scan reads headers and members in order of offset, so every byte is fetched once.
    """

    def __init__(self, uri: str, size: int, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._uri, self._size, self._step = uri, size, chunk_bytes
        self._chunk = functools.lru_cache(maxsize=2)(self._fetch)

    def _fetch(self, number: int) -> bytes:
        offset = number * self._step
        return storage.read_ranges(self._uri, [(offset, min(self._step, self._size - offset))])[0]

    def read(self, offset: int, size: int) -> bytes:
        """The bytes `[offset, offset + size)`, fewer where the file ends. Raises `StorageError` as `read_ranges`."""
        end = min(offset + size, self._size)
        if offset >= end:
            return b""
        first, last = offset // self._step, (end - 1) // self._step
        parts = [self._chunk(number) for number in range(first, last + 1)]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        start = first * self._step
        return data[offset - start : end - start]


@dataclass(frozen=True, kw_only=True, slots=True)
class TarItem:
    """A regular file of a tar, or a piece of damage: then `damage` says which, and `name` is empty if not known."""

    name: str
    offset: int
    size: int
    damage: str = ""


@dataclass(kw_only=True, slots=True)
class TarSample:
    """Consecutive members with one key. `damage` is what makes it unusable whatever it holds.

    `torn_by` is damage to the archive right before, inside or after it, which may have cost it members.
    """

    key: str
    members: list[Member] = field(default_factory=list)
    damage: str = ""
    torn_by: str = ""


def scan_tar(read: Read, size: int) -> Iterator[TarItem]:
    """All regular files of a tar of `size` bytes in order, with damage in between.

    A file that is cut short comes as `TRUNCATED`, a stretch without a valid header as `BAD_HEADER`, and the lack of an
    end of archive (two zero blocks; one is enough here) as `NO_END`.
    """
    offset, ended = 0, False
    while offset < size:
        block = read(offset, BLOCK)
        if not block.strip(b"\0"):
            offset, ended = offset + BLOCK, True
            continue
        if len(block) < BLOCK:
            break
        entry = _entry_at(read, offset)
        if entry is None:
            end = _next_header(read, offset + BLOCK, size)
            yield TarItem(name="", offset=offset, size=end - offset, damage=BAD_HEADER)
            offset, ended = end, not read(max(size - BLOCK, 0), BLOCK).strip(b"\0")
            continue
        offset, ended = entry.end, False
        if entry.start + entry.size > size:
            yield TarItem(name=entry.name, offset=entry.start, size=size - entry.start, damage=TRUNCATED)
            return
        if entry.regular and entry.name:
            yield TarItem(name=entry.name, offset=entry.start, size=entry.size)
    if not ended:
        yield TarItem(name="", offset=size, size=0, damage=NO_END)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    name: str
    start: int
    size: int
    regular: bool

    @property
    def end(self) -> int:
        return self.start + _padded(self.size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
_WITHOUT_DATA = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def _entry_at(read: Read, offset: int) -> _Entry | None:
    """The entry that begins at `offset`, its extended headers applied; None if one of its headers is damaged."""
    name, length = "", None
    for _ in range(MAX_EXTENDED_HEADERS):
        header = _parse_header(read(offset, BLOCK))
        if header is None:
            return None
        start = offset + BLOCK
        if header.type not in _EXTENDED:
            size = 0 if header.type in _WITHOUT_DATA else header.size if length is None else length
            return _Entry(name=name or header.name, start=start, size=size, regular=header.isreg())
        records = _extended_records(header, read(start, min(header.size, MAX_EXTENDED_BYTES + 1)))
        if records is None:
            return None
        name = records.get("path", name)
        length = int(records["size"]) if "size" in records else length
        offset = start + _padded(header.size)
    return None


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        # Names that are not UTF-8 stay distinct and can be written down.
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return None
    return header if header.size >= 0 else None


def _extended_records(header: tarfile.TarInfo, payload: bytes) -> dict[str, str] | None:
    """What an extended header says of the entry after it (`path`, `size`); None if it is damaged."""
    if len(payload) != header.size:
        return None
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "backslashreplace")}
    records = _pax_records(payload) if header.type == tarfile.XHDTYPE else {}
    return None if records is None or not _SIZE.fullmatch(records.get("size", "0")) else records


def _pax_records(payload: bytes) -> dict[str, str] | None:
    """Records of the form `<length of the record> <keyword>=<value>\\n`; None if they are not."""
    records: dict[str, str] = {}
    rest = payload.rstrip(b"\0")
    while rest:
        digits, _, _ = rest.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        keyword, equals, value = rest[len(digits) + 1 : length].partition(b"=")
        if not equals or not value.endswith(b"\n") or length > len(rest):
            return None
        records[keyword.decode("utf-8", "backslashreplace")] = value[:-1].decode("utf-8", "backslashreplace")
        rest = rest[length:]
    return records


def _next_header(read: Read, offset: int, size: int) -> int:
    """Where the next whole header begins, or the end of the file. Only headers with a magic number are looked for."""
    while offset < size:
        block = read(offset, BLOCK)
        if block[257:262] == b"ustar" and _parse_header(block) is not None:
            return offset
        offset += BLOCK
    return size


def split_name(name: str) -> tuple[str, str] | None:
    """`dir/key.ext.more` → (`dir/key`, `ext.more` in lower case); None for names without a key or an extension."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ext = base.partition(".")
    if not stem or not ext:
        return None
    return (f"{folder}/{stem}" if folder else stem), ext.lower()


def group_samples(items: Iterable[TarItem]) -> Iterator[TarSample | TarItem]:
    """Groups consecutive files by key; damage without an owner passes through and marks the samples beside it as torn.

    A repeated extension begins a new sample: two samples of one key in a row must not be mixed.
    """
    current: TarSample | None = None
    torn_by = ""
    for item in items:
        named = split_name(item.name)
        if named is None:
            # A file that belongs to no sample matters to none, unless the archive is torn in it.
            if item.damage:
                torn_by = item.damage
                if current is not None:
                    current.torn_by = torn_by
                yield item
            continue
        key, ext = named
        if current is None or key != current.key or any(ext == member.ext for member in current.members):
            if current is not None:
                yield current
            current = TarSample(key=key, torn_by=torn_by)
        torn_by = ""
        current.members.append(Member(ext=ext, offset=item.offset, size=item.size))
        current.damage = current.damage or item.damage
    if current is not None:
        yield current
