"""`blip3o data inspect`: looks at the manifest of a set, or at shards that are not indexed, which it scans here.

What is shown, and the page, are `blip3o.evaluate.reports.shards`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from blip3o import storage
from blip3o.config.shards import ColumnsConfig, KeyRule, MembersConfig
from blip3o.data.shards.accounts import refusal, shards_among
from blip3o.data.shards.manifest import (
    Manifest,
    ledger_file,
    manifest_file,
    read_manifest,
    read_shard_summaries,
    write_manifest,
    write_shard_index,
)
from blip3o.data.shards.parquet.samples import SUFFIX
from blip3o.data.shards.scan import scan_shard
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import Blip3oError, ConfigError, DataError
from blip3o.evaluate.progress import tracked
from blip3o.evaluate.reports.shards import ShardSet, render_page
from blip3o.storage.patterns import find_shards

BUDGET = 0.01  # of damage: the default of `data.max_bad_share`


def scan_options(key: KeyRule, image: str | None, caption: str | None) -> ScanOptions:
    """How shards are scanned for a look: `image` and `caption` name extensions in tars, and columns of Parquet.

    Raises `ConfigError` for a name that can be neither.
    """
    try:
        members = MembersConfig(image=image, caption=caption)
    except ValidationError as error:
        raise ConfigError(f"--image {image}, --caption {caption}: {error.errors()[0]['msg']}") from error
    return ScanOptions(key=key, members=members, columns=ColumnsConfig(image=image, caption=caption))


def inspect(uri: str, *, out: str | None, pictures: int, seed: int, options: ScanOptions | None = None) -> str:
    """Looks at the manifest in the folder `uri`, or at shards (one file, or many with a `*`), which are scanned here.

    Returns a summary of a few lines; writes the page to the URI `out`. Raises `DataError` without a manifest or a good
    sample, and names what is wrong with the others; `StorageError`, before anything is read, if `out` cannot be
    written.
    """
    options = options or ScanOptions()
    with tempfile.TemporaryDirectory() as folder, _page_file(out):
        is_shards = _names_shards(uri)
        manifest = _scan(uri, folder, options) if is_shards else _read_indexed(uri)
        summaries = read_shard_summaries(manifest.uri)
        known = [summaries[row.shard] for row in manifest.shards if row.shard in summaries]
        found = ShardSet.from_summaries(uri, manifest, known)
        lines = found.lines("the lines of damage above" if is_shards else ledger_file(manifest.uri))
        if is_shards:
            lines += _refusal(found, options)
        if out is not None:
            storage.write_bytes(out, render_page(found, lines, pictures=pictures, seed=seed).encode())
            lines.append(f"wrote {out}")
    return "\n".join(lines)


def _refusal(found: ShardSet, options: ScanOptions) -> list[str]:
    """A line if `blip3o index` would refuse the shards."""
    if found.account is None:
        return []
    lost, fix = refusal(found.account, found.damage, options, BUDGET)
    return [f"indexing refuses these shards at a budget of {BUDGET:.0%}: {lost}; {fix}"] if lost else []


@contextmanager
def _page_file(out: str | None) -> Iterator[None]:
    """Checks that the page can be written, before the work for it begins. An older page stays if the work fails."""
    before = None
    if out is not None:
        before = storage.read_bytes(out) if storage.exists(out) else None
        storage.write_bytes(out, before or b"")
    try:
        yield
    except Blip3oError:
        if out is not None and before is None:
            storage.delete(out)
        raise


def _names_shards(uri: str) -> bool:
    """Whether a URI is one of shards: a pattern, an existing file of any name, or the name of a shard."""
    return "*" in uri or uri.endswith((".tar", SUFFIX)) or storage.exists(uri)


def _read_indexed(uri: str) -> Manifest:
    if not storage.exists(manifest_file(uri)):
        if storage.exists(ledger_file(uri)):
            raise DataError(
                f"{uri} holds no manifest but the ledger of a refused source: see `blip3o data ledger {uri}`"
            )
        raise DataError(f"{uri} holds no manifest: name the folder of one, or shards, as {uri}/*.tar")
    return read_manifest(uri)


def _scan(uri: str, folder: str, options: ScanOptions) -> Manifest:
    """A manifest in a local folder, of shards that need not be indexed."""
    files = shards_among(find_shards(uri))
    rows = [
        write_shard_index(folder, file, scan_shard(file, source="shards", shard=number, options=options)).row
        for number, file in enumerate(tracked(files, "scan", len(files)))
    ]
    return write_manifest(folder, "shards", rows)
