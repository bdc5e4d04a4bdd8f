"""A small curated set for the instruction-tuning stage, chosen from existing sets.

Balanced over (source, kind of content): scenes by family, emoji by group. One caption a sample, the one that says most
(`full_caption`, else the first). Only training samples are read: nothing held out can enter.
"""

import io
import json
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from blip3o import storage
from blip3o.data.sets import writer
from blip3o.errors import DataError
from blip3o.rng import derive_seed

EDITION = 2  # of what is written for the same settings: 2 renumbers the samples


def build_curated(
    out: str, *, sets: Sequence[str], samples: int, seed: int = 0, samples_per_shard: int = 1000
) -> writer.SetSummary:
    """Writes about `samples` samples chosen from the training shards of `sets` (URIs of built sets) below `out`.

    Raises `DataError` if a set has no training shards, or if `out` holds a set of other settings.
    """
    if samples < 1:
        raise DataError(f"samples={samples}: choose at least 1")
    settings: writer.Settings = {
        "set": "curated",
        "edition": EDITION,
        "sets": " ".join(sets),
        "samples": samples,
        "seed": seed,
    }
    there = writer.completed(out, settings)
    if there is not None:
        return there
    pool = [sample for uri in sets for sample in _training_samples(uri)]
    if not pool:
        raise DataError(f"{', '.join(sets) or 'no set'} has no training samples: choose from other sets")
    chosen = choose(pool, samples=samples, seed=seed)
    return writer.write_set(out, chosen, settings=settings, total=len(chosen), samples_per_shard=samples_per_shard)


def choose(pool: Sequence[writer.Sample], *, samples: int, seed: int) -> list[writer.Sample]:
    """The same number from each kind of content, as far as it has them, in an order of hashes; one caption each."""
    kinds: dict[tuple[str, str], list[writer.Sample]] = defaultdict(list)
    for sample in pool:
        kinds[sample.record["source"], _kind(sample.record)].append(sample)
    quota = -(-samples // len(kinds))
    kept: list[writer.Sample] = []
    for kind in sorted(kinds):
        kept += sorted(kinds[kind], key=lambda sample: derive_seed(seed, "curated", sample.key))[:quota]
    kept.sort(key=lambda sample: derive_seed(seed, "curated-order", sample.key))
    return [_curated(number, sample) for number, sample in enumerate(kept[:samples])]


def _kind(record: dict[str, Any]) -> str:
    return str(record.get("family") or record.get("group") or "")


def _curated(number: int, sample: writer.Sample) -> writer.Sample:
    """With one caption, and a key of its own: two sets may name their samples alike."""
    record = {**sample.record, "captions": [_fullest(sample.record)]}
    return writer.Sample(key=f"{number:07d}", image=sample.image, ext=sample.ext, record=record)


def _fullest(record: dict[str, Any]) -> Any:  # noqa: ANN401 - a JSON value
    return record.get("full_caption") or record["captions"][0]


def _training_samples(uri: str) -> Iterator[writer.Sample]:
    shards = [
        file for file in storage.list_files(uri, suffix=".tar") if posixpath.basename(file.uri).startswith("train-")
    ]
    if not shards:
        raise DataError(f"{uri} holds no training shards (train-*.tar): build that set first")
    for shard in shards:
        try:
            yield from _samples(storage.read_bytes(shard.uri))
        except (tarfile.TarError, EOFError, ValueError, LookupError, TypeError, StopIteration) as error:
            raise DataError(
                f"{shard.uri} is no shard of a set that was built here ({type(error).__name__}: {error}): choose from "
                "such sets"
            ) from error


def _samples(shard: bytes) -> list[writer.Sample]:
    """The samples of a shard. Raises as reading tars and JSON does, `LookupError` where a part is missing."""
    members: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        for member in tar:
            key, _, ext = member.name.partition(".")
            file = tar.extractfile(member)
            members[key][ext] = file.read() if file else b""
    found = []
    for key, parts in members.items():
        ext = next(name for name in parts if name not in ("txt", "json"))
        record = json.loads(parts["json"])
        if not isinstance(record["source"], str) or not isinstance(_fullest(record), str):
            raise TypeError(f"the source or the caption of '{key}' is no text")
        found.append(writer.Sample(key=key, image=parts[ext], ext=ext, record=record))
    return found
