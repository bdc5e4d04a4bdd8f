"""ImgEdit and GEdit: scores of edited images, from the grades of a vision-language judge. Pure.

An unreadable reply is a fault (the official GEdit scorer puts a random number in its place). Otherwise replies are
parsed as the official parsers do, but without the text of a model's reasoning.
Source: the papers of ImgEdit (https://arxiv.org/abs/2505.20275) and GEdit (https://arxiv.org/abs/2504.17761).
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.evaluate.judges.replies import answer
from blip3o.evaluate.suites.suite import mean

IMGEDIT_GRADES, IMGEDIT_RANGE = 3, (1, 5)
GEDIT_RANGE = (0, 10)

_IMGEDIT_LINE = re.compile(
    r"^[^\n:：]*[:：][ \t*]*([0-9]{1,9})(?:\.0*)?[ \t*]*(?:(?:/|out of)[ \t]*5)?\.?[ \t*\r]*$", re.MULTILINE
)
# JSON as models write it: with comments and trailing commas, which strict JSON does not allow.
_STRING = r'"(?:\\.|[^"\\])*"'
_STRING_OR_COMMENT = re.compile(rf"{_STRING}|(?<!:)//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING_OR_COMMA = re.compile(rf"{_STRING}|,(?=\s*[}}\]])", re.DOTALL)
# The delimiter that GEdit's instructions ask for around the JSON object.
_DELIMITED = re.compile(r"\|\|V\^=\^V\|\|(.*?)\|\|V\^=\^V\|\|", re.DOTALL)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_GRADE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)(?: ?/ ?10)?")


def imgedit_grades(reply: str) -> tuple[list[int] | None, str]:
    """The three grades (1 to 5) of the lines `label: number` in a reply, and ""; or None and the fault.

    Unlike the official parser, this one accepts a final period and the scale ("4/5") after the number: the official one
    drops such a line and averages over the rest.
    """
    text = answer(reply)
    if text is None:
        return None, "ends within its reasoning"
    numbers = [int(number) for number in _IMGEDIT_LINE.findall(text)]
    low, high = IMGEDIT_RANGE
    if len(numbers) != IMGEDIT_GRADES:
        return None, f"{len(numbers)} lines 'label: number' instead of {IMGEDIT_GRADES}"
    if not all(low <= number <= high for number in numbers):
        return None, f"grades {numbers}, expected {low} to {high}"
    return numbers, ""


def imgedit_score(items: Mapping[str, tuple[str, Sequence[int] | None]]) -> dict[str, Any]:
    """ImgEdit's means from {key: (edit type, three grades or None)}, rounded to 2 digits at each step.

    `types`: the mean over a type's items that have grades; `overall`: the mean over types, None unless all items have.
    """
    by_type: dict[str, list[float]] = defaultdict(list)
    for edit_type, grades in items.values():
        by_type[edit_type] += [] if grades is None else [round(sum(grades) / len(grades), 2)]
    types = {name: _rounded(mean(values)) for name, values in sorted(by_type.items())}
    failed = sum(grades is None for _, grades in items.values())
    parts = [value for value in types.values() if value is not None]
    return {
        "overall": _rounded(mean(parts)) if items and not failed else None,
        "types": types,
        "n_expected": len(items),
        "n_parse_failed": failed,
    }


def gedit_grades(reply: str) -> tuple[list[float] | None, str]:
    """The grades (0 to 10, one or two) of a reply, and ""; or None and the fault.

    They are the `score` of a JSON object: a list, as in the official format, or a number, or a text of numbers. Line
    breaks within its texts, trailing commas and code fences are accepted, and so is a bare number or list. A single
    grade counts as both.
    """
    text = answer(reply)
    if text is None:
        return None, "ends within its reasoning"
    marked = _DELIMITED.search(text)
    text = _FENCE.sub("", marked.group(1) if marked else text).strip()
    scores = _scores(text)
    if len({json.dumps(score) for score in scores}) > 1:
        return None, f"several scores: {', '.join(map(json.dumps, scores))}"
    if not scores and "{" in text:
        return None, "no JSON object with a score"
    return _two_grades(scores[0] if scores else text)


class _Pairs(list[tuple[str, Any]]):
    """The fields of a JSON object, including duplicates."""


def _scores(text: str) -> list[Any]:
    """Every value of a field `score` in the JSON objects of a text."""
    return _scores_in(_keep_strings(_STRING_OR_COMMA, text)) or _scores_in(
        _keep_strings(_STRING_OR_COMMA, _keep_strings(_STRING_OR_COMMENT, text))
    )


def _keep_strings(pattern: re.Pattern[str], text: str) -> str:
    """The text without the matches of a pattern; matches that are strings stay."""
    return pattern.sub(lambda match: match.group() if match.group().startswith('"') else "", text)


def _scores_in(text: str) -> list[Any]:
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_Pairs)
    found: list[Any] = []
    # Every "{" is tried, because prose before the object may contain braces of its own.
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value, end = _Pairs(), start + 1
        scores = [score for name, score in value if name.strip().lower() in ("score", "scores")]
        found += scores
        start = text.find("{", end if scores else start + 1)
    return found


def _two_grades(score: object) -> tuple[list[float] | None, str]:
    parts = re.sub(r"^\[(.*)\]$", r"\1", score.strip()).split(",") if isinstance(score, str) else score
    grades = [_grade(one) for one in (parts if isinstance(parts, list) else [parts])]
    low, high = GEDIT_RANGE
    shown = json.dumps(score)[:80]
    if len(grades) not in (1, 2) or None in grades:
        return None, f"score is {shown}, expected a list of two numbers"
    if not all(grade is not None and low <= grade <= high for grade in grades):
        return None, f"score is {shown}, expected {low} to {high}"
    return [grade for grade in grades if grade is not None], ""


def _grade(value: object) -> float | None:
    if isinstance(value, str):
        match = _GRADE.fullmatch(value.strip().strip("\"'*"))
        return float(match.group(1)) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e9 else math.inf


def gedit_item(consistency: Sequence[float], quality: Sequence[float]) -> dict[str, float]:
    """One edit's semantic consistency (its lower grade), perceptual quality (its lower grade) and overall √(SC·PQ)."""
    sc, pq = min(consistency), min(quality)
    return {"sc": sc, "pq": pq, "overall": math.sqrt(sc * pq)}


def gedit_score(items: Mapping[str, tuple[str, Mapping[str, float] | None]]) -> dict[str, Any]:
    """GEdit's means from {key: (task, `gedit_item` or None)}: of each task, then over tasks.

    `sc`, `pq` and `overall` are None unless all items were graded; `tasks` are means over those that were.
    """
    by_task: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for task, value in items.values():
        by_task[task] += [] if value is None else [value]
    names = ("sc", "pq", "overall")
    tasks = {
        task: {name: mean(v[name] for v in of_task) for name in names} for task, of_task in sorted(by_task.items())
    }
    failed = sum(value is None for _, value in items.values())
    whole = bool(items) and not failed
    overall = {name: mean(t[name] or 0.0 for t in tasks.values()) if whole else None for name in names}
    return {**overall, "tasks": tasks, "n_expected": len(items), "n_parse_failed": failed}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
