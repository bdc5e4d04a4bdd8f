"""Which judgements a score may count: those about exactly the bytes that exist now.

Between judging and scoring, files can be generated again, replaced, swapped or deleted. So score computes every file's
sha256 again. A judgement about other bytes is left out, which makes it missing, and every mismatch is a reason why the
score is not comparable. Two things cannot be detected here: a judgement that was edited by hand, and a file that was
replaced before generate described it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blip3o import storage
from blip3o.evaluate.benchmark.folder import SampleFile, SuiteFolder, sha256_of
from blip3o.evaluate.benchmark.rows import read_rows
from blip3o.evaluate.records import Item, Judge, Judgement
from blip3o.evaluate.suites.suite import items_digest, reasons


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a score rests on: the judgements of `judge` about the files that exist now, and what does not fit.

    `why_not` names each mismatch. `digests` are sha256 of everything that decides verdicts: of the items, and of the
    files with the images that they are about.
    """

    items: list[Item]
    judge: Judge
    judgements: list[Judgement]
    why_not: tuple[str, ...]
    digests: Mapping[str, str]


def read_evidence(folder: SuiteFolder) -> Evidence:
    """The evidence in a folder now. Raises `DataError` if generate or judge did not run."""
    items, judge = folder.read_items(), folder.read_judge()
    judged, files = folder.read_judgements(judge), folder.read_files()
    now, pictures = folder.sums(items), folder.pictures(items)
    # Replies of an old version have no sha256 of their picture; nothing can be said about those.
    other_pictures = {_at(one) for one in files if one.picture and one.picture != pictures.get(one.key)}
    sources = sha256_of(uri for _, one in judged for uri in one.sources)
    current = []
    for sum_then, one in judged:
        same_file = now.get(_at(one)) == sum_then and _at(one) not in other_pictures
        if same_file and all(sources.get(uri) == then for uri, then in one.sources.items()):
            current.append(one)
    stale = len(judged) - len(current)
    replaced = sum(now.get(_at(one), first) != first for one in files if (first := one.original or one.sha256))
    grids = stale_grids(folder, items, now)
    why_not = {
        f"{stale} judgements are of files that have changed since: judge again": stale > 0,
        f"{len(other_pictures)} replies are about images that have changed since": len(other_pictures) > 0,
        f"{replaced} files are not the ones that were made": replaced > 0,
        f"{len(grids)} grids are not made of the current tiles: generate again": len(grids) > 0,
    }
    digests = {"items": items_digest(items, folder.suite.facts), "files": _digest(files, now, pictures)}
    return Evidence(items=items, judge=judge, judgements=current, why_not=reasons(why_not), digests=digests)


def _at(one: SampleFile | Judgement) -> tuple[str, int]:
    return one.key, one.sample


def _digest(files: Sequence[SampleFile], now: Mapping[tuple[str, int], str], pictures: Mapping[str, str]) -> str:
    lines = [f"{one.key} {one.sample} {now.get(_at(one))} {pictures.get(one.key)}" for one in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def stale_grids(folder: SuiteFolder, items: Sequence[Item], now: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """The grids that could be joined from the existing tiles but are not: path, and the tiles' sha256.

    `now` is the sha256 of each existing tile by key and sample. A grid with a missing tile is left out.
    """
    grids = folder.suite.grids(items)
    if not grids:
        return {}
    uri = folder.file("grids.jsonl")
    rows = read_rows(uri) if storage.exists(uri) else []
    recorded = {row.get("path"): (row.get("sha256"), row.get("tiles")) for row in rows}
    grid_sums = sha256_of(folder.file(path) for path in grids)
    tile_sums: dict[str, str] = {}
    for item in items:
        for sample in range(item.samples):
            tile_sums[folder.path(item, sample)] = now.get((item.key, sample), "")
    stale = {}
    for path, tiles in grids.items():
        sums = [tile_sums.get(tile, "") for tile in tiles]
        if all(sums) and recorded.get(path) != (grid_sums.get(folder.file(path)), sums):
            stale[path] = sums
    return stale
