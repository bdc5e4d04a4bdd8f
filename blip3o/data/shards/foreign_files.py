"""Recognises by its first bytes a file that is not a shard, and says what to do about it."""

from blip3o.storage.magic import recognise

HEAD_BYTES = 512
PARQUET = b"PAR1"

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


def describe_foreign_file(head: bytes, *, size: int) -> str:
    """What a file of `size` bytes is, as a predicate with its fix; "" for a Parquet file or an unknown format.

    `head` are its first bytes, `HEAD_BYTES` of them or all.
    """
    if head.startswith(PARQUET):
        return ""
    for magic, kind in _PACKED:
        if head.startswith(magic):
            return f"is compressed with {kind}: unpack it (training reads byte ranges of a plain file)"
    for magic, kind in _ARCHIVES:
        if head.startswith(magic):
            return f"is {kind}: write its files to a plain tar (training reads byte ranges)"
    for magic, kind in _PICTURES:
        if head.startswith(magic):
            return f"is {kind}: shards are tars or Parquet files, and `blip3o data import` makes them of pictures"
    return recognise(head, size=size) or ""
