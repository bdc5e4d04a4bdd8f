"""What a file is that stands in place of a shard: told by its first bytes, with what to do about it."""

HEAD_BYTES = 512

_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x1f\x9d", "compress"),
    (b"LZIP", "lzip"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy"),
)
_ARCHIVES = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
)
_PICTURES = (
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error>")
PARQUET = b"PAR1"


def foreign(head: bytes) -> str:
    """What a file that is no shard begins like, as a predicate with its remedy; "" if it begins like nothing known.

    `head` are its first bytes, `HEAD_BYTES` of them or all.
    """
    if not head:
        return "is empty: it has 0 bytes, fetch it again"
    for magic, kind in _PACKED:
        if head.startswith(magic):
            return f"is compressed with {kind}: unpack it (training reads byte ranges of a plain file)"
    for magic, kind in _ARCHIVES:
        if head.startswith(magic):
            return f"is {kind}: write its files to a plain tar (training reads byte ranges)"
    for magic, kind in _PICTURES:
        if head.startswith(magic):
            return f"is {kind}: shards are tars or Parquet files, see `blip3o dataset import` for pictures in a folder"
    return _foreign_text(head)


def _foreign_text(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer: run `git lfs pull`"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "is an HTML or XML page, as servers answer in place of a file: fetch it again"
    if head.lstrip()[:1] in (b"{", b"["):
        return "is JSON text: shards are tars or Parquet files, see `blip3o dataset import` for tables"
    return ""
