"""Which findings a score may count: those about the very bytes that lie there now.

Between judging and scoring files can be drawn again, replaced, exchanged or deleted. So score reads every file's sum
anew. A finding about other bytes is left out, which makes it missing, and every mismatch is a reason why the score is
not comparable. What cannot be seen here is a finding that was edited by hand, and a file that was replaced before
generate described it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blip3o import storage
from blip3o.evaluate.benchmark.files import Made, Place, read_rows, sums_of
from blip3o.evaluate.suites.suite import Item, Judge, Judgement, items_digest, reasons


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a score rests on: the findings of `judge` about what lies there now, and what does not fit (`why_not`).

    `digests` are sha256 of all that decides verdicts: of the items, and of the files with what they are about.
    """

    items: list[Item]
    judge: Judge
    judgements: list[Judgement]
    why_not: tuple[str, ...]
    digests: Mapping[str, str]


def read_evidence(place: Place) -> Evidence:
    """What lies at a place now. Raises `DataError` where generate or judge did not run."""
    items, judge = place.read_items(), place.read_judge()
    found, made = place.read_findings(judge), place.read_made()
    now, pictures = place.sums(items), place.pictures(items)
    # Of replies made by a version that kept no sum of the picture nothing can be said.
    other_pictures = {_at(one) for one in made if one.picture and one.picture != pictures.get(one.key)}
    sources = sums_of(uri for _, one in found for uri in one.sources)
    current = [
        one
        for sum_then, one in found
        if now.get(_at(one)) == sum_then
        and _at(one) not in other_pictures
        and all(sources.get(uri) == then for uri, then in one.sources.items())
    ]
    stale = len(found) - len(current)
    replaced = sum(now.get(_at(one), first) != first for one in made if (first := one.original or one.sha256))
    grids = other_grids(place, items, now)
    why_not = {
        f"{stale} findings are about other files than lie there now: judge again": stale > 0,
        f"{len(other_pictures)} replies are about other pictures than lie there now": len(other_pictures) > 0,
        f"{replaced} files are not the ones that were made": replaced > 0,
        f"{len(grids)} grids are not of the tiles that lie there now: generate again": len(grids) > 0,
    }
    digests = {"items": items_digest(items, place.suite.facts), "files": _digest(made, now, pictures)}
    return Evidence(items=items, judge=judge, judgements=current, why_not=reasons(why_not), digests=digests)


def _at(one: Made | Judgement) -> tuple[str, int]:
    return one.key, one.sample


def _digest(made: Sequence[Made], now: Mapping[tuple[str, int], str], pictures: Mapping[str, str]) -> str:
    lines = [f"{one.key} {one.sample} {now.get((one.key, one.sample))} {pictures.get(one.key)}" for one in made]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def other_grids(place: Place, items: Sequence[Item], now: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """The grids that are not made of the tiles that lie there now, and could be: path, and the tiles' sums."""
    grids = place.suite.grids(items)
    if not grids:
        return {}
    uri = place.file("grids.jsonl")
    rows = read_rows(uri) if storage.exists(uri) else []
    recorded = {row.get("path"): (row.get("sha256"), row.get("tiles")) for row in rows}
    there = sums_of(place.file(path) for path in grids)
    tiles = {place.path(item, sample): now.get((item.key, sample), "") for item in items for sample in _samples(item)}
    wanted = {path: [tiles.get(part, "") for part in parts] for path, parts in grids.items()}
    return {
        path: sums
        for path, sums in wanted.items()
        if all(sums) and recorded.get(path) != (there.get(place.file(path)), sums)
    }


def _samples(item: Item) -> range:
    return range(item.samples)
