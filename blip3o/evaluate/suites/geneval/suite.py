"""GenEval: does an image show the objects, numbers, colours and positions that its prompt states? Judged by detections.

The rules are the official scorer's, down to its ties and strict bounds; any detector and colour classifier can supply
the detections. Source: the GenEval paper (https://arxiv.org/abs/2310.11513) and its scorer's behaviour.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3o.data.sets.scenes_world import relations
from blip3o.errors import DataError
from blip3o.evaluate.metrics.intervals import bootstrap
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.geneval import prompts as geneval_prompts
from blip3o.evaluate.suites.parsing import json_lines, require, shown
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, collect_values, differing, mean, reasons
from blip3o.storage import read_bytes

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # a detection counts only if its score is above it
MAX_OBJECTS = 16  # of one class
SAMPLES = 4
OFFICIAL_JUDGE = Judge(id="mask2former-swin-s-lsj-coco + clip-vit-l-14", version="mmdet 2")
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """One detection: `box` = (x0, y0, x1, y1) in pixels, its score, and the input of the colour classifier.

    That input is `color` if the detector already knows it, or a `mask` (bool [H, W] of the whole image).
    """

    box: Box
    score: float
    color: str | None = None
    mask: np.ndarray | None = None


# Maps a class name and its detections to the colour of each (one of GenEval's ten words, or any other).
ColorClassifier = Callable[[str, Sequence[Detected]], Sequence[str | None]]
Detections = Mapping[str, Sequence[Detected]]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an image shows what its record states; `reason` lists what is wrong ("" where nothing is)."""

    correct: bool
    reason: str


def known_colors(name: str, found: Sequence[Detected]) -> list[str | None]:
    """The colour classifier of a detector that names colours itself."""
    return [one.color for one in found]


def kept(detections: Detections, *, counting: bool) -> dict[str, list[Detected]]:
    """The detections that count, by class: above the threshold, best first, at most 16, without removing overlaps.

    As in the official scorer, equal scores are in reverse order, and scores are compared in the detector's float32.
    """
    return {name: _ranked(found, COUNTING_THRESHOLD if counting else THRESHOLD) for name, found in detections.items()}


def _ranked(found: Sequence[Detected], threshold: float) -> list[Detected]:
    scores = np.array([one.score for one in found], dtype=np.float32)
    order = np.argsort(scores, kind="stable")[::-1]
    return [found[place] for place in order[scores[order] > np.float32(threshold)][:MAX_OBJECTS]]


def check(record: Mapping[str, Any], detections: Detections, colors: ColorClassifier = known_colors) -> Verdict:
    """The verdict on one picture's raw detections, by a record {tag, include, exclude (optional)}.

    Every `include` clause must hold, and no `exclude` clause may. A clause's `position` [relation, i] is relative to
    the objects of clause i.
    """
    objects = kept(detections, counting=record["tag"] == "counting")
    matched: list[list[Detected]] = []  # the objects of each clause, empty where it does not hold
    faults = []
    for clause in record["include"]:
        found = objects.get(clause["class"], [])[: clause["count"]]
        fault = _clause_fault(clause, found, matched, colors)
        matched.append([] if fault else found)
        faults += [fault] if fault else []
    for clause in record.get("exclude", []):
        seen = len(objects.get(clause["class"], []))
        if seen >= clause["count"]:
            faults.append(f"expected fewer than {clause['count']} of {clause['class']}, found {seen}")
    return Verdict(correct=not faults, reason="; ".join(faults))


def _clause_fault(
    clause: Mapping[str, Any], found: list[Detected], matched: list[list[Detected]], colors: ColorClassifier
) -> str | None:
    name, count = clause["class"], clause["count"]
    if len(found) < count:
        return f"expected {count} of {name}, found {len(found)}"
    if "color" in clause:
        seen = list(colors(name, found))
        if seen.count(clause["color"]) < count:
            return f"expected {count} {clause['color']} of {name}, found {', '.join(map(str, seen))}"
    if "position" in clause:
        relation, target = clause["position"]
        if not matched[target]:
            return f"nothing for {name} to be {relation}"
        holding = [relations(one.box, other.box) for one in found for other in matched[target]]
        if not all(relation in names for names in holding):
            return f"expected {name} {relation} the other, found {_words(holding)}"
    return None


def _words(holding: Iterable[frozenset[str]]) -> str:
    return ", ".join(sorted({" and ".join(sorted(names)) or "no relation" for names in holding}))


def grade(item: Item, value: Mapping[str, Any]) -> float:
    """The grade of one image: 1 where it shows everything that its record states, else 0."""
    return float(value["correct"])


def reason(value: Mapping[str, Any]) -> str:
    """What is wrong with an image, in a line."""
    return str(value["reason"]) or "as asked"


def judgement(item: Item, sample: int, detections: Detections, colors: ColorClassifier = known_colors) -> Judgement:
    """The judgement of one image of an item, as `score` takes it: {"correct": bool, "reason": str}."""
    verdict = check(item.record, detections, colors)
    return Judgement(key=item.key, sample=sample, value={"correct": verdict.correct, "reason": verdict.reason})


class OfficialLayout(Suite):
    """The file layout of GenEval's scorer, for any suite with records in GenEval's format."""

    def image_path(self, item: Item, sample: int) -> str:
        """`images/00000/samples/0000.png`."""
        return f"images/{item.key}/samples/{sample:04d}.png"

    def texts(self, items: Sequence[Item]) -> dict[str, str]:
        """`images/00000/metadata.jsonl` of each item: its record as one JSON object."""
        return {f"images/{item.key}/metadata.jsonl": json.dumps(item.record) for item in items}


class GenEval(OfficialLayout):
    """The benchmark with its own prompts, or with a user's file of records (for example rewritten prompts)."""

    name = "geneval"
    protocol = "official: score > 0.3 (counting 0.9), mean over tags of per-image accuracy"
    samples = SAMPLES

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The 553 items, or those of a JSONL file of GenEval records. Raises `DataError` for another format."""
        rows = _read_records(source) if source else geneval_prompts.records()
        return tuple(
            Item(key=f"{number:05d}", prompt=row["prompt"], record=row, samples=self.samples)
            for number, row in enumerate(rows)
        )

    def facts(self, item: Item) -> dict[str, Any]:
        """The fields that a scorer reads: prompt, tag and clauses. Others, such as an index, decide nothing."""
        clauses = {name: _stated(item.record.get(name, [])) for name in ("include", "exclude")}
        return {"prompt": item.record.get("prompt"), "tag": item.record.get("tag"), **clauses}

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The mean over tags of the share of correct images, from judgements {"correct": bool}."""
        official = self.items(None)
        prompts, theirs = ([(item.key, item.prompt) for item in each] for each in (items, official))
        changed = differing(items, official, self.facts) if prompts == theirs else []
        why_not = reasons(
            {
                "the prompts are not GenEval's 553": prompts != theirs,
                f"{len(changed)} records are not GenEval's, the first is {changed[:1]}": bool(changed),
                f"not {SAMPLES} samples of each prompt": any(item.samples != SAMPLES for item in items),
                f"the judge is not {OFFICIAL_JUDGE.id}": not judge.same(OFFICIAL_JUDGE),
            }
        )
        return score_by_tag(self, items, judgements, judge, why_not=why_not)


def score_by_tag(
    suite: Suite, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge, *, why_not: tuple[str, ...]
) -> Score:
    """GenEval's score for any suite of items with a `tag` and judgements {"correct": bool}.

    `details`: `correct_images` is the share of all scored images, and `correct_prompts` the share of prompts with at
    least one correct image (None where the coverage is incomplete).
    """
    values, coverage = collect_values(items, judgements)
    tag_of = {item.key: str(item.record.get("tag")) for item in items}
    by_tag: dict[str, dict[str, list[bool]]] = {tag: {} for tag in tag_of.values()}
    for (key, sample), value in values.items():
        if not isinstance(value.get("correct"), bool):
            raise DataError(f"the finding on sample {sample} of '{key}' is {shown(dict(value))}: judge again")
        by_tag[tag_of[key]].setdefault(key, []).append(value["correct"])
    categories = {tag: mean(flag for flags in prompts.values() for flag in flags) for tag, prompts in by_tag.items()}
    prompts = [flags for of_tag in by_tag.values() for flags in of_tag.values()]
    parts = [value for value in categories.values() if value is not None]
    whole = coverage.complete
    return Score(
        suite=suite.name,
        protocol=suite.protocol,
        judge=judge,
        coverage=coverage,
        overall=mean(parts) if whole else None,
        categories=categories,
        comparable=whole and not why_not,
        why_not=(*why_not, *reasons({INCOMPLETE: not whole})),
        interval=bootstrap(_prompt_means(by_tag), suite.name) if whole else None,
        details={
            "correct_images": mean(flag for flags in prompts for flag in flags),
            "correct_prompts": mean(any(flags) for flags in prompts) if whole else None,
        },
    )


def _prompt_means(by_tag: Mapping[str, Mapping[str, Sequence[bool]]]) -> list[list[float]]:
    return [[sum(flags) / len(flags) for flags in prompts.values()] for prompts in by_tag.values()]


def _read_records(uri: str) -> list[dict[str, Any]]:
    rows = json_lines(read_bytes(uri), uri)
    for number, row in enumerate(rows, start=1):
        checked_record(row, f"{uri}, record {number}")
    return rows


def checked_record(row: object, where: str) -> Mapping[str, Any]:
    """A record in the format of `check`. Raises `DataError` for anything else."""
    require(row, ("tag", "include", "prompt"), where, texts=("tag", "prompt"))
    assert isinstance(row, Mapping)  # checked by `require`
    for name in ("include", "exclude"):
        _check_clauses(row.get(name, []), f"{where}: {name}")
    return row


def _stated(clauses: object) -> object:
    """Clauses without the fields that no scorer reads; anything but a list of clauses is returned unchanged."""
    if not (isinstance(clauses, list) and all(isinstance(clause, Mapping) for clause in clauses)):
        return clauses
    read = ("class", "count", "color", "position")
    return [{name: clause[name] for name in read if name in clause} for clause in clauses]


def _check_clauses(clauses: object, where: str) -> None:
    """Raises `DataError` for clauses that are not in the format of `check`."""
    if not isinstance(clauses, list):
        raise DataError(f"{where} is {shown(clauses)}, expected a list of clauses")
    for place, clause in enumerate(clauses):
        here = f"{where} clause {place}"
        require(clause, ("class", "count"), here, texts=("class",))
        if type(clause["count"]) is not int or clause["count"] < 0:
            raise DataError(f"{here}: count is {shown(clause['count'])}, expected a whole number from 0")
        if not isinstance(clause.get("color", ""), str):
            raise DataError(f"{here}: color is {shown(clause['color'])}, expected a text")
        if "position" in clause:
            _check_position(clause["position"], place, here)


def _check_position(position: object, place: int, where: str) -> None:
    """Raises `DataError` for anything but a relation and the number of an earlier clause."""
    well = isinstance(position, list) and len(position) == 2 and isinstance(position[0], str)
    if not (isinstance(position, list) and well and type(position[1]) is int and 0 <= position[1] < place):
        raise DataError(f'{where}: position is {shown(position)}, expected ["left of", number of an earlier clause]')
