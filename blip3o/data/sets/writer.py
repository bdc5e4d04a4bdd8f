"""Writes a stream of samples as WebDataset tar shards, one series per split: `train-00000.tar`, `heldout-00000.tar`, ….

The bytes of a shard depend only on its samples (no times, no owners). `dataset.json` marks the set as started before
the first shard, and names every shard with its size and sha256 after the last one. So an interrupted set is not taken
for a complete one: it is built again. A folder that holds a complete set with other settings, or shards that no set of
ours names, is refused, never overwritten.
"""

import hashlib
import io
import json
import math
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from blip3o import storage
from blip3o.errors import DataError

Settings = Mapping[str, str | int | None]
Progress = Callable[[int, int], None]

_SUMMARY = "dataset.json"
LEDGER = "ledger.parquet"  # of what an import left out
_SHARD_NAME = re.compile(r"(train|heldout)-\d{5}\.tar")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image-text pair: a `key` without dots, the encoded `image`, its `ext` without dot, and the JSON `record`.

    `record` follows the data contract: source, concept, split, captions (the first becomes KEY.txt), qa, and what the
    set adds.
    """

    key: str
    image: bytes
    ext: str
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """What a folder holds, by split: numbers of samples (`counts`) and shard URIs (`shards`).

    `built` is False where it was there before.
    """

    uri: str
    counts: dict[str, int]
    shards: dict[str, list[str]]
    built: bool


@dataclass
class _Writer:
    """Collects samples by split and writes a shard each time one is full; `index` is what dataset.json will say."""

    out: str
    settings: Settings
    samples_per_shard: int
    open_shards: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    index: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, sample: Sample) -> None:
        split = sample.record["split"]
        self.open_shards[split].append(sample)
        if len(self.open_shards[split]) == self.samples_per_shard:
            self.flush(split)

    def flush(self, split: str) -> None:
        if not self.index:
            self.tell(whole=False)
        samples = self.open_shards.pop(split)
        data = shard_bytes(samples)
        name = f"{split}-{len(self.index[split]):05d}.tar"
        storage.write_bytes(storage.join(self.out, name), data)
        digest = hashlib.sha256(data).hexdigest()
        self.index[split].append({"name": name, "samples": len(samples), "size": len(data), "sha256": digest})

    def close(self) -> None:
        for split in list(self.open_shards):
            self.flush(split)
        self.tell(whole=True)

    def tell(self, *, whole: bool) -> None:
        """Writes dataset.json: of a complete set, or of one that is started."""
        document = {"settings": dict(self.settings), "splits": self.index if whole else None}
        storage.write_bytes(storage.join(self.out, _SUMMARY), json.dumps(document, indent=1).encode())


def shard_bytes(samples: Iterable[Sample]) -> bytes:
    """The tar of some samples (`KEY.ext`, `KEY.txt`, `KEY.json` each); equal samples give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _add(tar, f"{sample.key}.{sample.ext}", sample.image)
            _add(tar, f"{sample.key}.txt", sample.record["captions"][0].encode())
            _add(tar, f"{sample.key}.json", record_bytes(sample.record))
    return buffer.getvalue()


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as JSON. NaN and infinities, which JSON does not have, are written as null."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False).encode()


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {_finite(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # its defaults are mtime 0, uid and gid 0, no owner names, mode 0644
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def completed(out: str, settings: Settings) -> SetSummary | None:
    """The summary of the complete set at `out`; None if there is none, or if a shard that it names is missing or
    truncated.

    Raises `DataError` if a set of other settings is there.
    """
    uri = storage.join(out, _SUMMARY)
    if not storage.exists(uri):
        return None
    found, splits = _document(uri)
    if splits is None:
        return None
    differing = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
    if differing:
        changes = ", ".join(f"{key} {found.get(key)} and not {settings.get(key)}" for key in differing)
        raise DataError(f"{out} holds a set made with {changes}: take another folder or delete it")
    sizes = {posixpath.basename(file.uri): file.size for file in _shards(out)}
    whole = all(sizes.get(shard["name"]) == shard["size"] for shards in splits.values() for shard in shards)
    return _summary(out, splits, built=False) if whole else None


def _document(uri: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]] | None]:
    """The settings and the splits of a dataset.json; None for the splits of a set that is only started."""
    try:
        document = json.loads(storage.read_bytes(uri))
        settings, splits = document["settings"], document["splits"]
        shards = [shard for listed in (splits or {}).values() for shard in listed]
        ours = all(isinstance(shard["size"], int) and isinstance(shard["samples"], int) for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        settings, splits, ours = None, None, False
    if not ours or not isinstance(settings, dict):
        raise DataError(f"{uri} is not a record of ours: take another folder or delete this one")
    return settings, splits


def write_set(
    out: str,
    samples: Iterable[Sample],
    *,
    settings: Settings,
    total: int,
    samples_per_shard: int,
    on_progress: Progress | None = None,
) -> SetSummary:
    """Writes all samples below the URI `out`, in the order given, and `dataset.json` last.

    `settings` are what made the samples; `total` is how many there are, for `on_progress(done, total)`.
    Leftovers of an interrupted set are removed first, since an index of the folder would find them. Raises
    `DataError` if there are shards of the same names that no set of ours names.
    """
    if samples_per_shard < 1:
        raise DataError(f"samples_per_shard={samples_per_shard}: a shard needs at least 1 sample")
    _remove_leftovers(out)
    writer = _Writer(out=out, settings=settings, samples_per_shard=samples_per_shard)
    for done, sample in enumerate(samples, start=1):
        writer.add(sample)
        if on_progress:
            on_progress(done, total)
    writer.close()
    return _summary(out, writer.index, built=True)


def _remove_leftovers(out: str) -> None:
    left, summary = _shards(out), storage.join(out, _SUMMARY)
    if left and not storage.exists(summary):
        raise DataError(
            f"{left[0].uri} is of no set of ours ({summary} does not exist), and a set here would overwrite it: "
            "take another folder or delete it"
        )
    for uri in (*(file.uri for file in left), summary):
        storage.delete(uri)


def is_own(out: str, uri: str) -> bool:
    """Whether a file (a canonical URI) is named as one that a set at the canonical URI `out` consists of."""
    folder, _, name = uri.rpartition("/")
    return folder == out and (name in (_SUMMARY, LEDGER) or _SHARD_NAME.fullmatch(name) is not None)


def _shards(out: str) -> list[storage.FileInfo]:
    """Files right in the folder that are named as shards of a set; files in subfolders are not ours."""
    folder = storage.normalize(out)
    return [file for file in storage.list_files(out, suffix=".tar") if is_own(folder, file.uri)]


def _summary(out: str, splits: Mapping[str, list[dict[str, Any]]], *, built: bool) -> SetSummary:
    return SetSummary(
        uri=storage.normalize(out),
        counts={split: sum(shard["samples"] for shard in shards) for split, shards in splits.items()},
        shards={split: [storage.join(out, shard["name"]) for shard in shards] for split, shards in splits.items()},
        built=built,
    )
