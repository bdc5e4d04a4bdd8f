"""Scores of edited images, ImgEdit and GEdit, from the grades of a vision-language judge. Pure.

A reply that cannot be read is a fault; the official GEdit scorer puts a random number in its place, which is not done
here. Source: the papers of ImgEdit (https://arxiv.org/abs/2505.20275) and GEdit
(https://arxiv.org/abs/2504.17761).
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.evaluate.suite import mean

IMGEDIT_GRADES, IMGEDIT_RANGE = 3, (1, 5)
GEDIT_RANGE = (0, 10)


def imgedit_grades(reply: str) -> tuple[list[int] | None, str]:
    """The three grades (1 to 5) of the lines `label: number` in a reply, and ""; or None and the fault.

    A final period is no part of the number (the official reader loses such a line and averages over the rest).
    """
    found = re.findall(r"^[^\n:]*:[ \t*]*(\d+)\.?[ \t*]*$", reply, re.MULTILINE)
    numbers = [int(number) for number in found]
    low, high = IMGEDIT_RANGE
    if len(numbers) != IMGEDIT_GRADES:
        return None, f"{len(numbers)} lines 'label: number' instead of {IMGEDIT_GRADES}"
    if not all(low <= number <= high for number in numbers):
        return None, f"grades {numbers}, expected {low} to {high}"
    return numbers, ""


def imgedit_score(items: Mapping[str, tuple[str, Sequence[int] | None]]) -> dict[str, Any]:
    """ImgEdit's means from {key: (edit type, three grades or None)}, rounded to 2 digits at each step as officially.

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
    """The two grades (0 to 10) of a reply with a JSON object that has a list `score`, and ""; or None and the fault."""
    start, end = reply.find("{"), reply.rfind("}")
    try:
        value = json.loads(reply[start : end + 1])
    except json.JSONDecodeError as error:
        return None, f"no JSON object: {error.msg}"
    grades = value.get("score") if isinstance(value, dict) else None
    low, high = GEDIT_RANGE
    if not isinstance(grades, list) or len(grades) != 2 or not all(type(grade) in (int, float) for grade in grades):
        return None, f"score is {grades!r}, expected a list of two numbers"
    if not all(low <= grade <= high for grade in grades):
        return None, f"score is {grades}, expected {low} to {high}"
    return [float(grade) for grade in grades], ""


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
