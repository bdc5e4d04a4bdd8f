"""The stage generate: has the target draw or answer what is missing, and describes the files that exist."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.evidence import stale_grids
from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.rows import read_json, read_rows, write_json, write_rows
from blip3o.evaluate.benchmark.work import Done, Kind, Target, Work, png
from blip3o.evaluate.progress import progress_bar
from blip3o.evaluate.records import Item
from blip3o.evaluate.suites.grids import join_tiles

logger = logging.getLogger(__name__)

# What a control's files are; the suite itself is the control "".
KIND_OF_CONTROL: Mapping[str, Kind] = {"": "draw", "untrained": "draw", "upper_bound": "decode"}
COSTS = ("files", "seconds", "wall_seconds")


def generate(plan: Plan) -> None:
    """Makes the missing files of every suite and its controls, and describes all files.

    Raises `ConfigError` if the folder holds results of another target, and the errors of the target.
    """
    target = plan.need_target()
    _claim(plan, target)
    folders = [plan.folder(spec, control) for spec in plan.suites for control in ("", *plan.controls(spec))]
    _make([folder for folder in folders if folder.control != "untrained"], target)
    if plan.untrained is not None:
        _make([folder for folder in folders if folder.control == "untrained"], plan.untrained)


def _claim(plan: Plan, target: Target) -> None:
    """Records what is evaluated, or checks that it is the recorded target."""
    uri, identity = storage.join(plan.out, "target.json"), target.identity()
    if storage.exists(uri):
        recorded = read_json(uri)
        changed = sorted(name for name in {*recorded, *identity} if recorded.get(name) != identity.get(name))
        if changed:
            first = changed[0]
            raise ConfigError(
                f"{uri} is of another target ({first} was {recorded.get(first)}, is {identity.get(first)}): "
                "give another --out"
            )
    write_json(uri, identity)


def _make(folders: Sequence[SuiteFolder], target: Target) -> None:
    """Makes the missing files of all folders in one call, so that a pool of actors starts only once."""
    missing = {folder.uri: _missing(folder, folder.read_items()) for folder in folders}
    work = [piece for pieces in missing.values() for piece in pieces]
    began = time.monotonic()
    done: dict[str, Done] = {}
    with progress_bar("evaluate: files", len(work)) as advance:
        for one in target.run(work):
            done[one.uri] = one
            advance(1)
    # The target mixes the work of all folders, so each gets its share of the wall time by number of files.
    wall_each = (time.monotonic() - began) / max(len(work), 1)
    for folder in folders:
        of_folder = [done[piece.uri] for piece in missing[folder.uri]]
        _describe(folder, of_folder, wall_each * len(of_folder))
        _join_grids(folder)
        logger.info("%s: %d files made by %s", folder.uri, sum(not one.fault for one in of_folder), target.what)


def _missing(folder: SuiteFolder, items: Sequence[Item]) -> list[Work]:
    present = folder.present(items) - folder.outdated(items)
    kind: Kind = "ask" if folder.asks else KIND_OF_CONTROL[folder.control]
    work = []
    for item in items:
        for sample in range(item.samples):
            path = folder.path(item, sample)
            if path in present:
                continue
            piece = Work(
                kind=kind,
                uri=folder.file(path),
                partial=folder.partial,
                prompt=item.prompt,
                seed=folder.seed(item, sample),
                picture=_picture(folder, kind, item),
            )
            work.append(piece)
    return work


def _picture(folder: SuiteFolder, kind: Kind, item: Item) -> str | None:
    """The URI of the image that the work on an item starts from."""
    if kind == "ask":
        return item.record["image"]
    return folder.truth(item) if kind == "decode" else None


def _join_grids(folder: SuiteFolder) -> None:
    """Joins the grids that are missing, or are not of the four tiles that exist now."""
    items = folder.read_items()
    grids = folder.suite.grids(items)
    stale = stale_grids(folder, items, folder.sums(items)) if grids else {}
    if not stale:
        return
    rows: dict[str, dict[str, Any]] = {}
    uri = folder.file("grids.jsonl")
    if storage.exists(uri):
        rows = {row["path"]: row for row in read_rows(uri) if row.get("path") in grids}
    for path, sums in stale.items():
        tiles = [open_image(storage.read_bytes(folder.file(part))) for part in grids[path]]
        data = png(join_tiles(tiles))
        storage.write_bytes(folder.file(path), data, aside=folder.partial)
        rows[path] = {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "tiles": sums}
    write_rows(uri, rows.values())


def _describe(folder: SuiteFolder, done: Sequence[Done], wall: float) -> None:
    """Writes files.jsonl, and adds to cost.json, which does not know about the files and seconds of a killed run."""
    faults = {one.uri: one.fault for one in done if one.fault}
    made = {one.uri for one in done if not one.fault}
    folder.write_files(folder.describe(folder.read_items(), faults, made))
    uri = folder.file("cost.json")
    before: dict[str, Any] = read_json(uri) if storage.exists(uri) else dict.fromkeys(COSTS, 0)
    seconds = sum(one.seconds for one in done)
    spent = {"files": len(done) - len(faults), "seconds": seconds, "wall_seconds": wall}
    write_json(uri, {name: before[name] + spent[name] for name in COSTS})
    if faults:
        first = next(iter(faults.values()))
        logger.warning("%s: %d prompts or pictures were refused, the first: %s", folder.uri, len(faults), first)
