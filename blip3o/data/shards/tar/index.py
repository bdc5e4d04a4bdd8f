"""Where the members of a tar lie, and which of them form a sample. Reads headers only, and trusts none of them.

Own scan rather than `tarfile.open`, which stops silently at the first damaged header: here damage becomes an item, and
the scan continues at the next valid header. Understands ustar, GNU and PAX long names, and links inside the archive.
Contents are `blip3o.data.shards.tar.scan`'s business.
"""

import functools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from blip3o import storage
from blip3o.config.shards import KeyRule
from blip3o.data.shards.foreign_files import describe_foreign_file
from blip3o.data.shards.tar.links import LinkTable
from blip3o.errors import quoted
from blip3o.types import Member

BLOCK = tarfile.BLOCKSIZE
CHUNK_BYTES = 16 * 2**20
# An entry with larger or more extended headers (long names and the like) than this is taken for damage.
MAX_EXTENDED_BYTES = 2**20
MAX_EXTENDED_HEADERS = 8
BAD_HEADER = "bad header"
TRUNCATED = "truncated"
NO_END = "truncated: no end of archive"
# Writers end an archive in at most this many zeros. A download that reserved its space and stopped ends in more.
MAX_ZEROS = 2**20
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
    """A file of a tar, or a stretch of damage. `damage` says why it cannot be used, `name` is empty if not known.

    `torn`: the archive itself is damaged here, so its neighbours may have lost members too.
    """

    name: str
    offset: int
    size: int
    damage: str = ""
    torn: bool = False


@dataclass(kw_only=True, slots=True)
class TarSample:
    """Consecutive members with one key. `damage` is what makes it unusable whatever it holds, `faults` (by extension)
    what makes some of its members unusable.

    `torn_by` is damage to the archive right before, inside or after it, which may have cost it members.
    """

    key: str
    members: list[Member] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    damage: str = ""
    torn_by: str = ""


def scan_tar(read: Read, size: int) -> Iterator[TarItem]:
    """All files of a tar of `size` bytes in order (regular ones, links, devices; no folders), with damage in between.

    A truncated file comes as `TRUNCATED`, a stretch without a valid header as `BAD_HEADER`, and a missing
    end of archive (two zero blocks; one is enough here) as `NO_END`. What is no tar at all is one item that says what
    it is, where its first bytes tell.
    """
    offset, zeros = 0, 0
    links = LinkTable()
    while offset < size:
        block = read(offset, BLOCK)
        if not block.strip(b"\0"):
            offset, zeros = offset + BLOCK, zeros + BLOCK
            continue
        if len(block) < BLOCK:
            break
        entry = _entry_at(read, offset)
        if entry is None:
            if offset == 0 and (what := _stand_in(block, size)):
                yield TarItem(name="", offset=0, size=size, damage=what, torn=True)
                return
            end = _next_header(read, offset + BLOCK, size)
            yield TarItem(name="", offset=offset, size=end - offset, damage=BAD_HEADER, torn=True)
            offset, zeros = end, BLOCK if not read(max(size - BLOCK, 0), BLOCK).strip(b"\0") else 0
            continue
        offset, zeros = entry.end, 0
        if entry.start + entry.size > size:
            yield TarItem(name=entry.name, offset=entry.start, size=size - entry.start, damage=TRUNCATED, torn=True)
            return
        if entry.type not in _FOLDERS:
            yield _item(entry, links)
    if damage := _ending(size, zeros, _stand_in(read(0, BLOCK), size) if size < BLOCK else ""):
        yield TarItem(name="", offset=size - zeros, size=zeros, damage=damage, torn=True)


def _stand_in(block: bytes, size: int) -> str:
    """What the file is instead of a tar, by its first block; "" if it is one, however damaged, or not known."""
    return "" if _has_magic(block) else describe_foreign_file(block, size=size)


def _ending(size: int, zeros: int, what: str) -> str:
    """What is wrong with how an archive ends: nothing, where zeros end it, as many as a writer might append."""
    if what:
        return what
    if not zeros:
        return NO_END
    return f"truncated: ends in {zeros} bytes of zeros, fetch it again" if zeros > MAX_ZEROS else ""


def _item(entry: "_Entry", links: LinkTable) -> TarItem:
    where, damage = (entry.start, entry.size), entry.fault
    if not damage and entry.type in _LINKS:
        followed, damage = links.follow(entry.name, entry.type, entry.link)
        where = followed or where
    elif not damage:
        links.add(entry.name, where)
    return TarItem(name=entry.name, offset=where[0], size=where[1], damage=damage)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """What headers say: `size` bytes of data at `start`, where a link leads, and why it is no plain file (`fault`)."""

    name: str
    start: int
    size: int
    type: bytes
    link: str
    fault: str

    @property
    def end(self) -> int:
        return self.start + _padded(self.size)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX)
_WITHOUT_DATA = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
# With GNU's own: a folder's listing (D), and the name of a volume (V).
_FOLDERS = (tarfile.DIRTYPE, b"D", b"V")
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def _entry_at(read: Read, offset: int) -> _Entry | None:
    """The entry that begins at `offset`, its extended headers applied; None if one of its headers is damaged."""
    records: dict[str, str] = {}
    for _ in range(MAX_EXTENDED_HEADERS):
        block = read(offset, BLOCK)
        header = _parse_header(block)
        if header is None:
            return None
        start = offset + BLOCK
        if header.type not in _EXTENDED:
            return _entry(header, records, start + _sparse_maps(read, block, start))
        more = _extended_records(header, read(start, min(header.size, MAX_EXTENDED_BYTES + 1)))
        if more is None:
            return None
        records |= more
        offset = start + _padded(header.size)
    return None


def _entry(header: tarfile.TarInfo, records: dict[str, str], start: int) -> _Entry:
    sparse = header.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in records)
    name = records.get("GNU.sparse.name") or records.get("path") or header.name
    fault = ""
    if sparse:
        fault = f"sparse file: {quoted(name)} is stored with holes, write it plainly"
    elif header.type not in (*_PLAIN, *_LINKS):
        fault = f"special file: {quoted(name)} is of type {header.type!r}, neither a file nor a link"
    return _Entry(
        name=name,
        start=start,
        size=0 if header.type in _WITHOUT_DATA else int(records.get("size", header.size)),
        type=header.type,
        link=records.get("linkpath") or header.linkname,
        fault=fault,
    )


def _sparse_maps(read: Read, block: bytes, start: int) -> int:
    """Bytes of further blocks of GNU's map of a sparse file, which lie between its header and its data."""
    if block[156:157] != tarfile.GNUTYPE_SPARSE or not block[482]:
        return 0
    count = 1
    while read(start + (count - 1) * BLOCK, BLOCK)[504:505].strip(b"\0"):
        count += 1
    return count * BLOCK


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    try:
        # Names that are not UTF-8 stay distinct and can be written down.
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return None
    return header if header.size >= 0 else None


def _extended_records(header: tarfile.TarInfo, payload: bytes) -> dict[str, str] | None:
    """What an extended header says of the entry after it (`path`, `size`, …); None if it is damaged."""
    if len(payload) != header.size:
        return None
    if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        keyword = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
        return {keyword: payload.rstrip(b"\0").decode("utf-8", "backslashreplace")}
    records = _pax_records(payload) if header.type in _PAX else {}
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


def _has_magic(block: bytes) -> bool:
    return block[257:262] == b"ustar"


def _next_header(read: Read, offset: int, size: int) -> int:
    """Where the next whole header begins, or the end of the file. Only headers with a magic number are looked for."""
    while offset < size:
        block = read(offset, BLOCK)
        if _has_magic(block) and _parse_header(block) is not None:
            return offset
        offset += BLOCK
    return size


def split_name(name: str, rule: KeyRule = "first_dot") -> tuple[str, str] | None:
    """`dir/key.ext.more` → (`dir/key`, `ext.more` in lower case); None for names without a key or an extension.

    By the rule `last_dot` it is (`dir/key.ext`, `more`).
    """
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, ext = base.partition(".") if rule == "first_dot" else base.rpartition(".")
    if not stem or not ext:
        return None
    return (f"{folder}/{stem}" if folder else stem), ext.lower()


def group_samples(items: Iterable[TarItem], rule: KeyRule = "first_dot") -> Iterator[TarSample | TarItem]:
    """Groups consecutive files by key; files without a key pass through, and so does damage without an owner, which
    marks the samples next to it as torn.

    A repeated extension begins a new sample: two samples of one key in a row must not be mixed.
    """
    current: TarSample | None = None
    seen: set[str] = set()  # the extensions of its members, which may be all of an archive
    torn_by = ""
    for item in items:
        named = split_name(item.name, rule)
        if named is None:
            if item.torn:
                torn_by = item.damage
                if current is not None:
                    current.torn_by = torn_by
            yield item
            continue
        key, ext = named
        if current is None or key != current.key or ext in seen:
            if current is not None:
                yield current
            current, seen = TarSample(key=key, torn_by=torn_by), set()
        seen.add(ext)
        torn_by = ""
        _add(current, ext, item)
    if current is not None:
        yield current


def _add(sample: TarSample, ext: str, item: TarItem) -> None:
    sample.members.append(Member(ext=ext, offset=item.offset, size=item.size))
    if item.torn:
        sample.damage = sample.damage or item.damage
    elif item.damage:
        sample.faults[ext] = item.damage
