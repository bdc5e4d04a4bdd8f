"""The stage prepare: writes every suite's items, the small files of its layout, and its true images."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

from blip3o import storage
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.rows import write_rows
from blip3o.evaluate.benchmark.work import png
from blip3o.evaluate.records import Item
from blip3o.evaluate.suites.registry import SuiteSpec
from blip3o.evaluate.suites.suite import check_keys

logger = logging.getLogger(__name__)


def prepare(plan: Plan) -> None:
    """Writes items, layout and true images of every suite.

    Raises `ConfigError` where other items exist, since their images would be taken for these items'; `DataError`
    for a source that is not in the suite's format or has two items with one key.
    """
    for spec in plan.suites:
        folder = plan.folder(spec)
        items = _items(plan, spec)
        rows = [asdict(item) for item in items]
        if not storage.exists(folder.items_uri):
            _write_layout(spec, folder, items)
            write_rows(folder.items_uri, rows)  # last: it marks the rest as complete
        elif [asdict(item) for item in folder.read_items()] != json.loads(json.dumps(rows)):
            raise ConfigError(
                f"{folder.items_uri} holds other items than are asked for now (suite, source, --limit or --samples "
                "differ): give another --out"
            )
        logger.info("%s: %d items, %d files each", spec.name, len(items), items[0].samples)


def _items(plan: Plan, spec: SuiteSpec) -> list[Item]:
    source = plan.sources.get(spec.name)
    read = spec.suite.items(source)
    check_keys(read, source or f"suite {spec.name}")
    items = list(read)[: plan.limit]
    if not items:
        raise DataError(f"suite {spec.name} has no items: name a source that has, with --source")
    if plan.samples is not None:
        items = [replace(item, samples=plan.samples) for item in items]
    check_paths(plan.folder(spec), items)
    return items


def check_paths(folder: SuiteFolder, items: Sequence[Item]) -> None:
    """Raises `ConfigError` where two samples share a file: it would have two seeds, and be counted twice."""
    paths = [folder.path(item, sample) for item in items for sample in range(item.samples)]
    if len(set(paths)) < len(paths):
        shared = next(path for path, times in Counter(paths).items() if times > 1)
        raise ConfigError(
            f"suite {folder.suite.name}: {len(paths) - len(set(paths))} files share their path with another, the first "
            f"is {shared}: give other keys, or fewer --samples"
        )


def _write_layout(spec: SuiteSpec, folder: SuiteFolder, items: Sequence[Item]) -> None:
    for path, text in spec.suite.texts(items).items():
        storage.write_bytes(folder.file(path), text.encode(), aside=folder.partial)
    if spec.truth is not None:
        for item in items:
            storage.write_bytes(folder.truth(item), png(spec.truth(item)), aside=folder.partial)
