"""Features of samples out of the cache, for the micro-batches of training.

Small records are read through a bounded cache of blocks, as shards are: the order keeps the samples of a window
together, so a block serves several of them. Records of `EXACT_BYTES` and more, as the released encoders make, are read
by their own ranges, a request each and no byte too many. A damaged record stops the run; an image that could not
be encoded is a damaged sample, and is replaced by the rule that replaces it when it is met online.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.data.features.files import FeatureFolder, feature_folder, record_range, require_whole
from blip3o.data.features.records import RecordFormat
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.locations import source_locations
from blip3o.data.shards.manifest import Manifest
from blip3o.storage.block_cache import BlockCache
from blip3o.types import RawSample, SampleRef, sample_uid

NO_FEATURES = "no features: the image could not be encoded"
COLUMN = "features"
EXACT_BYTES = 64 * 2**10

Row = dict[str, np.ndarray]


def record_format(recipe: Recipe) -> RecordFormat:
    """How the recipe's features are stored."""
    encoder = recipe.model.encoder
    return RecordFormat(dtype=recipe.stored_dtype, tokens=encoder.num_tokens, channels=encoder.channels)


def feature_folders(recipe: Recipe, sha256: str) -> dict[str, FeatureFolder]:
    """Where the features of this provenance are, by source."""
    record = record_format(recipe)
    return {
        location.name: feature_folder(location.manifest, sha256, record) for location in source_locations(recipe.data)
    }


class FeatureReader:
    """Reads the features of some sources, `folders` by the names of `manifests`; belongs to one process.

    `threads` files are read at once.
    """

    def __init__(
        self, manifests: Sequence[Manifest], folders: Mapping[str, FeatureFolder], *, threads: int = 8
    ) -> None:
        self._manifests = tuple(manifests)
        self._by_name = {manifest.name: number for number, manifest in enumerate(manifests)}
        self._folders = [folders[manifest.name] for manifest in manifests]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="feature-reader")
        self._blocks = BlockCache()

    def read(self, refs: Sequence[SampleRef]) -> dict[str, np.ndarray | None]:
        """Features [N, F] by uid (in the types of `RecordFormat.unpack`), None where an image has none.

        Raises `StorageError`, naming file and row, if a record is not what was written, or cannot be read.
        """
        rows: dict[tuple[int, int], list[int]] = defaultdict(list)
        for ref in refs:
            rows[ref.source, ref.shard].append(ref.row)
        found: dict[str, np.ndarray | None] = {}
        for part in self._pool.map(self._read_shard, rows.keys(), rows.values()):
            found |= part
        return found

    def _read_shard(self, where: tuple[int, int], rows: list[int]) -> dict[str, np.ndarray | None]:
        source, shard = where
        folder, manifest = self._folders[source], self._manifests[source]
        record, uri = folder.record, folder.file(shard)
        file_bytes = folder.header(manifest.shards[shard]).file_bytes
        ranges = [record_range(record, row) for row in rows]
        exact = record.record_bytes >= EXACT_BYTES
        pieces = storage.read_ranges(uri, ranges) if exact else self._blocks.read(uri, file_bytes, ranges)
        return {
            sample_uid(manifest.name, shard, row): record.unpack(require_whole(uri, row, piece, record))
            for row, piece in zip(rows, pieces, strict=True)
        }

    def with_features(
        self, encode: Callable[[RawSample], Row], refs: Sequence[SampleRef]
    ) -> Callable[[RawSample], Row]:
        """`encode` with a column `features` for the samples of `refs`, which are read now and together.

        For other samples (replacements of damaged ones) they are read when asked. What is returned raises
        `DamagedSampleError` for an image without features, and otherwise as `encode` and `read` do.
        """
        held = self.read(refs)

        def both(raw: RawSample) -> Row:
            row = encode(raw)
            if raw.uid not in held:
                held.update(self.read([self._ref(raw)]))
            features = held[raw.uid]
            if features is None:
                raise DamagedSampleError(NO_FEATURES)
            return row | {COLUMN: features}

        return both

    def _ref(self, raw: RawSample) -> SampleRef:
        name, shard, row = raw.uid.rsplit("/", 2)
        return SampleRef(source=self._by_name[name], shard=int(shard), row=int(row), pass_index=raw.pass_index)
