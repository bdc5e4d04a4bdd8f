"""The stages that make files: prepare lays out items and true pictures, generate draws or asks what is lacking."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.benchmark.evidence import other_grids
from blip3o.evaluate.benchmark.files import Place, read_json, read_rows, write_json, write_rows
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.registry import Entry
from blip3o.evaluate.benchmark.work import Done, Kind, Target, Work, png
from blip3o.evaluate.suites.grids import join_tiles
from blip3o.evaluate.suites.suite import Item, check_keys

logger = logging.getLogger(__name__)

KINDS: Mapping[str, Kind] = {"": "draw", "untrained": "draw", "upper_bound": "decode"}
COSTS = ("files", "seconds", "wall_seconds")


def prepare(plan: Plan) -> None:
    """Writes every suite's items, the small files of its layout, and its true pictures.

    Raises `ConfigError` where other items are there already: their images would be taken for these items'; `DataError`
    for a source that is not in the suite's format or has two items of one key.
    """
    for entry in plan.entries:
        place = plan.place(entry)
        items = _items(plan, entry)
        rows = [asdict(item) for item in items]
        if not storage.exists(place.items_uri):
            _lay_out(entry, place, items)
            write_rows(place.items_uri, rows)  # last: where it is, the rest is
        elif [asdict(item) for item in place.read_items()] != json.loads(json.dumps(rows)):
            raise ConfigError(
                f"{place.items_uri} holds other items than are asked for now (suite, source, --limit or --samples "
                "differ): give another --out"
            )
        logger.info("%s: %d items, %d files each", entry.suite.name, len(items), items[0].samples)


def _items(plan: Plan, entry: Entry) -> list[Item]:
    source = plan.sources.get(entry.suite.name)
    read = entry.suite.items(source)
    check_keys(read, source or f"suite {entry.suite.name}")
    items = list(read)[: plan.limit]
    if not items:
        raise DataError(f"suite {entry.suite.name} has no items: name a source that has, with --source")
    asked = items if plan.samples is None else [replace(item, samples=plan.samples) for item in items]
    _check_paths(plan.place(entry), asked)
    return asked


def _check_paths(place: Place, items: Sequence[Item]) -> None:
    """Raises `ConfigError` where two samples would be one file: it would have two seeds, and be counted twice."""
    paths = [place.path(item, sample) for item in items for sample in range(item.samples)]
    if len(set(paths)) < len(paths):
        shared = next(path for path, times in Counter(paths).items() if times > 1)
        raise ConfigError(
            f"suite {place.suite.name}: {len(paths) - len(set(paths))} files share their path with another, the first "
            f"is {shared}: give other keys, or fewer --samples"
        )


def _lay_out(entry: Entry, place: Place, items: Sequence[Item]) -> None:
    for path, text in entry.suite.texts(items).items():
        storage.write_bytes(place.file(path), text.encode(), aside=place.aside)
    if entry.truth is not None:
        for item in items:
            storage.write_bytes(place.truth(item), png(entry.truth(item)), aside=place.aside)


def generate(plan: Plan) -> None:
    """Draws or asks what is lacking of every suite and its controls, and describes what is there.

    Raises `ConfigError` if the folder holds another target's results, and the errors of the target.
    """
    target = plan.need_target()
    _claim(plan, target)
    places = [plan.place(entry, control) for entry in plan.entries for control in ("", *plan.controls(entry))]
    _make([place for place in places if place.control != "untrained"], target)
    if plan.untrained is not None:
        _make([place for place in places if place.control == "untrained"], plan.untrained)


def _claim(plan: Plan, target: Target) -> None:
    """Writes down what is evaluated, or sees that it is what was."""
    uri, identity = storage.join(plan.out, "target.json"), target.identity()
    if storage.exists(uri):
        there = read_json(uri)
        changed = sorted(name for name in {*there, *identity} if there.get(name) != identity.get(name))
        if changed:
            first = changed[0]
            raise ConfigError(
                f"{uri} is of another target ({first} was {there.get(first)}, is {identity.get(first)}): give another "
                "--out"
            )
    write_json(uri, identity)


def _make(places: Sequence[Place], target: Target) -> None:
    """Makes what all these places lack in one go, so that a pool of actors starts once."""
    lacking = {place.uri: _lacking(place, place.read_items()) for place in places}
    work = [piece for pieces in lacking.values() for piece in pieces]
    began = time.monotonic()
    done: dict[str, Done] = {}
    with shown("evaluate: files", len(work)) as advance:
        for one in target.run(work):
            done[one.uri] = one
            advance()
    wall = (time.monotonic() - began) / max(len(work), 1)
    for place in places:
        of_place = [done[piece.uri] for piece in lacking[place.uri]]
        _describe(place, of_place, wall * len(of_place))
        _join(place)
        logger.info("%s: %d files made by %s", place.uri, sum(not one.fault for one in of_place), target.what)


def _join(place: Place) -> None:
    """Makes the grids that are not there, or not of the four tiles that lie there now."""
    items = place.read_items()
    grids = place.suite.grids(items)
    stale = other_grids(place, items, place.sums(items)) if grids else {}
    if not stale:
        return
    rows: dict[str, dict[str, Any]] = {}
    uri = place.file("grids.jsonl")
    if storage.exists(uri):
        rows = {row["path"]: row for row in read_rows(uri) if row.get("path") in grids}
    for path, sums in stale.items():
        tiles = [open_image(storage.read_bytes(place.file(part))) for part in grids[path]]
        data = png(join_tiles(tiles))
        storage.write_bytes(place.file(path), data, aside=place.aside)
        rows[path] = {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "tiles": sums}
    write_rows(uri, rows.values())


def _describe(place: Place, done: Sequence[Done], wall: float) -> None:
    """Writes files.jsonl, and adds to cost.json. What a killed run spent is not in that, nor are its files."""
    faults = {one.uri: one.fault for one in done if one.fault}
    made = {one.uri for one in done if not one.fault}
    place.write_made(place.describe(place.read_items(), faults, made))
    uri = place.file("cost.json")
    before: dict[str, Any] = read_json(uri) if storage.exists(uri) else dict.fromkeys(COSTS, 0)
    seconds = sum(one.seconds for one in done)
    spent = {"files": len(done) - len(faults), "seconds": seconds, "wall_seconds": wall}
    write_json(uri, {name: before[name] + spent[name] for name in COSTS})
    if faults:
        first = next(iter(faults.values()))
        logger.warning("%s: %d prompts or pictures were refused, the first: %s", place.uri, len(faults), first)


def _lacking(place: Place, items: Sequence[Item]) -> list[Work]:
    present = place.present(items) - place.outdated(items)
    kind: Kind = "ask" if place.asks else KINDS[place.control]
    return [
        Work(
            kind=kind,
            uri=place.file(path),
            aside=place.aside,
            prompt=item.prompt,
            seed=place.seed(item, sample),
            picture=item.record["image"] if place.asks else place.truth(item) if kind == "decode" else None,
        )
        for item in items
        for sample in range(item.samples)
        if (path := place.path(item, sample)) not in present
    ]


@contextmanager
def shown(label: str, total: int) -> Iterator[Any]:
    """A bar on stderr that the body advances by one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda: progress.advance(task, 1)
