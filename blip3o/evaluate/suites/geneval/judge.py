"""Who judges GenEval: a detector plug-in in this process, or the official scorer's `results.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import DataError
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner, import_runner, load_plug_in, split_spec
from blip3o.evaluate.records import Item, Judgement
from blip3o.evaluate.suites.geneval.suite import OFFICIAL_JUDGE, GenEval, checked_record, judgement
from blip3o.evaluate.suites.parsing import json_lines, parse_json, shown
from blip3o.evaluate.suites.suite import differing

MAX_DIGITS = 10  # of the number that a file or folder is named by


def make_judge(request: JudgeRequest) -> JudgeRunner:
    """A detector `f(image) -> {class: [Detected]}`, or the official scorer's rows. Raises `ConfigError` without one."""
    kind, rest = split_spec("geneval", request.spec, "MODULE:FUNCTION, file:URI or official:URI")
    if kind in ("file", "official"):
        data = storage.read_bytes(rest)
        imported = import_results(data, request.items, where=rest)
        return import_runner(imported, data, OFFICIAL_JUDGE if kind == "official" else None)
    detect, judge = load_plug_in(kind, rest)

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        return judgement(item, sample, detect(open_image(data)))

    return JudgeRunner(judge=judge, judge_sample=judge_sample)


def import_results(data: bytes, items: Sequence[Item], *, where: str = "results.jsonl") -> list[Judgement]:
    """The judgements in the official scorer's `results.jsonl`: rows with filename, prompt, correct and reason.

    The filename ends in `<folder number>/samples/<sample number>.png`. Raises `DataError` for rows that are damaged,
    that belong to no item or sample, or whose prompt, tag or `metadata` (the record that the scorer read) differs from
    the item's.
    """
    by_number = {_number(item.key): item for item in items}
    rows = json_lines(data, where)
    return [_imported(row, by_number, f"{where}, record {number}") for number, row in enumerate(rows, start=1)]


def _imported(row: Mapping[str, Any], items: Mapping[int, Item], where: str) -> Judgement:
    if not (isinstance(row.get("filename"), str) and isinstance(row.get("correct"), bool)):
        raise DataError(f"{where} lacks a filename or a true or false correct: expected a row of GenEval's scorer")
    path = PurePosixPath(row["filename"])
    folder = path.parent.parent.name
    item = items.get(_number(folder)) if folder.isdecimal() else None
    if item is None or not 0 <= _number(path.stem) < item.samples:
        raise DataError(f"{where} is of '{row['filename']}', which is no picture of these items")
    if row.get("prompt") != item.prompt:
        raise DataError(f"{where} judged '{row.get('prompt')}', but the prompt of {item.key} is '{item.prompt}'")
    _check_metadata(row, item, where)
    return Judgement(
        key=item.key,
        sample=_number(path.stem),
        value={"correct": row["correct"], "reason": str(row.get("reason", ""))},
    )


def _number(name: str) -> int:
    """The number that names a file or folder; -1 for any other name."""
    return int(name) if name.isdecimal() and len(name) < MAX_DIGITS else -1


def _check_metadata(row: Mapping[str, Any], item: Item, where: str) -> None:
    """Raises `DataError` if the scorer used another record, for example from an edited `metadata.jsonl`."""
    suite = GenEval()
    if row.get("tag", item.record["tag"]) != item.record["tag"]:
        raise DataError(f"{where} has the tag {shown(row['tag'])}, but that of {item.key} is '{item.record['tag']}'")
    if row.get("metadata") is not None:  # JSON text as in the official file, or the object itself
        stated = row["metadata"]
        record = checked_record(
            parse_json(stated, f"{where}: metadata") if isinstance(stated, str) else stated, f"{where}: metadata"
        )
        if differing([replace(item, record=record)], [item], suite.facts):
            raise DataError(f"{where} was judged by another record than that of {item.key}: {shown(record)}")
