"""MME: two questions about each image, one to be answered yes and one no. Pure.

Source: the paper (https://arxiv.org/abs/2306.13394) and lmms-eval's parsing of replies.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from blip3o.errors import DataError
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import require
from blip3o.evaluate.suites.questions.common import EXACT_MATCH, UNCHECKED, read_questions, replies
from blip3o.evaluate.suites.suite import INCOMPLETE, Suite, reasons

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OFFICIAL_QUESTIONS = 2374
BEST = 200.0  # of a subtask: accuracy plus accuracy of pairs, in percent


def yes_or_no(reply: str) -> str | None:
    """The answer in a reply, as lmms-eval parses it: only `y` or `n`, or else `yes` or `no` in the first four letters.

    Replies are compared in lower case and without periods, `yes` first. So "Not at all" is a no, and "y, it is"
    neither.
    """
    said = reply.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said)
    return next((word for word in ("yes", "no") if word in said[:4]), None)


class Mme(Suite):
    """Pairs of questions: {id, image, question, answer (Yes or No), category}; a pair has one image and category."""

    name = "mme"
    protocol = "accuracy + accuracy of pairs, in percent, summed over subtasks"
    samples = 1
    kind: Literal["draw", "ask"] = "ask"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The questions of a local file.

        Raises `ConfigError`, and `DataError` for an answer that is neither yes nor no, or an image that does not have
        two questions in its category.
        """
        rows = read_questions(self.name, source, ("answer", "category"))
        for number, row in enumerate(rows, start=1):
            where = f"{source}, record {number}"
            require(row, ("answer", "category"), where, texts=("answer", "category"))
            if row["answer"].lower() not in ("yes", "no"):
                raise DataError(f"{where}: the answer is '{row['answer']}', expected Yes or No")
        items = tuple(Item(key=row["id"], prompt=row["question"], record=row, samples=1) for row in rows)
        for (category, image), pair in _pairs(items).items():
            if len(pair) != 2:
                raise DataError(f"{len(pair)} questions of category '{category}' about {image}: MME asks two of each")
        return items

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The sum over subtasks (200 each), from judgements {"reply": str}.

        `details` hold the sums `perception` and `cognition` (None unless all of their subtasks exist) and
        `n_unparsed`, the replies that are neither yes nor no and count as wrong.
        """
        answered, coverage = replies(items, judgements)
        right = {item.key: yes_or_no(reply) == item.record["answer"].lower() for item, reply in answered}
        subtasks = _subtasks(items, right)
        parts = [value for value in subtasks.values() if value is not None]
        single = len(items) - sum(len(pair) for pair in _pairs(items).values() if len(pair) == 2)
        whole = coverage.complete and not single
        checks = {
            UNCHECKED: True,
            f"{single} questions are not in pairs, two about each picture": single > 0,
            f"{len(items)} questions instead of {OFFICIAL_QUESTIONS}": len(items) != OFFICIAL_QUESTIONS,
            INCOMPLETE: not coverage.complete,
        }
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=EXACT_MATCH,
            coverage=coverage,
            overall=sum(parts) if whole else None,
            categories=subtasks,
            comparable=False,
            why_not=reasons(checks),
            best=BEST * len(subtasks),
            details={
                "perception": _sum(subtasks, PERCEPTION) if whole else None,
                "cognition": _sum(subtasks, COGNITION) if whole else None,
                "n_unparsed": sum(yes_or_no(reply) is None for _, reply in answered),
            },
        )


def _pairs(items: Iterable[Item]) -> dict[tuple[Any, Any], list[str]]:
    pairs: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for item in items:
        pairs[item.record["category"], item.record["image"]].append(item.key)
    return pairs


def _subtasks(items: Sequence[Item], right: Mapping[str, bool]) -> dict[str, float | None]:
    """Each subtask's points over the pairs whose questions were both answered; other pairs do not count."""
    pairs: dict[str, list[list[bool]]] = {str(item.record["category"]): [] for item in items}
    for (category, _), keys in _pairs(items).items():
        if len(keys) == 2 and all(key in right for key in keys):
            pairs[str(category)].append([right[key] for key in keys])
    return {name: _points(of_task) for name, of_task in pairs.items()}


def _points(pairs: Sequence[Sequence[bool]]) -> float | None:
    if not pairs:
        return None
    singles = [flag for pair in pairs for flag in pair]
    return 100 * sum(singles) / len(singles) + 100 * sum(all(pair) for pair in pairs) / len(pairs)


def _sum(subtasks: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    values = [subtasks.get(name) for name in names]
    return None if None in values else sum(value for value in values if value is not None)
