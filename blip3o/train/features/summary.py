"""What the stored features of a source come to: the result of `blip3o encode`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blip3o.data.features.files import FeatureFolder, FeatureFooter, read_footer, read_header
from blip3o.data.shards.manifest import Manifest
from blip3o.errors import DataError

READERS = 16  # footers that are read at once


@dataclass(frozen=True, kw_only=True)
class EncodeSummary:
    """The result of encoding a source. `shards` were encoded (or verified) now; the rest is of all its shards.

    `relative_error` is the largest of any shard (`FeatureFooter`); `stored_bytes` counts records, absent ones too.
    """

    source: str
    uri: str
    shards: int
    encoded: int
    absent: int
    stored_bytes: int
    relative_error: float

    def describe(self, verb: str) -> str:
        """The summary in one line; `verb` says what was done: encoded, verified."""
        return (
            f"{self.source}: {self.shards} shards {verb}, {self.encoded} images ({self.absent} absent), "
            f"{self.stored_bytes / 1e6:.1f} MB, relative error {self.relative_error:.2e}, in {self.uri}"
        )


def summarize(manifest: Manifest, folder: FeatureFolder, footers: Mapping[int, FeatureFooter]) -> EncodeSummary:
    """Sums over all shards of a source: `footers` of the shards that were done now, and those in the other files.

    Raises `DataError` if no image could be encoded, `StorageError` if a file cannot be read.
    """
    files = [folder.file(row.shard) for row in manifest.shards if row.shard not in footers]
    with ThreadPoolExecutor(READERS) as readers:
        every = [*footers.values(), *readers.map(lambda file: read_footer(file, read_header(file)), files)]
    encoded, absent = sum(footer.encoded for footer in every), sum(footer.absent for footer in every)
    if not encoded:
        raise DataError(f"source '{manifest.name}': none of {absent} images could be encoded: see {folder.uri}/ledger")
    return EncodeSummary(
        source=manifest.name,
        uri=folder.uri,
        shards=len(footers),
        encoded=encoded,
        absent=absent,
        stored_bytes=manifest.rows * folder.record.record_bytes,
        relative_error=max(footer.relative_error for footer in every),
    )
