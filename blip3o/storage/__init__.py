"""Bytes by URI: reads, writes, and listings of S3 and local files, with retries and a block cache.

`from blip3o import storage` is the usual way in. The package knows no samples and no runs.
"""

from blip3o.storage.files import (
    FileInfo,
    MissingFileError,
    RangeReader,
    delete,
    exists,
    forget_clients,
    list_files,
    list_folders,
    modified,
    open_ranges,
    open_write,
    read_bytes,
    read_ranges,
    resolve,
    stat,
    upload,
    write_bytes,
)
from blip3o.storage.uris import BadUriError, absolute, is_absolute, is_canonical, join, normalize, shown, within

__all__ = [
    "BadUriError",
    "FileInfo",
    "MissingFileError",
    "RangeReader",
    "absolute",
    "delete",
    "exists",
    "forget_clients",
    "is_absolute",
    "is_canonical",
    "join",
    "list_files",
    "list_folders",
    "modified",
    "normalize",
    "open_ranges",
    "open_write",
    "read_bytes",
    "read_ranges",
    "resolve",
    "shown",
    "stat",
    "upload",
    "within",
    "write_bytes",
]
